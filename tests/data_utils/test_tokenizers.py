from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from data_utils.tokenizers import BertWordPieceTokenizer, Tokenizer, make_tokenizer, padded_vocab_size
from data_utils.tokenizers.base import WIDE_SENTENCE_END_MARKS


def test_wordpiece_commands_stand_in_the_file_or_behind_it(vocab_file: Path) -> None:
    size = len(vocab_file.read_text(encoding="utf-8").split("\n")) - 1
    plain = make_tokenizer("BertWordPieceTokenizer", str(vocab_file))
    assert [(c.name, c.id) for c in plain.commands] == [
        ("pad", 0), ("ENC", 2), ("MASK", 4), ("unk", 1), ("sep", 3), ("eos", 0), ("sop", size), ("eop", size + 1)]
    assert plain.num_tokens == size + 2
    full = make_tokenizer("BertWordPieceTokenizer", str(vocab_file.parent), task_mask=True, decoder_mask=True,
                          num_sentinels=2)
    names = ["gMASK", "sMASK", "dBLOCK", "MASK1", "sop1", "MASK2", "sop2"]
    assert [full.command_id(name) for name in names] == list(range(size + 2, size + 9))
    assert full.num_tokens == size + 9
    only_dblock = make_tokenizer("BertWordPieceTokenizer", str(vocab_file), decoder_mask=True)
    assert only_dblock.command_id("dBLOCK") == size + 2


def test_wordpiece_procedure(tokenizer: Tokenizer) -> None:
    words = [tokenizer.id_to_token(token) for token in tokenizer.encode("The CATS,\tsat\u200b on\x00 the mät!\n")]
    assert words == ["the", "cat", "##s", ",", "sat", "on", "the", "mat", "!"]
    assert tokenizer.encode("   \n") == [] and tokenizer.encode("") == []
    assert tokenizer.encode("x" * 101) == [tokenizer.command_id("unk")]
    assert len(tokenizer.encode("x" * 100)) == 100
    assert tokenizer.encode("cat\x01dog \x1cmat") == tokenizer.encode("catdog mat")  # a control character is no blank
    assert tokenizer.encode("ΣΑΣ") == tokenizer.encode("σας")  # final sigma
    assert tokenizer.decode(tokenizer.encode("cats sat") + [tokenizer.num_tokens - 1]) == "cats sat"


def test_remembered_words_equal_the_engine(tokenizer: Tokenizer) -> None:
    texts = ["The cat's 'mat'... IS warm—it is: é é Σας!", "don't (the) [cat] a--b",
             "你好 the 世界cat", "a\u00a0b\u3000cat",
             "Cat" * 30, "e\u0301 ice\u0301 \u0301a"]
    engine = tokenizer._words  # the cache around the engine
    for text in texts:
        assert tokenizer.encode(text) == engine.encode(text) == tokenizer.encode(text)


def test_commands_are_cut_out_of_text(tokenizer: Tokenizer, bpe_folder: Path) -> None:
    ids = tokenizer.encode("the[MASK]cat [gMASK] [mask] [CLS]")
    assert tokenizer.command_id("MASK") == ids[1] and tokenizer.command_id("gMASK") == ids[3]
    assert ids[-1] == tokenizer.command_id("ENC") and ids.count(tokenizer.command_id("MASK")) == 1
    assert tokenizer.command_id("MASK") not in tokenizer.encode_plain("the [MASK]")
    bpe = make_tokenizer("GPT2BPETokenizer", str(bpe_folder))
    the, blank = bpe.encode("the")[0], bpe.encode_plain("a ")[-1]
    assert bpe.encode("the  [MASK] the") == [the, bpe.command_id("MASK"), *bpe.encode_plain(" the")]  # strips left
    assert bpe.encode("the [SEP]") == [the, blank, bpe.command_id("sep")]  # does not


