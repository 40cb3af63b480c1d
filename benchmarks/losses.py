"""Losses on vocabulary logits, whole and cut over two ranks, and the fused output layer."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.measure import Row, Work, compare
from distill.losses import kl_divergence, mse
from distill.losses.top_n import threshold_hinge, top_entries
from model.parallel import groups
from model.parallel.cross_entropy import vocab_parallel_cross_entropy
from model.parallel.fused_vocab_loss import SoftTarget, fused_vocab_loss
from model.parallel.mappings import reduce_from_model_parallel_region

TAU = 15.0
TOP_N = 20
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def naive_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    s, t = student / TAU, teacher / TAU
    log_p, q, log_q = F.log_softmax(s, -1), F.softmax(t, -1), F.log_softmax(t, -1)
    return TAU ** 2 * (q * (log_q - log_p)).sum(-1).mean()


def naive_cross_entropy(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    log_p = F.log_softmax(student, -1)
    return -log_p.gather(-1, labels.unsqueeze(-1)).mean()


def naive_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return ((student - teacher) ** 2).mean()


def naive_top_n(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    values, columns = teacher.topk(TOP_N, dim=-1)
    picked = student.gather(-1, columns)
    others = torch.ones_like(student, dtype=torch.bool).scatter(-1, columns, False)
    excess = (student - picked.amin(-1, keepdim=True)).clamp(min=0) * others
    return naive_kl(picked, values) + excess.sum() / (excess > 0).sum().clamp(min=1)


def our_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return TAU ** 2 * kl_divergence(student, teacher, temperature=TAU, partition="vocab")


def our_cross_entropy(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return vocab_parallel_cross_entropy(student, labels).mean()


def our_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return mse(student, teacher, partition="vocab")


def our_top_n(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    top = top_entries(teacher, TOP_N)
    hinge, _, picked = threshold_hinge(student, top)
    return TAU ** 2 * kl_divergence(picked, top.values, temperature=TAU) + hinge


class _SumOverRanks(torch.autograd.Function):
    """Sum over the ranks, forward and backward: the plain way to a normaliser of a cut vocabulary."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def _cut_log_softmax(z: torch.Tensor) -> torch.Tensor:
    highest = z.detach().amax(-1, keepdim=True)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    z = z - highest
    return z - _SumOverRanks.apply(z.exp().sum(-1, keepdim=True)).log()


def cut_naive_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_p, log_q = _cut_log_softmax(student / TAU), _cut_log_softmax(teacher / TAU)
    rows = reduce_from_model_parallel_region((log_q.exp() * (log_q - log_p)).sum(-1))
    return TAU ** 2 * rows.mean()


def cut_naive_cross_entropy(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    width = student.shape[-1]
    column = labels - dist.get_rank() * width
    owned = (column >= 0) & (column < width)
    picked = _cut_log_softmax(student).gather(-1, column.clamp(0, width - 1).unsqueeze(-1)).squeeze(-1) * owned
    return -reduce_from_model_parallel_region(picked).mean()


def cut_naive_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    width = student.shape[-1] * dist.get_world_size()
    return reduce_from_model_parallel_region(((student - teacher) ** 2).sum(-1)).mean() / width


#: name -> (naive, naive over a cut vocabulary, ours)
LOSSES: dict[str, tuple[Loss, Loss | None, Loss]] = {
    "KD loss (KL, T = 15)": (naive_kl, cut_naive_kl, our_kl),
    "cross entropy with labels": (naive_cross_entropy, cut_naive_cross_entropy, our_cross_entropy),
    "squared error": (naive_mse, cut_naive_mse, our_mse),
    f"top-{TOP_N} KL and hinge": (naive_top_n, None, our_top_n)}


def _inputs(rows: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(1, rows, width, generator=generator).mul_(4) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(0, width, (1, rows), generator=generator)


def _rows(rows: int, width: int, repeats: int, *, cut: bool) -> Iterator[Row]:
    student, teacher, labels = _inputs(rows, width, seed=dist.get_rank() if cut else 0)

    def work(loss: Loss, other: torch.Tensor) -> Work:
        return lambda: loss(student, other).backward()

    gradient_mb = student.numel() * 4 / 1e6
    for name, (naive, cut_naive, ours) in LOSSES.items():
        plain = cut_naive if cut else naive
        if plain is None:
            continue
        other = labels if "label" in name else teacher
        yield compare(name + (", rank 0 of 2" if cut else ""), work(plain, other), work(ours, other), [student],
                      repeats=repeats,
                      goal_ratio=4.3, goal_megabytes=gradient_mb + 10)


def whole_losses(rows: int, vocabulary: int, repeats: int) -> Iterator[Row]:
    """Forward and backward on [rows, vocabulary] in fp32."""
    yield from _rows(rows, vocabulary, repeats, cut=False)


def cut_losses(rows: int, vocabulary: int, repeats: int) -> Iterator[Row]:
    """The same with the vocabulary cut over two gloo ranks, each a process; the numbers are those of the first."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as store:
        processes = [context.Process(target=_rank, args=(rank, store.name + ".store", rows, vocabulary // 2, repeats,
                                                         theirs if rank == 0 else None)) for rank in range(2)]
        for process in processes:
            process.start()
        theirs.close()
        try:
            while isinstance(row := ours.recv(), Row):
                yield row
        except EOFError:
            raise RuntimeError("a rank of the benchmark failed; see its message above") from None
        finally:
            for process in processes:
                process.join(timeout=60)


def _rank(rank: int, store: str, rows: int, width: int, repeats: int, out: Connection | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    groups.initialize_model_parallel(2)
    for row in _rows(rows, width, repeats, cut=True):
        if out is not None:
            out.send(row)
    if out is not None:
        out.send(None)
    dist.destroy_process_group()


def fused_losses(rows: int, vocabulary: int, width: int, repeats: int, dtype: torch.dtype) -> Iterator[Row]:
    """Output layer and loss, forward and backward, from hidden states and tables."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(scale).to(dtype)

    hidden, table = draw(rows, width).requires_grad_(), draw(vocabulary, width, scale=0.02).requires_grad_()
    t_hidden, t_table = draw(rows, width), draw(vocabulary, width, scale=0.02)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    weight = torch.full((rows,), 1.0 / rows)

    def naive(with_teacher: bool) -> torch.Tensor:
        logits = (hidden @ table.t()).float()
        loss = naive_cross_entropy(logits, labels)
        return loss + naive_kl(logits, (t_hidden @ t_table.t()).float()) if with_teacher else loss

    def ours(with_teacher: bool) -> torch.Tensor:
        soft = SoftTarget(t_hidden, t_table, weight * TAU ** 2, "kl", TAU) if with_teacher else None
        return fused_vocab_loss(hidden, table, labels, weight, soft=soft).loss

    def work(loss: Callable[[bool], torch.Tensor], with_teacher: bool) -> Work:
        return lambda: loss(with_teacher).backward()

    short = str(dtype).removeprefix("torch.")
    for name, with_teacher in (("--fused-lm-loss: labels", False), ("--fused-lm-loss: labels and KD", True)):
        yield compare(f"{name}, {short}", work(naive, with_teacher), work(ours, with_teacher), [hidden, table],
                      repeats=repeats, goal_ratio=1.0, goal_megabytes=200.0 if dtype == torch.float32 else None)
