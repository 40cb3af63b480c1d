"""The BERT of a dry run with ``--pretrained-bert``: narrow, at random weights, as deep as the one that is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from data_utils import stand_in
from data_utils.bert import CONFIG, VOCABULARY, BertFiles, find_bert
from distill.training.dev_sizes import MIN_HEAD_WIDTH
from model.bert import BertOptions, PretrainedBert, bert_config, matching
from model.checkpoint.files import atomic_save, headers_only
from model.checkpoint.huggingface import read_tensors
from tasks.spec import TaskSpec

#: Layers and heads where no BERT says others.
_BASE = {"model_type": "bert", "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768,
         "intermediate_size": 3072}


def small_bert(args: Any, folder: Path, task: TaskSpec, notes: list[str], *, write: bool) -> dict[str, Any]:
    """Put a small BERT into ``folder``; the arguments that name it.

    Raises:
        FileNotFoundError, ValueError: a BERT that is there and cannot be loaded.
    """
    options, path = BertOptions.from_args(args), folder / "bert"
    try:
        files = find_bert(args.tokenizer_model_type, args.cache_dir)
    except FileNotFoundError:
        files, content = None, dict(_BASE)
        notes.append(f"no BERT {args.tokenizer_model_type}: one of {_BASE['num_hidden_layers']} layers with a small "
                     "vocabulary of the generated world")
    else:
        _check(files.folder, task, options)
        content = bert_config(files.folder, options).to_dict()
        notes.append(f"the BERT of {files.folder} fits; a narrow one at random weights takes its place")
    if write:
        vocabulary = _write_vocabulary(path, files)
        width = min(content["hidden_size"], content["num_attention_heads"] * MIN_HEAD_WIDTH)
        content |= {"hidden_size": width, "intermediate_size": min(content["intermediate_size"], 4 * width),
                    "vocab_size": len(vocabulary.read_text(encoding="utf-8").splitlines())}
        (path / CONFIG).write_text(json.dumps(content), encoding="utf-8")
        model = PretrainedBert(bert_config(path, options), task.num_classes, options)
        atomic_save(model.state_dict(), path / "pytorch_model.bin")
    return {"tokenizer_model_type": str(path)}


def _write_vocabulary(folder: Path, files: BertFiles | None) -> Path:
    if files is None:
        return stand_in.write_vocabulary(folder, "BertWordPieceTokenizer")
    folder.mkdir(parents=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": files.lower_case}), encoding="utf-8")
    return Path(shutil.copyfile(files.vocabulary, folder / VOCABULARY))


def _check(source: Path, task: TaskSpec, options: BertOptions) -> None:
    """Compare names and shapes of the weights with config.json."""
    with torch.device("meta"):
        model = PretrainedBert(bert_config(source, options), task.num_classes, options)
    with headers_only():
        matching(model.state_dict(), read_tensors(source), source)
