"""Ridge regression whose penalty and leave-one-out residuals come in closed form (Golub, Heath & Wahba 1979, doi
10.1080/00401706.1979.10489751).

One singular value decomposition of the features serves every penalty and every label: with the leverages h of a
penalty, the residual of an object that was left out is its residual over 1 - h.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """Coefficients [T, D] on the features as given, intercepts [T], the penalty per object that was chosen for each of
    T labels, the residuals [B, T] of objects that were left out, and the eigenvalues of the features' covariance."""

    coef: Float[np.ndarray, "T D"]
    intercept: Float[np.ndarray, " T"]
    penalty: Float[np.ndarray, " T"]
    left_out: Float[np.ndarray, "B T"]
    eigenvalues: Float[np.ndarray, " N"]


def fit_ridge(
    features: Float[np.ndarray, "B D"],
    labels: Float[np.ndarray, "B T"],
    penalties: Sequence[float],
    power: float = 2.0,
) -> RidgeFit:
    """Minimise the mean squared error plus `penalty` times the squared norm, with an intercept that is not penalised.

    Each label takes the penalty whose mean leave-one-out error to the `power` is least; of equal ones the largest.
    """
    count = len(features)
    centre, mean = features.mean(0), labels.mean(0)
    left, singular, right = np.linalg.svd(features - centre, full_matrices=False)
    target = left.T @ (labels - mean)
    best: list[tuple[float, float, np.ndarray]] = [(np.inf, np.nan, np.empty(0))] * labels.shape[1]
    for penalty in sorted(penalties, reverse=True):
        shrink = singular**2 / (singular**2 + count * penalty)
        # The intercept is every object's equal share in the mean.
        leverage = np.minimum(np.square(left) @ shrink + 1 / count, 1 - 1e-12)
        left_out = (labels - mean - left @ (shrink[:, None] * target)) / (1 - leverage)[:, None]
        for column, error in enumerate(np.mean(np.abs(left_out) ** power, axis=0)):
            if error < best[column][0]:
                best[column] = (float(error), penalty, left_out[:, column])
    chosen = np.array([penalty for _, penalty, _ in best], np.float64)
    weights = (singular[:, None] / (singular[:, None] ** 2 + count * chosen)) * target
    coef = (right.T @ weights).T
    return RidgeFit(
        coef=coef,
        intercept=mean - coef @ centre,
        penalty=chosen,
        left_out=np.stack([residual for _, _, residual in best], axis=1),
        eigenvalues=singular**2 / count,
    )
