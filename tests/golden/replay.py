"""Replay golden cases through the code of the entry scripts: one forward and backward pass each.

    python -m tests.golden.replay CASE_DIR… [--out DIR] [--model-parallel-size P] [--checkpoint-activations]
                                            [--dtype float32|float64|bfloat16]

Prints a line per case with the largest deviations, and writes what was computed to DIR/<case>.npz and DIR/<case>.json
under the names of ``expect.npz`` and ``expect.json``. ``expect.*`` is read for the comparison only. Exit code: 0 all
cases agree, 1 a case deviates, 3 a case needs something that is not built yet (and none deviates).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from distill.arguments import build_parser
from distill.multi_teacher_model import COMBINERS, attach_combiner, attach_live_teachers
from distill.retired_flags import check_retired_flags
from distill.student import METHODS, GLMStudent, build_student, check_distill_flags
from distill.teachers import TeacherSpec, disabled_teachers, teacher_specs
from distill.training.build import backbone, output_shape, with_head
from distill.training.forward_step import StepContext, StepOutput, forward_step
from distill.training.run_state import RunState
from distill.truncate import truncate_teacher
from distill.vocab_init import build_vocab_map
from model.config import ModelConfig
from model.glm import GLMModel
from model.parallel.groups import parallel_state
from model.parallel.mappings import all_gather_last
from model.parallel.sharding import shard_spec_of
from tasks.registry import get_task
from tasks.spec import TaskSpec
from tests.helpers.distributed import run_distributed

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
#: Gradients in bfloat16 (by the largest one), and scalars. Rounding nothing but the weights moves some cases by half of
#: this already (mgskd_ft_wo_inter_copa: its loss by 3e-2).
HALF_LIMIT, HALF_SCALAR_LIMIT = 5e-2, 7e-2
#: Flags whose loss jumps where two logits change places, as rounding to half precision makes them do.
DISCRETE_FLAGS = ("--logitsdistil_top_n",)
SCALARS = ("loss", "hard_loss")
SCALAR_LISTS = ("pre_loss", "inter_loss")


class NotBuilt(Exception):
    """The case needs a feature that this version does not have."""


@dataclass(frozen=True)
class Options:
    """How to replay."""

    dtype: str = "float32"
    checkpoint_activations: bool = False
    model_parallel_size: int = 1


@dataclass
class Computed:
    """What a case came to: arrays and scalars under the names of the expect files."""

    name: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)
    not_built: str = ""


@dataclass
class Verdict:
    """Largest deviations of a case; relative for scalars, absolute for logits, by the largest gradient for
    gradients."""

    deviations: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, group: str, deviation: float, is_ok: bool, what: str) -> None:
        self.deviations[group] = max(self.deviations.get(group, 0.0), deviation)
        if not is_ok:
            self.failures.append(f"{what} ({deviation:.2e})")


# ---- building a case --------------------------------------------------------------------------------------------

def read_case(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "case.json").read_text())


def parse_flags(case: dict[str, Any]) -> SimpleNamespace:
    """The flags of a case, by the parser of the entry scripts. Raises NotBuilt for what is refused or unknown."""
    method = case.get("method")
    if not case["stage"].startswith("utility") and method and method not in METHODS:
        raise NotBuilt(f"--student_model={method}")
    parser = build_parser("pretrain" if case["stage"] == "pretrain" else "finetune")
    args, unknown = parser.parse_known_args(case["flags"])
    if unknown:
        raise NotBuilt(" ".join(unknown))
    if (args.multi_teacher_model or "avg") not in COMBINERS:
        raise NotBuilt(f"--multi_teacher_model={args.multi_teacher_model}")
    try:
        check_retired_flags(args)
        check_distill_flags(args)
    except ValueError as error:
        raise NotBuilt(str(error)) from None
    return SimpleNamespace(**{**vars(args), "vocab_size": case["vocab_size"], "log_interval": 1})


def find_task(case: dict[str, Any], args: Any) -> TaskSpec | None:
    """The task of a case; None for token losses (pretraining and the task "lm")."""
    if case.get("task") in (None, "lm"):
        return None
    try:
        return get_task(case["task"], args)
    except ValueError as error:
        raise NotBuilt(str(error)) from None


def load_arrays(module: nn.Module, file: Path) -> None:
    """Fill a model from whole arrays by name, one to one; each rank keeps its part."""
    state, arrays = parallel_state(), np.load(file)
    shards = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name not in arrays and not isinstance(tensor, nn.Parameter):
            continue  # state of a method, which files of the release do not have
        if name not in arrays:
            raise KeyError(f"{file} has no {name}")
        shards[name] = shard_spec_of(tensor).shard(torch.from_numpy(arrays[name]), state.model_rank, state.model_size)
    surplus = sorted(set(arrays.files) - set(shards))
    if surplus:
        raise KeyError(f"{file} has entries that the model does not: {', '.join(surplus)}")
    module.load_state_dict(shards)


def read_map(folder: Path) -> dict[str, torch.Tensor]:
    """The vocabulary map of the case's student; empty without one."""
    file = folder / "map_vocab.npz"
    return {name: torch.from_numpy(array) for name, array in np.load(file).items()} if file.exists() else {}


