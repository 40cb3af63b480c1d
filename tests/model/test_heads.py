from __future__ import annotations

import pytest
import torch

from model.heads import MultiTokenCloze, SequenceClassification, SingleTokenCloze
from tests.helpers.tiny_model import tiny_glm, tiny_lm_batch


def choice_batch() -> tuple[torch.Tensor, ...]:
    """3 samples x 2 choices of length 16; the answer of choice c has c + 1 tokens."""
    batch = tiny_lm_batch(batch_size=6)
    mask = torch.zeros(6, 16, dtype=torch.long)
    for row in range(6):
        start = int(batch["attention_mask"][row])
        mask[row, start:start + row % 2 + 1] = 1
    return (batch["tokens"].view(3, 2, 16), batch["position_ids"].view(3, 2, 2, 16),
            batch["attention_mask"].view(3, 2), batch["labels"].view(3, 2, 16), mask.view(3, 2, 16))


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_multi_token_scores_are_sums_of_log_probabilities(penalty):
    backbone = tiny_glm(parallel_output=False).double()
    text, position, sep, target, mask = choice_batch()
    scores, _ = MultiTokenCloze(backbone, penalty)(text, position, sep, target, mask)
    for b in range(3):
        for c in range(2):
            logits, _ = backbone(text[b, c:c + 1], position[b, c:c + 1], sep[b, c:c + 1])
            logp = logits[0].log_softmax(-1)
            answer = [i for i in range(16) if mask[b, c, i]]
            expected = sum(logp[i, target[b, c, i]] for i in answer) / len(answer) ** penalty
            torch.testing.assert_close(scores[b, c], expected)


def test_single_token_scores_are_logits_at_sep():
    backbone = tiny_glm(parallel_output=False)
    batch = tiny_lm_batch()
    words = torch.tensor([[5, 9, 11]]).expand(3, 3)
    scores, _ = SingleTokenCloze(backbone)(
        batch["tokens"], batch["position_ids"], batch["attention_mask"], words)
    logits, _ = backbone(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    for b in range(3):
        assert scores[b].tolist() == logits[b, batch["attention_mask"][b], [5, 9, 11]].tolist()
    logp, _ = SingleTokenCloze(backbone, take_log_softmax=True)(
        batch["tokens"], batch["position_ids"], batch["attention_mask"], words)
    torch.testing.assert_close(logp - scores, (logp - scores)[:, :1].expand(3, 3))


def test_a_cloze_head_has_the_names_of_its_backbone():
    backbone = tiny_glm(parallel_output=False)
    head = MultiTokenCloze(backbone)
    assert set(head.state_dict()) == set(backbone.state_dict())
    head.load_state_dict(backbone.state_dict())


def test_without_targets_a_cloze_head_returns_the_logits():
    backbone = tiny_glm(parallel_output=False)
    text, position, sep, *_ = choice_batch()
    logits, _ = MultiTokenCloze(backbone)(text, position, sep)
    assert logits.shape == (6, 16, 64)


@pytest.mark.parametrize(("pool", "offset"), [("cls", None), ("pad", -1), ("start", 0)])
def test_classification_pools_the_named_token(pool, offset):
    backbone = tiny_glm(output_predict=False)
    head = SequenceClassification(backbone, 32, 3, output_dropout=0.0, pool_token=pool)
    batch = tiny_lm_batch()
    hidden, _ = backbone(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    scores, _ = head(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    for b in range(3):
        index = 0 if offset is None else int(batch["attention_mask"][b]) + offset
        expected = head.multichoice_head(torch.tanh(head.pool_layer(hidden[b, index])))
        torch.testing.assert_close(scores[b], expected)


def test_classification_of_choices_and_its_names():
    head = SequenceClassification(tiny_glm(output_predict=False), 32, None, output_dropout=0.0)
    text, position, sep, *_ = choice_batch()
    scores, _ = head(text, position, sep)
    assert scores.shape == (3, 2)
    names = set(head.state_dict())
    assert {"pool_layer.weight", "multichoice_head.bias", "model.word_embeddings.weight"} <= names
    with pytest.raises(ValueError, match="--pool-token"):
        SequenceClassification(tiny_glm(), 32, 2, pool_token="last")


@pytest.mark.parametrize("tapped", [False, True])
def test_logits_are_formed_where_the_head_reads_them(tapped, monkeypatch):
    """A cloze head needs the answer's rows; all others are left out unless somebody taps the logits."""
    backbone, rows = tiny_glm(parallel_output=False), []
    original = backbone._logits
    monkeypatch.setattr(backbone, "_logits", lambda hidden: rows.append(hidden.numel() // 32) or original(hidden))
    text, position, sep, target, mask = choice_batch()
    hook = {"logits_parallel": None} if tapped else None
    scores, _ = MultiTokenCloze(backbone)(text, position, sep, target, mask, hook=hook)
    scores.sum().backward()
    assert rows == [6 * 16 if tapped else 9]
