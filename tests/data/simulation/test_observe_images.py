"""Images of simulated objects: every band has the object's light, and the noise is what it claims to be."""

import itertools

import numpy as np
import pytest
import torch

from armillary.data.filters import filter_curve, photometry_weights
from armillary.data.modalities import modality
from armillary.data.simulation.observe_images import noiseless_images, observe_images
from armillary.data.simulation.sky_objects import Population, SkyObjects, draw_objects
from armillary.data.simulation.wavelength_grid import observed_wavelength

LEGACY, HSC = modality("image/legacysurvey"), modality("image/hsc")


@pytest.fixture(scope="module")
def objects() -> SkyObjects:
    population = Population(11, 19.8, star_fraction=0.1, quasar_fraction=0.1, shard_size=100, healpix_order=1)
    return draw_objects(population, np.arange(64))


def median_ratio(first, second):
    return np.median(np.asarray(first) / np.asarray(second))


def r_magnitude(objects):
    weights = photometry_weights([filter_curve("decam2014-r")], observed_wavelength())[0]
    return 22.5 - 2.5 * np.log10(objects.spectra.sum(1).double().numpy() @ weights)


@pytest.fixture(scope="module")
def varied() -> SkyObjects:
    """Galaxies and quasars from nearby to far, and stars from blue to red, small enough for a wide image."""
    population = Population(12, 22.5, star_fraction=0.3, quasar_fraction=0.3, shard_size=1000, healpix_order=1)
    drawn = draw_objects(population, np.arange(200))
    small = (drawn.radius < 1.0).all(1)
    redshift = np.nan_to_num(drawn.truth["redshift"])
    chosen = []
    for index, edges in enumerate(((0, 0.25, 0.5, 0.8, 3.0), (-1, 1), (0, 0.8, 1.6, 2.4, 5.0))):
        for low, high in itertools.pairwise(edges):
            rows = np.flatnonzero((drawn.object_class == index) & small & (redshift > low) & (redshift < high))
            chosen += rows[:4].tolist()
    return drawn.select(chosen)


@pytest.mark.parametrize("declared", [LEGACY, HSC])
def test_total_flux_of_the_image_is_the_photometry_of_the_spectrum(varied, declared):
    """Direct integration of photons, in float64, apart from the package's own photometry."""
    assert np.bincount(varied.object_class, minlength=3).min() >= 4
    assert np.nanmax(varied.truth["redshift"][varied.object_class == 0]) > 0.8
    image = noiseless_images(varied, declared, 160)
    wavelength, spectra = observed_wavelength(), varied.spectra.sum(1).double().numpy()
    steps = np.gradient(wavelength)
    for column, band in enumerate(declared.card.bands):
        curve = filter_curve(band.filter_curve)
        photons = np.interp(wavelength, curve.wavelength, curve.response, left=0, right=0) * wavelength * steps
        flat = 3631e-23 * 2.99792458e18 / wavelength**2 / 1e-17  # of magnitude zero
        expected = 1e9 * (spectra @ photons) / (flat @ photons)
        np.testing.assert_allclose(image.flux[:, column].sum((1, 2)), expected, rtol=0.005, err_msg=band.name)


@pytest.mark.parametrize("declared", [LEGACY, HSC])
def test_image_noise_has_the_stated_inverse_variance(objects, declared):
    clean = noiseless_images(objects, declared, 40)
    noisy = observe_images(objects, declared, 40)
    pull = ((noisy.flux - clean.flux) * noisy.inverse_variance.sqrt())[noisy.mask]
    assert pull.mean().item() == pytest.approx(0, abs=0.01)
    assert (pull**2).mean().item() == pytest.approx(1, abs=0.02)
    # Bands are independent of each other.
    assert np.corrcoef(pull[: len(pull) // 2], pull[len(pull) // 2 : 2 * (len(pull) // 2)])[0, 1] == pytest.approx(
        0, abs=0.02
    )


def test_sky_pixels_have_the_noise_of_the_depth(objects):
    faint = np.flatnonzero((objects.radius.max(1) < 1.5) & (r_magnitude(objects) > 18.5))
    observed = observe_images(objects.select(faint), LEGACY, 48)
    corner = observed.inverse_variance[..., :6, :6].amax((2, 3)) ** -0.5
    np.testing.assert_allclose(corner, observed.noise(), rtol=0.03)
    # Each object has its own seeing and depth, near the card's.
    assert median_ratio(observed.psf_fwhm, [[band.psf_fwhm for band in LEGACY.card.bands]]) == pytest.approx(1, abs=0.1)
    assert observed.psf_fwhm.std(0).min() > 0.03
    assert observed.depth.std(0).min() > 0.03


def test_bright_pixels_are_noisier_than_sky(objects):
    observed = observe_images(objects.select([int(r_magnitude(objects).argmin())]), LEGACY, 48)
    ivar = torch.where(observed.mask, observed.inverse_variance, torch.nan)
    assert ivar[0, 1, 23:25, 23:25].nanmean() < 0.5 * observed.noise()[0, 1] ** -2


def test_bad_pixels_are_few_and_masked(objects):
    observed = observe_images(objects, LEGACY, 48)
    bad = ~observed.mask
    assert 1e-4 < bad.float().mean() < 0.02
    assert (observed.inverse_variance[bad] == 0).all()
    assert (observed.flux[bad] == 0).all()  # the garbage they held is gone
    assert torch.isfinite(observed.flux).all()


def test_noise_differs_between_cameras_and_objects(objects):
    first, other = (observe_images(objects.select([0, 1]), declared, 48) for declared in (LEGACY, HSC))
    pulls = [(o.flux * o.inverse_variance.sqrt())[:, 0, :8].flatten(1) for o in (first, other)]
    for a, b in ((pulls[0][0], pulls[1][0]), (pulls[0][0], pulls[0][1])):
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(0, abs=0.2)


def test_a_spectrograph_is_no_camera(objects):
    with pytest.raises(ValueError, match="expected a modality of kind image, found spectrum/desi"):
        observe_images(objects, modality("spectrum/desi"), 48)
