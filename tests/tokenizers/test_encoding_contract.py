"""What every tokenizer promises. The first half holds the defects that were reproduced in AION-1's codecs."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ObservationError, ScalarObservation, SpectrumObservation
from armillary.data.readers.desi import read_desi
from armillary.data.real_files import real_file
from armillary.data.stacking import stack

EVERY = (
    "image/legacysurvey",
    "image/hsc",
    "spectrum/desi",
    "spectrum/sdss",
    "scalar/redshift",
    "coefficients/gaia_bp_rp",
)
FIELDS = ("codes", "mask", "positions", "instrument")


def encode(tokenizers, observation):
    return tokenizers[observation.modality.kind].encode(observation)


def same(first, second):
    return all(torch.equal(getattr(first, f), getattr(second, f)) for f in FIELDS)


def valid(tokens, row):
    """Codes and positions of an object's valid tokens."""
    return tokens.codes[row][tokens.mask[row]], tokens.positions[row][tokens.mask[row]]


def image(shape, seed=0, **others):
    rng = np.random.default_rng(seed)
    flux = rng.normal(0, 0.1, (1, 4, *shape)).astype(np.float32)
    return ImageObservation(modality("image/legacysurvey"), ["a"], flux, "griz", **others)


def spectrum(wavelength, flux, mask=None, object_id=("a",)):
    ivar = np.full(np.shape(flux), 4.0)
    return SpectrumObservation(modality("spectrum/desi"), object_id, flux, wavelength, ivar, mask)


@pytest.mark.parametrize("name", EVERY)
def test_aion_defect_1_encoding_changes_no_input_array(tokenizers, sky, name):
    observation = sky[name]
    names = [f.name for f in fields(observation) if isinstance(getattr(observation, f.name), Tensor)]
    before = {field: getattr(observation, field).clone() for field in names}
    encode(tokenizers, observation)
    for field, value in before.items():
        assert np.array_equal(value, getattr(observation, field), equal_nan=value.is_floating_point()), field


@pytest.mark.parametrize("kind", ["image", "spectrum", "scalar"])
def test_aion_defect_1_the_arrays_of_the_caller_are_left_alone(tokenizers, kind):
    rng = np.random.default_rng(1)
    shape = {"image": (2, 4, 16, 16), "spectrum": (2, 300), "scalar": (2,)}[kind]
    values, mask = rng.uniform(0.1, 0.4, shape).astype(np.float32), rng.random(shape) > 0.2
    mask.reshape(2, -1)[:, 0] = True
    values[~mask] = np.nan
    kept = values.copy(), mask.copy()
    if kind == "image":
        observation = ImageObservation(modality("image/legacysurvey"), "ab", values, "griz", mask=mask)
    elif kind == "spectrum":
        observation = spectrum(np.linspace(4000, 9000, 300), values, mask, "ab")
    else:
        observation = ScalarObservation(modality("scalar/redshift"), "ab", values, mask)
    encode(tokenizers, observation)
    assert np.array_equal(kept[0], values, equal_nan=True)
    assert np.array_equal(kept[1], mask)


@pytest.mark.parametrize("name", EVERY)
def test_aion_defect_1_encoding_twice_gives_the_same_tokens(tokenizers, sky, name):
    assert same(encode(tokenizers, sky[name]), encode(tokenizers, sky[name]))


@pytest.mark.parametrize("shape", [(64, 64), (45, 50), (7, 9), (1, 1)])
def test_aion_defect_2_an_image_of_any_size_gives_all_its_tokens(image_tokenizer, shape):
    observation = image(shape)
    tokens = image_tokenizer.encode(observation)
    back = image_tokenizer.decode(tokens, observation)
    assert back.flux.shape == observation.flux.shape
    assert back.mask.all()
    assert back.flux.isfinite().all()


@pytest.mark.parametrize("kind", ["image", "spectrum", "scalar"])
def test_aion_defect_3_a_nan_is_an_error_that_names_the_object(kind):
    flux = torch.zeros(1, 4, 8, 8)
    flux[0, 2, 3, 3] = torch.nan
    make = {
        "image": lambda: ImageObservation(modality("image/legacysurvey"), ["galaxy-7"], flux, "griz"),
        "spectrum": lambda: spectrum(np.linspace(4000, 9000, 10), [[1.0] * 9 + [np.nan]], object_id=["galaxy-7"]),
        "scalar": lambda: ScalarObservation(modality("scalar/redshift"), ["galaxy-7"], [np.nan]),
    }
    with pytest.raises(ObservationError, match="object galaxy-7"):
        make[kind]()


