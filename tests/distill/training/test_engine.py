"""The engines on a module of a few parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from distill.training import engine as engines
from distill.training.engine import DeepSpeedEngine, DynamicLossScaler, PlainEngine, zero_loss
from distill.training.gradients import gradient_norm, parameter_groups
from distill.training.setup import running
from model.parallel import groups
from tests.helpers.distributed import run_distributed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(torch.tanh(self.first(x)))).float().square().mean()


def make_net() -> Net:
    torch.manual_seed(3)
    return Net()


def arguments(**changes: Any) -> SimpleNamespace:
    values = dict(
        deepspeed=False, local_rank=None, distributed_backend="gloo", model_parallel_size=1, seed=1, fp16=False,
        bf16=False, clip_grad=0.3, lr=0.01, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.999, adam_eps=1e-8,
        loss_scale=None, loss_scale_window=1000, min_scale=1, hysteresis=2, zero_stage=0)
    return SimpleNamespace(**{**values, **changes})


def deepspeed_arguments(stage: int) -> SimpleNamespace:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "gradient_clipping": 0.3,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01, "weight_decay": 0.1, "torch_adam": True}}}
    if stage:
        config["zero_optimization"] = {"stage": stage}
    return arguments(deepspeed=True, zero_stage=stage, ds_config=config)


def train(engine: engines.Engine, steps: int = 4) -> list[float]:
    """Losses and norms of some steps with two micro-batches each."""
    generator, found = torch.Generator().manual_seed(5), []
    for step in range(steps):
        for index in range(2):
            x = torch.randn(4, 6, generator=generator).to(next(engine.module.parameters()).dtype)
            loss = engine.compute(lambda x=x: engine.module(x))
            engine.backward(loss, weight=0.5, is_last=index == 1)
            found.append(loss.item())
        result = engine.step(0.01 * (step + 1))
        assert result.applied
        found.append(result.grad_norm)
    return found


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_both_engines_give_the_same_numbers(stage: int) -> None:
    expected = train(plain := PlainEngine(make_net(), arguments()))
    args = deepspeed_arguments(stage)
    with running(args):
        engine = DeepSpeedEngine(make_net(), args)
        assert engine.is_sharded == (stage > 0)
        assert train(engine) == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(plain.module.parameters(), engine.module.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # Without a gradient the optimizer would have skipped it: a missing gradient is zero, so it decays.
    assert engine.module.unused[0].item() < 0.999


def test_the_reference_is_adam_with_decoupled_decay() -> None:
    net, reference = make_net(), make_net()
    engine = PlainEngine(net, arguments(clip_grad=0.0))
    optimizer = torch.optim.AdamW(
        [{"params": [reference.first.weight, reference.second.weight, reference.unused]},
         {"params": [reference.first.bias, reference.second.bias, *reference.norm.parameters()], "weight_decay": 0.0}],
        lr=0.01, weight_decay=0.1)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        engine.backward(engine.compute(lambda: net(x)), weight=1.0, is_last=True)
        engine.step(0.01)
        reference(x).backward()
        reference.unused.grad = torch.zeros(4)
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(net.parameters(), reference.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_clipping_bounds_the_update_and_the_norm_is_reported_before_it() -> None:
    net = make_net()
    engine = PlainEngine(net, arguments(clip_grad=1e-3, weight_decay=0.0))
    seen: dict[str, float] = {}

    def spy(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            grads = [p.grad for group in engine.optimizer.param_groups for p in group["params"]]
            seen["norm"] = torch.stack([g.norm() for g in grads]).norm().item()
            return step(*args, **kwargs)
        return run

    engine.optimizer.step = spy(engine.optimizer.step)
    engine.backward(engine.compute(lambda: net(torch.ones(2, 6))), weight=1.0, is_last=True)
    result = engine.step(0.1)
    assert result.grad_norm > 0.01 and seen["norm"] == pytest.approx(1e-3, rel=1e-2)


def test_groups_leave_biases_and_layer_norms_without_decay_and_frozen_parameters_out() -> None:
    net = make_net()
    net.second.weight.requires_grad_(False)
    net.twin = net.first  # shared: once
    decay, no_decay = parameter_groups(net)
    assert {id(p) for p in decay["params"]} == {id(net.first.weight), id(net.unused)}
    without = (net.first.bias, net.second.bias, *net.norm.parameters())
    assert {id(p) for p in no_decay["params"]} == set(map(id, without))
    assert no_decay["weight_decay"] == 0.0 and all(p.model_parallel is False for p in net.parameters())


def test_bf16_keeps_fp32_masters() -> None:
    net = make_net().to(torch.bfloat16)
    engine = PlainEngine(net, arguments(bf16=True, weight_decay=0.0, clip_grad=0.0))
    before = net.first.weight.detach().clone()
    for _ in range(40):  # each update alone is below the resolution of bfloat16
        engine.backward(engine.compute(lambda: net(torch.ones(2, 6, dtype=torch.bfloat16))), weight=1.0, is_last=True)
        engine.step(2e-5)
    assert net.first.weight.dtype == torch.bfloat16 and not torch.equal(net.first.weight, before)


def test_fp16_skips_a_step_that_overflows_and_halves_the_scale() -> None:
    net = make_net().half()
    engine = PlainEngine(net, arguments(fp16=True, hysteresis=1))
    before = [p.detach().clone() for p in net.parameters()]
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).half()

    def step() -> engines.StepResult:
        engine.backward(engine.compute(lambda: net(x)), weight=1.0, is_last=True)
        return engine.step(0.01)

    first = step()
    assert not first.applied and first.grad_norm == float("inf") and first.loss_scale == 2.0 ** 32
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters()))
    for _ in range(40):
        result = step()
        if result.applied:
            break
    assert result.applied and result.loss_scale < 2.0 ** 32 and 0 < result.grad_norm < 10
    reference = PlainEngine(make_net(), arguments())
    reference.backward(reference.compute(lambda: reference.module(x.float())), weight=1.0, is_last=True)
    assert result.grad_norm == pytest.approx(reference.step(0.01).grad_norm, rel=2e-2)


def test_loss_scaler() -> None:
    scaler = DynamicLossScaler(arguments(loss_scale_window=3, min_scale=2.0 ** 30, hysteresis=2))
    scaler.update(True)
    assert scaler.scale == 2.0 ** 32, "the first overflow is tolerated"
    for _ in range(4):
        scaler.update(True)
    assert scaler.scale == 2.0 ** 30, "not below the smallest"
    for _ in range(3):
        scaler.update(False)
    assert scaler.scale == 2.0 ** 31
    twin = DynamicLossScaler(arguments())
    twin.load_state_dict(scaler.state_dict())
    assert twin.state_dict() == scaler.state_dict()
    static = DynamicLossScaler(arguments(loss_scale=128.0))
    static.update(True)
    assert static.scale == 128.0


@pytest.mark.parametrize("stage", [None, 0, 1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing(stage: int | None) -> None:
    """Though the loss is finite, as that of sqrt at 0."""
    args, net = arguments() if stage is None else deepspeed_arguments(stage), make_net()
    with running(args):
        engine = engines.build_engine(net, args)
        before = [parameter.detach().clone() for parameter in net.parameters()]
        for broken in (True, False):
            at_zero = (0.0 * net.unused.sum()).sqrt if broken else net.unused.new_zeros(()).sqrt
            loss = engine.compute(lambda at_zero=at_zero: net(torch.ones(4, 6)) + at_zero())
            assert loss.isfinite()
            engine.backward(loss, weight=1.0, is_last=True)
            result = engine.step(0.01)
            assert result.applied is not broken and math.isfinite(result.grad_norm) is not broken
            if broken:
                assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_zero_loss_has_zero_gradients_even_for_broken_weights() -> None:
    net = make_net()
    net.first.weight.data.fill_(float("nan"))
    zero_loss(net).backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in net.parameters())


def norm_on_rank() -> float:
    """A cut parameter with gradient 3 on rank 0 and 4 on rank 1, and a replicated one with gradient 12 on both."""
    cut, whole = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    cut.model_parallel, whole.model_parallel = True, False
    gradients = [torch.tensor([3.0 + groups.get_model_parallel_rank()]), torch.tensor([12.0])]
    return gradient_norm([cut, whole], gradients)


@pytest.mark.distributed
def test_the_norm_counts_cut_parameters_everywhere_and_replicated_ones_once() -> None:
    assert run_distributed(norm_on_rank, 2, model_parallel_size=2) == pytest.approx([13.0, 13.0])


def test_a_state_of_another_engine_is_refused() -> None:
    engine = PlainEngine(make_net(), arguments())
    with pytest.raises(ValueError, match="--no-load-optim"):
        engine.load_state_dict({"layout": "DeepSpeed ZeRO 0"})
