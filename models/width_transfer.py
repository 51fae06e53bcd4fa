"""How weights are drawn and trained at one size, by what was found best at another: muP in width, CompleteP in depth.

Tune at a small base size; at any other width and depth the same learning rate is then near the best one. With m = width
over base width and l = blocks over base blocks of the same stack, for AdamW:

| role | drawn with standard deviation | learning rate | weight decay | epsilon | multiplies what it makes by |
| --- | --- | --- | --- | --- | --- |
| input: from a fixed number of inputs | 1/sqrt(inputs) | 1 | 1 | 1/m | 1 |
| hidden: from the width to the width | 1/sqrt(inputs) | 1/m | m | 1/(m l) | 1 |
| branch: hidden, at the end of a residual branch | 0 | 1/m | m | 1/(m l) | 1/l |
| embedding, query | 1/2 | 1 | 1 | 1/m | 1 |
| gain, bias | 1 or 0, not drawn | 1 | 1 | 1/m, in blocks 1/(m l) | 1 |
| table: vectors of codes, both read and predicted | 1/(2 sqrt(width)) | 1/sqrt(m) | sqrt(m) | 1/sqrt(m) | 1/sqrt(m) |
| row: a code's own part of its vector | 0 | 1/sqrt(m) | sqrt(m) | 1/sqrt(m) | 1/sqrt(m) |

Sources: muP, Yang et al. 2022 (arXiv 2203.03466, table 3); CompleteP with alpha = 1, Dey et al. 2025 (arXiv 2505.01618,
table 1). A table holds 1/sqrt(width) of the vectors that tokens get, hence the roots: in terms of these its rate is
that of an embedding, and logits are divided by m. No numbers but (name, shape, role, base shape) enter, so that nothing
need survive compilation or sharding.

Muon takes the hidden matrices of blocks at 1/sqrt(m): its updates are orthogonal, of root mean square 0.2 as AdamW's
(Liu et al. 2025, arXiv 2502.16982, eq. 4), so that their spectral norm, which must not grow, is 0.2 sqrt(width) (Yang,
Simon & Bernstein 2023, arXiv 2310.17813).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["input", "hidden", "branch", "embedding", "gain", "bias", "table", "row"]


@dataclass(frozen=True)
class WeightScaling:
    """How one weight is drawn and trained: `std` of the normal draw; the others are factors of what base size has."""

    std: float
    learning_rate: float
    weight_decay: float
    epsilon: float
    multiplier: float
    muon: float | None = None
    """Factor of the learning rate, and divisor of the weight decay, of what Muon trains: None for what it does not."""


UNSCALED = WeightScaling(std=1.0, learning_rate=1.0, weight_decay=1.0, epsilon=1.0, multiplier=1.0)


def weight_scaling(
    name: str, shape: Sequence[int], role: Role, base_shape: Sequence[int], depth: float | None = None
) -> WeightScaling:
    """The scaling of the weight `name` of this shape, whose shape at base size is `base_shape`.

    `depth`, for weights in a stack of blocks, is the number of its blocks over that at base size. Matrices are
    [outputs, inputs], as in torch. Raises ValueError where a shape does not fit the role: of other dimensions than at
    base size, or an input matrix of another number of inputs.
    """
    if len(shape) != len(base_shape):
        raise ValueError(f"{name}: expected {len(base_shape)} dimensions as at base size, found shape {tuple(shape)}")
    growth = [size / base for size, base in zip(shape, base_shape, strict=True)]
    # What tells the width: inputs of hidden matrices, else the last dimension, but outputs of matrices from inputs.
    wide = growth[0] if role == "input" else growth[-1]
    deep = 1.0 if depth is None else depth
    if role == "input":
        if growth[-1] != 1:
            raise ValueError(f"{name}: an input matrix keeps its {base_shape[-1]} inputs, found {shape[-1]}")
        return WeightScaling(1 / math.sqrt(shape[-1]), 1.0, 1.0, 1 / wide, 1.0)
    if role in ("hidden", "branch"):
        std = 0.0 if role == "branch" else 1 / math.sqrt(shape[-1])
        multiplier = 1 / deep if role == "branch" else 1.0
        return WeightScaling(std, 1 / wide, wide, 1 / (wide * deep), multiplier, None if depth is None else wide**-0.5)
    if role in ("table", "row"):
        root, std = math.sqrt(wide), 0.5 / math.sqrt(shape[-1]) if role == "table" else 0.0
        return WeightScaling(std, 1 / root, root, 1 / root, 1 / root)
    if role == "embedding":
        return WeightScaling(0.5, 1.0, 1.0, 1 / wide, 1.0)
    return WeightScaling(0.0, 1.0, 1.0, 1 / (wide * deep), 1.0)