def _map_sizes(vocab_map: dict[str, torch.Tensor], args: Any) -> dict[str, Any]:
    if not vocab_map:
        return {}
    return {"map_vocab_size": int(vocab_map["origin_id_mask_map"].sum()), "unmap_vocab_output": args.unmap_vocab_output}


@dataclass
class Case:
    """A case, ready to run."""

    folder: Path
    info: dict[str, Any]
    context: StepContext
    module: nn.Module

    def batch(self, prior: int | None = None) -> dict[str, torch.Tensor]:
        file = self.folder / f"batch_prior_{prior}.npz"
        if prior is None or not file.exists():
            file = self.folder / "batch.npz"
        return {name: torch.from_numpy(array) for name, array in np.load(file).items()}


def build_case(folder: Path, options: Options) -> Case:
    """Models, weights, injected random choices. Raises NotBuilt."""
    info = read_case(folder)
    args = parse_flags(info)
    task = find_task(info, args)
    vocab_map = read_map(folder)
    dtype = DTYPES[options.dtype]
    config = ModelConfig.from_args(args, checkpoint_activations=options.checkpoint_activations,
                                   **_map_sizes(vocab_map, args))
    run = RunState(iteration=info.get("iteration", 0), train_iters=info.get("train_iters", 1))
    glm = backbone(config, task)
    specs = teacher_specs(args)
    student = build_student(glm, args, teachers=specs, run=run) if args.student_model else None
    combiner = attach_combiner(student, args, output_shape(task, args)) if student is not None else None
    teachers = [_build_teacher(spec, config, folder, args, task).to(dtype) for spec in specs]
    if student is not None:
        attach_live_teachers(student, teachers, args)
    module = with_head(student if student is not None else glm, config, args, task)
    load_arrays(module, folder / "student.npz")
    if vocab_map:
        glm.vocab_map.set(vocab_map)
    module.to(dtype).train()
    if student is not None and (folder / "random.npz").exists():
        student.injected_draws = _draws({name: array.tolist()
                                         for name, array in np.load(folder / "random.npz").items()})
    disabled = disabled_teachers(args, len(specs)) if specs else ()
    context = StepContext(model=module, args=args, run=run, student=student, teachers=teachers, combiner=combiner,
                          disabled=disabled, stage="choice" if task else "lm",
                          loss_kind=args.loss_func)
    return Case(folder, info, context, module)


def _draws(choices: dict[str, Any]) -> dict[str, Any]:
    """Random choices by the name of their draw; those numbered ``<name>_call<i>`` serve one call after the other."""
    calls: dict[str, dict[int, Any]] = {}
    for name in list(choices):
        if match := re.fullmatch(r"(.+)_call(\d+)", name):
            calls.setdefault(match[1], {})[int(match[2])] = choices.pop(name)
    for name, values in calls.items():
        queue = iter([values[number] for number in sorted(values)])
        choices[name] = lambda *key, queue=queue: next(queue)
    return choices


def _build_teacher(spec: TeacherSpec, config: ModelConfig, folder: Path, args: Any, task: TaskSpec | None) -> nn.Module:
    sizes = spec.model_config(config)
    teacher = with_head(backbone(sizes, task), sizes, args, task)
    load_arrays(teacher, folder / f"{Path(spec.load_pretrained).name}.npz")
    return teacher.eval().requires_grad_(False)


# ---- running a case ---------------------------------------------------------------------------------------------

