"""The training loop, one for pretraining and fine-tuning.

What differs between the two stands in two places: the source of batches (an iteration is an optimizer step in
pretraining and a micro-batch in fine-tuning) and the :class:`Events` that follow an optimizer step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist

from distill.training.batches import Window, stop_is_asked, windows
from distill.training.checkpointing import save_training_state
from distill.training.engine import StepResult, zero_loss
from distill.training.evaluate import EvaluationStopped
from distill.training.forward_step import StepOutput, forward_step
from distill.training.metrics import Progress, train_line
from distill.training.session import Session
from distill.training.setup import StopSignal
from model.parallel import backend
from model.parallel.groups import parallel_state

logger = logging.getLogger(__name__)

#: A run ends after so many steps in a row without an update. A dynamic fp16 scale needs about 30 to find its place.
IDLE_STEPS = 100


class Events(Protocol):
    """What a stage does beside training."""

    def before_training(self) -> None:
        """Once, before the first step of a run that starts from the beginning."""

    def after_step(self, before: int, after: int) -> None:
        """After an optimizer step that took the run from iteration ``before`` to iteration ``after``."""


@dataclass
class StepReport:
    """One optimizer step in numbers.

    Attributes:
        loss, hard_loss: means over micro-batches and data-parallel ranks; NaN if every micro-batch was skipped.
        parts: loss terms by tag, still on this rank.
        seconds: spent in forward, backward and optimizer.
        result: what the engine did, None if the step was left out.
        skipped: micro-batches left out because their loss was not finite; ``not_finite``: its terms on this rank.
    """

    loss: float = float("nan")
    hard_loss: float = float("nan")
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    result: StepResult | None = None
    skipped: int = 0
    not_finite: list[str] = field(default_factory=list)


def train(session: Session, events: Events) -> bool:
    """Train to the end.

    Returns:
        Whether the end was reached: False after SIGTERM, when the state has been saved.
    """
    source, run = session.source, session.run
    total = source.total // source.per_iteration
    if session.position == 0:
        events.before_training()
    log = _Log(session, total)
    progress = Progress(total, session.iteration, is_main=session.runtime.is_main)
    last_save, idle = time.monotonic(), 0
    session.model.train()
    try:
        with StopSignal() as stop, _asked_by_evaluations(session, stop):
            if session.pending_from is not None and not _after_step(session, events, session.pending_from):
                return False
            for window in windows(source, session.position, session.runtime.device, lambda: stop.received):
                if window.stop:
                    return _stopped(session)
                before, lr = session.iteration, session.schedule.rate()
                report = train_step(session, window, lr)
                session.position += len(window.batches)
                idle = 0 if report.result is not None and report.result.applied else idle + 1
                if idle == IDLE_STEPS:
                    raise ValueError(
                        f"{IDLE_STEPS} steps in a row left the weights as they were: the loss or its gradient was NaN "
                        f"or infinite (iteration {session.iteration}). Lower --lr, look at the terms that the log "
                        "names, and go on from an earlier checkpoint with --load")
                log.add(before, window, report, lr)
                progress.update(session.iteration - before, loss=report.loss, tokens_per_second=log.tokens_per_second,
                                memory=backend.peak_memory(session.runtime.device))
                trained_until = time.monotonic()
                if not _after_step(session, events, before):
                    return False
                if _time_to_save(session, last_save):
                    save_training_state(session, tracker=session.best.score is None)
                    last_save = time.monotonic()
                log.exclude(time.monotonic() - trained_until)
            if stop_is_asked(stop.received, session.runtime.device):  # during the last step or what follows it
                return _stopped(session)
    finally:
        progress.close()
    run.iteration = session.iteration
    log.summarise()
    return True


def _stopped(session: Session) -> bool:
    """Save after SIGTERM; the answer of :func:`train`."""
    logger.warning("asked to stop: saving iteration %d", session.iteration)
    save_training_state(session, tracker=session.best.score is None)
    return False


@contextmanager
def _asked_by_evaluations(session: Session, stop: StopSignal) -> Iterator[None]:
    session.should_stop = lambda: stop.received
    try:
        yield
    finally:
        session.should_stop = None


def _after_step(session: Session, events: Events, before: int) -> bool:
    """What is due after a step. False if SIGTERM came during an evaluation: the state is saved, and the run that goes
    on from it evaluates first."""
    session.pending_from = None
    try:
        events.after_step(before, session.iteration)
    except EvaluationStopped:
        logger.warning("asked to stop during an evaluation, which will be repeated: saving iteration %d",
                       session.iteration)
        session.pending_from = before
        save_training_state(session, tracker=session.best.score is None)
        return False
    return True


def crossed(interval: int, before: int, after: int) -> bool:
    """Whether a multiple of ``interval`` lies in (before, after]; never for 0."""
    return interval > 0 and after // interval > before // interval


def train_step(session: Session, window: Window, lr: float) -> StepReport:
    """One optimizer step: forward and backward of every micro-batch, then the update.

    A micro-batch whose loss is NaN or infinite on any rank adds nothing, on all ranks; if that holds for all of them
    there is no update.
    """
    report, engine = StepReport(loss=0.0, hard_loss=0.0), session.engine
    last = len(window.batches) - 1
    for index, weight in enumerate(window.weights):
        _place(session, window, index)
        outputs: list[StepOutput] = []
        with _timed(report, "forward"):
            loss = engine.compute(_closure(session, window, index, outputs))
            value, hard = _mean_over_data_parallel(loss, outputs[0].hard_loss, weight)
        if math.isfinite(value):
            with _timed(report, "backward"):
                engine.backward(loss, weight=weight, is_last=index == last)
            _add_to_report(report, outputs[0], weight, value, hard)
            continue
        report.skipped += 1
        broken = _not_finite(outputs[0])
        report.not_finite += [name for name in broken if name not in report.not_finite]
        logger.warning("Found NaN loss, skip backward (iteration %d, micro-batch %d): %s", session.run.iteration, index,
                       ", ".join(broken) or "on another rank")
        if index == last and report.skipped <= last:
            # The engine reduces gradients in the last backward, so there has to be one.
            engine.backward(engine.compute(lambda: zero_loss(session.model)), weight=1.0, is_last=True)
    if report.skipped == len(window.batches):
        return StepReport(skipped=report.skipped, not_finite=report.not_finite)
    with _timed(report, "optimizer"):
        report.result = engine.step(lr)
    if report.result.applied:
        session.steps += 1
        session.schedule.step()
    return report


def _not_finite(output: StepOutput) -> list[str]:
    """Names of the terms that are NaN or infinite here; the loss itself if no term is."""
    names = [tag for tag, value in output.parts.items() if not torch.isfinite(torch.as_tensor(value)).all()]
    return names or ([] if torch.isfinite(output.loss) else ["loss"])


@contextmanager
def _timed(report: StepReport, what: str) -> Iterator[None]:
    """Wall-clock time. On a GPU the backward pass is counted where its result is waited for, in the optimizer step."""
    began = time.monotonic()
    yield
    report.seconds[what] = report.seconds.get(what, 0.0) + time.monotonic() - began


def _place(session: Session, window: Window, index: int) -> None:
    """Tell the methods where in the run they are."""
    run, position = session.run, window.start + index
    run.iteration = position // session.source.per_iteration
    run.epoch = session.source.epoch(position)
    run.micro_step, run.accumulation_steps = index, len(window.batches)
    run.is_training = True


def _closure(session: Session, window: Window, index: int, outputs: list[StepOutput]) -> Callable[[], torch.Tensor]:
    def compute() -> torch.Tensor:
        outputs[:] = [forward_step(
            session.context, window.batches[index], token_denominator=window.token_denominators[index])]
        return outputs[0].loss

    return compute


def _mean_over_data_parallel(loss: torch.Tensor, hard_loss: torch.Tensor, weight: float) -> tuple[float, float]:
    """What a micro-batch adds to the loss and the label loss of the step."""
    values = torch.stack([loss.detach().float(), hard_loss.detach().float()]) * weight
    state = parallel_state()
    if state.data_size > 1:
        dist.all_reduce(values, group=state.data_group)
        values /= state.data_size
    value, hard = values.tolist()
    return value, hard


def _add_to_report(report: StepReport, output: StepOutput, weight: float, loss: float, hard_loss: float) -> None:
    report.loss += loss
    report.hard_loss += hard_loss
    for tag, value in output.parts.items():
        value = torch.as_tensor(value).detach().float() * weight
        report.parts[tag] = report.parts[tag] + value if tag in report.parts else value


def _time_to_save(session: Session, last_save: float) -> bool:
    """``--save_interval_time``; all ranks follow the first one's clock."""
    hours = session.args.save_interval_time
    if hours <= 0:
        return False
    due = torch.tensor(int(time.monotonic() - last_save >= hours * 3600), device=session.runtime.device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(due, src=0)
    return bool(due)


class _Log:
    """Collects steps and writes a record every ``--log-interval`` iterations."""

    def __init__(self, session: Session, total: int) -> None:
        self.session, self.total = session, total
        self.tokens_per_second = 0.0
        self._all_tokens, self._began, self._excluded = 0, time.monotonic(), 0.0
        self._reset()

    def _reset(self) -> None:
        self._started = time.monotonic()
        self._losses: list[float] = []
        self._seconds: dict[str, float] = {}
        self._tokens = self._iterations = 0

    def exclude(self, seconds: float) -> None:
        """Evaluation and saving are no training time."""
        self._started += seconds
        self._excluded += seconds

    def summarise(self) -> None:
        """The line at the end of training."""
        seconds = max(1e-9, time.monotonic() - self._began - self._excluded)
        logger.info("trained on %s tokens in %.0f s (%s tokens/s; evaluation and saving took %.0f s more); peak memory "
                    "%.1f GiB on rank 0", f"{self._all_tokens:,}", seconds, f"{self._all_tokens / seconds:,.0f}",
                    self._excluded, backend.peak_memory(self.session.runtime.device) / 1024)

    def add(self, before: int, window: Window, report: StepReport, lr: float) -> None:
        session, after = self.session, self.session.iteration
        self._tokens += window.num_tokens
        self._all_tokens += window.num_tokens
        self._iterations += after - before
        if report.result is not None:
            self._losses.append(report.loss)
        for what, spent in report.seconds.items():
            self._seconds[what] = self._seconds.get(what, 0.0) + spent
        is_due = crossed(session.args.log_interval, before, after) or after == self.total
        if is_due:  # in other steps the device may go on while the next batches are fetched
            backend.synchronize(session.runtime.device)
        seconds = max(1e-9, time.monotonic() - self._started)
        self.tokens_per_second = self._tokens / seconds
        if is_due:
            if not session.has_labels:
                report.hard_loss = float("nan")
                report.parts.pop("Train/hard_loss", None)
            self._write(after, window, report, lr, _mean_parts(report.parts, session.runtime.device), seconds)
            self._reset()

    def _write(self, iteration: int, window: Window, report: StepReport, lr: float, parts: dict[str, float],
               seconds: float) -> None:
        session, writer = self.session, self.session.writer
        result = report.result or StepResult(False, float("nan"))
        mean_loss = sum(self._losses) / len(self._losses) if self._losses else float("nan")
        values = {
            "iteration": iteration, "epoch": session.run.epoch, "loss": report.loss, "mean_loss": mean_loss,
            "hard_loss": report.hard_loss, **parts, "lr": lr, "grad_norm": result.grad_norm,
            "tokens_per_second": self.tokens_per_second, "ms_per_iteration": seconds * 1000 / max(1, self._iterations),
            "peak_memory_mb": round(backend.peak_memory(session.runtime.device), 1)}
        if result.loss_scale is not None:
            values["loss_scale"] = result.loss_scale
        if report.skipped:
            values.update(skipped_micro_batches=report.skipped, not_finite=report.not_finite)
        writer.record("train", values)
        spent = {what: total * 1000 / max(1, self._iterations) for what, total in self._seconds.items()}
        spent["batch generator"] = values["ms_per_iteration"] - sum(spent.values())
        writer.scalars({
            "Train/lr": lr, "Train/train_loss": mean_loss, "Train/train_loss_iter": report.loss,
            "Train/elapsed_time": values["ms_per_iteration"], "Train/grad_norm": result.grad_norm,
            "Train/hard_loss": report.hard_loss, **parts, **_memory_tags(session),
            **{f"log_time/{what}": value for what, value in spent.items()}}, iteration)
        samples = window.num_samples * session.source.per_iteration // len(window.batches)
        logger.info(train_line(iteration, self.total, {**values, "loss": mean_loss}, samples=samples))


def _mean_parts(parts: dict[str, torch.Tensor], device: torch.device) -> dict[str, float]:
    """The loss terms averaged over the data-parallel ranks, which all have the same ones.

    What a method records as a plain number lies on the CPU.
    """
    if not parts:
        return {}
    tags = sorted(parts)
    values = torch.stack([parts[tag].to(device) for tag in tags])
    state = parallel_state()
    if state.data_size > 1:
        dist.all_reduce(values, group=state.data_group)
        values /= state.data_size
    return dict(zip(tags, values.tolist()))


def _memory_tags(session: Session) -> dict[str, float]:
    state = parallel_state()
    return {f"Report/memory_dp{state.data_rank}_mp{state.model_rank}_{kind}": value
            for kind, value in backend.memory_report(session.runtime.device).items()}
