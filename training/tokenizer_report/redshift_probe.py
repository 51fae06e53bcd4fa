"""Redshift information kept: how well a probe reads the redshift from originals, reconstructions and tokens.

The same features are taken of an original and of what its tokens decode to, and the same probes fitted: ridge
regression and gradient-boosted trees. Where the tokens lose what says the redshift, the R2 falls. Tokens are also
probed by themselves, by what their codes have in common (`code_features`): a code can serve a decoder well and a probe
badly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import r2_score
from torch import Tensor

from ...data.observations import ImageObservation, SpectrumObservation
from ...data.token_shards import object_key
from ...models.probes import LinearProbe
from ...tokenizers.token_grid import TokenGrid
from .photometry import distance_from_object

REDSHIFTS = (0.002, 1.0)
"""Limits of the redshifts that are probed: stars lie below, and quasars above would rule the variance."""
APERTURES = (0.75, 1.5, 3.0, 5.0)
"""Radii in which the light of an image is summed, arcsec."""
NUM_BINS = 400
"""Even bins in the logarithm of wavelength into which a spectrum is averaged."""
NUM_COMPONENTS = 64
"""Principal components that the trees see of a long list of features."""
NUM_HASHED = 4096
"""Numbers by which the tokens of an object are given to a probe, at most."""
FEWEST = 40
"""Objects with a redshift below which nothing is probed."""


def image_features(
    flux: Float[Tensor, "B C H W"], valid: Bool[Tensor, "B C H W"], like: ImageObservation
) -> Float[np.ndarray, "B S"]:
    """Light within each of APERTURES in each band, over the noise of the sky there, through arcsinh; and colours.

    `like` says where the objects are and what the noise is. Pixels that are not valid add nothing.
    """
    distance = distance_from_object(like)
    areas = [(distance <= radius)[:, None] for radius in APERTURES]
    light = torch.stack([torch.where(area & valid, flux, 0.0).sum((2, 3)) for area in areas], -1)
    typical = like.noise().mean(0)[:, None] * torch.stack([area.sum((1, 2, 3)).float().mean() for area in areas]).sqrt()
    scaled = torch.asinh(light / (2 * typical))
    colours = scaled[:, 1:] - scaled[:, :-1]
    return torch.cat([scaled.flatten(1), colours.flatten(1)], 1).numpy().astype(np.float64)


def spectrum_features(
    flux: Float[Tensor, "B L"], valid: Bool[Tensor, "B L"], like: SpectrumObservation
) -> Float[np.ndarray, "B S"]:
    """Flux in NUM_BINS even bins of log wavelength over the spectrum's amplitude, through arcsinh; and the amplitude.

    Within a bin pixels are weighted by `like`'s inverse variance; a bin without a valid pixel is zero.
    """
    low, high = np.log(like.card.wavelength_min), np.log(like.card.wavelength_max)
    place = (like.wavelength.clamp(min=1.0).log() - low) / (high - low) * NUM_BINS
    column = place.long().clamp(0, NUM_BINS - 1)
    weight = torch.where(valid, like.inverse_variance, 0.0).double()
    sums = torch.zeros(2, len(flux), NUM_BINS, dtype=torch.float64)
    sums[0].scatter_add_(1, column, weight * flux)
    sums[1].scatter_add_(1, column, weight)
    known = sums[1] > 0
    binned = torch.where(known, sums[0] / sums[1].clamp(min=1e-300), 0.0)
    amplitude = torch.where(known, binned.abs(), torch.nan).nanmedian(1).values.nan_to_num(0.0).clamp(min=1e-6)
    return torch.cat([torch.asinh(binned / amplitude[:, None]), amplitude.log()[:, None]], 1).numpy()


def token_features(tokens: TokenGrid, code_features: Float[Tensor, "V S"]) -> Float[np.ndarray, "B F"]:
    """The features of each token's code, one token after another; zero where a token is masked. Float32.

    More than NUM_HASHED are added up, each with a fixed random sign, in NUM_HASHED sums (the count sketch of Charikar,
    Chen & Farach-Colton 2002), which keeps the scalar products that ridge regression needs.
    """
    flat = (code_features[tokens.codes] * tokens.mask[..., None]).flatten(1)
    if flat.shape[1] <= NUM_HASHED:
        return flat.numpy().astype(np.float32)
    generator = torch.Generator().manual_seed(0)
    place = torch.randint(NUM_HASHED, (flat.shape[1],), generator=generator)
    sign = 2.0 * torch.randint(2, (flat.shape[1],), generator=generator) - 1
    return torch.zeros(len(flat), NUM_HASHED).index_add_(1, place, flat * sign).numpy()


def probe_redshift(
    features: dict[str, Float[np.ndarray, "B _"]],
    object_id: Sequence[str],
    redshift: Float[np.ndarray, " B"],
    label_counts: Sequence[int],
) -> dict[str, Any] | None:
    """R2 of the redshift from each set of features, by probe and number of training labels; None with too few objects.

    Objects with a redshift in REDSHIFTS count. A half of them, by the hash of their id, trains and the other tests.
    Of `label_counts` those are tried that the training half exceeds, and then all of it.
    """
    chosen = np.isfinite(redshift) & (redshift >= REDSHIFTS[0]) & (redshift <= REDSHIFTS[1])
    if chosen.sum() < FEWEST:
        return None
    keys = np.array([object_key(name) for name in object_id])
    # Objects held out are often chosen by this hash modulo some number: other bits of it split them evenly.
    trains = (keys >> 20) % 2 == 0
    train, test = np.flatnonzero(chosen & trains), np.flatnonzero(chosen & ~trains)
    train = train[np.argsort(keys[train] >> 21)]
    counts = [*(count for count in label_counts if FEWEST // 2 <= count < len(train)), len(train)]
    return {
        "num_test": len(test),
        "label_counts": counts,
        "r2": {
            name: {
                probe: [predict(values[train[:count]], redshift[train[:count]], values[test]) for count in counts]
                for probe, predict in (
                    ("ridge", _scored(_ridge, redshift[test])),
                    ("trees", _scored(_trees, redshift[test])),
                )
            }
            for name, values in features.items()
        },
    }


def _scored(predict: Any, true: Float[np.ndarray, " B"]) -> Any:
    return lambda *arguments: float(r2_score(true, predict(*arguments)))


def _ridge(features: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    # A column may vary by rounding alone; what other objects hold there would count for millions.
    spread = features.std(0)
    varies = spread > max(1e-4 * spread.max(), 1e-6 * np.abs(features).max())
    if not varies.any():
        return np.full(len(others), labels.mean())
    centre, scale = features[:, varies].mean(0), spread[varies]
    fitted = LinearProbe().fit((features[:, varies] - centre) / scale, labels)
    return fitted.predict((others[:, varies] - centre) / scale)


def _trees(features: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    if features.shape[1] > NUM_COMPONENTS and features.std(0).any():
        components = min(NUM_COMPONENTS, len(features) - 1)
        reduced = PCA(components, svd_solver="randomized", random_state=0).fit(features)
        features, others = reduced.transform(features), reduced.transform(others)
    trees = HistGradientBoostingRegressor(max_iter=200, learning_rate=0.05, min_samples_leaf=5, random_state=0)
    return trees.fit(features, labels).predict(others)
