"""Runs of the entry scripts on a world small enough that a step takes milliseconds."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill import finetune, pretrain
from tests.helpers.distributed import run_distributed

#: Values that have to be equal, bit for bit, between an uninterrupted and a resumed run.
EXACT = ("iteration", "loss", "hard_loss", "lr", "grad_norm")


def write_world(folder: Path) -> Path:
    """A vocabulary, a corpus and a COPA-like task below ``folder``."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = list(dict.fromkeys("".join(draw.choices(letters, k=draw.randint(2, 6))) for _ in range(160)))
    special = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *".,?!'\"", *letters, *(f"##{letter}" for letter in letters), *words]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n")

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(3, 8))) + " ."

    (folder / "corpus.txt").write_text("\n".join(
        " ".join(sentence() for _ in range(draw.randint(3, 7))) for _ in range(120)) + "\n")
    task = folder / "copa"
    task.mkdir()
    for split, count in (("train", 18), ("val", 7)):
        lines = [{"premise": sentence(), "choice1": sentence(), "choice2": sentence(), "idx": index,
                  "question": draw.choice(("cause", "effect")), "label": draw.randint(0, 1)} for index in range(count)]
        (task / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def model_flags(world: Path, **changes: Any) -> list[str]:
    """A GLM of 2 layers and width 32."""
    values = {"num-layers": 2, "hidden-size": 32, "num-attention-heads": 4, "max-position-embeddings": 64,
              "seq-length": 64, "tokenizer-model-type": world / "vocab.txt", "num-workers": 0, "batch-size": 8,
              "lr": 1e-2, "warmup": 0.1, "log-interval": 1, "distributed-backend": "gloo", **changes}
    return ["--block-lm", *(f"--{name}={value}" for name, value in values.items())]


def pretrain_flags(world: Path, **changes: Any) -> list[str]:
    """Pretraining for 6 iterations."""
    return model_flags(world, **{
        "train-data": world / "corpus.txt", "split": "90,10,0", "train-iters": 6, "eval-interval": 3, "eval-iters": 1,
        "save-interval": 0, "bert-prob": 0.6, **changes})


def finetune_flags(world: Path, **changes: Any) -> list[str]:
    """Fine-tuning for 2 epochs of 5 micro-batches."""
    return ["--finetune", "--cloze-eval", *model_flags(world, **{
        "task": "COPA", "data-dir": world / "copa", "epochs": 2, "batch-size": 4, "eval-interval": 5, "eval-iters": 1,
        "save-epoch": 100000, "experiment-name": "copa", **changes})]


NO_DROPOUT = ("--attention-dropout=0", "--hidden-dropout=0", "--output-dropout=0")


def deepspeed_flags(folder: Path, stage: int, *, batch_size: int, accumulation: int = 1, lr: float = 1e-2,
                    bf16: bool = False) -> list[str]:
    """DeepSpeed at a ZeRO stage with the optimizer settings that the plain engine has by default."""
    path = folder / f"ds-{stage}-{batch_size}-{accumulation}.json"
    content: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batch_size, "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 1.0, "optimizer": {"type": "Adam", "params": {"lr": lr, "weight_decay": 0.01}}}
    if stage:
        content["zero_optimization"] = {"stage": stage}
    path.write_text(json.dumps(content))
    return ["--deepspeed", f"--deepspeed_config={path}", *(["--bf16"] if bf16 else [])]


def run(stage: str, argv: Sequence[str]) -> int:
    """One run in this process; on the ranks of a pool, all of them call it."""
    with contextlib.redirect_stdout(None):
        return {"pretrain": pretrain, "finetune": finetune}[stage].main(list(argv))


def run_all(jobs: Sequence[tuple[str, Sequence[str]]]) -> list[int]:
    """Several runs, one after the other."""
    return [run(stage, argv) for stage, argv in jobs]


def run_on_ranks(jobs: Sequence[tuple[str, Sequence[str]]], world_size: int, model_parallel_size: int = 1) -> None:
    """Several runs on the ranks of the shared pool."""
    for codes in run_distributed(run_all, world_size, jobs, model_parallel_size=model_parallel_size):
        assert codes == [0] * len(jobs)


def records(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The records of one kind in ``metrics.jsonl`` below ``folder``."""
    (path,) = folder.rglob("metrics.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder)]


def exact(folder: Path, after: int = 0) -> list[dict[str, Any]]:
    """What must be reproduced bit for bit, from iteration ``after`` on; of repeated iterations the last."""
    by_iteration = {record["iteration"]: {name: record[name] for name in EXACT} for record in records(folder)}
    return [by_iteration[iteration] for iteration in sorted(by_iteration) if iteration > after]
