"""Reads a checkpoint as each rank of a smaller or larger job would, without starting that job.

The resharding plan and the reads are those of torch's distributed checkpoint; only the ranks are played one after another.
Each rank gets its rows of every tensor as FSDP2 cuts them: equal blocks of the first dimension, the last ones shorter or empty.
"""

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from prunella.checkpoint_reader import folder_of
from prunella.ledger import Ledger
from prunella.records import CheckpointManifest


class _OneRank(DefaultLoadPlanner):
    """Destination of the reads: this rank's rows, addressed from their own beginning."""

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        tensor: Tensor = self.state_dict[index.fqn]
        return tensor


def rows_of(rank: int, world_size: int, size: torch.Size) -> ChunkStorageMetadata:
    """The block of a tensor of `size` (at least one dimension) that `rank` owns."""
    block = -(-size[0] // world_size)
    begin, end = (min(at * block, size[0]) for at in (rank, rank + 1))
    return ChunkStorageMetadata(offsets=torch.Size([begin, *[0] * (len(size) - 1)]), sizes=torch.Size([end - begin, *size[1:]]))


def read_as(ledger: Ledger, manifest: CheckpointManifest, *, rank: int, world_size: int) -> dict[str, Tensor]:
    """This rank's rows of every tensor of a checkpoint whose files are proven."""
    with folder_of(ledger, manifest) as folder:
        reader = HuggingFaceStorageReader(str(folder))
        metadata = reader.read_metadata()
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        rows, items = {}, []
        for name, item in metadata.state_dict_metadata.items():
            assert isinstance(item, TensorStorageMetadata)
            chunk = rows_of(rank, world_size, item.size)
            rows[name] = torch.empty(chunk.sizes, dtype=item.properties.dtype)
            items += create_read_items_for_chunk_list(name, item, [chunk])
        planner = _OneRank()
        planner.set_up_planner(rows, metadata, is_coordinator=True)
        reader.read_data(LoadPlan(items), planner).wait()
    return rows


def is_same_at(ledger: Ledger, manifest: CheckpointManifest, tensors: dict[str, Tensor], world_size: int) -> bool:
    """Whether the rows of `world_size` ranks, put together, are `tensors` bit for bit."""
    ranks = [read_as(ledger, manifest, rank=rank, world_size=world_size) for rank in range(world_size)]
    return all(_has_equal_bits(torch.cat([rows[name] for rows in ranks]), tensor) for name, tensor in tensors.items())


def _has_equal_bits(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(_bits(left), _bits(right))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
