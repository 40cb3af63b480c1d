"""What became of a child: its exit status, its result file and its log together."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.json_files import read_json
from distill.sweep.files import tail

#: Exit status with which our scripts refuse a command line or a file that it names.
REFUSED_STATUS = 2
MAX_REASON = 300

_PREFIX = re.compile(r"^(?:\[rank ?\d+\]:? ?)+")
_ERROR = re.compile(r"^(?:[\w./-]+: )?(?:error|fatal error): |^[\w.]*(?:Error|Exception|Interrupt|Exit)\b(?::|$)|"
                    r"^Segmentation fault|^Killed\b", re.IGNORECASE)
#: Said by those who only watch: the launcher, and ranks that another one has left alone.
_ECHO = re.compile(r"launch\.py:\d+|exits with return code|CalledProcessError|ChildFailedError|another rank has ended")
_MEMORY = re.compile(r"out of memory|OutOfMemory|CUBLAS_STATUS_ALLOC_FAILED|can(?:'|no)t allocate memory|"
                     r"std::bad_alloc|^MemoryError", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        kind: "done", or what failed: "refused" (the command line or a file that it names), "memory", "timeout",
            "crashed", "no result", "damaged result", "incomplete result", "not started".
        reason: in a sentence, for people; empty if it is done.
        result: content of the result file, where it is one.
    """

    kind: str
    reason: str = ""
    result: dict[str, Any] | None = None

    @property
    def is_done(self) -> bool:
        return self.kind == "done"

    @property
    def may_be_retried(self) -> bool:
        """Whether the same command could do better: a refusal, a time-out and a lack of memory would come again."""
        return self.kind in ("crashed", "no result", "damaged result", "incomplete result")


def judge(status: int | None, result: Path, log: Path, *, time_limit: float | None = None) -> Outcome:
    """How a child has ended.

    Args:
        status: exit status, negative for a signal; None if nobody saw it (the sweep was not running then).
        result: file that it was to write. log: of stdout and stderr.
        time_limit: seconds, if it was ended because they were over.
    """
    text = tail(log)
    if time_limit is not None:
        return Outcome("timeout", f"no end within {time_limit:g} s (--trial_timeout)")
    found = read_result(result)
    if status is None and found.is_done and found.result["epoch"] != -1:
        # The scores of an untrained stage (--custom_first_eval) count as epoch 0, which may be the last one.
        found = Outcome("incomplete result", "nobody saw how the run ended, and its final scores are missing",
                        found.result)
    if status not in (0, None):
        return Outcome(*_failure(status, text), found.result)
    if found.is_done or (line := error_line(text)) is None:
        return found
    kind = "memory" if _MEMORY.search(text) else found.kind
    return Outcome(kind, f"{found.reason}; the log says: {line}", found.result)


def _failure(status: int, text: str) -> tuple[str, str]:
    line, number = error_line(text), _signal_of(status)
    end = f"ended by {_signal_name(number)}" if number else f"exit status {status}"
    if _MEMORY.search(text):
        memory = next((line for line in reversed(text.splitlines()) if _MEMORY.search(line)), "")
        return "memory", _short(f"out of memory: {memory.strip()} ({end})")
    if line is None and number == signal.SIGKILL:
        end += " from outside, as the system does when memory runs out"
    return ("refused" if status == REFUSED_STATUS else "crashed"), _short(f"{line} ({end})" if line else end)


def _signal_of(status: int) -> int:
    """The signal that ended the process; 0 if none did. A shell adds 128 to its number, a launcher hands on -number."""
    number = -status if status < 0 else 256 - status if status > 192 else status - 128
    return number if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGINT,
                                signal.SIGBUS, signal.SIGHUP) else 0


def read_result(path: Path) -> Outcome:
    """A result file: whole, or what is wrong with it."""
    if not path.exists():
        return Outcome("no result", "the run ended without a result file")
    try:
        result = read_json(path)
    except ValueError as error:
        if isinstance(cause := error.__cause__, OSError):
            return Outcome("no result", f"the result file cannot be read: {cause.strerror}")
        return Outcome("damaged result", f"the result file is cut short or no JSON ({cause})")
    if problem := _structure(result):
        return Outcome("damaged result", f"the result file is no result of a run: {problem}")
    epoch, epochs = result["epoch"], result["args"].get("epochs")
    if epoch != -1 and epoch + 1 != epochs:
        return Outcome("incomplete result", f"the last scores are those of epoch {epoch + 1} of {epochs}", result)
    if not result["max_score_dict"]:
        return Outcome("incomplete result", "the result file holds no scores", result)
    return Outcome("done", result=result)


def _structure(result: Any) -> str:
    if not isinstance(result, dict):
        return f"a {type(result).__name__}, not an object"
    for name, kind in (("args", dict), ("max_score_dict", dict), ("epoch", int)):
        if not isinstance(result.get(name), kind):
            return f"{name} is {result[name]!r}" if name in result else f"{name} is missing"
    for metric, entry in result["max_score_dict"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("score_dict"), dict):
            return f"max_score_dict of {metric} has no score_dict"
    return ""


def error_line(text: str) -> str | None:
    """The last line of a log that says what went wrong; None if none does."""
    echo = None
    for line in reversed(text.splitlines()):
        bare = _PREFIX.sub("", line.strip())
        if not _ERROR.search(bare) and not _ECHO.search(bare):
            continue
        if not _ECHO.search(bare):
            return _short(bare)
        echo = echo or bare
    return _short(echo) if echo else None


def _short(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[:MAX_REASON - 1] + "…"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name


def log_tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log, for the report."""
    return "\n".join(tail(log).splitlines()[-lines:])
