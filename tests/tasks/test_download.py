"""Fetching, checking and unpacking the official data, on small archives of the official layout and a local server."""

from __future__ import annotations

import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.superglue import download, official
from tasks.superglue.official import OFFICIAL, Official, count_examples, wrong_sizes
from tests.tasks.test_superglue_more import multirc_row, wsc_row

ROWS: dict[str, list[dict[str, Any]]] = {
    "cb": [{"premise": "p", "hypothesis": "h", "label": "neutral", "idx": 0}],
    "wsc": [wsc_row(), {**wsc_row(), "idx": 8}],
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """CB of 1 and WSC of 2 examples a file are the official sizes."""
    for name, rows in ROWS.items():
        sizes = {file: len(rows) for file in OFFICIAL[name].sizes}
        monkeypatch.setitem(official.OFFICIAL, name, Official(OFFICIAL[name].folder, sizes))


def archive(name: str, *, rows: list[dict[str, Any]] | None = None, files: tuple[str, ...] | None = None) -> bytes:
    """The archive of a task: its folder with its files, and what archives from a Mac have beside it."""
    content, folder = io.BytesIO(), OFFICIAL[name].folder
    text = "".join(json.dumps(row) + "\n" for row in (ROWS[name] if rows is None else rows))
    with zipfile.ZipFile(content, "w") as stream:
        stream.writestr(f"{folder}/", "")
        stream.writestr(f"__MACOSX/{folder}/._train.jsonl", "x")
        for file in OFFICIAL[name].sizes if files is None else files:
            stream.writestr(f"{folder}/{file}", text)
    return content.getvalue()


class Server:
    """Serves byte strings; remembers the ranges asked for; ``cut`` ends the next answer early."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.ranges, self.cut = files, [], None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802 (the name is the protocol's)
                body, start = outer.files.get(self.path.lstrip("/")), self.headers.get("Range")
                outer.ranges.append(start)
                if body is None:
                    self.send_error(404)
                    return
                offset = int(start.removeprefix("bytes=").rstrip("-")) if start else 0
                if offset >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - offset))
                self.end_headers()
                self.wfile.write(body[offset:outer.cut])

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, small: None) -> Iterator[Server]:
    one = Server({"CB.zip": archive("cb"), "WSC.zip": archive("wsc")})
    monkeypatch.setattr(official, "BASE_URL", one.url)
    yield one
    one.server.shutdown()
    one.server.server_close()


def test_tasks_are_fetched_unpacked_and_kept(server: Server, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert download.main([str(tmp_path), "CB", "wsc"]) == 0
    assert "CB: unpacked, sizes as published" in capsys.readouterr().out
    for folder, rows in (("CB", ROWS["cb"]), ("WSC", ROWS["wsc"])):
        for name in ("train", "val", "test"):
            lines = (tmp_path / folder / f"{name}.jsonl").read_text().splitlines()
            assert [json.loads(line) for line in lines] == rows
    negative = [json.loads(line) for line in (tmp_path / "WSC-negative" / "val.jsonl").read_text().splitlines()]
    assert [row["candidates"] for row in negative] == [[{"text": "Ann"}]] * 2
    asked = len(server.ranges)
    assert download.main([str(tmp_path), "CB", "WSC"]) == 0 and len(server.ranges) == asked
    assert "complete already" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"archives", "CB", "WSC", "WSC-negative"}


def test_an_interrupted_archive_is_continued(server: Server, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    server.cut = 100
    assert download.main([str(tmp_path), "CB"]) == 1
    assert "could not be fetched (the connection ended after 100 of" in capsys.readouterr().err
    assert (tmp_path / "archives" / "CB.zip.part").stat().st_size == 100 and not (tmp_path / "CB").exists()
    server.cut = None
    assert download.main([str(tmp_path), "CB"]) == 0
    assert server.ranges == [None, "bytes=100-"]
    assert (tmp_path / "archives" / "CB.zip").read_bytes() == server.files["CB.zip"]


def test_a_part_that_is_whole_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "CB.zip.part").write_bytes(server.files["CB.zip"])
    assert download.main([str(tmp_path), "CB"]) == 0


def test_without_a_network_it_says_what_to_put_where(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(official, "BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    assert download.main([str(tmp_path), "CB"]) == 1
    said = capsys.readouterr().err
    assert "http://127.0.0.1:9/CB.zip could not be fetched" in said
    assert f"put it to {tmp_path / 'archives' / 'CB.zip'} and run this command again" in said
    assert f"{tmp_path / 'CB'}/ (train.jsonl, val.jsonl, test.jsonl)" in said
    (tmp_path / "archives" / "CB.zip").write_bytes(archive("cb"))
    assert download.main([str(tmp_path), "CB"]) == 0


@pytest.mark.parametrize(("content", "message"), [
    (archive("cb")[:200], "is no complete zip archive"),
    (archive("cb", files=("train.jsonl", "val.jsonl")), "has no test.jsonl"),
    (archive("cb", rows=ROWS["cb"] * 2), "train.jsonl has 2 examples, published are 1"),
])
def test_what_came_is_checked_and_nothing_is_half_written(
        small: None, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "CB.zip").write_bytes(content)
    assert download.main([str(tmp_path), "CB"]) == 1
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"archives"}


def test_other_data_is_left_alone(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "CB").mkdir()
    (tmp_path / "CB" / "train.jsonl").write_text('{"idx": 0}\n{"idx": 1}\n')
    assert download.main([str(tmp_path), "CB"]) == 1
    assert "train.jsonl has 2 examples, published are 1: other data stands there" in capsys.readouterr().err
    assert server.ranges == [] and len(list((tmp_path / "CB").iterdir())) == 1
    (tmp_path / "CB" / "train.jsonl").write_text('{"idx": 5}\n')  # only what is missing is filled in
    assert download.main([str(tmp_path), "CB"]) == 0
    assert json.loads((tmp_path / "CB" / "train.jsonl").read_text()) == {"idx": 5}
    assert wrong_sizes("cb", tmp_path / "CB") == []


def test_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert download.main([str(tmp_path), "ReCord", "BoolG"]) == 2
    assert "'BoolG' is no task of SuperGLUE (did you mean 'boolq'?)" in capsys.readouterr().err


def test_sizes_are_counted_in_answers_and_queries(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(multirc_row()) + "\n" + json.dumps(multirc_row()) + "\n")
    assert (count_examples("multirc", path), count_examples("rte", path)) == (6, 2)
    path.write_text(json.dumps({"idx": 0, "qas": [{}, {}]}) + "\n")
    assert count_examples("record", path) == 2
    path.write_text("{}\n{\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not valid JSON"):
        count_examples("rte", path)