@pytest.mark.parametrize("kind", ["image", "spectrum"])
def test_aion_defect_3_masked_nan_pixels_give_tokens_in_the_vocabulary(tokenizers, sky, kind):
    observation = sky["image/hsc" if kind == "image" else "spectrum/desi"]
    mask = observation.mask & (torch.rand(observation.mask.shape, generator=torch.Generator().manual_seed(0)) > 0.3)
    flux = torch.where(mask, observation.flux, torch.nan)
    ivar = torch.where(mask, observation.inverse_variance, torch.nan)
    arguments = {"object_id": observation.object_id, "flux": flux, "inverse_variance": ivar, "mask": mask}
    if kind == "image":
        spoiled = ImageObservation(observation.modality, bands=observation.bands, **arguments)
    else:
        wavelength = torch.where(mask, observation.wavelength, torch.nan)
        spoiled = SpectrumObservation(observation.modality, wavelength=wavelength, **arguments)
    tokens = encode(tokenizers, spoiled)
    assert tokens.codes.min() >= 0
    assert tokens.codes.max() < tokenizers[kind].vocabulary_size(observation.modality)
    back = tokenizers[kind].decode(tokens, spoiled)
    assert back.flux[back.mask].isfinite().all()


def test_aion_defect_3_a_missing_scalar_is_masked_and_never_the_brightest_bin(scalar_tokenizer):
    missing = ScalarObservation(modality("scalar/redshift"), ["a", "b"], [np.nan, 0.2], [False, True])
    tokens = scalar_tokenizer.encode(missing)
    assert tokens.mask[:, 0].tolist() == [False, True]
    assert tokens.codes[0, 0] == 0
    assert scalar_tokenizer.decode(tokens).mask.tolist() == [False, True]


def test_aion_defect_4_encoding_drops_no_part_of_a_large_image(image_tokenizer):
    observation = image((192, 192))
    assert image_tokenizer.decode(image_tokenizer.encode(observation), observation).mask.all()


def test_aion_defect_4_every_valid_pixel_of_a_spectrum_lies_in_a_valid_token(spectrum_tokenizer, sky):
    observation = sky["spectrum/desi"]
    back = spectrum_tokenizer.decode(spectrum_tokenizer.encode(observation), observation)
    assert back.mask[observation.mask].all()


def test_aion_defect_5_zero_padded_wavelengths_are_an_error(sky):
    grid = np.concatenate([np.linspace(4000, 9000, 400), np.zeros(50)])
    with pytest.raises(
        ObservationError, match=r"object a: wavelength must be finite and positive.*pixel 400.*mask=False"
    ):
        spectrum(grid, np.ones((1, 450)))


def test_aion_defect_5_masked_padding_gives_the_tokens_of_the_unpadded_spectrum(spectrum_tokenizer):
    rng = np.random.default_rng(0)
    grid, flux = np.linspace(4000, 9000, 400), rng.normal(1, 0.5, (1, 400)).astype(np.float32)
    plain = spectrum(grid, flux)
    padded = spectrum(np.pad(grid, (0, 50)), np.pad(flux, ((0, 0), (0, 50))), np.arange(450)[None] < 400)
    assert same(spectrum_tokenizer.encode(plain), spectrum_tokenizer.encode(padded))
    assert len(spectrum_tokenizer.encode(plain).codes.unique()) > 5


def test_aion_defect_6_images_of_many_sizes_and_bands_have_in_a_batch_the_codes_they_have_alone(image_tokenizer, sky):
    parts = [
        sky["image/hsc"].select([0, 1]),
        crop(sky["image/hsc"].select([2]), 17, 23, range(5)),
        crop(sky["image/hsc"].select([3]), 32, 8, (1, 3)),
        crop(sky["image/hsc"].select([4]), 7, 9, (4,)),
    ]
    together = image_tokenizer.encode(stack(parts))
    assert together.codes.max() < image_tokenizer.vocabulary_size(parts[0].modality)
    assert (together.codes[~together.mask] == 0).all()
    alone = [image_tokenizer.encode(part.select([row])) for part in parts for row in range(len(part))]
    for row, tokens in enumerate(alone):
        for in_batch, by_itself in zip(valid(together, row), valid(tokens, 0), strict=True):
            assert torch.equal(in_batch, by_itself)


def crop(observation, height, width, bands):
    bands = list(bands)
    pixels = {
        name: getattr(observation, name)[:, bands, :height, :width] for name in ("flux", "inverse_variance", "mask")
    }
    return replace(
        observation,
        bands=tuple(observation.bands[b] for b in bands),
        psf_fwhm=observation.psf_fwhm[:, bands],
        depth=observation.depth[:, bands],
        **pixels,
    )


