from __future__ import annotations

import numpy as np
import pytest

from data_utils.corpora.documents import ConcatDocuments, InMemoryDocuments, SelectedDocuments
from data_utils.datasets.block import BlockDataset
from data_utils.tokenizers import Tokenizer

LENGTH = 40


@pytest.fixture()
def parts(tokenizer: Tokenizer) -> list[list[int]]:
    words = tokenizer.encode("the cat sat on a mat")
    stop = tokenizer.encode(".")
    return [(words[:number % 5 + 2] + stop) * (1 + 3 * number) for number in range(6)]


def split_documents(text: np.ndarray, enc: int) -> list[list[int]]:
    starts = [*np.flatnonzero(text == enc).tolist(), len(text)]
    return [text[start:end].tolist() for start, end in zip(starts, starts[1:])]


def test_samples_are_made_of_documents(tokenizer: Tokenizer, parts: list[list[int]]) -> None:
    enc, eos, stop = tokenizer.command_id("ENC"), tokenizer.command_id("eos"), tokenizer.encode(".")[0]
    dataset = BlockDataset(InMemoryDocuments(parts), tokenizer, LENGTH)
    assert len(dataset) == 6000
    joined = ["/".join(map(str, [*part, eos])) for part in parts]
    for index in range(200):
        text, loss_mask = dataset.sample(index)
        assert 2 < len(text) <= LENGTH and text[0] == enc
        assert loss_mask.tolist() == (text != enc).astype(int).tolist()
        pieces = split_documents(text, enc)
        assert all(piece[-1] == eos for piece in pieces[:-1])
        for piece in pieces:
            assert len(piece) == 1 or any("/".join(map(str, piece[1:])) in whole for whole in joined)
        assert len(text) == LENGTH or text[-1] in (stop, eos)  # trimmed at a sentence end
        assert np.array_equal(dataset.sample(index).text, text)


def test_documents_are_drawn_by_length(tokenizer: Tokenizer) -> None:
    words = tokenizer.encode("cat dog")
    dataset = BlockDataset(InMemoryDocuments([words[:1] * 5, words[1:] * 15]), tokenizer, LENGTH,
                           sample_across_documents=False)
    share = np.mean([words[1] in dataset.sample(index).text for index in range(800)])
    assert abs(share - 0.75) < 0.05
    assert all((dataset.sample(index).text == tokenizer.command_id("eos")).sum() == 1 for index in range(20))


def test_long_documents_start_with_a_sentence(tokenizer: Tokenizer) -> None:
    stop = tokenizer.encode(".")[0]
    text = (tokenizer.encode("the cat sat on a mat dog ran to") + [stop]) * 40
    start = text[0]
    aligned = BlockDataset(InMemoryDocuments([text]), tokenizer, LENGTH)
    assert all(aligned.sample(index).text[1] == start for index in range(100))
    anywhere = BlockDataset(InMemoryDocuments([text]), tokenizer, LENGTH, non_sentence_start=1.0)
    assert len({int(anywhere.sample(index).text[1]) for index in range(100)}) > 5


def test_prompts_are_not_predicted(tokenizer: Tokenizer) -> None:
    words = tokenizer.encode("cat dog")
    documents = InMemoryDocuments([[words[1]] * 4], [[words[0]] * 3])
    text, loss_mask = BlockDataset(documents, tokenizer, LENGTH, sample_across_documents=False).sample(0)
    assert text.tolist()[1:] == [words[0]] * 3 + [words[1]] * 4 + [tokenizer.command_id("eos")]
    assert loss_mask.tolist() == [0] * 4 + [1] * 5


def test_windows_of_documents(tokenizer: Tokenizer) -> None:
    document = InMemoryDocuments([[5, 6, 7]], [[1, 2]]).document(0, 99)
    whole, mask = [1, 2, 5, 6, 7, 99], [0, 0, 1, 1, 1, 1]
    for start in range(7):
        for end in range(start, 7):
            window = document.window(start, end)
            assert window.text.tolist() == whole[start:end] and window.loss_mask.tolist() == mask[start:end]


def test_concatenation_and_selection() -> None:
    first, second = InMemoryDocuments([[1], [2, 2]]), InMemoryDocuments([[3, 3, 3]])
    joined = ConcatDocuments([first, second])
    assert len(joined) == 3 and joined.lengths().tolist() == [1, 2, 3]
    chosen = SelectedDocuments(joined, np.array([2, 0]))
    assert chosen.lengths().tolist() == [3, 1] and chosen.document(0, 9).window(0, 9).text.tolist()[:3] == [3, 3, 3]


def test_impossible_data(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="holds no text"):
        BlockDataset(InMemoryDocuments([]), tokenizer, LENGTH)
    with pytest.raises(ValueError, match="--seq-length"):
        BlockDataset(InMemoryDocuments([[1, 2]]), tokenizer, 2)
    with pytest.raises(ValueError, match="probability"):
        BlockDataset(InMemoryDocuments([[1, 2]]), tokenizer, 20, non_sentence_start=2.0)