class _Spy:
    """Notes what the student's two losses return, in order."""

    def __init__(self, student: GLMStudent | None) -> None:
        self.pre_loss: list[float] = []
        self.inter_loss: list[float] = []
        self.pre_loss_per_sample: list[torch.Tensor] = []
        if student is not None:
            student.prediction_loss = self._watch(student.prediction_loss, self.pre_loss, self.pre_loss_per_sample)
            student.intermediate_loss = self._watch(student.intermediate_loss, self.inter_loss, [])

    @staticmethod
    def _watch(function: Any, values: list[float], vectors: list[torch.Tensor]) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            values.append(_mean(result))
            if isinstance(result, torch.Tensor) and result.dim():
                vectors.append(result)
            return result

        return watched


def _mean(value: Any) -> float:
    return float(torch.as_tensor(value).detach().double().mean())


def replay_case(folder: Path, options: Options) -> Computed:
    """Run one case on this rank; every rank of the model-parallel group gets the whole result."""
    info = read_case(folder)
    try:
        if info["stage"].startswith("utility:"):
            return _replay_utility(folder, info, options)
        case = build_case(folder, options)
    except NotBuilt as error:
        return Computed(folder.name, not_built=str(error))
    run = case.context.run
    for number, prior in enumerate(info.get("prior_calls", [])):
        run.iteration = prior["iteration"]
        forward_step(case.context, case.batch(number))
    run.iteration = info["iteration"]
    spy = _Spy(case.context.student)
    case.module.zero_grad(set_to_none=True)
    output = forward_step(case.context, case.batch())
    output.loss.backward()
    return _collect(case, output, spy, options)


def _collect(case: Case, output: StepOutput, spy: _Spy, options: Options) -> Computed:
    arrays = {"loss": output.loss}
    for number, one in enumerate(output.passes or [output]):
        suffix = f"_pass{number}" if number else ""
        arrays.update({f"{name}{suffix}": value for name, value in _outputs(one, case.context.stage == "lm").items()})
    arrays.update({f"pre_loss_per_sample_{number}": value for number, value in enumerate(spy.pre_loss_per_sample)})
    none = []
    for name, parameter in case.module.state_dict(keep_vars=True).items():
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
            gradient = whole_gradient(parameter)
            if gradient is None:
                none.append(name)
            else:
                arrays[f"grad::{name}"] = gradient
    scalars: dict[str, Any] = {
        "loss": _mean(output.loss), "hard_loss": _mean(output.hard_loss), "pre_loss": spy.pre_loss,
        "inter_loss": spy.inter_loss, "summary": [[name, float(value)] for name, value in output.recorded],
        "grad_none": none}
    if options.dtype == "float64":
        scalars.update({f"{name}_fp64": scalars[name] for name in (*SCALARS, *SCALAR_LISTS, "summary")})
    return Computed(case.folder.name, {name: _as_array(value) for name, value in arrays.items()}, scalars)


def _outputs(output: StepOutput, is_lm: bool) -> dict[str, torch.Tensor]:
    """What the models of one pass gave."""
    arrays = {"hard_loss": output.hard_loss, "hard_loss_per_sample": output.hard_loss_per_sample,
              "student_logits": _whole_logits(output.logits, is_lm)}
    for index, teacher in enumerate(output.teacher_outputs):
        if isinstance(teacher["logits"], torch.Tensor):
            arrays[f"teacher_{index}_logits"] = _whole_logits(teacher["logits"], is_lm)
        if "loss" in teacher:
            arrays[f"teacher_{index}_hard_loss"] = torch.as_tensor(teacher["loss"])
            arrays[f"teacher_{index}_hard_loss_per_sample"] = torch.as_tensor(teacher["loss_batch"])
    return arrays


def _as_array(value: torch.Tensor) -> np.ndarray:
    value = value.detach()
    return (value if value.dtype == torch.float64 else value.float()).numpy()


def _whole_logits(logits: torch.Tensor, is_lm: bool) -> torch.Tensor:
    return all_gather_last(logits.detach()) if is_lm else logits


def whole_gradient(parameter: nn.Parameter) -> torch.Tensor | None:
    """The gradient of the whole parameter, over all ranks; None without one."""
    spec, state = shard_spec_of(parameter), parallel_state()
    if state.model_size == 1 or not spec.is_sharded:
        return parameter.grad
    own = (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).contiguous()
    shards = [torch.empty_like(own) for _ in range(state.model_size)]
    dist.all_gather(shards, own, group=state.model_group)
    return spec.merge(shards)


