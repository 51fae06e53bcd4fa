"""Properties of every tokenizer, whatever its insides: sizes, bands, order, wavelength grids, instruments.

Only the public contract is used (`tokenizers/token_grid.py`): codes, masks and positions, encode and decode.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armillary.data.instruments import Band
from armillary.data.modalities import Modality, modality
from armillary.data.observations import ImageObservation, SpectrumObservation
from armillary.data.stacking import stack

IMAGES, SPECTRA = ("image/legacysurvey", "image/hsc"), ("spectrum/desi", "spectrum/sdss")
EVERY = (*IMAGES, *SPECTRA, "scalar/redshift", "coefficients/gaia_bp_rp")
FIELDS = ("codes", "mask", "positions", "instrument")
PIXELS = ("flux", "wavelength", "inverse_variance", "mask", "resolving_power")
REACH = 10
"""Windows beyond which the edge of a spectrum may have no influence."""
few = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def encode(tokenizers, observation):
    return tokenizers[observation.modality.kind].encode(observation)


def assert_same(first, second):
    for field in FIELDS:
        assert torch.equal(getattr(first, field), getattr(second, field)), field


def assert_same_tokens(batch, row, alone):
    """The valid tokens of a batch's row are those of one object alone: codes, places and order."""
    assert torch.equal(batch.codes[row][batch.mask[row]], alone.codes[0][alone.mask[0]])
    assert torch.equal(batch.positions[row][batch.mask[row]], alone.positions[0][alone.mask[0]])


def made_image(name, height, width, bands, seed):
    """A blob on noise with a fifth of its pixels masked; at least one is valid."""
    rng = np.random.default_rng(seed)
    card = modality(name).card
    shape = (1, len(bands), height, width)
    blank = ImageObservation(modality(name), "a", np.zeros(shape, np.float32), bands)
    noise = blank.noise().numpy()[..., None, None]
    radius = np.hypot(*np.mgrid[:height, :width] - np.reshape([height / 2, width / 2], (2, 1, 1)))
    flux = noise * (rng.normal(size=shape) + 30 * np.exp(-radius * card.pixel_scale))
    mask = rng.random(shape) > 0.2
    mask[:, 0, 0, 0] = True
    return ImageObservation(modality(name), [f"{name} {seed}"], flux, bands, np.full(shape, 1) / noise**2, mask)


def made_spectrum(name, low, high, length, seed):
    """Noise about one on a grid of uneven steps, a fifth masked; at least one pixel is valid."""
    rng = np.random.default_rng(seed)
    wavelength = np.linspace(low, high, length) + rng.uniform(0, 0.4, length) * (high - low) / length
    flux, mask = rng.normal(1, 0.3, (1, length)), rng.random((1, length)) > 0.2
    mask[:, 0] = True
    return SpectrumObservation(modality(name), [f"{name} {seed}"], flux, wavelength, np.full((1, length), 11.0), mask)


SEEDS = st.integers(0, 99)


@st.composite
def image_shapes(draw, name):
    """Height, width, bands and seed for `made_image`."""
    bands = [band.name for band in modality(name).card.bands]
    chosen = draw(st.permutations(bands))[: draw(st.integers(1, len(bands)))]
    return draw(st.integers(1, 40)), draw(st.integers(1, 40)), chosen, draw(SEEDS)


@st.composite
def grids(draw):
    """First and last wavelength, length and seed for `made_spectrum`."""
    low = draw(st.floats(3700, 8000))
    return low, draw(st.floats(low + 10, 9700)), draw(st.integers(1, 400)), draw(SEEDS)


@pytest.mark.parametrize("name", IMAGES)
@few
@given(data=st.data())
def test_images_of_any_size_and_bands_go_to_tokens_and_back(image_tokenizer, name, data):
    observation = made_image(name, *data.draw(image_shapes(name)))
    tokens = image_tokenizer.encode(observation)
    assert ((tokens.codes >= 0) & (tokens.codes < image_tokenizer.vocabulary_size(observation.modality))).all()
    back = image_tokenizer.decode(tokens, observation)
    assert (back.modality, back.bands, back.object_id) == (observation.modality, observation.bands, tokens.object_id)
    assert back.flux.shape == observation.flux.shape
    assert back.mask[observation.mask].all()
    assert back.flux.isfinite().all()


