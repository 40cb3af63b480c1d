"""``--pretrained-bert``: a published BERT in the place of the GLM, through the same loop, engines and checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from data_utils.bert import find_bert
from data_utils.tokenizers import Tokenizer
from distill.training.batches import Source
from distill.training.build import new_run, start_engine
from distill.training.engine import training_dtype
from distill.training.forward_step import StepContext
from distill.training.metrics import MetricWriter
from distill.training.run_folder import RunFolder
from distill.training.session import Session
from distill.training.setup import Runtime
from model.bert import BertOptions, PretrainedBert, load_bert
from model.checkpoint.load import load_into, read_module_state
from model.checkpoint.naming import canonical_name, resolve_checkpoint
from model.parallel.sharding import mark_replicated_parameters
from tasks.spec import TaskSpec

logger = logging.getLogger(__name__)


def tokenizer_of(args: Any) -> Tokenizer:
    """The tokenizer of the BERT that ``--tokenizer-model-type`` names."""
    return find_bert(args.tokenizer_model_type, args.cache_dir).tokenizer()


def build_bert_session(args: Any, runtime: Runtime, folder: RunFolder, writer: MetricWriter, tokenizer: Tokenizer, *,
                       source: Source | None, task: TaskSpec) -> Session:
    """As :func:`distill.training.build.build_session`, with a BERT and its classifier.

    Raises:
        FileNotFoundError, ValueError: the BERT is not there, is damaged, or too small for the texts.
    """
    where = find_bert(args.tokenizer_model_type, args.cache_dir).folder
    model = load_bert(where, task.num_classes, BertOptions.from_args(args))
    _check_size(model, where, tokenizer, args)
    logger.info("BERT of %s; flags that size a GLM (--num-layers, --hidden-size …) are not read", where)
    if args.load_pretrained:
        _load_run(model, args)
    if args.freeze_transformer:
        model.freeze(args.tune_prefix_layers)
    mark_replicated_parameters(model)
    model.to(runtime.device, training_dtype(args))
    run = new_run(args, source)
    context = StepContext(model, args, run, stage="choice", loss_kind=args.loss_func, num_tokens=tokenizer.num_tokens)
    session = Session(args, runtime, folder, writer, model, context, run, source)
    start_engine(session)
    return session


def _check_size(model: PretrainedBert, where: Path, tokenizer: Tokenizer, args: Any) -> None:
    config = model.bert.config
    if args.seq_length > config.max_position_embeddings:
        raise ValueError(f"--seq-length={args.seq_length} is longer than the {config.max_position_embeddings} "
                         f"positions of the BERT in {where}; give at most that")
    if tokenizer.num_tokens > config.vocab_size:
        raise ValueError(f"the vocabulary of {where} has {tokenizer.num_tokens} tokens, its config.json says "
                         f"{config.vocab_size}; copy the whole folder again")


def _load_run(model: nn.Module, args: Any) -> None:
    """``--load-pretrained`` of an earlier run of a BERT. Published command lines give it a GLM, which is left out."""
    path = args.load_pretrained
    state, _ = read_module_state(resolve_checkpoint(path), mp_rank=0, mp_size=1, trust_pickle=args.trust_checkpoint)
    if not any(name.startswith("bert.") for name in state):
        logger.warning("--load-pretrained=%s is the checkpoint of another kind of model and not read: "
                       "--pretrained-bert starts from %s", path, args.tokenizer_model_type)
        return
    targets = {canonical_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    load_into(targets, state, where=path)