def _replay_utility(folder: Path, info: dict[str, Any], options: Options) -> Computed:
    """A student cut out of the front of a teacher, or a compact vocabulary built with a teacher's word table."""
    if info["stage"] == "utility:vocab_map":
        return _replay_vocab_map(folder, info)
    if info["stage"] != "utility:truncate_teacher":
        raise NotBuilt(info["stage"])
    args = parse_flags({**info, "stage": "utility"})
    vocab_map = read_map(folder)
    config = ModelConfig.from_args(args, **_map_sizes(vocab_map, args))
    specs = teacher_specs(args)
    glm = GLMModel(config)
    student = build_student(glm, args, teachers=specs)
    load_arrays(student, folder / "student.npz")
    if vocab_map:
        glm.vocab_map.set(vocab_map)
    teachers = [_build_teacher(spec, config, folder, args, None) for spec in specs]
    truncate_teacher(student, teachers, args)
    arrays = {}
    for name, parameter in student.origin_model.named_parameters():
        parameter.grad = parameter.detach().clone()
        arrays[name] = _as_array(whole_gradient(parameter))
    return Computed(folder.name, arrays, {})


def _replay_vocab_map(folder: Path, info: dict[str, Any]) -> Computed:
    method = info["method"]
    table = None if method == "unk" else torch.from_numpy(np.load(folder / "teacher_0.npz")["word_embeddings.weight"])
    similar = {} if table is None else {"table": table, "method": method}
    tensors = build_vocab_map(
        np.load(folder / "input.npz")["sort_id"].tolist(), info["vocab_size"], info["map_vocab_size_resolved"],
        unk_id=info["unk_id"], **similar)
    return Computed(folder.name, {name: tensor.numpy().astype(np.int64) for name, tensor in tensors.items()}, {})


# ---- comparing --------------------------------------------------------------------------------------------------

def compare(computed: Computed, folder: Path, options: Options) -> Verdict:
    """Deviations from the case's ``expect.*``."""
    verdict = Verdict()
    expected = np.load(folder / "expect.npz")
    if not (folder / "expect.json").exists():
        for name in expected.files:
            deviation = float(np.abs(computed.arrays[name] - expected[name]).max())
            verdict.add("tensors", deviation, deviation == 0.0, name)
        return verdict
    reference = json.loads((folder / "expect.json").read_text())
    _compare_scalars(verdict, computed, reference, options)
    half = options.dtype == "bfloat16"
    for name in expected.files:
        if "logits" in name:
            deviation = _distance(computed.arrays.get(name), expected[name])
            limit = 5e-2 * max(1.0, float(np.abs(expected[name]).max())) if half else 1e-4
            verdict.add("logits", deviation, deviation <= limit, name)
        elif not name.startswith("grad::"):
            _scalar(verdict, "terms", np.asarray(computed.arrays.get(name, np.nan)), expected[name], half, False, name)
    largest = reference["fp32_rounding"]["largest_grad"]
    for name in {name for name in expected.files if name.startswith("grad::")} | {
            f"grad::{name}" for name in reference["grad_none"]}:
        value = computed.arrays.get(name)
        target = expected[name] if name in expected.files else np.zeros(()) if value is None else np.zeros_like(value)
        deviation = _distance(np.zeros_like(target) if value is None else value, target) / largest
        verdict.add("grads", deviation, deviation <= (HALF_LIMIT if half else 1e-4), name)
    return verdict


def _compare_scalars(verdict: Verdict, computed: Computed, reference: dict[str, Any], options: Options) -> None:
    exact, half = options.dtype == "float64", options.dtype == "bfloat16"
    suffix = "_fp64" if exact else ""
    _scalar(verdict, "loss", computed.scalars["loss"], reference[f"loss{suffix}"], half, exact, "loss")
    if f"hard_loss{suffix}" in reference:
        _scalar(verdict, "terms", computed.scalars["hard_loss"], reference[f"hard_loss{suffix}"], half, exact,
                "hard_loss")
    for name in SCALAR_LISTS:
        expected = reference.get(name + suffix, [])
        if len(expected) != len(computed.scalars[name]):
            verdict.add("terms", float("inf"), False, f"{name}: {computed.scalars[name]} for {expected}")
            continue
        for index, (value, target) in enumerate(zip(computed.scalars[name], expected, strict=True)):
            _scalar(verdict, "terms", value, target, half, exact, f"{name}[{index}]")
    for name, target in reference.get(f"summary{suffix}", []):
        found = [value for tag, value in computed.scalars["summary"] if tag == name]
        nearest = min(found, key=lambda value: abs(value - target), default=float("nan"))
        _scalar(verdict, "terms", nearest, target, half, exact, name)