@pytest.mark.parametrize("name", SPECTRA)
@few
@given(data=st.data())
def test_spectra_of_any_grid_go_to_tokens_and_back(spectrum_tokenizer, name, data):
    observation = made_spectrum(name, *data.draw(grids()))
    tokens = spectrum_tokenizer.encode(observation)
    assert ((tokens.codes >= 0) & (tokens.codes < spectrum_tokenizer.vocabulary_size(observation.modality))).all()
    back = spectrum_tokenizer.decode(tokens, observation)
    assert (back.modality, back.object_id) == (observation.modality, tokens.object_id)
    assert torch.equal(back.wavelength, observation.wavelength)
    assert back.mask[observation.mask].all()
    assert back.flux.isfinite().all()


@pytest.mark.parametrize("name", IMAGES)
@few
@given(data=st.data())
def test_images_of_any_sizes_and_bands_have_in_one_batch_the_tokens_they_have_alone(image_tokenizer, name, data):
    drawn = data.draw(st.lists(image_shapes(name), min_size=2, max_size=4))
    parts = [made_image(name, *shape) for shape in drawn]
    together = image_tokenizer.encode(stack(parts))
    for row, part in enumerate(parts):
        assert_same_tokens(together, row, image_tokenizer.encode(part))


@pytest.mark.parametrize("name", SPECTRA)
@few
@given(data=st.data())
def test_spectra_of_any_grids_have_in_one_batch_the_tokens_they_have_alone(spectrum_tokenizer, name, data):
    parts = [made_spectrum(name, *grid) for grid in data.draw(st.lists(grids(), min_size=2, max_size=4))]
    together = spectrum_tokenizer.encode(stack(parts))
    for row, part in enumerate(parts):
        assert_same_tokens(together, row, spectrum_tokenizer.encode(part))


def test_tokens_do_not_depend_on_what_was_encoded_before(tokenizers, sky):
    alone = {name: encode(copy.deepcopy(tokenizers), sky[name]) for name in EVERY}
    for name in [*EVERY, *reversed(EVERY), "image/hsc", "image/legacysurvey", "image/hsc"]:
        assert_same(encode(tokenizers, sky[name]), alone[name])


@pytest.mark.parametrize("name", EVERY)
def test_tokens_follow_their_objects_in_any_order(tokenizers, sky, name):
    rows = torch.tensor([4, 1, 1, 5, 0])
    whole = encode(tokenizers, sky[name])
    chosen = encode(tokenizers, sky[name].select(rows))
    assert chosen.object_id == whole.select(rows).object_id
    assert_same(chosen, whole.select(rows))


@pytest.mark.parametrize("name", EVERY)
def test_chosen_tokens_decode_to_the_chosen_objects(tokenizers, sky, name):
    observation, rows = sky[name], torch.tensor([3, 0])
    tokenizer, tokens = tokenizers[observation.modality.kind], encode(tokenizers, observation)
    target = observation.modality if observation.modality.kind == "scalar" else observation
    whole = tokenizer.decode(tokens, target)
    part = tokenizer.decode(tokens.select(rows), target if target is observation.modality else target.select(rows))
    assert part.object_id == tuple(observation.object_id[i] for i in rows)
    values = "values" if hasattr(whole, "values") else "flux"
    assert torch.allclose(getattr(part, values), getattr(whole, values)[rows], rtol=1e-4, atol=1e-5)
    assert torch.equal(part.mask, whole.mask[rows])


@pytest.mark.parametrize("band", range(4))
def test_a_masked_band_gives_the_tokens_of_an_image_without_it(image_tokenizer, sky, band):
    whole = sky["image/legacysurvey"]
    others = [b for b in range(4) if b != band]
    mask = whole.mask.clone()
    mask[:, band] = False
    masked = image_tokenizer.encode(replace(whole, mask=mask, flux=whole.flux + 1e3 * ~mask))
    names = ("flux", "inverse_variance", "mask", "psf_fwhm", "depth")
    fields = {name: getattr(whole, name)[:, others] for name in names}
    absent = image_tokenizer.encode(replace(whole, bands=[whole.bands[b] for b in others], **fields))
    assert_same(masked, absent)


def windows_from(tokenizer, tokens, wavelength):
    """How many windows each token's middle lies beyond a wavelength [B]; NaN for tokens without a place."""
    middles = tokens.positions[..., 2]
    width = tokenizer.grid.num_nodes * tokenizer.grid.node_width
    return torch.where(middles > 0, (middles - wavelength[:, None].log()) / width, torch.nan)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dropped", [1, 37, 150, 900])
