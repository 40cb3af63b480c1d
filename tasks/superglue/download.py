"""``python -m tasks.superglue.download OUT [TASK ...]``: the official data, ready for ``--data-dir OUT/<Task>``.

Each archive is fetched into ``OUT/archives`` (an interrupted one is continued), unpacked to ``OUT/<Task>`` whole or not
at all, and its numbers of examples are compared with the published ones. WSC gets a second folder, with candidates for
``--wsc-negative``: ``OUT/WSC-negative``. What is there already is kept, so the command can be repeated. Archives that
were put into ``OUT/archives`` by hand are used as they are: without a network that is what to do.
"""

from __future__ import annotations

import argparse
import http.client
import logging
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tasks.superglue.official import OFFICIAL, official, wrong_sizes
from tasks.superglue.wsc_negative import add_candidates

ARCHIVES = "archives"
NEGATIVE = "WSC-negative"
TIMEOUT_SECONDS = 30
_BLOCK = 1 << 16

_LOG = logging.getLogger(__name__)


class DownloadError(Exception):
    """An archive that could not be had; the message says what to do instead."""


def fetch(url: str, path: Path) -> Path:
    """Downloads ``url`` to ``path``; what an earlier attempt left in ``<path>.part`` is continued.

    Raises DownloadError naming the address, the reason and where to put the file by hand.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            is_continued = have and getattr(answer, "status", 200) == 206
            expected = answer.headers.get("Content-Length")
            with part.open("ab" if is_continued else "wb") as stream:
                start = stream.tell()
                while block := answer.read(_BLOCK):
                    stream.write(block)
                received = stream.tell() - start
        if expected is not None and received != int(expected):
            raise OSError(f"the connection ended after {received} of {expected} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to fetch, the part is the whole
            raise DownloadError(_by_hand(url, path, str(error))) from error
    except (OSError, http.client.HTTPException) as error:  # the former: URLError and time-outs too
        raise DownloadError(_by_hand(url, path, str(getattr(error, "reason", error)))) from error
    os.replace(part, path)
    return path


def _by_hand(url: str, path: Path, reason: str) -> str:
    return (f"{url} could not be fetched ({reason}). Without a network: fetch it on another machine, put it to {path} "
            "and run this command again; or put the files themselves to "
            f"{path.parent.parent / path.stem}/ ({', '.join(official(path.stem).sizes)}). With a network: run the "
            "command again, it continues where it stopped")


def unpack(archive: Path, name: str, folder: Path) -> None:
    """Unpacks the official files of a task from its archive to ``folder``, whole or not at all.

    Raises ValueError for a file that is no such archive.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with zipfile.ZipFile(archive) as content:
            members = {Path(member.filename).name: member for member in content.infolist()
                       if not member.is_dir() and not member.filename.startswith("__MACOSX")}
            missing = [file for file in OFFICIAL[name].sizes if file not in members]
            if missing:
                raise ValueError(f"{archive} has no {', '.join(missing)} (it has {', '.join(members) or 'nothing'}); "
                                 "remove it and run the command again")
            for file in OFFICIAL[name].sizes:
                with content.open(members[file]) as source, (temporary / file).open("wb") as target:
                    shutil.copyfileobj(source, target)
        if problems := wrong_sizes(name, temporary):
            shown = "; ".join(problems).replace(f"{temporary}{os.sep}", "")
            raise ValueError(f"{archive}: {shown}. Remove it and run the command again; if the data has changed at its "
                             "source, unpack it by hand")
        _publish(temporary, folder, list(OFFICIAL[name].sizes))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is no complete zip archive ({error}); remove it and run the command again"
                         ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path, files: Sequence[str]) -> None:
    """Moves a finished folder to its place; where one stands already, only the files that it lacks."""
    if not folder.exists():
        temporary.chmod(0o755)
        os.replace(temporary, folder)
        return
    for file in files:
        if not (folder / file).exists():
            os.replace(temporary / file, folder / file)


def prepare(name: str, out: Path) -> str:
    """Makes the folder of one task complete; returns what was done, as a line to show."""
    task = OFFICIAL[name]
    folder, archive = out / task.folder, out / ARCHIVES / f"{task.folder}.zip"
    out.mkdir(parents=True, exist_ok=True)
    done = "complete already"
    if problems := wrong_sizes(name, folder):
        if other := [problem for problem in problems if not problem.endswith("is missing")]:
            raise ValueError(f"{'; '.join(other)}: other data stands there; it is left alone, name another OUT")
        if not archive.is_file():
            _LOG.info("fetching %s", task.url)
            fetch(task.url, archive)
        unpack(archive, name, folder)
        done = "unpacked, sizes as published"
    if name == "wsc" and not all((out / NEGATIVE / file).is_file() for file in task.sizes):
        add_candidates(folder, out / NEGATIVE)
        done += f"; {NEGATIVE} made"
    return f"{folder}: {done}"


def main(argv: Sequence[str] | None = None) -> int:
    """Fetches the tasks; exit code 1 where one could not be had (the others still are), 2 for a wrong name."""
    parser = argparse.ArgumentParser(prog="python -m tasks.superglue.download", allow_abbrev=False,
                                     description="Fetch the official SuperGLUE data.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that gets one folder a task")
    parser.add_argument("tasks", nargs="*", metavar="TASK",
                        help=f"default: all ({', '.join(task.folder for task in OFFICIAL.values())})")
    args = parser.parse_args(argv)
    try:
        names = [official(name).folder.lower() for name in args.tasks] or list(OFFICIAL)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    failures = 0
    for name in names:
        try:
            sys.stdout.write(f"{prepare(name, args.out)}\n")
        except (DownloadError, ValueError) as error:
            failures += 1
            sys.stderr.write(f"error: {error}\n")
    return int(failures > 0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
