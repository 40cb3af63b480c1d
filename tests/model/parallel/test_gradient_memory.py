"""Memory of large gradients is used again, and never while somebody looks at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model.parallel import gradient_memory
from model.parallel.gradient_memory import gradient_like, release_gradient_memory
from model.parallel.vocab_log_prob import hard_label_rows, soft_label_rows, squared_error_rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gradient_memory, "SMALLEST_BLOCK", 1)
    release_gradient_memory()
    yield
    release_gradient_memory()


def test_a_block_nobody_refers_to_is_handed_out_again() -> None:
    first = gradient_like(torch.zeros(6, 8))
    place = first.data_ptr()
    del first
    assert gradient_like(torch.zeros(48, dtype=torch.float64)[::2]).data_ptr() == place  # 192 bytes both
    assert gradient_like(torch.zeros(3, 32, dtype=torch.bfloat16)).data_ptr() == place


@pytest.mark.parametrize("hold", [lambda x: x, lambda x: x[2:], lambda x: x.detach(), lambda x: x.data,
                                  lambda x: x.numpy(), lambda x: x.untyped_storage(), torch.utils.dlpack.to_dlpack],
                         ids=["tensor", "view", "detached", "data", "array", "storage", "dlpack"])
def test_a_block_that_is_held_in_any_way_is_left_alone(hold: Callable[[torch.Tensor], object]) -> None:
    first = gradient_like(torch.zeros(6, 8))
    place, held = first.data_ptr(), hold(first)
    del first
    assert gradient_like(torch.zeros(6, 8)).data_ptr() != place
    del held
    release_gradient_memory()
    assert not gradient_memory._blocks


def test_shape_dtype_and_layout() -> None:
    like = torch.zeros(4, 6, dtype=torch.float64).t()
    made = gradient_like(like)
    assert (made.shape, made.dtype, made.stride()) == ((6, 4), torch.float64, (4, 1))
    assert gradient_like(torch.zeros(0, 3)).shape == (0, 3)
    assert gradient_like(torch.zeros(2, device="meta")).device.type == "meta"


def test_few_unused_blocks_are_kept() -> None:
    several = [gradient_like(torch.zeros(size)) for size in (100, 100, 100, 100, 100)]
    assert len(gradient_memory._blocks) == 5  # all in use
    del several
    gradient_like(torch.zeros(1000))  # fits none
    assert len(gradient_memory._blocks) == gradient_memory.KEPT_BLOCKS
    gradient_like(torch.zeros(10))  # less than half of any: a block of its own
    assert min(block.nbytes for block in gradient_memory._blocks) == 40


def test_many_at_once_are_not_all_kept() -> None:
    several = [gradient_like(torch.zeros(100)) for _ in range(9)]
    del several
    for _ in range(3):
        gradient_like(torch.zeros(100))
    assert len(gradient_memory._blocks) <= gradient_memory.KEPT_BLOCKS


def test_other_modes() -> None:
    with torch.device("meta"):
        assert gradient_like(torch.zeros(3, device="cpu")).device.type == "cpu"
    with FakeTensorMode():
        assert gradient_like(torch.zeros(3)).shape == (3,)


def test_threads_get_blocks_of_their_own() -> None:
    def work(number: int) -> bool:
        ok = True
        for _ in range(200):
            mine = gradient_like(torch.zeros(50)).fill_(number)
            ok &= (mine == number).all().item()
        return ok

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def steps(count: int) -> list[torch.Tensor]:
    """Training with three losses on the logits, micro-batches that add up, and gradients of logits that are kept."""
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(20, 5, generator=generator))
    optimizer = torch.optim.SGD([table], lr=0.1)
    kept, seen = [], []
    for step in range(count):
        for _ in range(2):
            hidden, teacher = torch.randn(6, 5, generator=generator), torch.randn(6, 20, generator=generator)
            logits = hidden @ table.t()
            if step % 3 == 0:
                logits.retain_grad()
            labels = torch.randint(0, 20, (6,), generator=generator)
            loss = (hard_label_rows(logits, labels).mean() + soft_label_rows(logits, teacher, kind="kl").mean()
                    + squared_error_rows(logits, teacher).mean())
            loss.backward()
            if step % 3 == 0:
                kept.append(logits.grad)
                seen.append(logits.grad.clone())
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
    assert all(torch.equal(left, right) for left, right in zip(kept, seen, strict=True))
    return [*kept, table.detach()]


def test_numbers_are_those_of_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    reused = steps(8)
    assert gradient_memory._blocks
    monkeypatch.setattr(gradient_memory, "SMALLEST_BLOCK", 1 << 40)
    fresh = steps(8)
    assert all(torch.equal(left, right) for left, right in zip(reused, fresh, strict=True))


def test_from_one_step_to_the_next() -> None:
    leaf, teacher = torch.randn(6, 20, requires_grad=True), torch.randn(6, 20)
    places = set()
    for _ in range(5):
        leaf.grad = None
        squared_error_rows(leaf, teacher).sum().backward()
        places.add(leaf.grad.data_ptr())
    assert len(places) == 1
