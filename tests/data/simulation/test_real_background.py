"""Real sky: no sources, one standard deviation, and the correlations that white noise lacks."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation
from armillary.data.readers.images import read_image
from armillary.data.real_files import real_file
from armillary.data.simulation.real_background import NUM_UNIFORMS, REAL_BANDS, EmptySky, cut_sky, empty_sky, hsc_sky


@pytest.fixture(scope="module")
def field() -> ImageObservation:
    paths = {band: real_file(f"hsc-10054-{band}.fits") for band in REAL_BANDS}
    return read_image(paths, "image/hsc", zero_point=27.0).image


def test_sky_has_zero_mean_and_unit_deviation():
    noise = hsc_sky().noise
    np.testing.assert_allclose(noise.mean((1, 2)), 0, atol=0.01)
    np.testing.assert_allclose(noise.std((1, 2)), 1, atol=0.01)


def test_no_source_is_left(field):
    smooth = lambda image: ndimage.gaussian_filter(image, 1.8)  # noqa: E731
    found = smooth(field.flux[0].double().numpy().sum(0))
    left = smooth(hsc_sky().noise.sum(0))
    deviations = lambda image: np.abs(image - np.median(image)).max() / np.std(image[hsc_sky().is_original])  # noqa: E731
    assert deviations(found) > 100
    assert deviations(left) < 6
    brightest = np.unravel_index(found.argmax(), found.shape)
    assert not hsc_sky().is_original[brightest]


def test_neighbouring_pixels_are_correlated_as_in_the_field():
    for noise in hsc_sky().noise:
        correlation = (noise[:, 1:] * noise[:, :-1]).mean()
        assert 0.04 < correlation < 0.15
        flux = ndimage.gaussian_filter(noise.astype(np.float64), 1.5) * np.sqrt(4 * np.pi) * 1.5
        assert 1.08 < flux.std() < 1.3  # one for white noise


def test_original_sky_is_that_of_the_field(field):
    sky = hsc_sky()
    for noise, band in zip(sky.noise, field.flux[0].numpy(), strict=True):
        assert np.corrcoef(noise[sky.is_original], band[sky.is_original])[0, 1] > 0.9999


def test_patches_are_cut_turned_and_mirrored():
    pixels = np.arange(2 * 6 * 8, dtype=np.float32).reshape(2, 6, 8)
    sky = EmptySky(pixels, np.ones((6, 8), bool))
    corner = pixels[:, :3, :3]
    uniform = np.array([[0.0, 0.0, turn, mirror] for turn in (0.1, 0.3, 0.6, 0.8) for mirror in (0.7, 0.2)])
    patches = cut_sky(sky, uniform, 3)
    for turn in range(4):
        turned = np.rot90(corner, turn, (1, 2))
        np.testing.assert_array_equal(patches[2 * turn], turned)
        np.testing.assert_array_equal(patches[2 * turn + 1], turned[:, :, ::-1])
    np.testing.assert_array_equal(cut_sky(sky, np.array([[0.999, 0.999, 0.0, 0.9]]), 3)[0], pixels[:, 3:, 5:])


def test_patches_are_many_and_repeatable():
    uniform = np.random.default_rng(0).random((40, NUM_UNIFORMS))
    patches = cut_sky(hsc_sky(), uniform, 64)
    np.testing.assert_array_equal(cut_sky(hsc_sky(), uniform[7:9], 64), patches[7:9])
    assert len({patch.tobytes() for patch in patches}) == 40
    assert patches.std() == pytest.approx(1, abs=0.02)


def test_image_larger_than_the_field_is_refused():
    with pytest.raises(ValueError, match="512 x 512 pixels, an image of 600 x 600"):
        cut_sky(hsc_sky(), np.zeros((1, NUM_UNIFORMS)), 600)


def test_frame_without_empty_sky_is_refused():
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    mask[..., :4, :4] = True
    crowded = ImageObservation(modality("image/hsc"), ["crowded"], torch.randn(1, 1, 40, 40), ["g"], mask=mask)
    with pytest.raises(ValueError, match="needs empty sky; of crowded"):
        empty_sky(crowded)
