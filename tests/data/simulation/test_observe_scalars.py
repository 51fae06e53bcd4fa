"""Catalogue numbers of simulated objects: truths as they are, magnitudes with honest errors."""

import numpy as np
import pytest
import torch

from armillary.data.filters import filter_curve, photometry_weights
from armillary.data.modalities import modality
from armillary.data.simulation.observe_scalars import observe_scalars
from armillary.data.simulation.sky_objects import Population, SkyObjects, draw_objects
from armillary.data.simulation.wavelength_grid import observed_wavelength


@pytest.fixture(scope="module")
def objects() -> SkyObjects:
    return draw_objects(
        Population(2, 19.8, star_fraction=0.1, quasar_fraction=0.1, shard_size=1000, healpix_order=1), np.arange(400)
    )


def test_latents_are_given_as_they_are(objects):
    for name, truth in (
        ("redshift", "redshift"),
        ("stellar_mass", "log_stellar_mass"),
        ("specific_star_formation_rate", "log_specific_star_formation_rate"),
    ):
        observed = observe_scalars(objects, modality(f"scalar/{name}"))
        values = objects.truth[truth]
        np.testing.assert_array_equal(observed.mask, ~np.isnan(values))
        np.testing.assert_allclose(observed.values[observed.mask], values[~np.isnan(values)], rtol=1e-6)
        assert (observed.error[observed.mask] == 0).all()


def test_magnitudes_scatter_by_their_errors(objects):
    weights = photometry_weights([filter_curve("sdss2010-g")], observed_wavelength())[0]
    truth = 22.5 - 2.5 * np.log10(objects.spectra.sum(1).double().numpy() @ weights)
    observed = observe_scalars(objects, modality("scalar/sdss_g"))
    pull = ((observed.values - torch.from_numpy(truth)) / observed.error)[observed.mask]
    assert (pull**2).mean().item() == pytest.approx(1, abs=0.25)
    assert observed.error.min() >= 0.019
    brightness = np.argsort(truth)
    assert observed.error[brightness[:50]].median() < observed.error[brightness[-50:]].median()


def test_undetected_magnitudes_are_masked(objects):
    observed = observe_scalars(objects, modality("scalar/sdss_u"))
    assert 0.5 < observed.mask.float().mean() < 1.0
    assert (observed.error[observed.mask] < 0.55).all()


def test_other_catalogues_are_refused(objects):
    with pytest.raises(LookupError, match="twomass_k is not simulated"):
        observe_scalars(objects, modality("scalar/twomass_k"))
