"""The forms of a task beyond one row a choice: WSC as a language model, pieces of answers, answers behind one text,
continuous prompts. Each trains, evaluates and distils, cut over model-parallel ranks or not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from data_utils.tokenizers import make_tokenizer, padded_vocab_size
from distill.arguments import parse_args
from distill.training.batches import TaskSource, windows, with_lm_names
from distill.training.finetuning import task_source
from distill.training.forward_step import forward_step
from model.heads import MultiTokenCloze, MultiTokenClozeFast
from model.parallel.cross_entropy import vocab_parallel_argmax
from model.parallel.mappings import own_slice_last
from tasks.data import build_task_data
from tests.distill.training.small_runs import NO_DROPOUT, finetune_flags, losses, records, run, run_on_ranks
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, choice_batch, step, tiny_context
from tests.helpers.tiny_model import tiny_glm, tiny_lm_batch
from tests.model.test_fast_decode import texts

PROMPT = ("--continuous-prompt", "--num-prompt-tokens=3", "--prefix-prompt=2", "--prompt-init")
FORMS: dict[str, tuple[str, ...]] = {
    "language model": ("--task=WSC",),
    "language model, prompt": ("--task=WSC", *PROMPT),
    "pieces": ("--segment-length=3",),
    "one text": ("--fast-decode", "--checkpoint-activations"),
    "one text, prompt": ("--fast-decode", *PROMPT, "--prompt-func=mlp"),
    "blanks": ("--block-lm-ratio=1",),
    "blanks, one text": ("--block-lm-ratio=1", "--fast-decode"),
    "prompt": (*PROMPT, "--freeze-transformer", "--tune-prefix-layers=1"),
}
METHODS = {
    "kd": ["--student_model=kd", "--distill_ft_soft", "--distill_ft_soft_kl", "--distill_ft_hard"],
    "tinybert": ["--student_model=tinybert"],
    "logitsdistil": ["--student_model=logitsdistil", "--logitsdistil_mask_pad", "--logitsdistil_mask_a"],
}
TERMS = {"kd": ["pre_loss/ft_soft_t0", "pre_loss/ft_hard_t0"],
         "tinybert": ["inter_loss/attention_scores.0_t0", "inter_loss/hidden_states.2_t0"],
         "logitsdistil": ["inter_loss/logits_parallel_t0"]}
RANDOM_TEACHER = ["--teacher_random_para", "--teacher_load_pretrained=none", "--teacher_num_layers=3",
                  "--teacher_hidden_size=32", "--teacher_num_attention_heads=4",
                  "--teacher_max_position_embeddings=64"]


@pytest.fixture(scope="module")
def data(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of COPA and WSC, by name of the task."""
    folder, draw = tmp_path_factory.mktemp("wsc"), random.Random(0)
    words = [line for line in (world / "vocab.txt").read_text().split() if line.isalpha() and len(line) > 3]
    for split, count in (("train", 18), ("val", 7)):
        rows = []
        for index in range(count):
            text = draw.choices(words, k=9)
            target = {"span1_text": " ".join(text[1:3]), "span1_index": 1, "span2_text": text[6], "span2_index": 6}
            rows.append({"text": " ".join(text), "target": target, "idx": index, "label": index % 3 > 0})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"copa": world / "copa", "wsc": folder}


def flags(world: Path, data: dict[str, Path], form: str, **changes: Any) -> list[str]:
    task = "wsc" if "--task=WSC" in FORMS[form] else "copa"
    return [*finetune_flags(world, **{"epochs": 1, "data-dir": data[task], **changes}), *NO_DROPOUT, *FORMS[form]]


