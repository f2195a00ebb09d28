import pytest

from prunella.errors import Cause, CheckpointInvalid, DataCorrupt, PrunellaError, StorageUnavailable
from prunella.training_segment.failures import NonFiniteStep, classify, is_peer_loss


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DataCorrupt("bad", shard=2), Cause.DATA_CORRUPT),
        (StorageUnavailable("away"), Cause.STORAGE_UNAVAILABLE),
        (CheckpointInvalid("foreign"), Cause.CHECKPOINT_INVALID),
        (MemoryError(), Cause.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), Cause.OUT_OF_MEMORY),
        (ValueError("surprise"), Cause.UNKNOWN),
    ],
)
def test_cause_comes_from_the_type(error: Exception, cause: Cause) -> None:
    failure = classify(error, rank=1, node="node-1", step=4)

    assert (failure.cause, failure.rank, failure.node, failure.step) == (cause, 1, "node-1", 4)


def test_damaged_shard_is_part_of_the_evidence() -> None:
    assert classify(DataCorrupt("bad", shard=2), rank=0, node="node-0", step=1).evidence["shard"] == 2


def test_non_finite_step_names_the_rank_that_saw_it_not_the_one_that_reports() -> None:
    failure = classify(NonFiniteStep("nan", step=3, rank=1), rank=0, node="node-0", step=3)

    assert (failure.cause, failure.rank, failure.node) == (Cause.NON_FINITE, 1, None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242"), True),
        (PrunellaError("RuntimeError: Connection reset by peer (rank 0)"), True),
        (StorageUnavailable("Connection reset by peer"), False),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_rank_that_lost_its_peer_is_a_witness(error: Exception, expected: bool) -> None:
    assert is_peer_loss(error) is expected
