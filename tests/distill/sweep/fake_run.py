"""A training run as a sweep sees it: scores in files, a log, an exit status. Starts in a moment, and can go wrong.

Flags: ``--behaviour`` (what happens), ``--epochs``, ``--score`` (of the last epoch), ``--pause`` (seconds an epoch),
``--save`` and ``--experiment-name`` (records), ``--custom_tmp_result``, ``--diary`` (file that tells of its life).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    flags = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
    behaviour = flags.get("behaviour", "ok")
    note(flags, "begin")
    try:
        return BEHAVIOURS[behaviour](flags)
    finally:
        note(flags, "end")


def note(flags: dict[str, str], what: str) -> None:
    line = {"what": what, "time": time.time(), "pid": os.getpid(), "name": flags["experiment-name"],
            "include": flags.get("include"), "port": flags.get("master_port"),
            "threads": os.environ.get("OMP_NUM_THREADS")}
    with open(flags["diary"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def ok(flags: dict[str, str]) -> int:
    epochs, best = int(flags.get("epochs", 2)), {}
    folder = Path(flags["save"], flags["experiment-name"], "tensorboard")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "w", encoding="utf-8", buffering=1) as records:
        for epoch in [*range(epochs), -1]:
            time.sleep(float(flags.get("pause", 0)) if epoch >= 0 else 0)
            reached = epochs if epoch < 0 else epoch + 1
            scores = {"accuracy": float(flags.get("score", 0.5)) * reached / epochs}
            records.write(json.dumps({"kind": "metrics", "iteration": 10 * reached, "epoch": epoch, **scores}) + "\n")
            if "accuracy" not in best or scores["accuracy"] > best["accuracy"]["score_dict"]["accuracy"]:
                best["accuracy"] = {"epoch": epoch, "iteration": 10 * reached, "score_dict": scores}
            write_result(flags, best, epoch)
    sys.stdout.write("finished\n")
    return 0


def write_result(flags: dict[str, str], best: dict, epoch: int) -> None:
    Path(flags["custom_tmp_result"]).write_text(json.dumps({
        "args": {"save": flags["save"], "epochs": int(flags.get("epochs", 2)), "iteration": 0, "task": "COPA",
                 "wsc_negative": False}, "now": "", "max_score_dict": best, "epoch": epoch}), encoding="utf-8")


def refuse(flags: dict[str, str]) -> int:
    sys.stderr.write("distill/finetune.py: error: --hidden-size=100 is no multiple of --num-attention-heads=12\n")
    return 2


def crash(flags: dict[str, str]) -> int:
    raise RuntimeError("the loss is not finite")


def flaky(flags: dict[str, str]) -> int:
    mark = Path(flags["diary"]).with_name(f"{flags['experiment-name']}.tried")
    if mark.exists():
        return ok(flags)
    mark.touch()
    raise ConnectionError("the rendezvous failed")


def hang_once(flags: dict[str, str]) -> int:
    mark = Path(flags["diary"]).with_name("hung")
    if mark.exists():
        return ok(flags)
    mark.touch()
    return hang(flags)


def untrained_once(flags: dict[str, str]) -> int:
    """Scores the weights that it starts from, as a later stage does, and trains forever; the second time it is fine."""
    write_result(flags, {"accuracy": {"epoch": 0, "iteration": 0, "score_dict": {"accuracy": 0.1}}}, 0)
    return hang_once(flags)


def wait(flags: dict[str, str]) -> int:
    """Goes on when there is a file "go" beside the diary."""
    while not Path(flags["diary"]).with_name("go").exists():
        time.sleep(0.02)
    return ok(flags)


def out_of_memory(flags: dict[str, str]) -> int:
    sys.stderr.write("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.\n")
    return 1


def hang(flags: dict[str, str]) -> int:
    time.sleep(600)
    return 0


def stubborn(flags: dict[str, str]) -> int:
    """Neither it nor the child that it has put into a session of its own ends when asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
                      "time.sleep(600)"], start_new_session=True)
    return hang(flags)


def orphan(flags: dict[str, str]) -> int:
    """Ends well, and leaves a process behind."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    return ok(flags)


def truncated(flags: dict[str, str]) -> int:
    ok(flags)
    path = Path(flags["custom_tmp_result"])
    path.write_text(path.read_text(encoding="utf-8")[:40], encoding="utf-8")
    return 0


def incomplete(flags: dict[str, str]) -> int:
    write_result(flags, {"accuracy": {"epoch": 0, "iteration": 1, "score_dict": {"accuracy": 0.5}}}, 0)
    return 0


def silent(flags: dict[str, str]) -> int:
    return 0


BEHAVIOURS = {function.__name__: function for function in (
    ok, refuse, crash, flaky, hang_once, untrained_once, wait, out_of_memory, hang, stubborn, orphan, truncated,
    incomplete, silent)}

if __name__ == "__main__":
    sys.exit(main())
