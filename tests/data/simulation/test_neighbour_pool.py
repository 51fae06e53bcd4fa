"""The simulated sky with all that is in its images: counts of neighbours, one scene for all instruments, real noise."""

import dataclasses

import numpy as np
import pytest
import torch

from armillary.data.filters import filter_curve, photometry_weights
from armillary.data.modalities import modality
from armillary.data.simulation.neighbour_pool import (
    BRIGHT_LIMIT,
    FAINT_LIMIT,
    LAYER_SIZES,
    light_within,
    neighbour_pool,
    neighbours_of,
    pool_flux,
)
from armillary.data.simulation.observe_images import noiseless_images, observe_images
from armillary.data.simulation.observe_spectra import FIBER_SEEING, noiseless_spectra
from armillary.data.simulation.scene import share_within
from armillary.data.simulation.sky import SimulatedSky, SkySettings
from armillary.data.simulation.spectrograph_response import response_matrix
from armillary.data.simulation.wavelength_grid import observed_wavelength

LEGACY, HSC, DESI = modality("image/legacysurvey"), modality("image/hsc"), modality("spectrum/desi")


@pytest.fixture(scope="module")
def sky() -> SimulatedSky:
    return SimulatedSky(SkySettings(num_objects=200, seed=3, close_companions=0.5))


@pytest.fixture(scope="module")
def objects(sky):
    return sky.objects(range(48))


def counts(i_magnitude):
    """Galaxies to an i magnitude on a square arcminute: LSST Science Book (arXiv 0912.0201), eq. 3.7."""
    return 46 * 10 ** (0.31 * (i_magnitude - 25))


def test_pool_has_the_counts_of_the_sky():
    pool = neighbour_pool()
    assert len(pool) == sum(LAYER_SIZES.values())
    assert pool.magnitude.max() < FAINT_LIMIT
    galaxies = pool.is_companion
    assert (pool.magnitude[galaxies] > BRIGHT_LIMIT).sum() == LAYER_SIZES["faint galaxies"]
    per_square_degree = lambda members: 3600**2 * pool.density[members].sum()  # noqa: E731
    # r - i = 0.5 at r = 24; GAMA: Driver et al. 2011 (MNRAS 413, 971).
    assert per_square_degree(galaxies) == pytest.approx(3600 * counts(FAINT_LIMIT - 0.5), rel=0.3)
    assert per_square_degree(galaxies & (pool.magnitude < 19.8)) == pytest.approx(1000, rel=0.3)
    assert 0.1 < per_square_degree(~galaxies) / per_square_degree(galaxies) < 0.5
    assert (pool.radius[~galaxies] == 0).all()


def test_pool_fluxes_are_those_of_its_magnitudes():
    flux = pool_flux(("decam2014-r",)).sum(1)[:, 0].numpy()
    np.testing.assert_allclose(22.5 - 2.5 * np.log10(flux), neighbour_pool().magnitude, atol=0.03)


def test_neighbours_are_the_same_for_any_rows_and_field():
    magnitude = np.full(30, 19.0)
    whole = neighbours_of(5, np.arange(30), magnitude, 20.0)
    part = neighbours_of(5, np.array([17, 4]), magnitude[:2], 8.0)
    for one, row in zip(range(2), (17, 4), strict=True):
        inside = np.flatnonzero(whole.is_present[row] & (whole.distance[row] < 8.0))
        np.testing.assert_array_equal(part.row[one][part.is_present[one]], whole.row[row][inside])
        np.testing.assert_array_equal(part.offset[one][part.is_present[one]], whole.offset[row][inside])
    other = neighbours_of(6, np.arange(30), magnitude, 20.0)
    assert not np.isin(other.offset[other.is_present], whole.offset[whole.is_present]).any()


def test_cameras_see_the_neighbours_at_the_same_places(sky, objects):
    """The difference that neighbours make has its centroid at one place of the sky, but for their colours."""
    neighbours = sky.neighbours(objects, 5.0)
    assert 0.3 < neighbours.is_present[:, 0].mean() < 0.7
    centroids = []
    for declared, size in ((LEGACY, 72), (HSC, 112)):
        alone, together = (noiseless_images(objects, declared, size, n) for n in (None, neighbours))
        light = (together.flux - alone.flux)[:, 1]
        assert light.amin() > -1e-3 * light.amax()
        rows, columns = (torch.arange(size) - (size - 1) / 2) * declared.card.pixel_scale, light.sum((1, 2))
        north = (light.sum(2) * rows).sum(1) / columns
        east = -(light.sum(1) * rows).sum(1) / columns
        centroids.append(torch.stack([north, east], 1)[torch.from_numpy(neighbours.number > 0)])
    torch.testing.assert_close(centroids[0], centroids[1], atol=0.3, rtol=0)


def test_fibre_gathers_the_neighbours_light(sky, objects):
    neighbours = sky.neighbours(objects, 5.0)
    radius = DESI.card.fiber_diameter / 2
    light = light_within(neighbours, radius, FIBER_SEEING)
    added = noiseless_spectra(objects, DESI, neighbours) - noiseless_spectra(objects, DESI)
    expected = (response_matrix(DESI.card) @ light.numpy().T).T
    np.testing.assert_allclose(added, expected, atol=1e-3 * added.max())
    # In the r band it is the pool's flux times the share within the fibre.
    weights = photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]
    share = share_within(neighbours, neighbour_pool(), radius, FIBER_SEEING)
    flux = pool_flux(("decam2014-r",))[neighbours.row][..., 0].numpy()
    np.testing.assert_allclose(light.numpy() @ weights, (share * flux).sum((1, 2)), rtol=0.02, atol=4e-3)
    assert (light[neighbours.number == 0] == 0).all()


def test_sky_without_neighbours_has_none(sky, objects):
    lonely = SimulatedSky(sky.settings.model_copy(update={"neighbours": False}))
    assert lonely.neighbours(objects, 5.0) is None
    torch.testing.assert_close(lonely.observe(objects, HSC.name).flux, observe_images(objects, HSC, 64).flux)
    assert not torch.equal(sky.observe(objects, HSC.name).flux, observe_images(objects, HSC, 64).flux)


def test_stars_and_quasars_have_no_close_companions(sky, objects):
    stars = dataclasses.replace(objects, object_class=np.ones(len(objects), np.int64))
    assert sky.neighbours(objects, 5.0).is_present[:, 0].any()
    assert not sky.neighbours(stars, 5.0).is_present[:, 0].any()


def test_real_background_is_correlated_noise_of_the_stated_deviation(sky, objects):
    real = SimulatedSky(sky.settings.model_copy(update={"real_background": True, "neighbours": False}))
    clean, observed = noiseless_images(objects, HSC, 64), real.observe(objects, HSC.name)
    pull = (observed.flux - clean.flux) * observed.inverse_variance.sqrt()
    assert pull[observed.mask].std().item() == pytest.approx(1, abs=0.02)
    correlation = (pull[..., 1:] * pull[..., :-1]).mean((0, 2, 3))
    assert (correlation[:3] > 0.04).all()
    assert (correlation[3:].abs() < 0.01).all()  # there is no real sky in z and y
    assert not torch.equal(pull[0], pull[1])
    again = real.observe(objects.select([5]), HSC.name)
    torch.testing.assert_close(again.flux[0], observed.flux[5], rtol=1e-4, atol=1e-5)