def test_a_shift_of_the_grids_start_moves_the_edge_tokens_alone(fine_spectrum_tokenizer, sky, name, dropped):
    whole = sky[name]
    part = replace(whole, **{field: getattr(whole, field)[:, dropped:] for field in PIXELS})
    first, second = fine_spectrum_tokenizer.encode(whole), fine_spectrum_tokenizer.encode(part)
    distance = windows_from(fine_spectrum_tokenizer, first, part.wavelength[:, 0])
    far = (distance > REACH) | distance.isnan()  # the amplitude has no place: it must not move either
    assert far.sum() > 0.4 * far.numel()
    assert torch.equal(first.mask[far], second.mask[far])
    assert torch.equal(first.codes[far], second.codes[far])
    assert dropped < 100 or not torch.equal(first.codes, second.codes)  # so the comparison can fail


@pytest.mark.parametrize("name", SPECTRA)
def test_changed_pixels_move_the_tokens_about_them_alone(fine_spectrum_tokenizer, sky, name):
    whole = sky[name]
    pixel = whole.flux.shape[1] // 2
    flux = whole.flux.clone()
    flux[:, pixel : pixel + 20] *= -1
    first, second = (fine_spectrum_tokenizer.encode(o) for o in (whole, replace(whole, flux=flux)))
    distance = windows_from(fine_spectrum_tokenizer, first, whole.wavelength[:, pixel])
    # Of objects whose amplitude is the same: pixels may well move that, and with it all that is scaled by it.
    same = torch.where(distance.isnan(), first.codes == second.codes, True).all(1)
    far = (distance.abs() > REACH) & same[:, None]
    assert same.any()
    assert torch.equal(first.codes[far], second.codes[far])
    assert not torch.equal(first.codes[same], second.codes[same])


def with_card(observation, **changes):
    """The same pixels from an instrument that no registry knows."""
    card = observation.card.model_copy(update={"name": "made_up", **changes})
    return replace(observation, modality=Modality(f"{observation.modality.kind}/made_up", card))


def with_bands(observation, **factors):
    """The same pixels, with some numbers of every band's declaration multiplied."""
    bands = [b.model_copy(update={k: getattr(b, k) * f for k, f in factors.items()}) for b in observation.card.bands]
    return with_card(observation, bands=tuple(bands))


