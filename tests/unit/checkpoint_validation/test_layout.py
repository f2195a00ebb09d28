"""Ranks played one after another own every row exactly once."""

import pytest
import torch

from prunella.checkpoint_validation.layout import rows_of


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [(1,), (5, 3), (6, 2, 2)])
def test_rows_are_covered_once_as_torch_chunks_them(world_size: int, size: tuple[int, ...]) -> None:
    tensor = torch.arange(torch.Size(size).numel()).reshape(size)
    chunks = tensor.chunk(world_size)

    blocks = [rows_of(rank, world_size, tensor.shape) for rank in range(world_size)]

    pieces = [tensor[block.offsets[0] : block.offsets[0] + block.sizes[0]] for block in blocks]
    assert torch.equal(torch.cat(pieces), tensor)
    assert [len(piece) for piece in pieces[: len(chunks)]] == [len(chunk) for chunk in chunks]