@pytest.mark.distributed
@pytest.mark.parametrize("form", FORMS)
def test_every_method_on_one_rank_and_on_two(world: Path, data: dict[str, Path], tmp_path: Path, form: str) -> None:
    methods = {"plain": [], **{name: [*RANDOM_TEACHER, *words] for name, words in METHODS.items()}}
    jobs = {name: [*flags(world, data, form), *words] for name, words in methods.items()}
    for name, words in jobs.items():
        assert run("finetune", [*words, f"--save={tmp_path / name}-1"]) == 0
        train = records(tmp_path / f"{name}-1")
        assert all(record["loss"] > 0 and record["grad_norm"] > 0 for record in train)
        for term in TERMS.get(name, ()):
            assert all(record[term] > 0 for record in train), term
        (result,) = (tmp_path / f"{name}-1").rglob("test_results.json")
        assert 0 <= json.loads(result.read_text())["accuracy"] <= 100
    run_on_ranks([("finetune", [*words, "--model-parallel-size=2", f"--save={tmp_path / name}-2"])
                  for name, words in jobs.items()], 2, model_parallel_size=2)
    for name in jobs:
        one, two = (losses(tmp_path / f"{name}-{size}") for size in (1, 2))
        assert two == pytest.approx(one, rel=1e-4, abs=5e-5), name
        one, two = (next((tmp_path / f"{name}-{size}").rglob("*-dev.jsonl")).read_text() for size in (1, 2))
        assert one and one == two, name


# ---- WSC as a language model ------------------------------------------------------------------------------------


def test_the_phrase_can_be_learnt(world: Path, data: dict[str, Path], tmp_path: Path) -> None:
    words = flags(world, data, "language model", epochs=60, lr=5e-3, **{"valid-data": "train", "eval-epoch": 60})
    assert run("finetune", [*words, f"--save={tmp_path}"]) == 0
    assert losses(tmp_path)[-1] < 0.5 * losses(tmp_path)[0]
    (end,) = [record for record in records(tmp_path, "metrics") if record["epoch"] == -1]
    assert end["accuracy"] == 100.0, "every phrase that was trained on comes back, and all of them are labelled True"


def test_one_denominator_a_step(world: Path, data: dict[str, Path], tmp_path: Path) -> None:
    for name, changes in (("whole", {}), ("split", {"batch-size": 2, "gradient-accumulation-steps": 2})):
        assert run("finetune", [*flags(world, data, "language model", **{"eval-batch-size": 4, **changes}),
                                f"--log-dir={tmp_path / name}"]) == 0
    assert losses(tmp_path / "split") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    words = flags(world, data, "language model", **{"batch-size": 2, "gradient-accumulation-steps": 2})
    source = TaskSource(_task_data(words).train, 1, 2)
    window = next(windows(source, 0, torch.device("cpu"), lambda: False))
    tokens = sum(int(batch["loss_mask"].sum()) for batch in window.batches)
    assert [value * 2 for value in window.token_denominators] == [tokens, tokens]


def _task_data(words: list[str]) -> Any:
    args = parse_args(words, "finetune")
    return build_task_data(args, make_tokenizer("BertWordPieceTokenizer", args.tokenizer_model_type))


def test_names_of_a_language_model_batch(world: Path, data: dict[str, Path]) -> None:
    batch = next(_task_data(flags(world, data, "language model")).train.epoch(0))
    assert set(with_lm_names(batch)) == {"tokens", "labels", "loss_mask", "position_ids", "attention_mask", "label"}
    assert with_lm_names(batch)["labels"] is batch["target"]
    copa = choice_batch()
    assert with_lm_names(copa) is copa


def _argmax_of_slice(logits: torch.Tensor) -> torch.Tensor:
    return vocab_parallel_argmax(own_slice_last(logits))


@pytest.mark.distributed
def test_the_best_token_over_a_cut_vocabulary() -> None:
    logits = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = torch.tensor([1.0, 5, 0, 0, 5, 0, 0, 0])  # equally good on two ranks: the first
    assert torch.equal(vocab_parallel_argmax(logits), logits.argmax(-1))
    for found in run_distributed(_argmax_of_slice, 2, logits, model_parallel_size=2):
        assert torch.equal(found, logits.argmax(-1))


# ---- answers in pieces, answers behind one text -----------------------------------------------------------------