def test_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    texts = ["the cat", "", "[MASK]", "a [CLS][CLS] dog!", " \t", "no"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_gpt2_layout_and_round_trip(bpe_folder: Path) -> None:
    bpe = make_tokenizer("GPT2BPETokenizer", str(bpe_folder), task_mask=True, decoder_mask=True)
    size = 266
    assert [(c.name, c.id) for c in bpe.commands] == [
        ("pad", size - 1), ("eos", size - 1), ("sop", size), ("eop", size + 1), ("ENC", size + 2), ("MASK", size + 3),
        ("sep", size + 4), ("unk", size + 5), ("gMASK", size + 6), ("sMASK", size + 7), ("dBLOCK", size + 8)]
    text = "The cat's naïve \u4f60 [MASK]?"
    assert bpe.decode(bpe.encode(text)) == text.replace(" [MASK]", "[MASK]")
    assert make_tokenizer("GPT2BPETokenizer", str(bpe_folder / "vocab.json")).fingerprint() != bpe.fingerprint()


def test_roberta_layout(bpe_folder: Path, tmp_path: Path) -> None:
    tokens = list(json.loads((bpe_folder / "vocab.json").read_text()))[:-1]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text((bpe_folder / "merges.txt").read_text())
    roberta = make_tokenizer("GPT2BPETokenizer", str(tmp_path))
    ids = {c.name: c.id for c in roberta.commands}
    last = len(tokens) - 1
    assert ids == {"pad": 2, "eos": 2, "sep": 2, "ENC": 0, "MASK": last, "unk": 3, "sop": last + 1, "eop": last + 2}
    assert roberta.num_tokens == last + 3


def test_words_of_verbalizers(tokenizer: Tokenizer, bpe_folder: Path) -> None:
    assert tokenizer.word_to_id(" Yes") == tokenizer.encode("yes")[0]
    with pytest.raises(ValueError, match="maybe"):
        tokenizer.word_to_id("maybe")
    bpe = make_tokenizer("GPT2BPETokenizer", str(bpe_folder))
    assert bpe.id_to_token(bpe.word_to_id(" Yes")) == "Yes"
    assert bpe.id_to_token(bpe.word_to_id(" Yes", keep_blank=True)) == "ĠYes"
    with pytest.raises(ValueError, match="not one piece"):
        bpe.word_to_id(" neither")


@pytest.mark.parametrize(("fixed", "expected", "total"), [
    (False, {"sop": 6, "eop": 7, "gMASK": 7, "sMASK": 8, "dBLOCK": 9}, 10),
    (True, {"sop": 6, "eop": 7, "sMASK": 8, "gMASK": 9, "dBLOCK": 10}, 11)])
def test_both_chinese_tables(sentencepiece_file: Path, fixed: bool, expected: dict[str, int], total: int) -> None:
    chinese = make_tokenizer("ChineseSPTokenizer", str(sentencepiece_file), task_mask=True, decoder_mask=True,
                             fix_command_token=fixed)
    size = chinese.num_text_tokens
    assert {name: chinese.command_id(name) - size for name in expected} == expected
    assert chinese.num_tokens == size + total
    assert chinese.encode("the cat [MASK]the mat")[-len(chinese.encode("the mat")) - 1] == chinese.command_id("MASK")
    assert pickle.loads(pickle.dumps(chinese)).encode("the cat") == chinese.encode("the cat")
    assert chinese.decode(chinese.encode("the cat sat")) == "the cat sat"


def test_sentence_ends_look_at_the_token_string(tokenizer: Tokenizer) -> None:
    table = tokenizer.sentence_ends()
    assert [tokenizer.id_to_token(token) for token in np.flatnonzero(table)] == [".", "!", "?", ";", ":"]
    assert table[tokenizer.encode(".")[0]] and tokenizer.is_sentence_end(tokenizer.encode("!")[0])
    assert not table[tokenizer.pad_id] and not tokenizer.is_sentence_end(tokenizer.pad_id)
    assert np.array_equal(tokenizer.sentence_ends(WIDE_SENTENCE_END_MARKS), table)


def test_padding_of_the_vocabulary() -> None:
    assert padded_vocab_size(30524) == padded_vocab_size(30527) == 30592
    assert padded_vocab_size(50266) == 50304 and padded_vocab_size(256) == 256 and padded_vocab_size(10, 7) == 14
    with pytest.raises(ValueError, match="divisible-by"):
        padded_vocab_size(5, 0)


def test_known_names_are_searched_offline(vocab_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="Nothing is downloaded"):
        make_tokenizer("BertWordPieceTokenizer", "bert-base-uncased")
    cache = tmp_path / ".pytorch_pretrained_bert"
    cache.mkdir()
    hashed = cache / ("0" * 64 + ".1")  # as the release's downloads are called
    hashed.write_bytes(vocab_file.read_bytes())
    hashed.with_name(hashed.name + ".json").write_text(json.dumps({"url": "https://s3/bert-large-uncased-vocab.txt"}))
    found = make_tokenizer("BertWordPieceTokenizer", "bert-base-uncased")  # the large one is the same file
    assert found.num_text_tokens == make_tokenizer("BertWordPieceTokenizer", str(vocab_file)).num_text_tokens
    assert make_tokenizer("BertWordPieceTokenizer", "no-such-name").num_tokens == found.num_tokens
    assert "bert-large-uncased" in caplog.text
    cased = tmp_path / "my-cased" / "vocab.txt"
    cased.parent.mkdir()
    cased.write_bytes(vocab_file.read_bytes())
    upper = make_tokenizer("BertWordPieceTokenizer", str(cased.parent))
    assert upper.encode("The")[0] == upper.command_id("unk") and upper.fingerprint() != found.fingerprint()


def test_refusals(vocab_file: Path, tmp_path: Path) -> None:
    for kind in ("CharacterLevelTokenizer", "SentencePieceTokenizer"):
        with pytest.raises(ValueError, match="no mask and block symbols"):
            make_tokenizer(kind, str(vocab_file))
    with pytest.raises(ValueError, match="unknown"):
        make_tokenizer("Nonsense")
    with pytest.raises(ValueError, match="sentinel"):
        make_tokenizer("GPT2BPETokenizer", "gpt2", num_sentinels=3)
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        make_tokenizer("BertWordPieceTokenizer", str(tmp_path / "vocab.txt"))
    broken = tmp_path / "broken.txt"
    broken.write_text("[PAD]\n[UNK]\nthe\n")
    with pytest.raises(ValueError, match=r"\[CLS\], \[MASK\], \[SEP\]"):
        BertWordPieceTokenizer(broken)
    broken.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nthe\n")
    with pytest.raises(ValueError, match="stands twice"):
        BertWordPieceTokenizer(broken)


def test_missing_command_names_the_switch(vocab_file: Path) -> None:
    plain = make_tokenizer("BertWordPieceTokenizer", str(vocab_file), block_lm=False)
    assert not plain.has_command("sop")
    with pytest.raises(ValueError, match="--block-lm"):
        plain.command_id("sop")
