from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.bert import find_bert

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "wet", "Wet", "it")


def make(folder: Path, *, settings: dict[str, object] | None = None, vocabulary: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if vocabulary:
        (folder / "vocab.txt").write_text("\n".join(WORDS))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache and no folder of this machine."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def test_a_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "my-bert")
    found = find_bert(str(folder))
    assert found.folder == folder and found.lower_case
    tokenizer = found.tokenizer()
    assert tokenizer.num_tokens == len(WORDS), "without the tokens of GLM"
    assert tokenizer.encode("It <|startofpiece|>")[0] == 7 and max(tokenizer.encode("<|startofpiece|>")) < len(WORDS)
    assert not find_bert(str(make(tmp_path / "bert-base-cased"))).lower_case, "by the name"
    cased = find_bert(str(make(tmp_path / "other", settings={"do_lower_case": False})))
    assert not cased.lower_case and cased.tokenizer().encode("Wet wet") == [6, 5]


def test_a_name_below_the_cache_or_the_folder_of_vocabularies(tmp_path: Path) -> None:
    assert find_bert("bert-base-uncased", str(make(tmp_path / "c" / "bert-base-uncased").parent)).lower_case
    folder = make(Path(".pytorch_pretrained_bert/bert-base-cased"))
    assert find_bert("bert-base-cased").folder == folder and not find_bert("bert-base-cased").lower_case


@pytest.mark.parametrize("owner", ["", "google-bert--"])
def test_a_name_that_the_hub_has_left_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str) -> None:
    model = tmp_path / "home" / "hub" / f"models--{owner}bert-base-uncased"
    make(model / "snapshots" / "1111")
    current = make(model / "snapshots" / "2222")
    assert find_bert("bert-base-uncased").folder.name == "1111", "without a reference the first"
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("2222\n")
    assert find_bert("bert-base-uncased").folder == current
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError):
        find_bert("bert-base-uncased")
    assert find_bert("bert-base-uncased", str(tmp_path / "home" / "hub")).folder == current, "--cache-dir"


def test_a_vocabulary_that_lies_elsewhere(tmp_path: Path) -> None:
    make(tmp_path / "home/hub/models--bert-base-uncased/snapshots/1", vocabulary=False)
    with pytest.raises(FileNotFoundError, match="no vocabulary for --tokenizer-model-type=bert-base-uncased"):
        find_bert("bert-base-uncased")
    path = Path(".pytorch_pretrained_bert/bert-base-uncased-vocab.txt")
    path.parent.mkdir()
    path.write_text("\n".join(WORDS))
    assert find_bert("bert-base-uncased").tokenizer().num_tokens == len(WORDS)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="starts from the BERT that --tokenizer-model-type names"):
        find_bert(None)
    with pytest.raises(FileNotFoundError, match="no BERT for --tokenizer-model-type=bert-large-uncased.*Nothing is "
                                                "downloaded: put the model's folder"):
        find_bert("bert-large-uncased")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no config.json"):
        find_bert(str(tmp_path / "empty"))
