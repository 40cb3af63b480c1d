"""The student: what every distillation method inherits.

A method is a subclass of :class:`GLMStudent` in a file of its own. Its public contract is that of the README's example
(``__init__``, ``get_teacher_hook``, ``get_student_hook``, ``inter_loss``, ``pre_loss``); none of them has to call
``super()``. The framework asks through four methods that wrap these: :meth:`GLMStudent.student_taps`,
:meth:`GLMStudent.teacher_taps`, :meth:`GLMStudent.intermediate_loss` and :meth:`GLMStudent.prediction_loss`. They
merge in the parts that every method has, show the method the right teacher, and check what comes back.

Short form: a method that compares tensor with tensor only states :meth:`GLMStudent.pairs` and, if need be,
:meth:`GLMStudent.pair_loss`.

Legend: ``b`` rows of the batch (samples x choices), ``s`` sequence, ``v`` vocabulary, ``p`` model-parallel ranks.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from distill.analysis import Comparison, analysis_hook, comparisons, misfits, similarities
from distill.checkpoint_names import checkpoint_name, from_checkpoint_names, to_checkpoint_names
from distill.distill_flags import add_shared_flags, check_distill_flags, pass_numbers
from distill.flag_types import PerTeacher
from distill.layer_maps import Path, hidden_state, uniform_layer_map
from distill.losses import kl_divergence, mse, position_pad_mask, soft_cross_entropy
from distill.registry import METHODS, find_method, offer, register_method
from distill.teachers import TeacherSpec, TeacherView
from distill.training.run_state import RunState
from model.config import ModelConfig
from model.empty import EmptyGLM
from model.parallel.sharding import mark_replicated_parameters
from model.taps import Hook, has_tap, merge_hooks, tapped

__all__ = ["METHODS", "GLMStudent", "Loss", "Pair", "TeacherSpec", "add_distill_flags", "add_method_flags",
           "build_student", "check_distill_flags", "find_method", "register_method"]

logger = logging.getLogger(__name__)
Loss = torch.Tensor | float
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Pair:
    """A student tensor that meets a teacher tensor.

    Attributes:
        kind: name of the term; pairs of a kind are numbered from 0 in the summaries ``inter_loss/<kind>.<i>``.
        student, teacher: where the tensors are tapped.
        partition: how both lie on the model-parallel ranks (see :mod:`distill.losses.masking`).
        weight: factor on the pair's loss, in the summaries too.
        numbered: False for the only pair of its kind, recorded as ``inter_loss/<kind>``.
    """

    kind: str
    student: Path
    teacher: Path
    partition: str | None = None
    weight: float = 1.0
    numbered: bool = True


class GLMStudent(nn.Module):
    """A GLM that learns from teachers.

    Args:
        language_model: the GLM, kept as ``origin_model``.
        args: the read-only command line.
        show_pre, show_inter: describe the active prediction and intermediate terms once.
        summary_loss: record the terms (a method inside another one does not).
        teachers: properties of every teacher.
        run: position inside the run; the loop owns it.
        writer: gets ``add_scalar(tag, value, step)``.

    In a checkpoint the GLM's own entries have no prefix and everything else has the prefix ``student.``, so a student's
    checkpoint is a GLM checkpoint with more keys, and a plain GLM checkpoint fits any student.
    """

    method_name: ClassVar[str] = ""
    #: Why the loss of a sample depends on the other samples of the micro-batch; empty if it does not. A property where
    #: flags decide.
    batch_coupled: str = ""
    #: What switches on a term of this method, for the error of a step without any.
    switches: ClassVar[str] = ""
    #: Buffers that a checkpoint may lack (files of the release do); they keep their values then.
    optional_state: ClassVar[tuple[str, ...]] = ()
    #: What needs a teacher's weights outside its own forward pass; empty if nothing does.
    teacher_weights: str = ""
    #: Whether the method brings hidden states of student and teacher to one width itself.
    has_projections: bool = False
    #: Whether ``--distill_test_output`` does anything.
    has_self_test: ClassVar[bool] = False

    def __init__(self, language_model: nn.Module, args: Any, show_pre: bool = True, show_inter: bool = True,
                 summary_loss: bool = True, *, teachers: Sequence[TeacherSpec] = (), run: RunState | None = None,
                 writer: Any = None) -> None:
        super().__init__()
        self.origin_model = language_model
        self.show_pre, self.show_inter, self.summary_loss = show_pre, show_inter, summary_loss
        self.teachers = tuple(teachers)
        self.run = run or RunState()
        self.writer = writer
        self.recorded: list[tuple[str, torch.Tensor]] = []
        self.injected_draws: dict[str, Any] = {}
        self.seen_widths: dict[Path, int] = {}
        #: Set by a combiner that brings hidden states to one width before the method sees them.
        self.widths_are_fitted = False
        #: Whether the step has a label for each token (and passes a loss mask); the step's context says so.
        self.has_token_labels = True
        self._args = args
        self._views = [TeacherView(args, spec) for spec in self.teachers]
        self._teacher: int | None = None
        self._has_shared_terms = False
        #: What the method itself asked to tap, in the student (None) and in each teacher.
        self._own_taps: dict[int | None, Hook] = {}
        self._misfits_told: set[int] = set()
        #: Stands at the end of every summary's name.
        self.summary_suffix = ""
        self.register_state_dict_post_hook(to_checkpoint_names)
        self.register_load_state_dict_pre_hook(from_checkpoint_names)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        offer(cls)

    # ---- what a method may override -----------------------------------------------------------------------------

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Register the method's own flags."""

    @classmethod
    def check_flags(cls, args: Any) -> None:
        """Raise ValueError for flags of this method that exclude each other, before any model is built."""

    def check_sizes(self, teacher: TeacherSpec) -> None:
        """Raise ValueError if this teacher's sizes do not suit the method (numbers and flags in the message)."""

    def projected_widths(self) -> dict[Path, int]:
        """Widths of the student's hidden states that this method's ``forward`` projects, by their place."""
        return {}

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        """Short form: which tensors meet. The default hooks and the default ``inter_loss`` follow from it."""
        return ()

    def pair_loss(self, pair: Pair, student: torch.Tensor, teacher: torch.Tensor, *, keep_batch: bool,
                  t_no: int) -> torch.Tensor:
        """Short form: the loss of one pair, a scalar, or [b] with ``keep_batch``."""
        return mse(student, teacher, keep_batch=keep_batch, partition=pair.partition)

    def get_teacher_hook(self, t_no: int = 0, hook_before_analysis: Hook | Sequence[Hook] | None = None,
                         **kwargs: Any) -> Hook:
        """The tensors wanted from teacher ``t_no``; ``args.teacher_*`` are that teacher's properties meanwhile."""
        own = _as_hooks(hook_before_analysis) if hook_before_analysis is not None else [
            _path_hook(pair.teacher) for pair in self.pairs(t_no)]
        return merge_hooks(*own, self._shared_teacher_hook())

    def get_student_hook(self, hook_before_analysis: Hook | Sequence[Hook] | None = None, **kwargs: Any) -> Hook:
        """The tensors wanted from the student."""
        own = _as_hooks(hook_before_analysis) if hook_before_analysis is not None else [
            _path_hook(pair.student) for t_no in range(len(self.teachers)) for pair in self._pairs_of(t_no)]
        return merge_hooks(*own, self._shared_student_hook())

    def get_teacher_hook_op(self, t_no: int = 0, **kwargs: Any) -> dict[str, Any]:
        """Operations that replace tensors inside teacher ``t_no``."""
        return {}

    def get_student_hook_op(self, teacher_models: Sequence[nn.Module] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Operations that replace tensors inside the student."""
        return {}

    def forward(self, *inputs: torch.Tensor, hook: Hook | None = None, hook_op: dict[str, Any] | None = None,
                **kwargs: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Run the GLM: (output, tapped tensors). A method may transform tapped tensors here."""
        return self.origin_model(*inputs, hook=hook, hook_op=hook_op, **kwargs)

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, t_model: nn.Module | None = None,
                   loss_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None,
                   logit_mask: torch.Tensor | None = None, is_analysis: bool = True, **kwargs: Any) -> Loss:
        """The loss between tapped tensors of the student and teacher ``t_no``; 0 if either side has none.

        Here: the sum over :meth:`pairs`, plus the shared terms.

        Args:
            s_hook, t_hook: filled hooks: their leaves are indices into ``s_inter_vars`` and ``t_inter_vars``.
            keep_batch: return [b], whose mean is the scalar.
            loss_mask: [b, s] in language-model tasks, None otherwise.
            labels: [b, s] tokens, or one label per sample.
            logit_mask: [..., s] tokens of the answer in cloze tasks.
        """
        loss: Loss = 0.0
        if len(s_inter_vars) and len(t_inter_vars):
            loss = self.sum_pairs(s_inter_vars, t_inter_vars, s_hook, t_hook, keep_batch=keep_batch, t_no=t_no)
        return loss + self._shared_inter_loss(s_inter_vars, t_inter_vars, s_hook, t_hook, keep_batch)

    def pre_loss(self, s_logits: torch.Tensor, t_logits: torch.Tensor | float, loss: Loss,
                 loss_mask: torch.Tensor | None = None, return_dict: bool = False, labels: torch.Tensor | None = None,
                 keep_batch: bool = False, t_no: int = 0, mse_t_w: float = 1.0,
                 logit_mask: torch.Tensor | None = None, **kwargs: Any) -> Loss | dict[str, Loss]:
        """The loss at the prediction layer: soft labels of teacher ``t_no`` and the hard label, as switched on.

        Args:
            s_logits, t_logits: [b, classes], or [b, s, v/p] in language-model tasks.
            loss: the student's hard-label loss (one per sample with ``keep_batch``).
            mse_t_w: factor on the teacher's logits in the squared error.
            return_dict: return the terms present as ``{"soft", "hard", "loss"}`` instead of their sum.
        """
        stage = "ft" if self.args.finetune else "pt"
        parts: dict[str, Loss] = {}
        kind, soft_rate, hard_rate = self.soft_kind(), self.rate("soft"), self.rate("hard")
        if kind and soft_rate:
            mask = self._prediction_mask(loss_mask, labels)
            parts["soft"] = soft_rate * self.soft_loss(s_logits, t_logits, kind=kind, mask=mask,
                                                       keep_batch=keep_batch, mse_t_w=mse_t_w)
            self.add_summary(f"pre_loss/{stage}_soft", parts["soft"])
        if getattr(self.args, f"distill_{stage}_hard") and hard_rate:
            parts["hard"] = hard_rate * loss
            self.add_summary(f"pre_loss/{stage}_hard", parts["hard"])
        total = sum(parts.values(), 0.0)
        return {**parts, "loss": total} if return_dict else total

    def observe(self, s_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                t_inter_vars: Sequence[Sequence[torch.Tensor]], t_hooks: Sequence[Hook], *,
                loss_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None,
                logit_mask: torch.Tensor | None = None) -> None:
        """Called in each pass after the models ran and before the losses, with the tensors of all teachers.

        Here a method remembers what a later pass over the batch needs, whichever teachers the combiner then leaves out.
        """

    def after_pass(self, loss: Loss) -> None:
        """Called with the loss of each pass (number ``run.repeat``), before anything is back-propagated."""

    def intermediate_terms(self) -> list[str]:
        """Names of the intermediate terms that the flags switch on.

        A class that overrides ``inter_loss`` and states no :meth:`pairs` has one.
        """
        terms = ["logits_parallel"] if self.args.distill_logits_parallel else []
        if type(self).inter_loss is not GLMStudent.inter_loss and type(self).pairs is GLMStudent.pairs:
            return [type(self).__name__, *terms]
        kinds = dict.fromkeys(pair.kind for t_no in range(len(self.teachers)) for pair in self._pairs_of(t_no))
        return [*kinds, *terms]

    def prediction_terms(self) -> list[str]:
        """The prediction terms that the flags switch on, in words. One that needs labels begins with "hard label"."""
        stage, terms = "ft" if self.args.finetune else "pt", []
        if self.soft_kind() and self.rate("soft"):
            tau = "" if self.soft_kind() == "mse" else f", temperature {self.args.distill_temperature:g}"
            terms.append(f"soft {self.soft_kind()} x {self.rate('soft'):g}{tau}")
        if getattr(self.args, f"distill_{stage}_hard") and self.rate("hard"):
            terms.append(f"hard label x {self.rate('hard'):g}")
        return terms

    # ---- what the framework calls -------------------------------------------------------------------------------

    def student_taps(self) -> Hook:
        """Everything that has to be tapped in the student, whatever the method's hook method looks like."""
        own = self._own_taps[None] = merge_hooks(*_as_hooks(self.get_student_hook()), self._shared_student_hook())
        if isinstance(self.origin_model, EmptyGLM):  # it has no inner tensors
            own.clear()
            return {}
        if not self.analysis_is_due():
            return own
        paths = [pair.student for spec in self.teachers for pair in self._comparisons(spec.index)]
        return merge_hooks(own, analysis_hook(paths))

    def teacher_taps(self, t_no: int) -> Hook:
        """As :meth:`student_taps`, for teacher ``t_no``."""
        with self.facing(t_no):
            own = self._own_taps[t_no] = merge_hooks(
                *_as_hooks(self.get_teacher_hook(t_no=t_no)), self._shared_teacher_hook())
        if not self.analysis_is_due():
            return own
        return merge_hooks(own, analysis_hook([pair.teacher for pair in self._comparisons(t_no)]))

    def intermediate_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor],
                          s_hook: Hook, t_hook: Hook, *, keep_batch: bool = False, t_no: int = 0,
                          **kwargs: Any) -> Loss:
        """The method's ``inter_loss`` plus the shared terms, if the method did not add them itself.

        If an analysis is due it is recorded here; the method sees the tensors that it asked for itself.
        """
        if self.analysis_is_due():
            self._analyse(s_inter_vars, t_inter_vars, s_hook, t_hook, t_no)
            s_hook = _common_part(s_hook, self._own_taps[None])
            t_hook = _common_part(t_hook, self._own_taps[t_no])
            if not (s_hook and t_hook):
                return 0.0
        if len(s_inter_vars) == 0 or len(t_inter_vars) == 0:
            return 0.0
        with self.facing(t_no):
            self._has_shared_terms = False
            loss = self.inter_loss(s_inter_vars, t_inter_vars, s_hook, t_hook, keep_batch=keep_batch, t_no=t_no,
                                   **kwargs)
            if not self._has_shared_terms:
                loss = loss + self._shared_inter_loss(s_inter_vars, t_inter_vars, s_hook, t_hook, keep_batch)
        return self._checked(loss, keep_batch, "inter_loss")

    def prediction_loss(self, s_logits: torch.Tensor, t_logits: torch.Tensor | float, loss: Loss, *,
                        keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        """The method's ``pre_loss``, with ``args.teacher_*`` set to teacher ``t_no``."""
        if self.unmaps_vocab and isinstance(t_logits, torch.Tensor) and s_logits.dim() == t_logits.dim() == 3:
            t_logits = self.origin_model.vocab_map.in_table_order(t_logits)
        with self.facing(t_no):
            result = self.pre_loss(s_logits, t_logits, loss, keep_batch=keep_batch, t_no=t_no, **kwargs)
        return self._checked(result, keep_batch, "pre_loss")

    @contextmanager
    def facing(self, t_no: int) -> Iterator[None]:
        """Inside, ``args.teacher_*`` and the summary suffix are those of teacher ``t_no``."""
        before, self._teacher = self._teacher, t_no
        try:
            yield
        finally:
            self._teacher = before

    def check_teachers(self, *, unused: Collection[int] = (), widths_are_fitted: bool = False) -> None:
        """Raise ValueError if the sizes of a teacher do not suit the method.

        Args:
            unused: teachers that the method's losses never meet.
            widths_are_fitted: see the attribute.
        """
        for module in self.modules():
            if isinstance(module, GLMStudent):
                module.widths_are_fitted = widths_are_fitted
        for spec in self.teachers:
            if spec.index not in unused:
                with self.facing(spec.index):
                    self.check_sizes(spec)

    def check_terms(self, others: Sequence[str] = ()) -> None:
        """Raise ValueError if the flags leave a step without any loss term (``others``: terms of the combiner)."""
        prediction, intermediate = self.prediction_terms(), self.intermediate_terms()
        if not (prediction or intermediate or others):
            raise ValueError(self.no_term_message())
        stage = "ft" if self.args.finetune else "pt"
        for kind in ("mse", "kl", "ce"):
            if getattr(self.args, f"distill_{stage}_soft_{kind}", False) and not self.soft_kind():
                logger.warning("--distill_%s_soft_%s has no effect without --distill_%s_soft", stage, kind, stage)
        if self.args.distill_logits_parallel and self.soft_kind() and not self.args.finetune:
            logger.warning("--distill_logits_parallel repeats the soft labels: both compare the vocabulary logits")
        never = [n for n in pass_numbers(self._args.distill_random_data_n, "distill_random_data_n")
                 if n > self._args.forward_repeat_num] if self._args.distill_random_data else []
        if never:
            logger.warning("--distill_random_data_n=%s names a pass that --forward_repeat_num=%d never runs: passes "
                           "are counted from 0", self._args.distill_random_data_n, self._args.forward_repeat_num)
        if self._args.distill_test_output and not self.has_self_test:
            logger.warning("--distill_test_output has no effect: %s has no self-test", self.method_name)
        if self.show_pre:
            logger.info("%s: prediction terms: %s", self.method_name, "; ".join([*prediction, *others]) or "none")
        if self.show_inter:
            logger.info("%s: intermediate terms: %s", self.method_name, ", ".join(intermediate) or "none")

    def no_term_message(self) -> str:
        """What to say when a step has no loss term at all."""
        stage = "ft" if self.args.finetune else "pt"
        options = [f"--distill_{stage}_soft", f"--distill_{stage}_hard (both with a rate above 0)",
                   "--distill_logits_parallel"] + ([self.switches] if self.switches else [])
        return f"{self.method_name}: no loss term is switched on; use {' or '.join(options)}"

    # ---- what methods use ---------------------------------------------------------------------------------------

    @property
    def args(self) -> Any:
        """The command line; ``teacher_*`` are the properties of the teacher in question (the first outside a step)."""
        return self._views[self._teacher or 0] if self._views else self._args

    @property
    def config(self) -> ModelConfig:
        """Sizes of the student."""
        return self.origin_model.config

    @property
    def word_embedding_weight(self) -> torch.Tensor:
        """This rank's rows of the word table, [v/p, h]."""
        return self.origin_model.word_embedding_weight

    def map_input_to_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids -> columns of the logits (other ones only for an unmapped compact vocabulary)."""
        return self.origin_model.map_input_to_ids(ids)

    @property
    def unmaps_vocab(self) -> bool:
        """Whether the student's logits have the columns of a compact table instead of all token ids."""
        return self.config.unmap_vocab_output

    def comparable_logits(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vocabulary logits with the same columns on both sides: [b, s, v/p] x 2, cut over the vocabulary.

        With ``--distill_logit_mask_map`` those of the tokens that a compact vocabulary keeps, in the table's order for
        a student that has only those, else ascending by id. Raises ValueError where only that flag could help.
        """
        vocab_map = getattr(self.origin_model, "vocab_map", None)
        if vocab_map is None:
            return student, teacher
        if not self.args.distill_logit_mask_map:
            if self.unmaps_vocab:
                raise ValueError("--unmap_vocab_output needs --distill_logit_mask_map for logits distillation")
            return student, teacher
        if self.unmaps_vocab:
            return student, vocab_map.in_table_order(teacher)
        return vocab_map.kept_columns(student), vocab_map.kept_columns(teacher)

    def rate(self, name: str) -> float:
        """``--distill_soft_rate`` or ``--distill_hard_rate`` as a number."""
        value = getattr(self.args, f"distill_{name}_rate")
        return value.resolve(len(self.teachers)) if isinstance(value, PerTeacher) else value

    def soft_kind(self) -> str:
        """``mse``, ``kl`` or ``ce``; empty if soft labels are off."""
        args = self.args
        if args.finetune:
            chosen = "mse" if args.distill_ft_soft_mse else "kl" if args.distill_ft_soft_kl else "ce"
            return chosen if args.distill_ft_soft else ""
        chosen = "mse" if args.distill_pt_soft_mse else "ce" if args.distill_pt_soft_ce else "kl"
        return chosen if args.distill_pt_soft else ""

    def soft_loss(self, s_logits: torch.Tensor, t_logits: torch.Tensor | float, *, kind: str,
                  mask: torch.Tensor | None = None, keep_batch: bool = False, mse_t_w: float = 1.0) -> torch.Tensor:
        """One soft-label loss without its rate: squared error, KL times tau^2, or cross entropy (no tau^2)."""
        if not isinstance(t_logits, torch.Tensor):
            raise ValueError(f"{self.method_name}: soft labels need the teacher's logits, but --mt_disable_operation "
                             "switches this teacher off; set it to 0 or remove the soft-label flags")
        tau = self.args.distill_temperature
        partition = "vocab" if s_logits.dim() == 3 else None
        if kind == "mse":
            return mse(s_logits, t_logits, mask=mask, keep_batch=keep_batch, partition=partition,
                       teacher_weight=mse_t_w)
        if kind == "kl":
            return tau ** 2 * kl_divergence(s_logits, t_logits, mask=mask, keep_batch=keep_batch, temperature=tau,
                                            partition=partition)
        return soft_cross_entropy(s_logits, t_logits, mask=mask, keep_batch=keep_batch, temperature=tau,
                                  partition=partition, wo_constant=self.args.distill_mask_wo_constant)

    def hidden_state_pairs(self, t_no: int) -> Sequence[Pair]:
        """Every hidden state, embeddings and output included, with the one of teacher ``t_no`` at the uniform map."""
        depth, t_depth = self.config.num_layers, self.teachers[t_no].num_layers
        return tuple(Pair("hidden_states", hidden_state(k, depth), hidden_state(seg, t_depth))
                     for k, seg in enumerate(uniform_layer_map(depth, t_depth)))

    def sum_pairs(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                  t_hook: Hook, *, keep_batch: bool, t_no: int) -> Loss:
        """The weighted sum over :meth:`pairs`, each pair recorded as ``inter_loss/<kind>.<i>``; no shared terms."""
        loss: Loss = 0.0
        numbers: dict[str, int] = {}
        for pair in self.pairs(t_no):
            term = pair.weight * self.pair_loss(
                pair, tapped(s_inter_vars, s_hook, *pair.student), tapped(t_inter_vars, t_hook, *pair.teacher),
                keep_batch=keep_batch, t_no=t_no)
            number = numbers[pair.kind] = numbers.get(pair.kind, -1) + 1
            self.add_summary(f"inter_loss/{pair.kind}" + (f".{number}" if pair.numbered else ""), term)
            loss = loss + term
        return loss

    def check_equal_widths(self, teacher: TeacherSpec, *places: Path, way_out: str) -> None:
        """Raise ValueError unless the student's hidden states at ``places``, as this method sees them, are as wide as
        the teacher's. In a mixture another member may have projected them (``seen_widths``)."""
        widths = {self.seen_widths.get(place, self.config.hidden_size) for place in places} - {teacher.hidden_size}
        if widths and not self.widths_are_fitted:
            raise ValueError(f"{type(self).__name__} needs equal hidden sizes: student {widths.pop()} (--hidden-size) "
                             f"vs teacher {teacher.hidden_size} (--teacher_hidden_size); {way_out}")

    def apply_layer(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """A trainable layer of ours on a tapped tensor: computed in the layer's dtype, returned in that of ``x``."""
        return layer(x.to(next(layer.parameters()).dtype)).to(x.dtype)

    def draw(self, name: str, make: Callable[[random.Random], Drawn], *key: Any) -> Drawn:
        """A random choice of this method: the only place where one is made.

        The generator is derived from (seed, method, name, key), so the choice is the same on all ranks and after a
        resume, and no global generator is touched. ``key`` defaults to (iteration, micro step, repeat). A value or a
        function of the key in ``injected_draws[name]`` takes the place of the draw.
        """
        key = key or (self.run.iteration, self.run.micro_step, self.run.repeat)
        if name in self.injected_draws:
            value = self.injected_draws[name]
            return value(*key) if callable(value) else value
        return make(random.Random(f"{self.run.seed}/{self.method_name}/{name}/{key}"))

    def add_summary(self, name: str, value: Any) -> bool:
        """Record a term of this step, and write it if a summary is due.

        Towards a teacher the name gets the suffixes ``_t<teacher>``, in a further pass ``_repeat<pass>``, and
        ``summary_suffix``. Vectors are averaged. Returns whether it was written.
        """
        if not self.summary_loss:
            return False
        tag = name if self._teacher is None else f"{name}_t{self._teacher}{self._pass_suffix()}{self.summary_suffix}"
        value = torch.as_tensor(value).detach()
        self.recorded.append((tag, value if value.dim() == 0 else value.mean()))
        step = self.run.iteration + 1
        is_last = self._args.finetune or self.run.micro_step == self.run.accumulation_steps - 1
        if self.writer is None or step % self._args.log_interval != 0 or not is_last:
            return False
        self.writer.add_scalar(tag, self.recorded[-1][1].item(), step)
        return True

    def _pass_suffix(self) -> str:
        return f"_repeat{self.run.repeat}" if self.run.repeat else ""

    def named_parameters(self, prefix: str = "", recurse: bool = True,
                         remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under their names in a checkpoint."""
        lead = f"{prefix}." if prefix else ""
        for name, parameter in super().named_parameters("", recurse, remove_duplicate):
            yield lead + checkpoint_name(name), parameter

    # ---- shared terms -------------------------------------------------------------------------------------------

    def _shared_student_hook(self) -> Hook:
        if not self.args.distill_logits_parallel:
            return {}
        return {"logits_parallel": None, **({"position_ids": None} if self.args.distill_logit_mask_pad else {})}

    def _shared_teacher_hook(self) -> Hook:
        return {"logits_parallel": None} if self.args.distill_logits_parallel else {}

    def _shared_inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor],
                           s_hook: Hook, t_hook: Hook, keep_batch: bool) -> Loss:
        self._has_shared_terms = True
        if not (self.args.distill_logits_parallel and has_tap(s_hook, "logits_parallel")
                and has_tap(t_hook, "logits_parallel")):
            return 0.0
        student, teacher = self.comparable_logits(tapped(s_inter_vars, s_hook, "logits_parallel"),
                                                  tapped(t_inter_vars, t_hook, "logits_parallel"))
        mask = None
        if self.args.distill_logit_mask_pad:
            mask = position_pad_mask(tapped(s_inter_vars, s_hook, "position_ids"))
        kind = "mse" if self.args.distill_logit_mse else "kl"
        loss = self.soft_loss(student, teacher, kind=kind, mask=mask, keep_batch=keep_batch)
        self.add_summary("inter_loss/logits_parallel", loss)
        return loss

    # ---- analysis -----------------------------------------------------------------------------------------------

    def analysis_is_due(self) -> bool:
        """Whether this pass is analysed: asked for, and a multiple of ``--log-interval`` ends in this step."""
        args, run = self._args, self.run
        if not (args.distil_analysis_inter and self.summary_loss
                and run.repeat in pass_numbers(args.distil_analysis_frcn, "distil_analysis_frcn")):
            return False
        start, length = run.iteration, 1
        if args.finetune:  # an iteration is a micro-batch there, and all of a step's are logged as one
            start, length = run.iteration - run.micro_step, run.accumulation_steps
        return (start + length) // args.log_interval > start // args.log_interval

    def _comparisons(self, t_no: int) -> list[Comparison]:
        return comparisons(self.config.num_layers, self.teachers[t_no].num_layers)

    def _analyse(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                 t_hook: Hook, t_no: int) -> None:
        pairs = self._comparisons(t_no)
        with self.facing(t_no):
            for tag, value in similarities(pairs, s_inter_vars, s_hook, t_inter_vars, t_hook):
                self.add_summary(f"analysis_inter/{tag}", value)
        if t_no not in self._misfits_told:
            self._misfits_told.add(t_no)
            unequal = misfits(pairs, s_inter_vars, s_hook, t_inter_vars, t_hook)
            if unequal:
                logger.warning("--distil_analysis_inter: sizes of student and teacher %d differ, so these are not "
                               "compared directly: %s", t_no, "; ".join(unequal))

    def _prediction_mask(self, loss_mask: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor | None:
        if loss_mask is None or self.args.distill_wo_loss_mask:
            return None
        if self.args.distill_only_mask_pad and labels is not None and labels.dim() == 2:
            return labels > 0
        return loss_mask

    def _pairs_of(self, t_no: int) -> Sequence[Pair]:
        with self.facing(t_no):
            return self.pairs(t_no)

    def _checked(self, loss: Loss, keep_batch: bool, name: str) -> Loss:
        if keep_batch and isinstance(loss, torch.Tensor) and loss.dim() != 1:
            raise ValueError(f"{type(self).__name__}.{name} has to return one value per sample with keep_batch=True, "
                             f"not a tensor of shape {tuple(loss.shape)}")
        return loss


def _as_hooks(hooks: Hook | Sequence[Hook] | None) -> list[Hook]:
    if hooks is None:
        return []
    return list(hooks) if isinstance(hooks, (list, tuple)) else [hooks]


def _common_part(hook: Hook, wanted: Hook) -> Hook:
    """The entries of a filled hook that ``wanted`` asks for."""
    common: Hook = {}
    for key, value in wanted.items():
        if isinstance(value, dict):
            inner = _common_part(hook.get(key) or {}, value)
            common.update({key: inner} if inner else {})
        elif key in hook:
            common[key] = hook[key]
    return common


def _path_hook(path: Path) -> Hook:
    hook: Any = None
    for key in reversed(path):
        hook = {key: hook}
    return hook


def add_distill_flags(parser: argparse.ArgumentParser) -> None:
    """``--student_model`` and the flags that all methods share; each method adds its own."""
    parser.add_argument("--student_model", default=None, metavar="METHOD",
                        help=f"distillation method: {', '.join(sorted(METHODS))}; without it training is plain")
    add_shared_flags(parser)


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every method, once each: a method built on another one inherits its flags without adding them."""
    for cls in METHODS.values():
        if "add_flags" in vars(cls):
            cls.add_flags(parser)


def build_student(language_model: nn.Module, args: Any, *, teachers: Sequence[TeacherSpec],
                  run: RunState | None = None, writer: Any = None) -> GLMStudent:
    """The student of ``--student_model`` around a GLM; raises ValueError if flags do not suit the method.

    Its combiner asks it to check the teachers' sizes (:meth:`GLMStudent.check_teachers`).
    """
    cls = find_method(args.student_model)
    check_distill_flags(args)
    cls.check_flags(args)
    if args.student_use_empty_glm:
        language_model = EmptyGLM(language_model)
    student = cls(language_model, args, teachers=teachers, run=run, writer=writer)
    for spec in student.teachers:
        if args.distil_analysis_inter:
            comparisons(student.config.num_layers, spec.num_layers)
    mark_replicated_parameters(student)
    return student
