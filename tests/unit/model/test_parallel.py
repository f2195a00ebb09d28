"""Two gloo ranks against the plain model on one: the promises of `prunella.model.parallel`."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunella.config import Config, ModelConfig, ParallelConfig
from prunella.errors import ConfigError
from prunella.model.expert_layout import expert_parallel_size
from prunella.model.transformer import Transformer

WORKER = Path(__file__).with_name("spread_worker.py")
worker = runpy.run_path(str(WORKER))


def run_ranks(folder, world_size, device_type):
    """What each rank reports after running every layout once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [
        [sys.executable, str(WORKER), str(folder), str(rank), str(world_size), device_type] for rank in range(world_size)
    ]
    ranks = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world_size, errors
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Two gloo ranks on CPU."""
    return run_ranks(tmp_path_factory.mktemp("ranks"), 2, "cpu")


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory):
    """As many as divide neither the experts nor a width."""
    return run_ranks(tmp_path_factory.mktemp("ranks"), 3, "cpu")


@pytest.fixture(scope="module")
def alone():
    """Loss and gradients of the plain, unsharded model over the same global batch in two micro-batches."""
    model = Transformer(worker["small_config"](1).model)
    model.init_weights(seed=3)
    losses = [worker["backward"](model, half)[0] for half in worker["global_batch"](0).chunk(2)]
    return sum(losses), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("ranks", "layout"), [("two_ranks", "replicated"), ("two_ranks", "spread"), ("three_ranks", "spread")])
def test_gradients_of_several_ranks_equal_those_of_one(request, alone, ranks, layout):
    loss, grads = alone

    seen = request.getfixturevalue(ranks)[0][layout]

    torch.testing.assert_close(seen["loss"], loss, rtol=1e-6, atol=0)
    assert seen["grads"].keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(
            seen["grads"][name], grad, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("layout", ["replicated", "spread"])
def test_norm_is_that_of_the_whole_model_and_clipping_halves_it(two_ranks, alone, layout):
    expected = torch.stack([grad.double().square().sum() for grad in alone[1].values()]).sum().sqrt()

    norms = [rank[layout]["norm"] for rank in two_ranks]

    torch.testing.assert_close(norms[0], expected, rtol=1e-6, atol=0)
    assert torch.equal(norms[0], norms[1])
    torch.testing.assert_close(two_ranks[0][layout]["clipped"], expected / 2, rtol=1e-5, atol=0)


def test_bf16_stays_near_fp32_and_sums_gradients_in_float32(two_ranks, alone):
    seen = two_ranks[0]["bf16"]

    assert {grad.dtype for grad in seen["grads"].values()} == {torch.float32}
    torch.testing.assert_close(seen["loss"], alone[0], rtol=1e-2, atol=0)
    torch.testing.assert_close(seen["norm"], two_ranks[0]["spread"]["norm"], rtol=5e-2, atol=0)


def test_two_identical_runs_end_with_the_same_bits(two_ranks):
    first, second = two_ranks[0]["first"], two_ranks[0]["second"]

    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ranks_agree_on_every_buffer_and_weight(two_ranks):
    left, right = (rank["first"] for rank in two_ranks)

    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("ranks", ["two_ranks", "three_ranks"])
def test_weights_saved_with_experts_spread_load_where_they_are_replicated(request, ranks):
    saved, loaded = (request.getfixturevalue(ranks)[0][name] for name in ("first", "loaded"))

    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_state_dict_has_the_plain_names_whatever_the_layout(two_ranks):
    plain = Transformer(worker["small_config"](1).model).state_dict()

    assert {name: tensor.shape for name, tensor in two_ranks[0]["first"].items()} == {
        name: tensor.shape for name, tensor in plain.items()
    }


def test_waiting_for_the_other_rank_is_counted(two_ranks):
    assert all(rank[layout]["waited_ns"] > 0 for rank in two_ranks for layout in ("replicated", "spread"))


@pytest.mark.parametrize(
    ("world_size", "asked", "expected"), [(2, 0, 2), (1, 0, 1), (3, 0, 1), (4, 2, 2), (16, 0, 8), (6, 0, 1), (6, 1, 1)]
)
def test_expert_parallel_size_divides_world_and_experts(world_size, asked, expected):
    config = Config(model=ModelConfig(n_experts=8), parallel=ParallelConfig(expert_parallel=asked))

    assert expert_parallel_size(config, world_size) == expected


@pytest.mark.parametrize(("world_size", "asked"), [(4, 3), (6, 6), (2, 4)])
def test_expert_parallel_size_that_does_not_divide_is_refused_with_advice(world_size, asked):
    config = Config(model=ModelConfig(n_experts=8), parallel=ParallelConfig(expert_parallel=asked))

    with pytest.raises(ConfigError, match=r"parallel\.expert_parallel: expected a divisor"):
        expert_parallel_size(config, world_size)


def test_a_size_that_leaves_no_width_to_divide_is_refused_with_what_would_fit():
    config = Config(model=ModelConfig(n_experts=8), parallel=ParallelConfig(expert_parallel=2))

    with pytest.raises(ConfigError, match=r"2 leaves 3 ranks .* model\.d_model = 128 .*; 0 chooses 1"):
        expert_parallel_size(config, 6)


def test_dense_model_needs_no_expert_parallelism():
    config = Config(model=ModelConfig(n_experts=0), parallel=ParallelConfig(expert_parallel=0))

    assert expert_parallel_size(config, 4) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_same_code_on_one_gpu_gives_the_gradients_of_the_cpu(tmp_path, alone):
    (rank,) = run_ranks(tmp_path, 1, "cuda")

    torch.testing.assert_close(rank["spread"]["loss"], alone[0], rtol=1e-4, atol=0)
    for name, grad in alone[1].items():
        torch.testing.assert_close(rank["spread"]["grads"][name], grad, rtol=1e-2, atol=1e-5)
    assert all(torch.equal(rank["first"][name], rank["second"][name]) for name in rank["first"])
