from __future__ import annotations

import pytest

from data_utils.vocab_file import read_vocab_file, sort_vocabulary, vocab_file_text

TOKENS = ["[PAD]", "a", "b", "c", "d", "\u2028", "[UNK]"]
COUNTS = {3: 2, 1: 5, 2: 2}


def test_order_is_protected_first_then_by_count_then_by_first_occurrence_then_by_id():
    assert sort_vocabulary(7, COUNTS, {6, 0, 2}) == [2, 0, 6, 1, 3, 4, 5]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "sorted.txt"
    path.write_text(vocab_file_text(TOKENS, COUNTS, {0, 6}), encoding="utf-8")
    assert read_vocab_file(path, TOKENS) == sort_vocabulary(7, COUNTS, {0, 6})
    assert path.read_text().splitlines()[1].split("\t")[2:] == ["[PAD]", "0", "0.000e+00"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda text: text.replace("origin_no", "no"), "has the header"),
    (lambda text: text.replace("5.556e-01", "5.556e-01\tmore"), "line 4: five columns"),
    (lambda text: text.replace("\ta\t", "\tz\t"), "id 1 is 'z' there and 'a' in the tokenizer"),
    (lambda text: text.rsplit("\n", 2)[0] + "\n", "has 6 lines"),
    (lambda text: text.replace("0\t0\t[PAD]", "1\t0\t[PAD]"), "not inverse permutations"),
])
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    path = tmp_path / "sorted.txt"
    text = vocab_file_text(TOKENS, COUNTS, {0, 6})
    assert change(text) != text
    path.write_text(change(text), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_vocab_file(path, TOKENS)


def test_a_missing_file_names_the_tool(tmp_path):
    with pytest.raises(FileNotFoundError, match="vocab_sort.py"):
        read_vocab_file(tmp_path / "none.txt", TOKENS)
