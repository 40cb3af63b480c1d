"""The vocabulary primitive against the plain formulas, their automatic gradients, and itself on several ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model.parallel import row_chunks
from model.parallel.cross_entropy import vocab_parallel_cross_entropy
from model.parallel.groups import parallel_state
from model.parallel.mappings import all_gather_last
from model.parallel.vocab_log_prob import entropy_rows, hard_label_rows, soft_label_rows, squared_error_rows
from tests.helpers.distributed import run_distributed

TAU = 3.0
Rows = Callable[..., torch.Tensor]


def naive_kl(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return ((t / TAU).softmax(-1) * ((t / TAU).log_softmax(-1) - (s / TAU).log_softmax(-1))).sum(-1)


def naive_ce(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return -((t / TAU).softmax(-1) * (s / TAU).log_softmax(-1)).sum(-1)


def naive_entropy(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return -((s / TAU).softmax(-1) * (s / TAU).log_softmax(-1)).sum(-1)


def naive_squares(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return ((s - 0.5 * t) ** 2).sum(-1)


def naive_hard(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return -s.log_softmax(-1).gather(-1, labels(s).unsqueeze(-1)).squeeze(-1)


def labels(s: torch.Tensor) -> torch.Tensor:
    return (torch.arange(s[..., 0].numel()) * 5 % 12).view(s.shape[:-1])


def our_kl(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return soft_label_rows(s, t, kind="kl", temperature=TAU, parallel=parallel)


def our_ce(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return soft_label_rows(s, t, kind="ce", temperature=TAU, parallel=parallel)


def our_entropy(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return entropy_rows(s, temperature=TAU, parallel=parallel)


def our_squares(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return squared_error_rows(s, t, teacher_weight=0.5, parallel=parallel)


def our_hard(s: torch.Tensor, t: torch.Tensor, parallel: bool = False) -> torch.Tensor:
    return hard_label_rows(s, labels(s), parallel=parallel)


BOTH = {"kl": (our_kl, naive_kl), "ce": (our_ce, naive_ce), "entropy": (our_entropy, naive_entropy),
        "squares": (our_squares, naive_squares), "hard": (our_hard, naive_hard)}


def logits(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (4 * torch.randn(2, 5, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.to(dtype).requires_grad_(), teacher.to(dtype).requires_grad_()


def value_and_gradients(rows: Rows, parallel: bool = False, cut: slice = slice(None),
                        lowered: dict[int, float] | None = None) -> list[torch.Tensor]:
    """Rows, and the gradients of a weighted sum of them with respect to (a slice of) both logits. ``lowered``: what is
    added to the first six columns of the student's (0) and the teacher's (1) logits."""
    both = [x.detach().clone() for x in logits()]
    for side, by in (lowered or {}).items():
        both[side][..., :6] += by
    student, teacher = (x[..., cut].clone().requires_grad_() for x in both)
    value = rows(student, teacher, parallel)
    weights = torch.linspace(0.1, 2.0, value.numel(), dtype=value.dtype).view(value.shape)
    (value * weights).sum().backward()
    return [value.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in (student, teacher))]


@pytest.mark.parametrize("chunk", [1, 30, 1 << 20], ids=["row by row", "two rows", "at once"])
@pytest.mark.parametrize("name", BOTH)
def test_equals_the_plain_formula(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_chunks, "CPU_CHUNK_ELEMENTS", chunk)
    ours, naive = (value_and_gradients(rows) for rows in BOTH[name])
    for left, right in zip(ours, naive, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [90.0, 700.0, -90.0, -800.0])
@pytest.mark.parametrize("name", ["kl", "ce", "entropy", "hard"])
def test_logits_whose_exponentials_overflow(name: str, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From some row on: the chunks before have been read without looking for the largest logit."""
    monkeypatch.setattr(row_chunks, "CPU_CHUNK_ELEMENTS", 24)
    plain, moved = (x.float() for x in logits()), []
    for x in plain:
        x = x.detach().clone()
        x[1, 2:] += offset  # a softmax does not notice
        moved.append(x.requires_grad_())
    ours, naive = BOTH[name]
    weights = torch.linspace(0.1, 2.0, 10).view(2, 5)
    (ours(*moved) * weights).sum().backward()
    value = ours(*moved)
    reference = [x.detach().double().requires_grad_() for x in moved]
    (naive(*reference) * weights).sum().backward()
    torch.testing.assert_close(value.double(), naive(*reference), rtol=1e-5, atol=1e-5)
    for left, right in zip(moved, reference, strict=True):
        assert (left.grad is None) == (right.grad is None)
        if left.grad is not None:
            torch.testing.assert_close(left.grad.double(), right.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_no_rows(name: str) -> None:
    student, teacher = (x.detach()[:0].requires_grad_() for x in logits())
    rows = BOTH[name][0](student, teacher)
    assert rows.shape == (0, 5)
    rows.sum().backward()
    assert student.grad.shape == student.shape


@pytest.mark.parametrize("scale", [1e-3, 30.0, 200.0])
def test_labels_whatever_the_size_of_the_logits(scale: float) -> None:
    """The largest logit is subtracted only where the sums ask for it: rows of both kinds in one chunk."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 300, generator=generator) * torch.tensor([[scale], [1.0], [-scale], [10 * scale]])
    student[1, 3:] = -torch.inf
    target = torch.randint(0, 3, (4,), generator=generator)
    leaf, reference = student.clone().requires_grad_(), student.double().requires_grad_()
    rows = hard_label_rows(leaf, target)
    rows.sum().backward()
    expected = torch.nn.functional.cross_entropy(reference, target, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_gradcheck(name: str) -> None:
    student, teacher = logits()
    assert torch.autograd.gradcheck(lambda s, t: BOTH[name][0](s, t), (student, teacher), atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_a_second_backward_pass_is_the_same(name: str) -> None:
    student, teacher = logits()
    loss = BOTH[name][0](student, teacher).sum()
    first, = torch.autograd.grad(loss, student, retain_graph=True)
    second, = torch.autograd.grad(loss, student)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", BOTH)
def test_inputs_are_not_edited_and_nothing_large_is_kept_but_the_gradient(name: str) -> None:
    student, teacher = logits()
    before = student.detach().clone(), teacher.detach().clone()
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = BOTH[name][0](student, teacher).sum()
    loss.backward()
    assert torch.equal(student.detach(), before[0]) and torch.equal(teacher.detach(), before[1])
    inputs = {student.data_ptr(), teacher.data_ptr()}
    large = [tensor for tensor in kept if tensor.numel() > 10 and tensor.data_ptr() not in inputs]
    assert len(large) <= 1 and all(tensor.shape[-1] == 12 for tensor in large)  # the gradient itself


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = logits(dtype)
    rows = our_kl(student, teacher)
    exact = naive_kl(student.detach().double(), teacher.detach().double())
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), exact, rtol=1e-5, atol=1e-6)
    rows.sum().backward()
    assert student.grad.dtype == dtype


def test_float64_stays() -> None:
    student, teacher = logits()
    assert our_kl(student, teacher).dtype == torch.float64


@pytest.mark.parametrize("kind", ["kl", "ce"])
def test_where_the_teacher_is_zero_nothing_is_added(kind: str) -> None:
    """Also where the student's log-probability is minus infinity: value and gradient are those without the entry."""
    student, teacher = logits()
    whole_s, whole_t = (x.detach().clone() for x in (student, teacher))
    whole_s[..., 3] = whole_t[..., 3] = float("-inf")
    whole_s.requires_grad_()
    rest = [column for column in range(12) if column != 3]
    part_s = student.detach()[..., rest].requires_grad_()
    rows = soft_label_rows(whole_s, whole_t, kind=kind)
    expected = soft_label_rows(part_s, teacher.detach()[..., rest], kind=kind)
    torch.testing.assert_close(rows, expected)
    rows.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(whole_s.grad[..., rest], part_s.grad)
    assert (whole_s.grad[..., 3] == 0).all()


def test_large_logits_do_not_overflow() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    rows = soft_label_rows(student, torch.tensor([[0.0, 1e4, -1e4]]), kind="kl")
    rows.sum().backward()
    assert rows.item() == pytest.approx(2e4) and student.grad.isfinite().all()


def test_unequal_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and teacher \(2, 4\).*equal vocabularies"):
        soft_label_rows(torch.zeros(2, 3), torch.zeros(2, 4), kind="kl")


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'kl' or 'ce'"):
        soft_label_rows(torch.zeros(2, 3), torch.zeros(2, 3), kind="js")


def test_cross_entropy_is_the_hard_label_loss() -> None:
    student, _ = logits()
    torch.testing.assert_close(vocab_parallel_cross_entropy(student, labels(student)), naive_hard(student, student))


def cut_columns(edges: tuple[int, ...]) -> slice:
    rank = parallel_state().model_rank
    return slice(edges[rank], edges[rank + 1])


def rank_results(name: str, edges: tuple[int, ...]) -> list[torch.Tensor]:
    return value_and_gradients(BOTH[name][0], parallel=True, cut=cut_columns(edges))


@pytest.mark.distributed
@pytest.mark.parametrize("edges", [(0, 6, 12), (0, 3, 6, 9, 12), (0, 5, 12)], ids=["2", "4", "2 unequal"])
@pytest.mark.parametrize("name", BOTH)
def test_ranks_agree_with_one(name: str, edges: tuple[int, ...]) -> None:
    if name == "hard" and edges == (0, 5, 12):
        edges = (0, 6, 12)  # labels are global ids of equal slices
    size = len(edges) - 1
    whole = value_and_gradients(BOTH[name][1])
    results = run_distributed(rank_results, size, name, edges, model_parallel_size=size)
    for value, *_ in results:
        torch.testing.assert_close(value, whole[0], rtol=1e-12, atol=1e-12)
    for index in (1, 2):
        torch.testing.assert_close(torch.cat([result[index] for result in results], dim=-1), whole[index],
                                   rtol=1e-12, atol=1e-12)


def lowered_results(name: str, lowered: dict[int, float]) -> list[torch.Tensor]:
    return value_and_gradients(BOTH[name][0], parallel=True, cut=cut_columns((0, 6, 12)), lowered=lowered)


@pytest.mark.distributed
@pytest.mark.parametrize("lowered", [{0: -130.0}, {1: -130.0}, {0: -9000.0, 1: -9000.0}, {1: -torch.inf},
                                     {0: -torch.inf, 1: -torch.inf}], ids=str)
@pytest.mark.parametrize("name", ["kl", "ce", "entropy", "hard"])
def test_a_rank_without_probability(name: str, lowered: dict[int, float]) -> None:
    """Its slice is far below the other's, in the student, the teacher or both: as with one rank, and nothing is NaN."""
    if name == "hard" and lowered.get(0, 0.0) == -torch.inf:
        pytest.skip("a label without probability: the loss is infinite")
    whole = value_and_gradients(BOTH[name][0], lowered=lowered)
    assert whole[0].isfinite().all()
    results = run_distributed(lowered_results, 2, name, lowered, model_parallel_size=2)
    for value, *_ in results:
        torch.testing.assert_close(value, whole[0], rtol=1e-12, atol=1e-12)
    for index in (1, 2):
        torch.testing.assert_close(torch.cat([result[index] for result in results], dim=-1), whole[index],
                                   rtol=1e-12, atol=1e-12)


def all_low_results() -> torch.Tensor:
    x = torch.full((1, 3), -torch.inf if parallel_state().model_rank == 0 else -900.0, requires_grad=True)
    hard_label_rows(x, torch.tensor([4]), parallel=True).sum().backward()
    return x.grad


@pytest.mark.distributed
def test_a_rank_without_probability_beside_one_with_low_logits() -> None:
    first, second = run_distributed(all_low_results, 2, model_parallel_size=2)
    torch.testing.assert_close(first, torch.zeros(1, 3))
    torch.testing.assert_close(second, torch.tensor([[1 / 3, -2 / 3, 1 / 3]]))


@pytest.mark.parametrize("name", BOTH)
def test_what_is_undefined_stays_undefined(name: str) -> None:
    """A NaN in one row: its loss and gradients are NaN, those of the other rows are not."""
    for side in (0, 1):
        both = [x.detach().clone() for x in logits()]
        both[side][0, 2, 3] = torch.nan
        for x in both:
            x.requires_grad_()
        rows = BOTH[name][0](*both)
        rows.sum().backward()
        reads = side == 0 or name not in ("entropy", "hard")
        for found in [rows, *(x.grad.sum(dim=-1) for x in both if x.grad is not None)]:
            undefined = found.isnan()
            assert undefined[0, 2].item() == reads and undefined.sum() == reads


@pytest.mark.parametrize("shift", [1e4, -1e4])
@pytest.mark.parametrize("name", ["kl", "ce", "entropy", "hard"])
def test_double_precision_far_from_zero(name: str, shift: float) -> None:
    moved = [(x.detach() + shift).requires_grad_() for x in logits()]
    for x in moved:
        x.data = x.data.float().double()  # differences are exact
    near = [(x.detach() - shift).requires_grad_() for x in moved]
    rows = [BOTH[name][0](*both) for both in (moved, near)]
    torch.testing.assert_close(*rows, rtol=1e-11, atol=1e-11)
    for value in rows:
        value.sum().backward()
    torch.testing.assert_close(moved[0].grad, near[0].grad, rtol=1e-11, atol=1e-11)


def test_confident_labels() -> None:
    """The loss is never negative, and small weights keep their digits."""
    student = 0.1 * torch.randn(64, 30, generator=torch.Generator().manual_seed(0)) + 35.0
    target = torch.arange(64) % 30
    student.scatter_add_(-1, target.unsqueeze(-1), torch.linspace(0, 30, 64).unsqueeze(-1))
    leaf, reference = student.requires_grad_(), student.detach().double().requires_grad_()
    rows = hard_label_rows(leaf, target)
    assert (rows >= 0).all()
    (1e-14 * rows).sum().backward()
    (1e-14 * torch.nn.functional.cross_entropy(reference, target, reduction="none")).sum().backward()
    others = torch.ones_like(student, dtype=torch.bool).scatter(-1, target.unsqueeze(-1), False)
    torch.testing.assert_close(leaf.grad[others].double(), reference.grad[others], rtol=1e-5, atol=0.0)


def rank_stays_whole() -> bool:
    student, teacher = (x.detach()[..., cut_columns((0, 6, 12))].contiguous() for x in logits())
    copies = student.clone(), teacher.clone()
    student.requires_grad_()
    our_kl(student, teacher, parallel=True).sum().backward()
    gathered = all_gather_last(student.detach())
    return torch.equal(student.detach(), copies[0]) and torch.equal(teacher, copies[1]) and gathered.shape[-1] == 12


@pytest.mark.distributed
def test_collectives_do_not_edit_the_inputs() -> None:
    assert all(run_distributed(rank_stays_whole, 2, model_parallel_size=2))


@pytest.mark.gpu
def test_peak_memory_is_the_gradient_and_one_chunk() -> None:
    rows, width = 4096, 30592
    student = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    chunk = row_chunks.ACCELERATOR_CHUNK_ELEMENTS * 4
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    soft_label_rows(student, teacher, kind="kl", temperature=15.0).mean().backward()
    peak = torch.cuda.max_memory_allocated() - start
    assert peak < student.numel() * 2 + 8 * chunk
