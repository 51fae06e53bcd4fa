"""What a spectrum of eigenvalues implies: how much directions differ, in which groups, and what each solver would cost.

The predicted numbers of gradients are those of theory, for a quadratic loss whose curvatures are these eigenvalues:
plain descent at the rate of the largest; the cycles of `multirate.py`; and for L-BFGS the bound of conjugate gradients
(Hestenes & Stiefel 1952), which it comes near to on a quadratic.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from .multirate import CurvatureGroup, curvature_groups, step_counts

GAP = 1e-6
"""The loss that is left, as a share of what there was to gain: what the numbers of gradients are counted to."""
MAX_STEPS_OF_A_CYCLE = 2000
"""Above so many gradients in a cycle, the groups are too wide for several rates to gain anything."""


@dataclass(frozen=True)
class SpectrumDiagnosis:
    """Of the positive ones among `num_eigenvalues`: the extremes, their ratio, groups parted by gaps, the number of
    directions that count (exponential of the entropy of the shares; Roy & Vetterli 2007), and predicted gradients."""

    num_eigenvalues: int
    num_positive: int
    largest: float
    least: float
    condition_number: float
    effective_rank: float
    groups: tuple[CurvatureGroup, ...]
    group_sizes: tuple[int, ...]
    steps_of_a_cycle: int
    gradient_descent: int
    multirate: int | None
    lbfgs: int

    @property
    def has_gap(self) -> bool:
        """Whether there are several groups, and a cycle through them is short enough to be worth it."""
        return len(self.groups) > 1 and self.steps_of_a_cycle <= MAX_STEPS_OF_A_CYCLE

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "num_eigenvalues": self.num_eigenvalues,
            "num_positive": self.num_positive,
            "largest": self.largest,
            "least": self.least,
            "condition_number": self.condition_number,
            "effective_rank": self.effective_rank,
            "groups": [
                {"least": group.least, "largest": group.largest, "eigenvalues": size}
                for group, size in zip(self.groups, self.group_sizes, strict=True)
            ],
            "steps_of_a_cycle": self.steps_of_a_cycle,
            "predicted_gradients": {
                "gradient_descent": self.gradient_descent,
                "multirate": self.multirate,
                "lbfgs": self.lbfgs,
            },
        }


def diagnose_spectrum(eigenvalues: Float[np.ndarray, " D"], num_weights: int | None = None) -> SpectrumDiagnosis:
    """Judge eigenvalues, in any order. `num_weights` is how many there are in all, where these are a part of them.

    Raises ValueError if none is positive.
    """
    values = np.sort(np.asarray(eigenvalues, np.float64))[::-1]
    groups = curvature_groups(values)
    positive = values[values >= groups[-1].least]
    condition = groups[0].largest / groups[-1].least
    shares = positive / positive.sum()
    counts = step_counts(groups)
    wanted = math.log(1 / GAP) / 2  # of the weights: the loss is quadratic in them
    last = groups[-1].least / groups[-1].largest
    cycles = max(_steps(last, wanted), math.ceil(wanted / math.log(2)))
    return SpectrumDiagnosis(
        num_eigenvalues=len(values) if num_weights is None else num_weights,
        num_positive=len(positive),
        largest=groups[0].largest,
        least=groups[-1].least,
        condition_number=condition,
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
        groups=tuple(groups),
        group_sizes=tuple(int(((positive >= g.least) & (positive <= g.largest)).sum()) for g in groups),
        steps_of_a_cycle=sum(counts),
        gradient_descent=_steps(1 / condition, wanted),
        multirate=cycles * sum(counts) if len(groups) > 1 else None,
        lbfgs=min(math.ceil(0.5 * math.sqrt(condition) * (wanted + math.log(2))), len(positive)) + 1,
    )


def _steps(ratio: float, wanted: float) -> int:
    """Steps of which each takes (1 - ratio) off the error, until it is exp(-wanted)."""
    return 1 if ratio >= 1 else math.ceil(wanted / -math.log1p(-ratio))
