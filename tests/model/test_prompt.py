from __future__ import annotations

import pytest
import torch

from model.glm import GLMModel
from model.heads import MultiTokenCloze, SingleTokenCloze
from model.prompt import PROMPT_FUNCS, PromptEncoder, start_prompt
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_model import tiny_config, tiny_glm, tiny_lm_batch

PLACES = torch.tensor([[1, 3], [2, 3], [1, 2]])


def inputs() -> tuple[torch.Tensor, ...]:
    batch = tiny_lm_batch()
    return batch["tokens"], batch["position_ids"], batch["attention_mask"]


@pytest.mark.parametrize("func", PROMPT_FUNCS)
def test_the_prompt_takes_the_place_of_word_vectors(func: str) -> None:
    model = tiny_glm(num_prompt_tokens=2, prompt_func=func).double()
    hook = {"transformer": {"embeddings": None}, "words_embeddings": None}
    _, (plain, words) = model(*inputs(), hook=hook)
    _, (embeddings, tapped_words) = model(*inputs(), hook=hook, prompt_pos=PLACES)
    assert torch.equal(words, tapped_words), "the tap of word vectors comes before the prompt"
    prompt = model.prompt_spell()
    assert prompt.shape == (1, 2, 32)
    for b in range(3):
        for place in range(16):
            expected = words[b, place]
            if place in PLACES[b].tolist():
                expected = prompt[0, PLACES[b].tolist().index(place)]
            torch.testing.assert_close(embeddings[b, place] - (plain - words)[b, place], expected)


def test_what_is_at_the_places_does_not_matter_and_the_prompt_is_trained() -> None:
    model = tiny_glm(num_prompt_tokens=2)
    ids, positions, sep = inputs()
    other = ids.scatter(1, PLACES, 9)
    logits, _ = model(ids, positions, sep, prompt_pos=PLACES)
    assert torch.equal(logits, model(other, positions, sep, prompt_pos=PLACES)[0])
    logits.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.prompt_spell.parameters())


def test_names_and_shapes_are_the_published_ones() -> None:
    shapes = {name: tuple(value.shape) for name, value in PromptEncoder(3, 8, "lstm").state_dict().items()}
    assert shapes["spell_embeddings.weight"] == (3, 8) and shapes["lstm_head.weight_ih_l1_reverse"] == (32, 16)
    assert shapes["mlp_head.0.weight"] == (8, 16) and shapes["mlp_head.2.weight"] == (8, 8)
    assert PromptEncoder(3, 8, "mlp").mlp_head[0].weight.shape == (8, 8)
    assert set(PromptEncoder(3, 8, "none").state_dict()) == {"spell_embeddings.weight"}
    assert "prompt_spell.spell_embeddings.weight" in GLMModel(tiny_config(num_prompt_tokens=3)).state_dict()


def test_heads_pass_the_places_on() -> None:
    model = tiny_glm(parallel_output=False, num_prompt_tokens=2)
    ids, positions, sep = inputs()
    words = torch.tensor([[5, 9]]).expand(3, 2)
    scores, _ = SingleTokenCloze(model)(ids, positions, sep, words, prompt_pos=PLACES)
    logits, _ = model(ids, positions, sep, prompt_pos=PLACES)
    torch.testing.assert_close(scores[1], logits[1, sep[1], [5, 9]])
    batch = tiny_lm_batch()
    choices = [value.unsqueeze(1) for value in (ids, positions, sep, batch["labels"], batch["loss_mask"])]
    scores, _ = MultiTokenCloze(model)(*choices, prompt_pos=PLACES.unsqueeze(1))
    expected, _ = MultiTokenCloze(model)(ids, positions, sep, batch["labels"], batch["loss_mask"], prompt_pos=PLACES)
    torch.testing.assert_close(scores.squeeze(1), expected)


def test_a_frozen_transformer_leaves_the_prompt_to_train() -> None:
    model = tiny_glm(num_prompt_tokens=2)
    model.freeze_transformer(1)
    trained = {name.split(".")[0] if "layers" not in name else name[:20] for name, parameter in
               model.named_parameters() if parameter.requires_grad}
    assert trained == {"prompt_spell", "transformer.layers.0"}


def test_start_from_words() -> None:
    model = tiny_glm(num_prompt_tokens=40, compress_word_emb=8)
    start_prompt(model, [9], 50, seed=1)
    start = model.prompt_spell.spell_embeddings.weight
    table = model.compress_emb_mlp(model.word_embeddings.weight)
    # Each vector lies between the task's word and one of the 50 words.
    task, words = table[9], table[:50]
    line = words - task
    share = ((start[:, None] - task) * line[None]).sum(-1) / line.square().sum(-1).clamp(min=1e-9)
    distance = (start[:, None] - task - share.unsqueeze(-1) * line[None]).norm(dim=-1)
    distance[(share < 0) | (share > 1)] = 1.0
    assert distance.min(dim=1).values.max() < 1e-4
    start_prompt(model, [], 50, seed=1)
    assert all((row == table[:50]).all(-1).any() for row in model.prompt_spell.spell_embeddings.weight)


def started(seed: int) -> torch.Tensor:
    model = tiny_glm(num_prompt_tokens=4)
    start_prompt(model, [9, 60], 60, seed)
    logits, _ = model(*inputs(), prompt_pos=torch.tensor([[1, 2, 3, 4]]).expand(3, -1))
    return torch.cat([model.prompt_spell.spell_embeddings.weight.flatten(), logits.sum().detach()[None]])


@pytest.mark.distributed
def test_two_ranks_start_from_the_same_words() -> None:
    one = started(3)
    parts = run_distributed(started, 2, 3, model_parallel_size=2)
    assert torch.equal(parts[0][:-1], one[:-1]) and torch.equal(parts[1][:-1], one[:-1])
    torch.testing.assert_close(parts[0][-1] + parts[1][-1], one[-1], rtol=1e-4, atol=1e-3)
