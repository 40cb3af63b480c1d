"""The stage "fine-tuning": a task's data in; the best checkpoint, its scores and predictions out."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from data_utils.block_lm import BlockLM, BlockLMConfig
from data_utils.loaders import BatchPlan, BlockLMLoader
from data_utils.tokenizers import Tokenizer, tokenizer_from_args
from distill.training import bert
from distill.training.batches import MixedSource, TaskSource
from distill.training.build import build_session, describe
from distill.training.checkpointing import load_best, resume, save_best, save_training_state
from distill.training.evaluate import EvaluationStopped, task_loss, task_scores
from distill.training.evaluate_text import text_scores
from distill.training.loop import crossed, train
from distill.training.metrics import MetricWriter
from distill.training.pretraining import report_validation_loss
from distill.training.rehearsal import Rehearsal
from distill.training.run_folder import RESULTS, TEST_RESULTS, plan_run_folder, refuse_to_overwrite
from distill.training.session import Session
from distill.training.setup import Runtime
from model.checkpoint.files import atomic_write_text
from model.parallel.groups import parallel_state
from tasks.data import EvalSet, LabelledTexts, TaskData, build_task_data
from tasks.evaluation import is_better, results_line, validation_metric, write_lines, write_predictions
from tasks.language_model import is_language_model_task
from tasks.language_model.data import EvalTexts, build_language_model_data, passage_lines
from tasks.language_model.spec import LanguageModelTask, PassageScore
from tasks.registry import Task

logger = logging.getLogger(__name__)
EvalSets = tuple[EvalSet, ...] | tuple[EvalTexts, ...]
Predicted = list[int] | list[PassageScore]


class FinetuneEvents:
    """Validation loss, metrics after epochs, best checkpoint."""

    def __init__(self, session: Session, data: TaskData) -> None:
        self.session, self.data = session, data
        self.metric = validation_metric(data.spec, session.args.validation_metric)

    def before_training(self) -> None:
        if self.session.args.custom_first_eval:
            self.evaluate(epoch=0)

    def after_step(self, before: int, after: int) -> None:
        session, args = self.session, self.session.args
        if crossed(args.eval_interval, before, after) and self.data.valid is not None and self.data.valid.has_labels:
            report_validation_loss(session, task_loss(session, self.data.valid, args.eval_iters))
        for epoch in range(session.epochs_done, after // session.source.batches_per_epoch):
            session.epochs_done = epoch + 1
            if crossed(args.eval_epoch, epoch, epoch + 1):
                try:
                    self.evaluate(epoch=epoch)
                except EvaluationStopped:
                    session.epochs_done = epoch
                    raise
            if crossed(args.save_epoch, epoch, epoch + 1):
                # "best" keeps the marker of the newest checkpoint; resuming has a marker of its own.
                save_training_state(session, tracker=session.best.score is None)

    def evaluate(self, *, epoch: int) -> None:
        """Score the evaluation sets and keep the weights if they are the best so far."""
        session, args = self.session, self.session.args
        if args.no_validation:
            return
        scores, _ = score(session, self.data.spec, self.data.dev)
        if not scores:
            return
        report_scores(session, scores, epoch)
        if is_better(self.metric, scores[self.metric], session.best.score):
            session.best.score, session.best.epoch = scores[self.metric], epoch
            session.best.iteration = session.iteration
            save_best(session)
            write_result(session, RESULTS, results_line(scores, "validation", epoch))
        write_best_so_far(session, scores, epoch)


def score(session: Session, spec: Task, eval_sets: EvalSets) -> tuple[dict[str, float], list[Predicted]]:
    """The task's metrics over all labelled sets, and what was found out about each set, example by example."""
    return (text_scores if isinstance(spec, LanguageModelTask) else task_scores)(session, spec, eval_sets)


def report_scores(session: Session, scores: dict[str, float], epoch: int) -> None:
    """Write the metrics of an epoch to console, records and TensorBoard."""
    text = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    logger.info(" metrics after epoch %d (iteration %d) | %s", epoch, session.iteration, text)
    session.writer.record("metrics", {"iteration": session.iteration, "epoch": epoch, **scores})
    session.writer.scalars({f"Train/valid_{name}": value for name, value in scores.items()}, epoch)


def write_result(session: Session, name: str, content: dict[str, object]) -> None:
    """Write a one-line result file beside the records; rank 0 only, and not with ``--custom_no_save_checkpoint``."""
    if session.runtime.is_main and session.folder.logs is not None and not session.args.custom_no_save_checkpoint:
        atomic_write_text(json.dumps(content, ensure_ascii=False) + "\n", session.folder.logs / name)


def write_best_so_far(session: Session, scores: dict[str, float], epoch: int) -> None:
    """``--custom_tmp_result``: the best score of each metric so far, for the sweep that waits for it."""
    args, best = session.args, session.best.by_metric
    for name, value in scores.items():
        if is_better(name, value, best[name]["score_dict"][name] if name in best else None):
            best[name] = {"epoch": epoch, "iteration": session.iteration, "score_dict": dict(scores)}
    if args.custom_tmp_result and session.runtime.is_main:
        atomic_write_text(json.dumps({
            "args": {"save": args.save, "epochs": args.epochs, "iteration": session.iteration, "task": args.task,
                     "wsc_negative": args.wsc_negative},
            "now": datetime.now().isoformat(sep=" "), "max_score_dict": best, "epoch": epoch},
            ensure_ascii=False, indent=2) + "\n", Path(args.custom_tmp_result))


