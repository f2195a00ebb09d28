"""Ranks agree on what came of a piece of work: all of them go on, or all of them raise the same error.

A rank that raised alone would leave its peers waiting in the next collective. What travels between ranks is JSON in a
byte tensor over a gloo group of their own; no pickle, no accelerator.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from prunella import errors
from prunella.codec import canonical_json
from prunella.errors import PrunellaError, StorageFull
from prunella.storage import is_full

#: Whatever one rank met must reach its peers, or they would wait for it; hence everything that an operation can raise.
_REPORTED = (Exception, CheckpointException)


def new_group() -> dist.ProcessGroup | None:
    """A gloo group of all ranks, called by all of them in the same order; None in a process without peers."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    return dist.new_group(backend="gloo")  # type: ignore[no-any-return]


def agree(group: dist.ProcessGroup | None, work: Callable[[], Any]) -> list[Any]:
    """Do `work` on every rank; its JSON results by rank.

    Raises:
        PrunellaError: of the class that the first failing rank raised, on every rank alike.
    """
    try:
        answer: dict[str, Any] = {"value": work()}
    except _REPORTED as error:
        answer = _describe(error)
    answers = exchange(group, answer)
    for rank, other in enumerate(answers):
        if "error" in other:
            raise _rebuild(other.get("rank", rank), other)
    return [other["value"] for other in answers]


def exchange(group: dist.ProcessGroup | None, value: Any) -> list[Any]:
    """Every rank's JSON value, by rank."""
    if group is None:
        return [json.loads(canonical_json(value))]
    mine = torch.frombuffer(bytearray(canonical_json(value)), dtype=torch.uint8)
    sizes = _all_gather(group, torch.tensor([mine.numel()]))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: mine.numel()] = mine
    gathered = _all_gather(group, padded)
    return [json.loads(data[: int(size)].numpy().tobytes()) for data, size in zip(gathered, sizes, strict=True)]


def _all_gather(group: dist.ProcessGroup, tensor: Tensor) -> list[Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, tensor, group=group)
    return gathered


def _describe(error: BaseException) -> dict[str, Any]:
    if isinstance(error, CheckpointException):  # torch's own agreement: every rank holds the failure of the guilty one
        rank, (guilty, _) = next(iter(error.failures.items()))
        return {**_describe(guilty), "rank": rank}
    if is_full(error):
        error = StorageFull(f"no room in the scratch folder: {error}; free space and run again")
    if isinstance(error, PrunellaError):
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": PrunellaError.__name__, "message": f"{type(error).__name__}: {error}"}


def _rebuild(rank: int, answer: dict[str, Any]) -> PrunellaError:
    kind = getattr(errors, answer["error"], PrunellaError)
    error: PrunellaError = kind(f"{answer['message']} (rank {rank})")
    return error
