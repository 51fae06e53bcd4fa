"""What is known of a patch before its details: against spectra put in, and slow loops."""

import numpy as np
import pytest
import torch

from armillary.data.modalities import Modality, modality
from armillary.data.observations import ImageObservation
from armillary.tokenizers.brightness import WEIGHT_SIGMA
from armillary.tokenizers.light_basis import LightBasis
from armillary.tokenizers.patch_context import NUM_SLOPES, brightness_softening, object_colours, patch_slopes

SIGMA = 1.0
"""Standard deviation of the objects' light, arcsec."""


@pytest.fixture(scope="module")
def basis():
    return LightBasis(2, (4, 1, 1), 3000.0, 11500.0)


def brightness_of(basis, card, spectrum):
    """What a round Gaussian object of this spectrum shows of itself under the weight, its total flux fixed."""
    bands = tuple(band.name for band in card.bands)
    fwhm = torch.tensor([band.psf_fwhm for band in card.bands], dtype=torch.float64)
    variance = SIGMA**2 + (fwhm / 2.3548) ** 2
    return (basis.spectral(card, bands) @ spectrum / (variance + WEIGHT_SIGMA**2))[None]


@pytest.mark.parametrize("name", ["image/hsc", "image/legacysurvey", "image/sdss", "image/bass_mzls"])
@pytest.mark.parametrize("colours", [(0.0, 0.0), (0.4, -0.1), (-0.3, 0.15)])
def test_cameras_of_any_bands_and_psf_find_the_colours_put_in(basis, name, colours):
    card = modality(name).card
    spectrum = torch.tensor([1.0, *colours, 0.0], dtype=torch.float64)
    bright = 100 * brightness_of(basis, card, spectrum)
    found = object_colours(basis, card, bright, torch.ones(1, len(card.bands), dtype=torch.bool))
    seen = tuple(band.name for band in card.bands)
    one, two = (basis.spectral(card, seen, c[None])[0, :, 0] for c in (found[0], spectrum))
    ratio = one / two
    assert (ratio / ratio.mean() - 1).abs().max() < 0.02


def test_what_is_below_the_noise_or_was_not_measured_has_the_typical_colours(basis):
    card = modality("image/sdss").card
    none = torch.zeros(1, 5, dtype=torch.bool)
    bright = torch.tensor([[1.0, 50.0, 2.0, 7.0, 90.0]])
    assert object_colours(basis, card, bright, none).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    faint = object_colours(basis, card, torch.tensor([[0.004, -0.003, 0.002, 0.0, -0.01]]), ~none)
    assert faint[0, 1:].abs().max() < 0.1
    assert object_colours(basis, card, bright * 1e6, ~none).isfinite().all()


def test_a_band_out_of_range_does_not_count(basis):
    card = modality("image/hsc").card
    far = card.bands[0].model_copy(update={"name": "far", "wavelength": 21000.0})
    more = card.model_copy(update={"bands": (*card.bands, far)})
    bright = torch.tensor([[1.0, 3.0, 4.0, 5.0, 5.5]])
    known = torch.ones(1, 5, dtype=torch.bool)
    with_far = torch.cat([bright, torch.tensor([[1e4]])], 1)
    expected = object_colours(basis, card, bright, known)
    assert torch.equal(object_colours(basis, more, with_far, torch.ones(1, 6, dtype=torch.bool)), expected)
    assert brightness_softening(basis, more, 12) == brightness_softening(basis, card, 12)
    only = card.model_copy(update={"bands": (far,)})
    found = object_colours(basis, only, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert found.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_softening_is_the_noise_of_a_patch(basis):
    card = modality("image/sdss").card
    bands = [band.name for band in card.bands]
    noise = ImageObservation(Modality("image/a", card), ["a"], np.zeros((1, 5, 8, 8)), bands).noise()[0].double()
    rng = np.random.default_rng(0)
    typical = basis.spectral(card, tuple(bands))[:, 0]
    pixels = rng.normal(size=(4000, 5, 25)) * noise[:, None].numpy() / card.pixel_scale**2
    weight = (card.pixel_scale**2 / noise) ** 2
    level = (pixels.mean(2) * (weight * typical).numpy()).sum(1) / (weight * typical**2).sum().item()
    assert brightness_softening(basis, card, 5) == pytest.approx(np.hypot(level.std(), 0.003), rel=0.05)


def test_slopes_are_differences_from_the_neighbours_that_there_are():
    rng = np.random.default_rng(1)
    level, mask = 10 ** rng.uniform(-2, 1, (2, 4, 3)), rng.random((2, 4, 3)) > 0.3
    found = patch_slopes(torch.from_numpy(level).flatten(1), torch.from_numpy(mask).flatten(1), 3, 0.1)
    assert found.shape == (2, 12, NUM_SLOPES)
    places = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    for row in range(2):
        for y in range(4):
            for x in range(3):
                of = dict.fromkeys(places, 0.0)
                for dy, dx in places:
                    inside = 0 <= y + dy < 4 and 0 <= x + dx < 3
                    if inside and mask[row, y, x] and mask[row, y + dy, x + dx]:
                        heights = np.arcsinh(np.array([level[row, y, x], level[row, y + dy, x + dx]]) / 0.1)
                        of[dy, dx] = np.clip(heights[1] - heights[0], -3, 3)
                down, across = (of[1, 0] - of[-1, 0]) / 2, (of[0, 1] - of[0, -1]) / 2
                bends = (of[1, 0] + of[-1, 0]) / 2, (of[0, 1] + of[0, -1]) / 2
                expected = [*of.values(), *(b**2 for b in bends), down**2, across**2, down * across]
                np.testing.assert_allclose(found[row, 3 * y + x], expected, atol=1e-12)
