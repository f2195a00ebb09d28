"""The exchanges between ranks, on integers, so that every result is known exactly.

W ranks; payloads are int64. Rank r sends rank d words that only that pair would send, so a result that is right for the
wrong reason (a chunk from another rank, or left over from the exchange before) is caught. Each returns what this rank saw.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import combinations

import torch
import torch.distributed as dist
from torch import Tensor

from prunella.health_gate.fabric_report import StepReport

#: Words a rank sends to each peer: 128 KiB, small enough for loopback, large enough to span many packets. Own choice 2026-11.
WORDS = 16384


def payload(source: int, target: int, words: int = WORDS) -> Tensor:
    """What rank `source` sends rank `target`, shape (words,), int64."""
    return torch.arange(words, dtype=torch.int64) + ((source + 1) << 40) + ((target + 1) << 24)


def compare(name: str, duration_ms: float, pairs: list[tuple[int, Tensor, Tensor]]) -> StepReport:
    """A report from (source rank, received, expected), tensors of equal shape."""
    wrong = {source: int((received.cpu() != expected).sum()) for source, received, expected in pairs}
    bad = tuple(source for source, count in wrong.items() if count)
    return StepReport(name=name, duration_ms=duration_ms, wrong=sum(wrong.values()), wrong_from=bad)


def _timed(device: torch.device, act: Callable[[], object]) -> float:
    start_ns = time.perf_counter_ns()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter_ns() - start_ns) / 1e6


def exchange_pairwise(rank: int, world_size: int, device: torch.device) -> StepReport:
    """Every pair swaps payloads, one pair after the other in the same order everywhere."""
    duration_ms, pairs = 0.0, []
    for one, two in combinations(range(world_size), 2):
        if rank not in (one, two):
            continue
        peer = two if rank == one else one
        sent, received = payload(rank, peer).to(device), torch.zeros(WORDS, dtype=torch.int64, device=device)
        duration_ms += _timed(device, partial(_swap, sent, received, peer))
        pairs.append((peer, received, payload(peer, rank)))
    return compare("pairwise", duration_ms, pairs)


def _swap(sent: Tensor, received: Tensor, peer: int) -> None:
    works = dist.batch_isend_irecv([dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)])
    for work in works:
        work.wait()


def reduce_all(rank: int, world_size: int, device: torch.device) -> StepReport:
    """The sum over all ranks of what each would send to rank 0."""
    total = payload(rank, 0).to(device)
    duration_ms = _timed(device, lambda: dist.all_reduce(total))
    expected = torch.stack([payload(source, 0) for source in range(world_size)]).sum(dim=0)
    report = compare("all_reduce", duration_ms, [(rank, total, expected)])
    return StepReport(name=report.name, duration_ms=duration_ms, wrong=report.wrong)  # a sum names no source


def exchange_all(rank: int, world_size: int, device: torch.device) -> StepReport:
    """All-to-all: every rank sends every rank its payload."""
    sent = torch.cat([payload(rank, target) for target in range(world_size)]).to(device)
    received = torch.zeros_like(sent)
    duration_ms = _timed(device, lambda: dist.all_to_all_single(received, sent))
    chunks = received.chunk(world_size)
    pairs = [(source, chunks[source], payload(source, rank)) for source in range(world_size)]
    return compare("all_to_all", duration_ms, pairs)


EXCHANGES = (exchange_pairwise, reduce_all, exchange_all)
