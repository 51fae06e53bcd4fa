"""Images of simulated objects: every band has the object's light, and the noise is what it claims to be."""

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


@pytest.mark.parametrize("declared", [LEGACY, HSC])
def test_total_flux_of_the_image_is_the_photometry(objects, declared):
    small = objects.select(np.flatnonzero(objects.radius.max(1) < 1.2)[:6])
    image = noiseless_images(small, declared, 160)
    curves = [filter_curve(band.filter_curve) for band in declared.card.bands]
    expected = small.spectra.sum(1).double().numpy() @ photometry_weights(curves, observed_wavelength()).T
    np.testing.assert_allclose(image.flux.sum((2, 3)), expected, rtol=0.005)


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
