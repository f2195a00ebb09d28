import pytest

from prunella.config import BatchConfig
from prunella.errors import ConfigError
from prunella.training_segment.split import split_batch


@pytest.mark.parametrize(
    ("batch", "world_size", "expected"),
    [((16, 8), 1, (16, 8, 2)), ((16, 8), 2, (8, 8, 1)), ((16, 8), 4, (4, 4, 1)), ((16, 2), 2, (8, 2, 4))],
)
def test_fewer_ranks_mean_more_accumulation(batch: tuple[int, int], world_size: int, expected: tuple[int, int, int]) -> None:
    split = split_batch(BatchConfig(global_sequences=batch[0], micro_sequences=batch[1]), world_size)

    assert (split.rank_sequences, split.micro_sequences, split.micro_batches) == expected


@pytest.mark.parametrize(
    ("batch", "world_size", "key"),
    [((16, 8), 3, "global_sequences"), ((2, 1), 4, "global_sequences"), ((12, 4), 2, "micro_sequences")],
)
def test_batch_that_cannot_be_divided_is_refused_with_its_key(batch: tuple[int, int], world_size: int, key: str) -> None:
    with pytest.raises(ConfigError, match=f"batch.{key}"):
        split_batch(BatchConfig(global_sequences=batch[0], micro_sequences=batch[1]), world_size)
