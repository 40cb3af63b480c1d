"""Two engines behind one protocol: DeepSpeed with ZeRO 0 to 2, and plain PyTorch.

Both see the whole forward step as one closure, average gradients over the data-parallel group at the last micro-batch
of a step, count a missing gradient as zero, and use the same Adam; in fp32 they give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from distill.training import gradients
from model.parallel import backend, groups


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did.

    Attributes:
        applied: False if a gradient was infinite or NaN, as after an fp16 overflow; weights and schedule stay then.
        grad_norm: L2 norm over all model-parallel ranks, before clipping; inf or NaN where nothing was applied.
        loss_scale: in fp16, the scale of the losses of this step.
    """

    applied: bool
    grad_norm: float
    loss_scale: float | None = None


class Engine(Protocol):
    """What the loop needs."""

    module: nn.Module
    #: True if every rank holds another part of the optimizer's state.
    is_sharded: bool

    def compute(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Run a forward step; ``closure`` returns the loss."""

    def backward(self, loss: torch.Tensor, *, weight: float, is_last: bool) -> None:
        """Add the gradients of ``weight * loss``; ``is_last`` marks the last micro-batch before :meth:`step`."""

    def step(self, lr: float) -> StepResult:
        """Average, clip, update, clear the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer on this rank: tensors, numbers, lists and dicts only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite. Raises ValueError if the state belongs to another layout."""

    def refresh_master_weights(self) -> None:
        """Copy the model's weights into the fp32 masters, after only weights were loaded."""


def training_dtype(args: Any) -> torch.dtype:
    """The dtype of the student's weights: half precision if asked for, else fp32."""
    return torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else torch.float32


def build_engine(module: nn.Module, args: Any) -> Engine:
    """The engine for ``args``. ``module`` is on its device and in its training dtype already."""
    if args.deepspeed:
        return DeepSpeedEngine(module, args)
    return PlainEngine(module, args)


def zero_loss(module: nn.Module) -> torch.Tensor:
    """A loss whose gradient is exactly zero everywhere; it stands in for a micro-batch that is skipped."""
    return torch.stack([
        parameter.reshape(-1)[:1].float().sum() * 0.0 for parameter in module.parameters() if parameter.requires_grad
    ]).nan_to_num().sum()


class DynamicLossScaler:
    """The scale that keeps fp16 gradients in range: halved after overflows, doubled after a quiet window."""

    def __init__(self, args: Any) -> None:
        self.is_dynamic = args.loss_scale is None
        self.scale = 2.0 ** 32 if self.is_dynamic else float(args.loss_scale)
        self.window = int(args.loss_scale_window)
        self.min_scale = float(args.min_scale)
        self.hysteresis = int(args.hysteresis)
        self.left = self.hysteresis
        self.quiet_steps = 0

    def update(self, overflow: bool) -> None:
        """Tell the scaler how a step went."""
        if not self.is_dynamic:
            return
        if overflow:
            self.quiet_steps = 0
            self.left = max(0, self.left - 1)
            if self.left == 0:
                self.scale = max(self.min_scale, self.scale / 2)
            return
        self.quiet_steps += 1
        if self.quiet_steps % self.window == 0:
            self.left = self.hysteresis
            self.scale *= 2

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "left": self.left, "quiet_steps": self.quiet_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale, self.left = float(state["scale"]), int(state["left"])
        self.quiet_steps = int(state["quiet_steps"])


class PlainEngine:
    """PyTorch alone: gradients summed in fp32, averaged by hand, AdamW on fp32 masters."""

    is_sharded = False

    def __init__(self, module: nn.Module, args: Any) -> None:
        self.module = module
        self.clip_grad = args.clip_grad
        self.scaler = DynamicLossScaler(args) if args.fp16 else None
        self._models: list[torch.Tensor] = []
        self._masters: list[torch.Tensor] = []
        optimizer_groups = []
        for group in gradients.parameter_groups(module):
            masters = [self._master_of(parameter) for parameter in group["params"]]
            self._models += group["params"]
            self._masters += masters
            optimizer_groups.append({**group, "params": masters})
        gradients.broadcast_over_data_parallel(self._models)
        self.refresh_master_weights()
        on_gpu = any(parameter.is_cuda for parameter in self._models)
        self.optimizer = torch.optim.AdamW(
            optimizer_groups, lr=args.lr, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_eps,
            weight_decay=args.weight_decay, fused=True if on_gpu else None)

    @staticmethod
    def _master_of(parameter: nn.Parameter) -> torch.Tensor:
        if parameter.dtype in (torch.float32, torch.float64):
            return parameter
        master = parameter.detach().float().clone().requires_grad_()
        master.model_parallel = parameter.model_parallel
        return master

    def compute(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        return closure()

    def backward(self, loss: torch.Tensor, *, weight: float, is_last: bool) -> None:
        scale = self.scaler.scale if self.scaler else 1.0
        (loss * (weight * scale)).backward()
        for parameter, master in zip(self._models, self._masters):
            if parameter is master or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def step(self, lr: float) -> StepResult:
        gradients.fill_missing(self._masters)
        grads = [master.grad for master in self._masters]
        gradients.average_over_data_parallel(grads)
        scale = self.scaler.scale if self.scaler else None
        if scale is not None and self._has_overflow(grads):
            self.scaler.update(overflow=True)
            self.optimizer.zero_grad(set_to_none=True)
            return StepResult(False, float("inf"), scale)
        if scale is not None:
            torch._foreach_mul_(grads, 1.0 / scale)
            self.scaler.update(overflow=False)
        norm = gradients.gradient_norm(self._masters, grads)
        if not math.isfinite(norm):  # a finite loss may have such a gradient; one step with it ends the run
            self.optimizer.zero_grad(set_to_none=True)
            return StepResult(False, norm, scale)
        gradients.clip(grads, norm, self.clip_grad)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, master in zip(self._models, self._masters):
                if parameter is not master:
                    parameter.copy_(master)
        return StepResult(True, norm, scale)

    @staticmethod
    def _has_overflow(grads: list[torch.Tensor]) -> bool:
        """Whether any gradient on any model-parallel rank is inf or NaN."""
        finite = torch.stack([gradient.isfinite().all() for gradient in grads]).all()
        overflow = (~finite).float()
        state = groups.parallel_state()
        if state.model_size > 1:
            dist.all_reduce(overflow, op=dist.ReduceOp.MAX, group=state.model_group)
        return bool(overflow)

    def state_dict(self) -> dict[str, Any]:
        return {
            "layout": self._layout(),
            "optimizer": self.optimizer.state_dict(),
            "masters": [master.detach() for master in self._masters] if self._has_masters() else [],
            "loss_scaler": self.scaler.state_dict() if self.scaler else None}

    def _has_masters(self) -> bool:
        return any(parameter is not master for parameter, master in zip(self._models, self._masters))

    def _layout(self) -> str:
        return "PyTorch with fp32 masters" if self._has_masters() else "PyTorch"

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_layout(state, self._layout())
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for master, saved in zip(self._masters, state["masters"]):
                master.copy_(saved)
        if self.scaler and state["loss_scaler"]:
            self.scaler.load_state_dict(state["loss_scaler"])

    @torch.no_grad()
    def refresh_master_weights(self) -> None:
        for parameter, master in zip(self._models, self._masters):
            if parameter is not master:
                master.copy_(parameter)


class _Closure(nn.Module):
    """What DeepSpeed takes for the model: its forward runs the whole forward step, however many passes that has."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        return closure()


class DeepSpeedEngine:
    """DeepSpeed at ZeRO stage 0, 1 or 2. Schedule, loss weights, accumulation boundary and checkpoints are ours."""

    def __init__(self, module: nn.Module, args: Any) -> None:
        deepspeed = backend.load_deepspeed()
        config = {**args.ds_config, "steps_per_print": 2 ** 62}
        self.module = module
        self.stage = args.zero_stage
        self.is_sharded = self.stage > 0
        # At stage 0 DeepSpeed neither reports the norm nor leaves it to be asked for: norm and clipping are ours there.
        self.clip_grad = config.pop("gradient_clipping", 0.0) if self.stage == 0 else 0.0
        self._parameters = [p for group in gradients.parameter_groups(module) for p in group["params"]]
        self._engine = deepspeed.initialize(
            model=_Closure(module), model_parameters=gradients.parameter_groups(module), config=config, mpu=groups,
            dist_init_required=False)[0]
        self._optimizer = self._engine.optimizer

    def compute(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        return self._engine(closure)

    def backward(self, loss: torch.Tensor, *, weight: float, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss * weight, scale_wrt_gas=False)

    def step(self, lr: float) -> StepResult:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        scale = float(self._optimizer.loss_scale) if self._engine.fp16_enabled() else None
        norm = 0.0
        if self.stage == 0:
            gradients.fill_missing(self._parameters)
            grads = [parameter.grad for parameter in self._parameters]
            norm = gradients.gradient_norm(self._parameters, grads)
            if not math.isfinite(norm):  # as the optimizers of the other stages do
                self._engine.zero_grad()
                return StepResult(False, norm, scale)
            gradients.clip(grads, norm, self.clip_grad)
        self._engine.step()
        applied = not getattr(self._optimizer, "overflow", False)
        if self.stage > 0:
            norm = float(self._engine.get_global_grad_norm()) if applied else float("inf")
        return StepResult(applied, norm, scale)

    def state_dict(self) -> dict[str, Any]:
        if self.stage == 0:
            return {"layout": "DeepSpeed ZeRO 0", "optimizer": self._optimizer.state_dict()}
        scaler = self._optimizer.loss_scaler
        return {
            "layout": self._layout(),
            "optimizer": self._optimizer.optimizer.state_dict(),
            "masters": [partition.detach() for partition in self._optimizer.single_partition_of_fp32_groups],
            "loss_scaler": {
                name: value for name, value in vars(scaler).items() if isinstance(value, int | float | bool)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.stage == 0:
            _check_layout(state, "DeepSpeed ZeRO 0")
            self._optimizer.load_state_dict(state["optimizer"])
            return
        _check_layout(state, self._layout())
        self._optimizer.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for partition, saved in zip(self._optimizer.single_partition_of_fp32_groups, state["masters"]):
                partition.copy_(saved)
        vars(self._optimizer.loss_scaler).update(state["loss_scaler"])

    def _layout(self) -> str:
        # Stages 1 and 2 cut the state in the same way; another number of data-parallel ranks cuts it differently.
        return f"DeepSpeed ZeRO over {groups.get_data_parallel_world_size()} data-parallel ranks"

    def refresh_master_weights(self) -> None:
        if self.stage > 0:
            self._optimizer.refresh_fp32_params()


def _check_layout(state: dict[str, Any], expected: str) -> None:
    if state.get("layout") != expected:
        raise ValueError(
            f"the checkpoint's optimizer state is laid out for {state.get('layout', 'another program')!r}, this run "
            f"needs {expected!r}: resume with the same engine and number of ranks, or add --no-load-optim")
