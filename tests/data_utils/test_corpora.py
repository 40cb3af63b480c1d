from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.corpora import readers
from data_utils.corpora.build import Chunk, iter_documents, iter_source
from data_utils.corpora.english import EnglishFilter
from data_utils.corpora.registry import CORPORA, resolve_source

LONG = "x" * 101


def read(name: str, *records: object) -> list[tuple[str, str]]:
    reader = CORPORA[name].reader
    return [document for record in records for document in reader.documents(json.dumps(record))]


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("one\n\n \ntwo \u201cq\u201d \u2013 it\u2019s\r\nthree")
    (tmp_path / "a.jsonl").write_text('{"text": "four", "prompt": "p"}\n\n{"text": "", "prompt": "lost"}\n')
    (tmp_path / "a.lazy").mkdir()
    (tmp_path / "a.lazy" / "meta.json").write_text("{}")
    (tmp_path / "notes.md").write_text("not a corpus")
    expected = [("", "one"), ("", 'two "q" - it\'s'), ("", "three")]
    assert list(iter_source(resolve_source(str(tmp_path / "b.txt")))) == expected
    assert list(iter_source(resolve_source(str(tmp_path)))) == [("p", "four"), *expected]
    with pytest.raises(ValueError, match="must end in"):
        resolve_source(str(tmp_path / "notes.md"))
    (tmp_path / "notes.md").write_text('{"text": "five", "body": "six"}')
    source = resolve_source(str(tmp_path / "notes.md"), loose_json=True, text_key="body")
    assert list(iter_source(source)) == [("", "six")]
    (tmp_path / "c.json").write_text('{"sentence": "seven"}\n{"sentence": "no", "text": "eight"}')
    assert list(iter_source(resolve_source(str(tmp_path / "c.json")))) == [("", "seven"), ("", "eight")]


def test_names_are_looked_up_below_the_root(tmp_path: Path) -> None:
    file = tmp_path / "pretrain" / "bertbase" / "wikibook_glm.txt"
    file.parent.mkdir(parents=True)
    file.write_text("a document\n")
    assert resolve_source("bert-base", data_root=tmp_path).location == file
    (tmp_path / "wikipedia").mkdir()
    (tmp_path / "wikipedia" / "part").write_text('{"text": "article"}\n')
    for name in ("wikipedia", "wiki"):
        assert list(iter_source(resolve_source(name, data_root=tmp_path))) == [("", "article")]
    with pytest.raises(FileNotFoundError, match="--data-root"):
        resolve_source("pile", data_root=tmp_path)
    with pytest.raises(FileNotFoundError, match="registered names"):
        resolve_source("nonsense", data_root=tmp_path)


def test_formats_of_named_corpora() -> None:
    assert read("openwebtext", {"text": "short"}, {"text": LONG}) == [("", LONG)]
    news = {"title": "T", "description": "D", "maintext": LONG}
    assert read("cc-news", news, {**news, "maintext": "D" + LONG}, {"title": "T", "maintext": "short"}) == [
        ("", f"T D {LONG}"), ("", f"T D{LONG}")]
    pile = [{"text": "code", "meta": {"pile_set_name": "Github"}}, {"text": "w", "meta": {"pile_set_name": "Pile-CC"}}]
    assert read("pile", *pile) == [("", "w")]
    thinned = [{"text": f"t{n}", "meta": {"pile_set_name": "ArXiv"}} for n in range(1000)]
    kept = read("pile", *thinned)
    assert 230 < len(kept) < 370 and kept == read("pile", *thinned)
    assert read("test", {"prompt": "p\u2019", "text": "t"}) == [("p'", "t")]
    assert read("wudao", {"RECORDS": [{"title": "T", "content": LONG}, {"title": "T", "content": "no"}]}) == [
        ("", f"T {LONG}")]
    (prompt, text), = read("zhihu", {"q_title": "为什么", "ans-content": "因为\u201c\u201d"})
    assert "为什么" in prompt and text == "因为\u201c\u201d"  # Chinese quotes stay


def test_broken_lines_name_file_and_place(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    for bad, message in (('{"text": "a"', "byte 14"), ("[1]", "JSON object"), ('{"body": "a"}', "'text' is missing")):
        file.write_text('{"text": "a"}\n' + bad + "\n")
        with pytest.raises(ValueError, match=message) as error:
            list(iter_source(resolve_source(str(file))))
        assert str(file) in str(error.value)


def test_chunks_share_no_line(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    lines = [f"line {n} " + "é" * (n % 7) for n in range(50)]
    file.write_text("\n".join(lines), encoding="utf-8")
    size = file.stat().st_size
    reader = readers.Reader("plain", readers.plain_text)
    for step in (1, 7, 64, size):
        found = [text for start in range(0, size, step)
                 for _, text in iter_documents(Chunk(file, reader, start, min(start + step, size)))]
        assert found == lines


def test_english_filter_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lid\.176\.bin"):
        EnglishFilter(tmp_path)
