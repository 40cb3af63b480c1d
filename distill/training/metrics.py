"""Where the numbers of a run go: console, ``metrics.jsonl``, TensorBoard, progress bar. Nothing else logs numbers.

``metrics.jsonl`` has one JSON object a line. ``kind`` is ``train`` (one a logged step: ``iteration``, ``loss``,
``hard_loss``, every loss part by its tag, ``lr``, ``grad_norm``, ``tokens_per_second``, ``ms_per_iteration``,
``peak_memory_mb`` of rank 0),
``validation`` (``loss``, ``perplexity``), ``metrics`` (scores of a task), ``start`` or ``end``.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from tasks.metrics import perplexity

logger = logging.getLogger(__name__)


class MetricWriter:
    """Writes the records of a run. On every rank but the first, and without a folder, it writes no files.

    Files are opened by the first record: a run that cannot start leaves those of an earlier one as they are.
    """

    def __init__(self, folder: Path | None, *, is_main: bool = True, resumed: bool = False,
                 observe: Callable[[str, Mapping[str, Any]], None] | None = None) -> None:
        """
        Args:
            resumed: append to the records of the run that goes on; otherwise they start anew.
            observe: is told every record, on every rank.
        """
        self.is_main = is_main
        self.folder = folder if is_main else None
        self._mode = "a" if resumed else "w"
        self._observe = observe
        self._lines: TextIO | None = None
        self._board: Any = None

    def _open(self) -> None:
        if self.folder is not None and self._lines is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "metrics.jsonl"
            if self._mode == "a" and path.is_file():
                _drop_half_line(path)
            self._lines = open(path, self._mode, encoding="utf-8", buffering=1)
            self._board = _open_tensorboard(self.folder)

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one object to ``metrics.jsonl``. NaN and inf become null, which JSON can hold."""
        if self._observe is not None:
            self._observe(kind, values)
        self._open()
        if self._lines is not None:
            clean = {name: _finite_or_none(value) for name, value in values.items()}
            try:
                self._lines.write(json.dumps({"kind": kind, **clean}, ensure_ascii=False) + "\n")
            except OSError as error:
                raise OSError(error.errno, f"cannot write: {error.strerror}", self._lines.name) from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write TensorBoard scalars under their tags."""
        self._open()
        if self._board is not None:
            for tag, value in values.items():
                if math.isfinite(value):
                    self._board.add_scalar(tag, value, step)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file beside the records (arguments, configuration), for people to read."""
        self._open()
        if self.folder is not None:
            text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, default=str)
            (self.folder / name).write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        # On a full disk closing fails like the write before it, whose error says more.
        with suppress(OSError) if error[0] is not None else nullcontext():
            self.close()


def _drop_half_line(path: Path) -> None:
    """Remove what a full disk has left of a record at the end of the file."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _open_tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        logger.warning("no TensorBoard files: %s (pip install tensorboard)", error)
        return None
    return SummaryWriter(str(folder), flush_secs=30)


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite_or_none(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """The bar on rank 0: iterations, time to go, loss, tokens per second, peak memory. Silent without a terminal."""

    def __init__(self, total: int, start: int, *, is_main: bool) -> None:
        self._bar = tqdm(total=total, initial=start, unit="it", dynamic_ncols=True, disable=None if is_main else True)

    def update(self, iterations: int, *, loss: float, tokens_per_second: float, memory: float) -> None:
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s, {memory / 1024:.1f} GiB", refresh=False)
        self._bar.update(iterations)

    def close(self) -> None:
        self._bar.close()


def train_line(iteration: int, total: int, values: Mapping[str, float], *, samples: int) -> str:
    """The console line of a logged step, in the published form.

    Args:
        values: ``ms_per_iteration``, ``lr``, ``loss``, ``grad_norm``, and in fp16 ``loss_scale``.
        samples: samples of all ranks in one iteration.
    """
    elapsed = values["ms_per_iteration"]
    line = (f" iteration {iteration:8d}/{total:8d} | elapsed time per iteration/sample (ms): {elapsed:.1f}/"
            f"{elapsed / max(1, samples):.2f} | learning rate {values['lr']:.3E} | lm loss {values['loss']:.6E} | "
            f"gradient norm {values['grad_norm']:.3f} |")
    if values.get("loss_scale") is not None:
        line += f" loss scale {values['loss_scale']:.1f} |"
    return line


def validation_line(iteration: int, loss: float) -> str:
    """The console line of a validation loss."""
    return f" validation loss at iteration {iteration} | LM loss: {loss:.6E} | LM PPL: {perplexity(loss):.6E}"

