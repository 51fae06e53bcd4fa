"""Random numbers as a pure function of what they are for, so that no draw depends on its neighbours in a batch.

Each is a hash of (key, column, seed, step, stream), by the mixing steps of SplitMix64 (Steele, Lea & Flood 2014, doi
10.1145/2714064.2660195): the same on any device, in any batch, in any order.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def hashed_uniform(
    keys: Int[Tensor, " B"],
    columns: int | Int[Tensor, "B M"],
    seed: int,
    step: int | Int[Tensor, ""],
    stream: int,
) -> Float[Tensor, "B M"]:
    """Numbers in (0, 1) for each key and column; streams, from 0 to 7, are independent of each other.

    `columns`: how many, or the number of each.
    """
    numbers = torch.arange(columns, device=keys.device) if isinstance(columns, int) else columns.long()
    of_step = torch.zeros_like(keys) + (step * 8 + stream)
    state = mix(keys + mix(torch.full_like(keys, seed) + mix(of_step)))
    bits = mix(state[:, None] + numbers * _signed(0x9E3779B97F4A7C15))
    # The half is rounded away in the upper half of the range; the greatest number would become one.
    return ((((bits >> 40) & 0xFFFFFF).float() + 0.5) / 2**24).clamp(max=1 - 2**-24)


def mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """A hash of each integer."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right with zeros from the left: torch's int64 is signed."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant
