"""Brightness tokens: what they measure, what they are blind to, and what decoding makes of them."""

import numpy as np
import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation
from armillary.tokenizers.brightness import (
    RANGE,
    SOFTENING,
    WEIGHT_SIGMA,
    brightness_codes,
    measure_brightness,
)

HSC = modality("image/hsc")


def image(flux, bands="grizy", **others):
    return ImageObservation(HSC, [f"object-{i}" for i in range(len(flux))], flux, bands, **others)


def test_brightness_equals_a_slow_weighted_mean():
    rng = np.random.default_rng(0)
    flux = rng.normal(0.1, 0.3, (2, 5, 21, 26)).astype(np.float32)
    mask = rng.random(flux.shape) > 0.2
    center = np.array([[9.0, 12.5], [3.0, 20.0]])
    values, measured = measure_brightness(image(flux, mask=mask, center=center))
    assert measured.all()
    for row in range(2):
        for band in range(5):
            total = weights = 0.0
            for y in range(21):
                for x in range(26):
                    distance = np.hypot(y - center[row, 0], x - center[row, 1]) * HSC.card.pixel_scale
                    weight = np.exp(-(distance**2) / (2 * WEIGHT_SIGMA**2)) * mask[row, band, y, x]
                    total, weights = total + weight * flux[row, band, y, x], weights + weight
            expected = np.arcsinh(total / weights / HSC.card.pixel_scale**2 / SOFTENING)
            assert values[row, band].item() == pytest.approx(expected, abs=1e-4)


def test_bands_that_were_not_observed_or_hardly_covered_are_not_measured():
    flux = torch.ones(1, 2, 40, 40)
    mask = torch.ones(1, 2, 40, 40, dtype=torch.bool)
    mask[0, 1, 5:] = False
    values, measured = measure_brightness(image(flux, bands="iz", mask=mask))
    assert measured.tolist() == [[False, False, True, False, False]]
    assert (values[~measured] == 0).all()


def test_the_same_source_has_nearly_the_same_brightness_through_two_cameras():
    def source(name):
        card = modality(name).card
        y, x = np.mgrid[:64, :64]
        distance = np.hypot(y - 31.5, x - 31.5) * card.pixel_scale
        flux = 20 * np.exp(-(distance**2) / (2 * 2.0**2)) / (2 * np.pi * 2.0**2) * card.pixel_scale**2
        pixels = np.broadcast_to(flux, (1, 1, 64, 64)).astype(np.float32)
        return measure_brightness(ImageObservation(modality(name), ["a"], pixels, "r"))[0][0, 1].item()

    assert source("image/hsc") == pytest.approx(source("image/legacysurvey"), abs=0.03)


def test_codes_are_even_bins_and_the_outer_ones_hold_what_lies_beyond():
    low, high = RANGE
    edges = low + (high - low) * torch.arange(257) / 256
    assert torch.equal(brightness_codes((edges[:-1] + 1e-3)[None], 256)[0], torch.arange(256))
    assert torch.equal(brightness_codes((edges[1:] - 1e-3)[None], 256)[0], torch.arange(256))
    assert brightness_codes(torch.tensor([[-1e9, 1e9, torch.inf]]), 256).tolist() == [[0, 255, 255]]


@pytest.mark.parametrize("flux", [1e30, 3e38])
def test_an_absurdly_bright_image_never_gets_a_faint_code(flux):
    pixels = np.full((1, 1, 16, 16), flux, np.float32)
    values, _ = measure_brightness(ImageObservation(modality("image/legacysurvey"), ["a"], pixels, "r"))
    assert brightness_codes(values, 256)[0, 1] == 255


def test_scaling_an_image_moves_its_brightness_codes_by_the_logarithm(image_tokenizer, sky):
    observation = sky["image/legacysurvey"]
    brighter = ImageObservation(
        observation.modality, observation.object_id, observation.flux * 10, observation.bands, mask=observation.mask
    )
    size = image_tokenizer.settings.num_brightnesses
    first, second = (image_tokenizer.encode(o).codes[:, :4] for o in (observation, brighter))
    settings = image_tokenizer.settings
    offset = image_tokenizer.planes.vocabulary_size + settings.num_patch_brightnesses
    bright = first - offset > size * (5 - RANGE[0]) / (RANGE[1] - RANGE[0])
    assert bright.any()
    moved = (second - first)[bright].float() * (RANGE[1] - RANGE[0]) / size
    assert moved.mean().item() == pytest.approx(np.log(10), abs=0.03)
