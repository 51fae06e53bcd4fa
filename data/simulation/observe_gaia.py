"""What Gaia says of simulated objects: BP/RP coefficients, magnitudes, parallaxes and proper motions, with errors.

Gaia sees points: an object is in its catalogue if it is bright enough and most of its light comes from within half an
arcsecond, as that of stars, quasars and a few compact galaxies does. What is beyond the Galaxy has no parallax and does
not move, but is measured like all else.
"""

import numpy as np
from jaxtyping import Bool, Float

from ..modalities import Modality
from ..observations import CoefficientsObservation, ScalarObservation
from .gaia_spectra import (
    BACKGROUND,
    READ_NOISE,
    SAMPLES,
    TRANSIT_SECONDS,
    TRANSITS,
    TRANSITS_SCATTER,
    coefficient_matrix,
    coefficient_noise,
)
from .light_profiles import flux_within
from .neighbour_pool import SERSIC_INDICES
from .object_random import normals
from .observe_images import band_flux
from .sky_objects import SkyObjects

FAINTEST = 20.7
"""G magnitude to which the catalogue is complete (Gaia Collaboration, Vallenari et al. 2023, A&A 674, A1)."""
FAINTEST_SPECTRUM = 17.65
"""G magnitude to which data release 3 has BP/RP spectra (De Angeli et al. 2023, A&A 674, A2)."""
WINDOW_RADIUS, PSF_FWHM = 0.5, 0.18
"""Arcsec: within which most of the light must lie, and how wide a point is."""
COMPACT_SHARE = 0.6
VEGA_FROM_AB = {"g": 25.6874 - 25.8010, "bp": 25.3385 - 25.3540, "rp": 24.7479 - 25.1040}
"""Added to AB magnitudes: difference of the zero points (Riello et al. 2021, Table 3)."""
ZERO_POINTS = {"g": 25.8010, "bp": 25.3540, "rp": 25.1040}
"""AB magnitude of one electron a second (same source)."""
NUM_SAMPLES = {"g": 9 * 12, "bp": len(SAMPLES), "rp": len(SAMPLES)}
"""Samples read out for one measurement in one transit."""
MAGNITUDE_FLOOR = {"g": 0.002, "bp": 0.004, "rp": 0.003}
MOTION_ERRORS = {"parallax": 1.0, "pm_ra": 1.03, "pm_dec": 0.89}
"""Standard deviations (mas, mas a year) over that of the parallax (Gaia science performance, data release 3)."""
QUANTITIES = (*VEGA_FROM_AB, *MOTION_ERRORS)
"""Of the card gaia_catalogue, those that are simulated."""


def observe_gaia_spectra(objects: SkyObjects, modality: Modality) -> CoefficientsObservation:
    """BP/RP coefficients of the objects that have spectra in data release 3, masked for the others; electrons/s."""
    light = objects.spectra.sum(1)
    clean = (light @ coefficient_matrix().to(light.device).T).double().cpu().numpy()
    normal = normals(f"{modality.name} noise", objects.seed, objects.row, 1 + 2 * len(SAMPLES))
    transits = TRANSITS * np.exp(TRANSITS_SCATTER * normal[0])
    noise, error = coefficient_noise(clean, normal[1:].T, transits)
    is_seen = (is_compact(objects) & (_g_magnitude(objects) < FAINTEST_SPECTRUM))[:, None].repeat(clean.shape[1], 1)
    return CoefficientsObservation(
        modality,
        objects.object_id,
        np.where(is_seen, clean + noise, 0.0),
        is_seen,
        np.where(is_seen, error, np.nan),
        ra=objects.ra,
        dec=objects.dec,
    )


def observe_gaia_scalars(objects: SkyObjects, modality: Modality) -> ScalarObservation:
    """One number of Gaia's catalogue for each object, masked where it has none.

    Raises LookupError for a quantity that is not simulated.
    """
    name = modality.quantity.name
    if name not in QUANTITIES:
        raise LookupError(f"{modality.name} is not simulated; of this catalogue these are: {list(QUANTITIES)}")
    g = _g_magnitude(objects)
    noise = normals(f"{modality.name} noise", objects.seed, objects.row, 1)[0]
    is_seen = is_compact(objects) & (g < FAINTEST)
    if name in MOTION_ERRORS:
        error = MOTION_ERRORS[name] * parallax_error(g)
        values = np.nan_to_num(objects.truth[name]) + error * noise
    else:
        flux = _flux(objects, name)
        error_flux = np.hypot(_photon_error(flux, name), MAGNITUDE_FLOOR[name] / 1.0857 * flux)
        measured = flux + error_flux * noise
        is_seen &= measured > 2 * error_flux
        measured = np.where(is_seen, measured, 1.0)
        values = ZERO_POINTS[name] + VEGA_FROM_AB[name] - 2.5 * np.log10(measured)
        error = 1.0857 * error_flux / measured
    is_seen &= (values >= modality.quantity.minimum) & (values <= modality.quantity.maximum)
    return ScalarObservation(
        modality,
        objects.object_id,
        np.where(is_seen, values, 0.0),
        is_seen,
        np.where(is_seen, error, np.nan),
        ra=objects.ra,
        dec=objects.dec,
    )


def is_compact(objects: SkyObjects) -> Bool[np.ndarray, " B"]:
    """Whether enough of an object's light is that of a point for Gaia to find it."""
    light = objects.spectra.sum(2).double().cpu().numpy()
    inside = flux_within(WINDOW_RADIUS, objects.radius, objects.axis_ratio, PSF_FWHM, SERSIC_INDICES)
    return (light * inside).sum(1) > COMPACT_SHARE * light.sum(1)


def parallax_error(g_magnitude: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Standard deviation of a parallax of data release 3, mas (Gaia science performance page of ESA)."""
    z = 10 ** (0.4 * (np.maximum(g_magnitude, 13.0) - 15))
    return 1e-3 * np.sqrt(40 + 800 * z + 30 * z**2)


def _g_magnitude(objects: SkyObjects) -> Float[np.ndarray, " B"]:
    return ZERO_POINTS["g"] + VEGA_FROM_AB["g"] - 2.5 * np.log10(_flux(objects, "g"))


def _flux(objects: SkyObjects, band: str) -> Float[np.ndarray, " B"]:
    """Electrons a second."""
    nanomaggies = band_flux(objects, (f"gaiadr3-{band.upper()}",)).sum(1)[:, 0].double().cpu().numpy()
    return nanomaggies * 10 ** (0.4 * (ZERO_POINTS[band] - 22.5))


def _photon_error(flux: Float[np.ndarray, " B"], band: str) -> Float[np.ndarray, " B"]:
    """Standard deviation of a mean over TRANSITS of the photons, background and read-out of all samples."""
    seconds = TRANSITS * TRANSIT_SECONDS * (9 if band == "g" else 1)
    samples = NUM_SAMPLES[band] / (9 if band == "g" else 1)
    reads = NUM_SAMPLES[band] * TRANSITS
    return np.sqrt((flux + samples * BACKGROUND) / seconds + reads * READ_NOISE**2 / seconds**2)
