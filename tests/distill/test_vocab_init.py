from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_utils.vocab_file import vocab_file_text
from distill import vocab_sort
from distill.truncate import copy_front
from distill.vocab_init import build_vocab_map, nearest_kept, resolve_map_size, set_up_vocab_map, whole_word_table
from model.vocab_map import VocabMap
from tests.distill.training.small_runs import losses, pretrain_flags, run, write_world
from tests.helpers.distributed import run_distributed
from tests.helpers.shared import require_shared
from tests.helpers.tiny_distill import TEACHER
from tests.helpers.tiny_model import tiny_glm

SIMILARITIES = {
    "decoder": lambda a, b: float(a @ b),
    "cosine": lambda a, b: float(a @ b / (a.norm() * b.norm())),
    "euclidean": lambda a, b: -float((a - b).square().sum()),
}


@pytest.mark.parametrize("method", SIMILARITIES)
def test_nearest_kept_is_the_best_of_a_plain_loop(method, monkeypatch):
    monkeypatch.setattr("distill.vocab_init._BLOCK_ELEMENTS", 20)  # several blocks
    table = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    kept, dropped = torch.arange(0, 20, 2), torch.arange(1, 20, 2)
    best = [max(range(10), key=lambda k, d=d: SIMILARITIES[method](table[d], table[kept[k]])) for d in dropped]
    assert nearest_kept(table, kept, dropped, method).tolist() == best


def test_the_first_of_equal_candidates_wins():
    table = torch.ones(6, 2)
    assert nearest_kept(table, torch.tensor([3, 1, 2]), torch.tensor([0, 4]), "decoder").tolist() == [0, 0]


def test_a_zero_row_has_a_cosine():
    table = torch.eye(4, 3)  # the last row is zero
    assert nearest_kept(table, torch.tensor([3, 0]), torch.tensor([0, 3]), "cosine").tolist() == [1, 0]


def test_the_map_is_consistent_and_puts_padding_last():
    tensors = build_vocab_map([4, 0, 2, 1, 3], 8, 3, unk_id=0)
    VocabMap(8, 3).set(tensors)
    assert tensors["target_pos_to_origin_id"].tolist() == [4, 0, 2, 0, 0, 0, 0, 0]
    assert tensors["origin_id_mask_map"].tolist() == [True, False, True, False, True, False, False, False]
    with pytest.raises(ValueError, match="3 rows are fewer than the 4 tokens"):
        build_vocab_map([4, 0, 2, 1, 3], 8, 3, unk_id=0, num_protected=4)
    with pytest.raises(ValueError, match="unknown token"):
        build_vocab_map([4, 0, 2, 1, 3], 8, 3, unk_id=1)


@pytest.mark.parametrize("method", ["unk", "decoder", "cosine", "euclidean"])
def test_golden_maps(method):
    folder = require_shared("golden", f"utility_vocab_map_{method}")
    case = json.loads((folder / "case.json").read_text())
    table = torch.from_numpy(np.load(folder / "teacher_0.npz")["word_embeddings.weight"])
    tensors = build_vocab_map(
        np.load(folder / "input.npz")["sort_id"].tolist(), case["vocab_size"], case["map_vocab_size_resolved"],
        unk_id=case["unk_id"], table=None if method == "unk" else table, method=method)
    for name, expected in np.load(folder / "expect.npz").items():
        assert np.array_equal(tensors[name].numpy(), expected), name


@pytest.mark.parametrize(("value", "rows"), [(0.5, 15360), (0, 0), (1000, 1024), (30592, 0), (1.0, 128), (0.9999, 0)])
def test_sizes(value, rows):
    assert resolve_map_size(value, 30524, 30592, 128) == rows


def fake_tokenizer(size: int = 60) -> SimpleNamespace:
    ids = {"unk": 3}
    return SimpleNamespace(num_tokens=size, commands=[SimpleNamespace(id=i) for i in range(7)],
                           command_id=ids.__getitem__, token_strings=lambda: [f"t{token}" for token in range(size)])


def build_student(folder: str) -> dict[str, torch.Tensor]:
    """A student's map and word table after building and truncation, the teacher being a seeded model."""
    teacher, student = tiny_glm(seed=1), tiny_glm(seed=2, hidden_size=16, map_vocab_size=32)
    args = SimpleNamespace(load=None, load_pretrained=None, student_build_map_vocab=True, student_map_vocab_tn=0,
                           student_map_vocab_method="decoder", map_vocab_file=f"{folder}/sorted.txt")
    set_up_vocab_map(student, [teacher], args, fake_tokenizer())
    copy_front(student, teacher)
    return {**student.vocab_map.tensors(), "table": whole_word_table(student), "teacher": whole_word_table(teacher)}


def write_sort_file(folder) -> None:
    counts = {token: 100 - token for token in range(7, 60, 2)}
    text = vocab_file_text([f"t{token}" for token in range(60)], counts, set(range(7)))
    (folder / "sorted.txt").write_text(text, encoding="utf-8")