def test_aion_defect_6_spectra_of_many_lengths_have_in_a_batch_the_codes_they_have_alone(spectrum_tokenizer, sky):
    whole = sky["spectrum/sdss"]
    names = ("flux", "wavelength", "inverse_variance", "mask", "resolving_power")
    parts = [
        replace(whole.select([row]), **{n: getattr(whole, n)[row : row + 1, start:stop] for n in names})
        for row, (start, stop) in enumerate([(0, 3000), (500, 3600), (1000, 1900)])
    ]
    together = spectrum_tokenizer.encode(stack(parts))
    alone = [spectrum_tokenizer.encode(part) for part in parts]
    assert torch.equal(together.codes, torch.cat([a.codes for a in alone]))
    assert torch.equal(together.mask, torch.cat([a.mask for a in alone]))
    assert len({int(a.mask.sum()) for a in alone}) > 1
    assert (together.codes[~together.mask] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_codes_of_a_batch_are_those_of_its_objects_one_by_one(tokenizers, sky, name):
    together = encode(tokenizers, sky[name])
    for row in range(len(sky[name])):
        alone = encode(tokenizers, sky[name].select([row]))
        assert torch.equal(alone.codes[0], together.codes[row])
        assert torch.equal(alone.mask[0], together.mask[row])


@pytest.mark.parametrize("name", EVERY)
def test_valid_codes_lie_in_the_vocabulary_and_features_describe_each(tokenizers, sky, name):
    tokenizer, tokens = tokenizers[sky[name].modality.kind], encode(tokenizers, sky[name])
    size = tokenizer.vocabulary_size(sky[name].modality)
    assert tokens.codes.min() >= 0
    assert tokens.codes.max() < size
    features = tokenizer.code_features(sky[name].modality)
    assert features.shape[0] == size
    assert len(features.unique(dim=0)) == size
    numbers = tokenizer.code_numbers(sky[name].modality)
    assert numbers.shape[0] == size
    assert numbers.isfinite().all()
    assert numbers.any()


@pytest.mark.parametrize(("name", "expected"), [("image/hsc", math.log(4) / 2), ("spectrum/desi", math.log10(4))])
def test_the_numbers_that_are_read_of_codes_rise_with_the_light(tokenizers, sky, name, expected):
    observation = sky[name]
    brighter = replace_pixels(observation, observation.mask, 4 * observation.flux, observation.inverse_variance / 16)
    tokenizer = tokenizers[observation.modality.kind]
    numbers = tokenizer.code_numbers(observation.modality)
    assert len(numbers) == tokenizer.vocabulary_size(observation.modality)
    first, second = (numbers[tokenizer.encode(given).codes] for given in (observation, brighter))
    # The last column but one of a spectrum's, the last of an image's: of the amplitude, and of the bands.
    column = 1 if name.startswith("spectrum") else 3
    has = (first[..., column - 1] == 1) & (second[..., column - 1] == 1)
    rise = (second - first)[has][:, column]
    assert has.any(1).all()
    # arcsinh is no logarithm for light near the noise.
    assert rise.median().item() == pytest.approx(expected, abs=0.05)
    assert (rise > 0).all()


@pytest.mark.parametrize("name", ["image/legacysurvey", "image/hsc", "spectrum/desi", "spectrum/sdss"])
def test_masked_pixels_change_no_token(tokenizers, sky, name):
    observation = sky[name]
    generator = torch.Generator().manual_seed(4)
    mask = observation.mask & (torch.rand(observation.mask.shape, generator=generator) > 0.2)
    noise = 1e3 * torch.randn(mask.shape, generator=generator)
    first = replace_pixels(observation, mask, observation.flux, observation.inverse_variance)
    second = replace_pixels(
        observation,
        mask,
        torch.where(mask, observation.flux, noise),
        torch.where(mask, observation.inverse_variance, noise.abs()),
    )
    assert same(encode(tokenizers, first), encode(tokenizers, second))
    whole = encode(tokenizers, observation)
    assert not torch.equal(whole.codes, encode(tokenizers, first).codes)  # so the comparison can fail


def replace_pixels(observation, mask, flux, ivar):
    others = {"object_id": observation.object_id, "flux": flux, "inverse_variance": ivar, "mask": mask}
    if observation.modality.kind == "image":
        return ImageObservation(observation.modality, bands=observation.bands, **others)
    return SpectrumObservation(observation.modality, wavelength=observation.wavelength, **others)


def test_a_real_desi_spectrum_goes_from_its_file_to_tokens_and_back(spectrum_tokenizer, sky):
    observation = read_desi(real_file("desi-coadd-4-80613.fits"))
    tokens = spectrum_tokenizer.encode(observation)
    assert (
        tokens.codes.shape == spectrum_tokenizer.encode(sky["spectrum/sdss"].select([0] * len(observation))).codes.shape
    )
    assert tokens.mask.any(1).all()
    back = spectrum_tokenizer.decode(tokens, observation)
    assert back.object_id == observation.object_id
    assert torch.equal(back.wavelength, observation.wavelength)
    assert back.mask[observation.mask].all()
    assert back.flux.isfinite().all()
