"""Which sequences a step trains on: a pure function of (seed, step, skipped windows), whatever the world size.

Steps count from 1, batches from 0. A skipped window is a range of batches that training jumps over. Each epoch is a
pseudo-random permutation of all sequences, computed and never stored: a Feistel network over the smallest square of a power
of two that holds them, walked until it lands inside (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002, section 4). Memory is O(batch).
"""

import hashlib
from typing import Any

import numpy as np

from prunella.records import Window

Indices = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]

#: Rounds of the Feistel network. Source: own choice 2026-11; four suffice for a strong pseudo-random permutation (Luby and
#: Rackoff 1988) with wide halves, ours may be one bit wide, so twice that. One 64-byte digest gives eight keys.
_ROUNDS = 8


def batch_for_step(step: int, skipped: tuple[Window, ...] = ()) -> int:
    """The batch of optimizer step `step`, once every batch in `skipped` is left out. Windows may overlap, in any order.

    Raises:
        ValueError: the step is before 1.
    """
    if step < 1:
        raise ValueError(f"step {step}: optimizer steps count from 1")
    batch = step - 1
    for first, last in _merged(skipped):
        if first > batch:
            break
        batch += last - first + 1
    return batch


def _merged(windows: tuple[Window, ...]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for window in sorted(windows, key=lambda window: window.first):
        if window.last < window.first:
            continue
        if merged and window.first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], window.last))
        else:
            merged.append((window.first, window.last))
    return merged


def sequences_for_batch(batch: int, *, seed: int, n_sequences: int, global_sequences: int) -> Indices:
    """Indices of the sequences of a batch, shape (global_sequences,), each in [0, n_sequences).

    Over each epoch of `n_sequences` consecutive positions every sequence comes exactly once; a batch may span two epochs.

    Raises:
        ValueError: the batch is negative, or there are no sequences.
    """
    if batch < 0 or n_sequences < 1:
        raise ValueError(f"batch {batch} of {n_sequences} sequences: expected batch >= 0 and at least one sequence")
    positions = np.arange(global_sequences, dtype=np.int64) + batch * global_sequences
    epochs, within = np.divmod(positions, n_sequences)
    order = np.empty_like(positions)
    for epoch in np.unique(epochs):
        is_here = epochs == epoch
        order[is_here] = permute(within[is_here], n_sequences, seed=seed, epoch=int(epoch))
    return order


def permute(indices: Indices, n: int, *, seed: int, epoch: int) -> Indices:
    """Where the permutation of range(n) that belongs to (seed, epoch) sends each index."""
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    values = _feistel(indices.astype(np.uint64), half_bits, keys)
    while (is_outside := values >= n).any():
        values[is_outside] = _feistel(values[is_outside], half_bits, keys)
    return values.astype(np.int64)


def _round_keys(seed: int, epoch: int) -> Words:
    digest = hashlib.blake2b(f"prunella data order {seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def _feistel(values: Words, half_bits: int, keys: Words) -> Words:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def _mix(values: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