def _scalar(verdict: Verdict, group: str, value: Any, target: Any, half: bool, exact: bool, what: str) -> None:
    value, target = np.asarray(value, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if value.shape != target.shape:
        verdict.add(group, float("inf"), False, what)
        return
    absolute = float(np.abs(value - target).max()) if np.isfinite(value).all() else float("inf")
    relative = absolute / max(float(np.abs(target).max()), 1e-2)
    limit, floor = (1e-7, 1e-9) if exact else (HALF_SCALAR_LIMIT, 1e-2) if half else (1e-4, 1e-6)
    verdict.add(group, relative, relative <= limit or absolute <= floor, what)


def _distance(value: np.ndarray | None, target: np.ndarray) -> float:
    if value is None or value.shape != target.shape or not np.isfinite(value).all():
        return float("inf")
    return float(np.abs(value.astype(np.float64) - target.astype(np.float64)).max())


# ---- the command ------------------------------------------------------------------------------------------------

def replay_cases(folders: Sequence[str], options: Options) -> list[Computed]:
    """Replay all cases on this rank."""
    return [replay_case(Path(folder), options) for folder in folders]


def run_cases(folders: Sequence[Path], options: Options) -> list[Computed]:
    """Replay in this process, or on gloo ranks of its own."""
    names = [str(folder.resolve()) for folder in folders]
    size = options.model_parallel_size
    if size == 1:
        return replay_cases(names, options)
    return run_distributed(replay_cases, size, names, options, model_parallel_size=size,
                           timeout=60.0 + 10.0 * len(names))[0]


def excuse(folder: Path, options: Options) -> str:
    """Why a case may deviate: it keeps a bug of the release, or its loss jumps under rounding. Empty: it may not."""
    info = read_case(folder)
    if info.get("reference") == "original, depends on a bug":
        return "differs, as it should: the case keeps a bug of the release"
    if options.dtype == "bfloat16" and any(flag.startswith(DISCRETE_FLAGS) for flag in info.get("flags", [])):
        return "not judged in half precision: its loss jumps where rounding makes two logits change places"
    return ""


def write_computed(computed: Computed, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{computed.name}.npz", **computed.arrays)
    (folder / f"{computed.name}.json").write_text(json.dumps(computed.scalars, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR")
    parser.add_argument("--out", type=Path, help="where to write what was computed")
    parser.add_argument("--model-parallel-size", type=int, default=1)
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    words = parser.parse_args(argv)
    options = Options(words.dtype, words.checkpoint_activations, words.model_parallel_size)
    failed = unbuilt = 0
    cases = [folder for folder in words.cases if (folder / "case.json").is_file()]
    for folder in words.cases:
        if folder not in cases:
            print(f"{folder}: no case (there is no case.json in it)")
            # A file beside the cases is met by a shell pattern; a folder was meant to be one.
            failed += not folder.is_file()
    for folder, computed in zip(cases, run_cases(cases, options), strict=True):
        if computed.not_built:
            unbuilt += 1
            print(f"{computed.name}: not built yet: {computed.not_built}")
            continue
        if words.out:
            write_computed(computed, words.out)
        if not (folder / "expect.npz").exists():
            print(f"{computed.name}: computed, nothing to compare with")
            continue
        verdict = compare(computed, folder, options)
        numbers = "  ".join(f"{group} {deviation:.1e}" for group, deviation in verdict.deviations.items())
        word = "ok" if not verdict.failures else excuse(folder, options) or "FAIL"
        print(f"{computed.name}: {numbers}  {word}")
        if word == "FAIL":
            failed += 1
            print("    " + "; ".join(verdict.failures[:5]))
    return 1 if failed else 3 if unbuilt else 0


if __name__ == "__main__":
    sys.exit(main())