IMAGE_CHANGES = {
    "psf": lambda o: replace(o, psf_fwhm=1.7 * o.psf_fwhm),
    "pixel scale": lambda o: with_card(o, pixel_scale=1.6 * o.card.pixel_scale),
    "wavelength": lambda o: with_bands(o, wavelength=1.1),
    "width": lambda o: with_bands(o, width=0.4),
}
SPECTRUM_CHANGES = {
    "wavelength": lambda o: replace(o, wavelength=1.015 * o.wavelength),
    "resolving power": lambda o: replace(o, resolving_power=0.4 * o.resolving_power),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("change", IMAGE_CHANGES)
def test_what_the_camera_is_matters_to_the_codes_of_its_images(image_tokenizer, sky, name, change):
    known, other = sky[name], IMAGE_CHANGES[change](sky[name])
    assert torch.equal(known.flux, other.flux)
    assert not torch.equal(image_tokenizer.encode(known).codes, image_tokenizer.encode(other).codes)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("change", SPECTRUM_CHANGES)
def test_what_the_spectrograph_is_matters_to_the_codes_of_its_spectra(spectrum_tokenizer, sky, name, change):
    known, other = sky[name], SPECTRUM_CHANGES[change](sky[name])
    assert torch.equal(known.flux, other.flux)
    assert not torch.equal(spectrum_tokenizer.encode(known).codes, spectrum_tokenizer.encode(other).codes)


@pytest.mark.parametrize("change", ["psf", "wavelength"])
def test_what_the_wanted_camera_is_matters_to_the_pixels_it_is_given(image_tokenizer, sky, change):
    tokens = image_tokenizer.encode(sky["image/hsc"])
    known, other = (
        image_tokenizer.decode(tokens, o) for o in (sky["image/hsc"], IMAGE_CHANGES[change](sky["image/hsc"]))
    )
    assert other.flux.isfinite().all()
    assert not torch.allclose(known.flux, other.flux, rtol=1e-3, atol=1e-5)


def test_the_wanted_resolving_power_matters_to_the_pixels_it_is_given(spectrum_tokenizer, sky):
    known = sky["spectrum/desi"]
    tokens = spectrum_tokenizer.encode(known)
    fluxes = [spectrum_tokenizer.decode(tokens, o).flux for o in (known, SPECTRUM_CHANGES["resolving power"](known))]
    assert fluxes[1].isfinite().all()
    assert not torch.allclose(*fluxes, rtol=1e-3, atol=1e-4)


def camera(pixel_scale, wavelengths):
    bands = [Band(name=f"b{w:.0f}", wavelength=float(w), width=900.0, psf_fwhm=1.1, depth=24.0) for w in wavelengths]
    card = modality("image/hsc").card.model_copy(
        update={"name": "made_up", "pixel_scale": pixel_scale, "bands": tuple(bands)}
    )
    return Modality("image/made_up", card)


def spectrograph(low, high, sampling, step, power):
    numbers = {"wavelength_min": low, "wavelength_max": high, "sampling": sampling, "step": step}
    update = {"name": "made_up", "resolving_power": ((low, power), (high, power)), **numbers}
    return Modality("spectrum/made_up", modality("spectrum/desi").card.model_copy(update=update))


CAMERAS = [camera(0.41, [5200]), camera(0.11, [4500, 6000, 7100, 8000, 8800, 9500])]
SPECTROGRAPHS = [
    spectrograph(4000.0, 9000.0, "log10", 2e-4, 1500.0),
    spectrograph(5000.0, 5600.0, "linear", 0.3, 6000.0),
]


@pytest.mark.parametrize("wanted", CAMERAS)
@pytest.mark.parametrize("name", IMAGES)
def test_images_decode_as_a_camera_that_no_registry_knows(image_tokenizer, sky, name, wanted):
    source = sky[name]
    back = image_tokenizer.decode(image_tokenizer.encode(source), wanted)
    assert (back.modality, back.object_id) == (wanted, source.object_id)
    assert back.bands == tuple(band.name for band in wanted.card.bands)
    extent = [n * source.card.pixel_scale for n in source.flux.shape[2:]]
    for pixels, arcsec in zip(back.flux.shape[2:], extent, strict=True):
        assert 0 <= pixels * wanted.card.pixel_scale - arcsec + wanted.card.pixel_scale <= arcsec
    assert back.flux.isfinite().all()
    assert torch.equal(back.psf_fwhm, torch.full(back.psf_fwhm.shape, 1.1))


@pytest.mark.parametrize("wanted", SPECTROGRAPHS)
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_decode_as_a_spectrograph_that_no_registry_knows(spectrum_tokenizer, sky, name, wanted):
    source = sky[name]
    back = spectrum_tokenizer.decode(spectrum_tokenizer.encode(source), wanted)
    grid = wanted.card.wavelength()
    assert (back.modality, back.object_id) == (wanted, source.object_id)
    assert np.array_equal(back.wavelength, np.tile(grid, (len(source), 1)))
    inside = (grid > source.wavelength[0, 60].item()) & (grid < source.wavelength[0, -60].item())
    assert back.mask[:, inside].all()
    assert back.flux.isfinite().all()


@pytest.mark.parametrize("unknown", [*CAMERAS, *SPECTROGRAPHS])
def test_an_instrument_that_no_registry_knows_goes_to_tokens_with_its_numbers(tokenizers, unknown):
    rng = np.random.default_rng(0)
    if unknown.kind == "image":
        names = [band.name for band in unknown.card.bands]
        observation = ImageObservation(unknown, "ab", rng.normal(0, 1, (2, len(names), 20, 31)), names)
    else:
        grid = unknown.card.wavelength()
        flux = rng.normal(2, 1, (2, len(grid)))
        observation = SpectrumObservation(unknown, "ab", flux, grid, np.ones_like(flux))
    tokens = encode(tokenizers, observation)
    assert torch.equal(tokens.instrument, torch.from_numpy(unknown.card.features()).expand(2, -1))
    assert ((tokens.codes >= 0) & (tokens.codes < tokenizers[unknown.kind].vocabulary_size(unknown))).all()
    back = tokenizers[unknown.kind].decode(tokens)
    assert back.modality == unknown
    assert back.flux.isfinite().all()
    assert math.isfinite(back.inverse_variance.max())