def test_pieces_become_choices_before_any_loss() -> None:
    batch = choice_batch(batch_size=2, choices=4)
    batch["segment_id"] = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]])  # the last row of sample 1 pads the batch
    batch["loss_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    batch["label"] = torch.tensor([1, 0])
    context = tiny_context(*COPA, *TEACHER, *METHODS["kd"])
    output = step(context, batch)
    for model, found in ((context.model, output.logits), (context.teachers[0], output.teacher_outputs[0]["logits"])):
        rows, _ = model(batch["text"], batch["position"], batch["mask"], batch["target"], batch["logit_mask"])
        expected = torch.stack([torch.stack([rows[0, :2].sum(), rows[0, 2:].sum()]),
                                torch.stack([rows[1, 0], rows[1, 1:3].sum()])])
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(output.hard_loss, torch.nn.functional.cross_entropy(output.logits, batch["label"]))


def fast_batch() -> dict[str, torch.Tensor]:
    packed = texts()
    return {"text": packed["text"], "position": packed["position"], "mask": packed["sep"],
            "dec_text": packed["dec_text"], "dec_position": packed["dec_position"], "dec_target": packed["target"],
            "dec_logit_mask": packed["is_answer"], "loss_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
            "label": torch.tensor([2, 1])}


def test_fast_decoding_distils_the_teachers_own_scores() -> None:
    context, batch = tiny_context(*COPA, "--fast-decode", *TEACHER, *METHODS["kd"]), fast_batch()
    output = step(context, batch)
    assert isinstance(context.teachers[0], MultiTokenClozeFast)
    scores, _ = context.teachers[0](batch["text"], batch["position"], batch["mask"], batch["dec_target"],
                                    batch["dec_logit_mask"], dec_text=batch["dec_text"],
                                    dec_position=batch["dec_position"])
    torch.testing.assert_close(output.teacher_outputs[0]["logits"], scores)
    soft = torch.nn.functional.kl_div(output.logits.log_softmax(-1), scores.log_softmax(-1), reduction="batchmean",
                                      log_target=True)
    assert output.parts["pre_loss/ft_soft_t0"].item() == pytest.approx(soft.item()) and soft.item() > 0


def test_random_answers_with_random_texts() -> None:
    extra = ("--distill_random_data=dual", "--distill_random_data_n=0")
    context = tiny_context(*COPA, "--fast-decode", *TEACHER, *METHODS["logitsdistil"], *extra)
    output = forward_step(context, fast_batch())
    assert output.logits.shape == (4, 3) and not torch.equal(output.logits[:2], output.logits[2:])


def test_fast_decoding_of_encoded_examples(world: Path, data: dict[str, Path]) -> None:
    """The data room's two encodings of the same examples have the same scores, with a prompt too."""
    for extra in ((), PROMPT[:3]):
        batches = []
        for form in ((), ("--fast-decode",)):
            words = [*finetune_flags(world, **{"data-dir": data["copa"], "batch-size": 6}), *form, *extra]
            loaded = _task_data(words)
            batches.append(next(iter(loaded.dev[0])).tensors)
        tokens = make_tokenizer("BertWordPieceTokenizer", str(world / "vocab.txt")).num_tokens
        backbone = tiny_glm(parallel_output=False, vocab_size=padded_vocab_size(tokens), max_position_embeddings=64,
                            num_prompt_tokens=5 if extra else 0)
        rows, fast = batches
        places = [{} if "prompt_pos" not in batch else {"prompt_pos": batch["prompt_pos"]} for batch in batches]
        with torch.no_grad():
            expected, _ = MultiTokenCloze(backbone)(*(rows[name] for name in (
                "text", "position", "mask", "target", "logit_mask")), **places[0])
            found, _ = MultiTokenClozeFast(backbone)(*(fast[name] for name in (
                "text", "position", "mask", "dec_target", "dec_logit_mask")), **places[1],
                dec_text=fast["dec_text"], dec_position=fast["dec_position"])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_fast_decoding_refuses_vectors_of_three_tokens() -> None:
    with pytest.raises(ValueError, match="--ib_word_emb would join"):
        tiny_context(*COPA, "--fast-decode", "--ib_word_emb=4")


# ---- steps that fill blanks -------------------------------------------------------------------------------------


def test_whole_steps_fill_blanks_and_a_resumed_run_has_the_same(world: Path, data: dict[str, Path]) -> None:
    words = [*flags(world, data, "blanks", **{"batch-size": 2, "gradient-accumulation-steps": 2, "epochs": 4})]
    args = parse_args(words, "finetune")
    tokenizer = make_tokenizer("BertWordPieceTokenizer", args.tokenizer_model_type)
    source = task_source(args, build_task_data(args, tokenizer), tokenizer)
    batches = list(source.iterate(0))
    kinds = ["tokens" in batch for batch in batches]
    assert len(kinds) == source.total == 72 and kinds[::2] == kinds[1::2] and 0.3 < sum(kinds) / 72 < 0.7
    plain = list(task_source(parse_args([*words, "--block-lm-ratio=0"], "finetune"), build_task_data(args, tokenizer),
                             tokenizer).iterate(0))
    for position, batch in enumerate(batches):
        if not kinds[position]:
            assert torch.equal(batch["text"], plain[position]["text"]), "the others are those of the task"
    for batch, again in zip(batches[10:], source.iterate(10), strict=True):
        assert all(torch.equal(batch[name], again[name]) for name in batch)
    texts = {tokenizer.decode(batch["tokens"][0].tolist()) for batch in batches if "tokens" in batch}
    assert len(texts) > 10, "texts of many examples"


def test_a_text_is_scored_by_the_model_inside_the_head() -> None:
    context, batch = tiny_context(*COPA, *TEACHER, *METHODS["kd"]), tiny_lm_batch()
    output = step(context, batch)
    logits, _ = context.student(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
    torch.testing.assert_close(output.hard_loss, (losses * batch["loss_mask"]).sum() / batch["loss_mask"].sum())
    assert output.parts["pre_loss/ft_soft_t0"] > 0


def test_blanks_need_answers_and_agents_need_choices(world: Path, data: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "unlabeled.jsonl").write_text((data["copa"] / "train.jsonl").read_text())
    (tmp_path / "val.jsonl").write_text((data["copa"] / "val.jsonl").read_text())
    words = flags(world, data, "blanks", **{"data-dir": tmp_path, "train-split": "unlabeled"})
    with pytest.raises(ValueError, match="--block-lm-ratio=1 reads texts with their answers"):
        run("finetune", [*words, *RANDOM_TEACHER, *METHODS["logitsdistil"]])
    with pytest.raises(ValueError, match="rl_kd: the agent reads scores of choices"):
        tiny_context(*COPA, *TEACHER, *METHODS["kd"], "--multi_teacher_model=rl_kd", "--mt_has_loss",
                     "--rl_kd_semantic_model_dim=8", "--block-lm-ratio=1")


# ---- continuous prompts -----------------------------------------------------------------------------------------


def test_a_trained_prompt_is_saved_and_kept(world: Path, data: dict[str, Path], tmp_path: Path) -> None:
    words = flags(world, data, "prompt")
    assert run("finetune", [*words, "--ft_final_save", f"--save={tmp_path}"]) == 0
    saved = torch.load(tmp_path / "copa" / "best" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert saved["prompt_spell.spell_embeddings.weight"].shape == (5, 32)
    assert "prompt_spell.lstm_head.bias_hh_l1" in saved
    again = flags(world, data, "prompt", **{"epochs": 0, "experiment-name": "again"})
    assert run("finetune", [*again, f"--save={tmp_path}", f"--load-pretrained={tmp_path / 'copa'}"]) == 0
    first, second = (next((tmp_path / name).rglob("test_results.json")).read_text() for name in ("copa", "again"))
    assert first == second
    (start,) = records(tmp_path / "copa", "start")
    assert 0 < start["trained_parameters"] < start["parameters"]
