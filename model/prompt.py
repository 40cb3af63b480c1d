"""Continuous prompts (P-tuning, Liu et al. 2021, arXiv:2103.10385): trained vectors in the place of word vectors.

Legend: n prompt tokens, h hidden, b batch, s sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

#: Values of ``--prompt-func``.
PROMPT_FUNCS = ("lstm", "mlp", "none")
#: ``--prompt-init`` draws its words among the first, most frequent ids.
FREQUENT_IDS = 5000


class PromptEncoder(nn.Module):
    """n trained vectors, and what makes word vectors of them.

    Args:
        func: ``lstm``: a bidirectional LSTM of two layers over the n vectors, then two linear layers; ``mlp``: the
            linear layers alone; ``none``: the vectors as they are.
    """

    def __init__(self, num_tokens: int, hidden_size: int, func: str = "lstm") -> None:
        super().__init__()
        self.spell_embeddings = nn.Embedding(num_tokens, hidden_size)
        self.func = func
        if func == "lstm":
            self.lstm_head = nn.LSTM(hidden_size, hidden_size, num_layers=2, bidirectional=True, batch_first=True)
        if func != "none":
            width = 2 * hidden_size if func == "lstm" else hidden_size
            self.mlp_head = nn.Sequential(nn.Linear(width, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self) -> torch.Tensor:
        """The word vectors of the prompt tokens, [1, n, h]."""
        vectors = self.spell_embeddings.weight.unsqueeze(0)
        if self.func == "lstm":
            vectors = self.lstm_head(vectors)[0]
        return vectors if self.func == "none" else self.mlp_head(vectors)

    def put(self, words: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """A copy of ``words`` [b, s, h] with the prompt's vectors at ``places`` [b, n] of each row."""
        index = places.unsqueeze(-1).expand(-1, -1, words.shape[-1])
        return words.scatter(1, index, self().to(words.dtype).expand(len(words), -1, -1))

    @torch.no_grad()
    def start_from(self, frequent: torch.Tensor, task_words: torch.Tensor, generator: torch.Generator) -> None:
        """``--prompt-init``: each vector becomes a mix, with a uniform weight, of a random frequent word and a random
        word of the task.

        Args:
            frequent: word vectors [f, h]; task_words: [t, h], may be empty: then the frequent word alone counts.
            generator: of the CPU, in the same state on all ranks.
        """
        count = len(self.spell_embeddings.weight)
        start = frequent[_draw(len(frequent), count, generator)]
        if len(task_words):
            weight = torch.rand(count, 1, generator=generator).to(start)
            start = weight * start + (1.0 - weight) * task_words[_draw(len(task_words), count, generator)]
        self.spell_embeddings.weight.copy_(start)


def start_prompt(model: nn.Module, task_ids: Sequence[int], num_tokens: int, seed: int) -> None:
    """``--prompt-init`` of a GLM with a prompt; every rank of the model-parallel group has to call it.

    Args:
        model: the GLM, with the words that it starts from already loaded.
        task_ids: token ids of the task's label words.
        num_tokens: of the vocabulary, without padding.
    """
    device = model.word_embedding_weight.device
    ids = torch.tensor([*range(min(FREQUENT_IDS, num_tokens)), *task_ids], device=device)
    with torch.no_grad():
        vectors = model.word_vectors(ids.unsqueeze(-1), torch.ones_like(ids)).squeeze(1)
    split = len(ids) - len(task_ids)
    model.prompt_spell.start_from(vectors[:split], vectors[split:], torch.Generator().manual_seed(seed))


def _draw(below: int, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(below, (count,), generator=generator)