def test_build_and_truncate(tmp_path):
    write_sort_file(tmp_path)
    result = build_student(str(tmp_path))
    own = result["target_pos_to_origin_id"][:32]
    assert own[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    kept = result["origin_id_mask_map"]
    assert torch.equal(result["table"][kept], result["teacher"][kept][:, :16])


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_the_map_is_independent_of_the_model_parallel_size(size, tmp_path):
    write_sort_file(tmp_path)
    expected = build_student(str(tmp_path))
    for result in run_distributed(build_student, size, str(tmp_path), model_parallel_size=size):
        for name, tensor in expected.items():
            assert torch.equal(result[name], tensor), name


def test_a_map_has_to_come_from_somewhere(tmp_path):
    student = tiny_glm(map_vocab_size=32)
    args = SimpleNamespace(load=None, load_pretrained=None, student_build_map_vocab=False)
    with pytest.raises(ValueError, match="has no map yet"):
        set_up_vocab_map(student, [], args, fake_tokenizer())
    args = SimpleNamespace(load=None, load_pretrained=None, student_build_map_vocab=True, student_map_vocab_tn=1,
                           student_map_vocab_method="decoder", map_vocab_file=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="there are 0 teachers"):
        set_up_vocab_map(student, [], args, fake_tokenizer())
    args.student_map_vocab_tn = None
    with pytest.raises(FileNotFoundError, match="vocab_sort.py"):
        set_up_vocab_map(student, [], args, fake_tokenizer())


def test_the_tool_writes_what_the_run_reads(tmp_path, caplog):
    (tmp_path / "vocab.txt").write_text("\n".join(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "cat", "dog"]) + "\n")
    (tmp_path / "corpus.txt").write_text("cat dog cat\ndog cat bird\n")
    words = [f"--train-data={tmp_path / 'corpus.txt'}", f"--tokenizer-model-type={tmp_path / 'vocab.txt'}"]
    assert vocab_sort.main(words) == 0
    rows = [line.split("\t") for line in (tmp_path / "BertWordPieceTokenizer_vocab.txt").read_text().splitlines()]
    counts = {row[2]: int(row[3]) for row in rows[1:]}
    assert (counts["cat"], counts["dog"], counts["[UNK]"]) == (3, 2, 1)
    assert [row[2] for row in rows[-2:]] == ["cat", "dog"], "everything else here is protected"


def test_commands_are_never_dropped_and_answer_words_only_with_a_warning(tmp_path, caplog):
    tokenizer = fake_tokenizer()
    tokenizer.word_to_id = lambda word, keep_blank=False: {"yes": 58, "no": 59}[word]
    args = SimpleNamespace(load=None, load_pretrained=None, student_build_map_vocab=True, student_map_vocab_tn=None,
                           student_map_vocab_method="decoder", map_vocab_file=str(tmp_path / "sorted.txt"))
    write_sort_file(tmp_path)  # 58 was never seen, 59 seldom
    set_up_vocab_map(tiny_glm(map_vocab_size=32), [], args, tokenizer, answer_words=("yes", "no"))
    assert "does not keep 2 protected token(s), such as t58, t59: tasks with these answers" in caplog.text
    with pytest.raises(ValueError, match="8 rows are fewer than the 9 tokens that must not be dropped"):
        set_up_vocab_map(tiny_glm(map_vocab_size=8), [], args, tokenizer, answer_words=("yes", "no"))
    tokens = tokenizer.token_strings()
    (tmp_path / "sorted.txt").write_text(vocab_file_text(tokens, dict.fromkeys(range(10, 60), 1), {3}))
    with pytest.raises(ValueError, match="without a row for t0 cannot work; make the file by python distill/vocab_"):
        set_up_vocab_map(tiny_glm(map_vocab_size=32), [], args, tokenizer)


def test_a_first_start_with_load_builds_the_map_and_a_later_one_reads_it(tmp_path, caplog):
    """The command of a job that is started again and again: --load names a folder that is not there at first."""
    world = write_world(tmp_path)
    vocab_sort.main([f"--train-data={world / 'corpus.txt'}", f"--tokenizer-model-type={world / 'vocab.txt'}"])
    flags = [*TEACHER, "--teacher_max_position_embeddings=64", "--student_model=logitsdistil",
             "--make-vocab-size-divisible-by=16", "--map_vocab_size=0.5", "--unmap_vocab_output",
             "--distill_logit_mask_map", "--student_build_map_vocab", "--student_map_vocab_tn=0"]

    def words(load, iterations):
        return [*pretrain_flags(world, **{"train-iters": iterations, "save": tmp_path / "runs", "experiment-name": "x",
                                          "load": load}), *flags]

    assert run("pretrain", words(tmp_path / "not-yet", 2)) == 0
    (first,) = (tmp_path / "runs").iterdir()
    assert run("pretrain", words(first, 4)) == 0
    assert "--student_build_map_vocab is ignored: the map comes with the loaded weights" in caplog.text
    assert len(losses(tmp_path)) == 4