def run_finetuning(args: Any, runtime: Runtime, rehearsal: Rehearsal | None = None) -> bool:
    """Fine-tune as ``args`` says, then score the best weights; returns False after SIGTERM.

    Args:
        rehearsal: of a dry run; bounds the number of steps, and watches.
    """
    began = time.monotonic()
    folder = plan_run_folder(args)
    refuse_to_overwrite(folder, args)
    tokenizer = (bert.tokenizer_of if args.pretrained_bert else tokenizer_from_args)(args)
    data = read_data(args, tokenizer, rehearsal)
    source = task_source(args, data, tokenizer, rehearsal.max_steps if rehearsal else None)
    logs = None if args.custom_no_summary_writer and not args.log_dir else folder.logs
    with MetricWriter(logs, is_main=runtime.is_main, resumed=args.load is not None,
                      observe=rehearsal.observe if rehearsal else None) as writer:
        build = bert.build_bert_session if args.pretrained_bert else build_session
        session = build(args, runtime, folder, writer, tokenizer, source=source, task=data.spec)
        check_labels(session, data)
        resume(session)
        describe(session, f"fine-tuning on {data.spec.name}", tokenizer)
        if rehearsal is not None:
            rehearsal.begin(session)
        events = FinetuneEvents(session, data)
        if source is not None and not train(session, events):
            return False
        if source is not None and args.ft_final_save:
            save_training_state(session)
        scores = score_at_the_end(session, data)
        seconds = time.monotonic() - began
        writer.record("end", {"iteration": session.iteration, "seconds": seconds, **scores})
        logger.info("fine-tuning finished: %d iterations in %.0f s; best epoch %d", session.iteration, seconds,
                    session.best.epoch)
    return True


def read_data(args: Any, tokenizer: Tokenizer, rehearsal: Rehearsal | None = None) -> TaskData:
    """The data of the task for this rank."""
    state = parallel_state()
    if is_language_model_task(args.task):
        return build_language_model_data(args, tokenizer, data_rank=state.data_rank, data_size=state.data_size,
                                         limit=rehearsal.max_windows if rehearsal else None)
    return build_task_data(args, tokenizer, data_rank=state.data_rank, data_size=state.data_size)


def task_source(args: Any, data: TaskData, tokenizer: Tokenizer, max_steps: int | None = None) -> TaskSource | None:
    """The training batches of a run; None with ``--epochs=0``. ValueError for ``--block-lm-ratio`` without labels."""
    if data.train is None:
        return None
    source = TaskSource(data.train, args.epochs, args.gradient_accumulation_steps, max_steps=max_steps)
    if not args.block_lm_ratio:
        return source
    if not data.train.has_labels:
        raise ValueError(f"--block-lm-ratio={args.block_lm_ratio:g} reads texts with their answers, and --train-split="
                         f"{args.train_split} has none; leave one of both out")
    state = parallel_state()
    plan = BatchPlan("block-lm-ratio", args.batch_size, state.data_rank, state.data_size, seed=args.seed, shuffle=True)
    objective = BlockLM(BlockLMConfig.from_args(args), tokenizer, args.seq_length)
    texts = BlockLMLoader(LabelledTexts(data.train.data), objective, plan)
    return MixedSource(source, texts, args.block_lm_ratio, f"block-lm-ratio/{args.seed}")


def check_labels(session: Session, data: TaskData) -> None:
    """Training data without labels serve every loss that asks for none.

    Raises:
        ValueError: a term needs the label; the message names it.
    """
    if data.train is None or data.train.has_labels:
        return
    session.has_labels = False
    split, context = session.args.train_split, session.context
    if context.student is None:
        raise ValueError(
            f"--train-split={split} has no labels, and fine-tuning without teachers learns from nothing else: give "
            f"--student_model and --teacher_load_pretrained, or a split with labels")
    terms = [*context.student.prediction_terms(), *context.combiner.own_terms(context.student)]
    needing = [term for term in terms if term.startswith(("hard label", "label"))]
    if session.args.mt_has_loss:
        needing.append("label loss of the teachers (--mt_has_loss)")
    if needing:
        raise ValueError(
            f"--train-split={split} has no labels, but a term of the loss needs them: {'; '.join(needing)}. Leave out "
            f"--distill_ft_hard (and --mt_has_loss), or choose a split with labels")


def score_at_the_end(session: Session, data: TaskData) -> dict[str, float]:
    """Scores and predictions of the best weights (the last ones with ``--no-validation``)."""
    args = session.args
    # Without a score of its own, a "best" in the folder is that of an earlier run.
    if data.train is not None and not args.no_validation and session.best.score is not None and load_best(session):
        logger.info("scoring the best checkpoint (epoch %d)", session.best.epoch)
    scores, predicted = score(session, data.spec, data.dev)
    if scores:
        report_scores(session, scores, -1)
        write_result(session, TEST_RESULTS, results_line(scores, "test"))
        write_best_so_far(session, scores, -1)
    _write_predictions(session, data, data.dev, predicted)
    if data.test:
        test_scores, predicted = score(session, data.spec, data.test)
        if test_scores:
            session.writer.record("test", test_scores)
            logger.info(" test | %s", ", ".join(f"{name} {value:.4f}" for name, value in test_scores.items()))
        _write_predictions(session, data, data.test, predicted)
    return scores


def _write_predictions(session: Session, data: TaskData, sets: EvalSets, predicted: list[Predicted]) -> None:
    folder = session.folder.logs
    if not session.runtime.is_main or folder is None or session.args.custom_no_save_checkpoint:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for eval_set, values in zip(sets, predicted):
        if isinstance(data.spec, LanguageModelTask):
            write_lines(folder / f"{data.spec.name}-{eval_set.name}.jsonl", passage_lines(data.spec, values))
        else:
            write_predictions(folder, data.spec, eval_set, values)
