"""The stage "pretraining": text in, checkpoints out."""

from __future__ import annotations

import logging
import time
from typing import Any

from data_utils.loaders import PretrainData, build_pretrain_data
from data_utils.tokenizers import tokenizer_from_args
from distill.training.batches import TextSource
from distill.training.build import build_session, describe
from distill.training.checkpointing import resume, save_training_state
from distill.training.evaluate import text_loss
from distill.training.loop import crossed, train
from distill.training.metrics import MetricWriter, perplexity, validation_line
from distill.training.rehearsal import Rehearsal
from distill.training.run_folder import plan_run_folder
from distill.training.session import Session
from distill.training.setup import Runtime
from model.parallel.groups import parallel_state

logger = logging.getLogger(__name__)


class PretrainEvents:
    """Checkpoints and the validation loss."""

    def __init__(self, session: Session, data: PretrainData) -> None:
        self.session, self.data = session, data
        self._evaluated_at = self._saved_at = -1

    def before_training(self) -> None:
        self.save()

    def after_step(self, before: int, after: int) -> None:
        args = self.session.args
        if crossed(args.eval_interval, before, after):
            self.evaluate()
        if crossed(args.save_interval, before, after):
            self.save()

    def save(self) -> None:
        """Save here, unless that has been done."""
        if self._saved_at != self.session.iteration:
            save_training_state(self.session)
            self._saved_at = self.session.iteration

    def evaluate(self) -> None:
        """Validation loss over ``--eval-iters`` batches, which move on through the validation text."""
        session, args = self.session, self.session.args
        if self.data.valid is None or self._evaluated_at == session.iteration:
            return
        self._evaluated_at = session.iteration
        start = session.iteration // args.eval_interval * args.eval_iters if args.eval_interval > 0 else 0
        report_validation_loss(session, text_loss(session, self.data.valid, start, args.eval_iters))


def report_validation_loss(session: Session, loss: float) -> None:
    """Write a validation loss to console, records and TensorBoard."""
    logger.info(validation_line(session.iteration, loss))
    session.writer.record("validation", {
        "iteration": session.iteration, "loss": loss, "perplexity": perplexity(loss)})
    session.writer.scalars({"Train/valid_loss": loss, "Train/valid_ppl": perplexity(loss)}, session.iteration)


def run_pretraining(args: Any, runtime: Runtime, rehearsal: Rehearsal | None = None) -> bool:
    """Pretrain as ``args`` says; returns whether the end was reached (False after SIGTERM).

    Args:
        rehearsal: of a dry run; bounds what is read, and watches.
    """
    began, state = time.monotonic(), parallel_state()
    folder = plan_run_folder(args)
    tokenizer = tokenizer_from_args(args)
    data = build_pretrain_data(args, tokenizer, data_rank=state.data_rank, data_size=state.data_size,
                               is_writer=runtime.is_main, max_documents=rehearsal.max_documents if rehearsal else None)
    if args.train_iters > 0 and data.train is None:
        raise ValueError("there is no training text: give --train-data, and a first share above 0 in --split")
    source = None
    if args.train_iters > 0:
        source = TextSource(data.train, args.train_iters, args.gradient_accumulation_steps)
    logs = None if args.custom_no_summary_writer and not args.log_dir else folder.logs
    with MetricWriter(logs, is_main=runtime.is_main, resumed=args.load is not None,
                      observe=rehearsal.observe if rehearsal else None) as writer:
        session = build_session(args, runtime, folder, writer, tokenizer, source=source)
        resume(session)
        describe(session, "pretraining", tokenizer)
        if rehearsal is not None:
            rehearsal.begin(session)
        if args.switch_linear and session.schedule is not None:
            session.schedule.switch_to_linear(args.train_iters)
        events = PretrainEvents(session, data)
        if source is not None and not train(session, events):
            return False
        if source is not None:
            events.save()
        events.evaluate()
        if data.test is not None:
            logger.info("test loss: %.6f", text_loss(session, data.test, 0, args.eval_iters))
        seconds = time.monotonic() - began
        writer.record("end", {"iteration": session.iteration, "seconds": seconds})
        logger.info("pretraining finished: %d iterations in %.0f s; checkpoint %s", session.iteration, seconds,
                    folder.checkpoints or "not saved")
    return True
