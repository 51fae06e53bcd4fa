"""What catalogues say of simulated objects: true redshifts, masses and star formation, and measured magnitudes."""

from typing import Any

import numpy as np

from ..filters import flux_to_magnitude, magnitude_to_flux
from ..modalities import Modality
from ..observations import ScalarObservation
from .object_random import normals
from .observe_images import band_flux
from .sky_objects import SkyObjects

CATALOGUE_FILTERS = {
    "legacysurvey_photometry": "decam2014",
    "sdss_photometry": "sdss2010",
    "hsc_photometry": "hsc2017",
}
CATALOGUE_DEPTHS = {
    "legacysurvey_photometry": {"g": 24.7, "r": 24.2, "z": 23.3},
    "sdss_photometry": {"u": 22.2, "g": 23.2, "r": 22.7, "i": 22.2, "z": 20.7},
    "hsc_photometry": {"g": 26.5, "r": 26.5, "i": 26.2, "z": 25.2, "y": 24.4},
}
"""5-sigma point-source depths, AB."""
CATALOGUE_FLOOR = {"legacysurvey_photometry": 0.01, "sdss_photometry": 0.02, "hsc_photometry": 0.01}
"""Smallest error, magnitudes."""
LATENTS = {
    "redshift": "redshift",
    "stellar_mass": "log_stellar_mass",
    "specific_star_formation_rate": "log_specific_star_formation_rate",
}
"""Of the card galaxy_properties, by their names among TRUTHS."""


def is_simulated(modality: Modality) -> bool:
    """Whether `observe_scalars` knows this modality."""
    return modality.card.name in {"galaxy_properties", *CATALOGUE_FILTERS}


def observe_scalars(objects: SkyObjects, modality: Modality) -> ScalarObservation:
    """One catalogue number of each object: true for redshift, mass and star formation, measured for magnitudes.

    Masked where an object has no such property. Magnitudes scatter by their `error`; one whose flux came out below two
    sigma is masked. Raises LookupError for a quantity that is not simulated.
    """
    quantity = modality.quantity
    identity: dict[str, Any] = {"ra": objects.ra, "dec": objects.dec}
    if not is_simulated(modality):
        raise LookupError(f"{modality.name} is not simulated; these catalogues are: {sorted(CATALOGUE_FILTERS)}")
    if modality.card.name == "galaxy_properties":
        values = objects.truth[LATENTS[quantity.name]]
        is_known = ~np.isnan(values)
        return ScalarObservation(
            modality,
            objects.object_id,
            np.where(is_known, values, 0.0),
            is_known,
            np.where(is_known, 0.0, np.nan),
            **identity,
        )
    catalogue = modality.card.name
    components = band_flux(objects, (f"{CATALOGUE_FILTERS[catalogue]}-{quantity.name}",))[..., 0].double().cpu().numpy()
    flux = components.sum(1)
    extent = (objects.radius * np.sqrt(objects.axis_ratio) * components).sum(1) / flux
    sky_error = magnitude_to_flux(np.array([CATALOGUE_DEPTHS[catalogue][quantity.name]])) / 5
    error = np.hypot(sky_error * np.sqrt(1 + extent**2), CATALOGUE_FLOOR[catalogue] / 1.0857 * flux)
    measured = flux + error * normals(f"{modality.name} noise", objects.seed, objects.row, 1)[0]
    is_detected = measured > 2 * error
    magnitude = flux_to_magnitude(np.where(is_detected, measured, 1.0))
    is_detected &= (magnitude >= quantity.minimum) & (magnitude <= quantity.maximum)
    magnitude_error = np.where(is_detected, 1.0857 * error / np.where(is_detected, measured, 1.0), np.nan)
    return ScalarObservation(modality, objects.object_id, magnitude, is_detected, magnitude_error, **identity)
