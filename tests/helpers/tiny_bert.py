"""A published BERT in small: a folder as the Hugging Face hub has it, at random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write_bert(folder: Path, words: list[str], *, kind: str = "BertForPreTraining", seed: int = 0,
               **changes: Any) -> torch.nn.Module:
    """Save a BERT of 2 layers and width 16 with that vocabulary; returns the model of transformers."""
    import transformers

    config = transformers.BertConfig(**{
        "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 32, "max_position_embeddings": 64, "layer_norm_eps": 1e-5, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return model
