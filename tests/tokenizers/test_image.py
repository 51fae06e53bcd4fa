"""Images to tokens and back, as the same camera or another one sees them."""

import math
from dataclasses import replace

import pytest
import torch

from armillary.data.modalities import Modality, modality
from armillary.data.observations import ImageObservation, ObservationError
from armillary.data.stacking import stack
from armillary.tokenizers.image import ImageTokenizerSettings
from armillary.tokenizers.point_sources import num_source_tokens
from armillary.tokenizers.token_grid import DETAIL

from .conftest import small_image_tokenizer


def test_tokens_stand_at_their_bands_and_at_the_middles_of_their_patches(image_tokenizer):
    """Twelve HSC pixels make a patch of two arcsec, and the object lies in the middle of one."""
    center = torch.tensor([[5.5, 17.5], [12.0, 0.0]])
    observation = ImageObservation(modality("image/hsc"), "ab", torch.zeros(2, 5, 13, 26), "grizy", center=center)
    tokens = image_tokenizer.encode(observation)
    num_details = image_tokenizer.settings.num_details
    rows, columns = 3, 4
    of_sources = num_source_tokens(image_tokenizer.settings.num_point_sources, 5)
    assert tokens.num_tokens == 5 + rows * columns * (1 + num_details) + of_sources
    assert (
        tokens.positions[:, :5].tolist()
        == [[[0, 0, pytest.approx(math.log(band.wavelength)), 0] for band in observation.card.bands]] * 2
    )
    patches = tokens.positions[:, 5:-of_sources].view(2, 1 + num_details, rows, columns, 4)
    scale = observation.card.pixel_scale
    x, y = torch.tensor([-12.0, 0, 12, 24]) * scale, torch.tensor([0.0, 12, 24]) * scale
    assert torch.allclose(patches[0, ..., 0], x.expand(1 + num_details, rows, columns), atol=1e-5)
    assert torch.allclose(patches[0, ..., 1], y[:, None].expand(1 + num_details, rows, columns), atol=1e-5)
    # An object in the middle of a pixel lies half a pixel off the middle of a patch of an even number of them.
    offset = patches[1, 0, :, :, :2].abs().amin((0, 1))
    assert torch.allclose(offset, torch.full((2,), scale / 2), atol=1e-5)
    assert torch.equal(patches[..., 3], torch.arange(1.0 + num_details)[:, None, None].expand(2, -1, rows, columns))


def test_instrument_numbers_are_those_of_the_card(image_tokenizer, sky):
    tokens = image_tokenizer.encode(sky["image/hsc"])
    assert torch.equal(tokens.instrument, torch.from_numpy(modality("image/hsc").card.features()).expand(6, -1))


def test_decoding_as_another_camera_gives_its_bands_and_pixels_over_the_same_sky(image_tokenizer, sky):
    tokens = image_tokenizer.encode(sky["image/legacysurvey"])
    other = modality("image/hsc")
    back = image_tokenizer.decode(tokens, other)
    assert back.modality == other
    assert back.bands == tuple("grizy")
    size = math.floor(24 * modality("image/legacysurvey").card.pixel_scale / other.card.pixel_scale)
    assert back.flux.shape == (6, 5, size, size)
    assert back.mask.all()
    assert back.flux.isfinite().all()


def test_light_keeps_its_place_and_amount_when_another_camera_renders_it(image_tokenizer, sky):
    """The flux within four arcsec of the object, seen by one camera and rendered as the other would see it."""
    legacy, hsc = sky["image/legacysurvey"], sky["image/hsc"]
    rendered = image_tokenizer.decode(image_tokenizer.encode(legacy), hsc)
    bands = [1, 2, 3]  # r, i, z, which both have at about the same wavelengths
    scale = hsc.card.pixel_scale
    middle = (torch.arange(32) - 15.5) * scale
    inside = middle[:, None] ** 2 + middle**2 < 2**2
    seen = (hsc.flux * hsc.mask)[:, bands][..., inside].sum(-1)
    found = (rendered.flux * hsc.mask)[:, bands][..., inside].sum(-1)
    assert ((found - seen).abs() / seen).median() < 0.1


def test_decoding_onto_an_observation_takes_its_size_bands_and_centre(image_tokenizer, sky):
    tokens = image_tokenizer.encode(sky["image/legacysurvey"])
    center = torch.tensor([4.0, 6.0]).expand(6, 2)
    target = ImageObservation(
        modality("image/hsc"), sky["image/hsc"].object_id, torch.zeros(6, 2, 11, 15), "zg", center=center
    )
    back = image_tokenizer.decode(tokens, target)
    assert back.flux.shape == (6, 2, 11, 15)
    assert back.bands == ("z", "g")
    assert torch.equal(back.center, center)


def test_pixels_that_no_token_covers_are_masked(image_tokenizer, sky):
    tokens = image_tokenizer.encode(sky["image/legacysurvey"])
    wide = ImageObservation(
        modality("image/legacysurvey"), sky["image/hsc"].object_id, torch.zeros(6, 4, 40, 30), "griz"
    )
    expected = torch.zeros(40, 30, dtype=torch.bool)
    expected[8:32, 3:27] = True
    back = image_tokenizer.decode(tokens, wide)
    assert torch.equal(back.mask, expected.expand(6, 4, 40, 30))


def test_the_same_pixels_are_rendered_whatever_part_of_the_grid_is_wanted(image_tokenizer, sky):
    whole = sky["image/legacysurvey"]
    tokens = image_tokenizer.encode(whole)
    part = ImageObservation(
        whole.modality,
        whole.object_id,
        torch.zeros(6, 4, 9, 12),
        whole.bands,
        psf_fwhm=whole.psf_fwhm,
        depth=whole.depth,
        center=whole.center - torch.tensor([5.0, 2.0]),
    )
    everywhere = image_tokenizer.decode(tokens, whole).flux
    assert torch.allclose(image_tokenizer.decode(tokens, part).flux, everywhere[:, :, 5:14, 2:14], atol=1e-5)


def test_a_padded_batch_is_decoded_as_its_images_are_alone(image_tokenizer, sky):
    small = ImageObservation(
        modality("image/hsc"),
        ["small"],
        sky["image/hsc"].flux[:1, :2, :9, :14],
        "gr",
        sky["image/hsc"].inverse_variance[:1, :2, :9, :14],
    )
    both = stack([sky["image/hsc"].select([1]), small])
    back = image_tokenizer.decode(image_tokenizer.encode(both), both)
    alone = image_tokenizer.decode(image_tokenizer.encode(small), small)
    assert back.flux.shape == (2, 5, 32, 32)
    assert torch.allclose(back.flux[1, :2, :9, :14], alone.flux[0], atol=1e-5)
    # The pixels of the patches that hold the small image: rows -1 to 10, columns -11 to 24.
    assert not back.mask[1, :, 11:].any()
    assert not back.mask[1, :, :, 25:].any()


def test_light_beyond_the_bands_of_one_object_does_not_depend_on_those_of_another(image_tokenizer, sky):
    hsc = sky["image/hsc"]
    whole = hsc.select([0])
    blue = ImageObservation(
        hsc.modality, ["b"], hsc.flux[1:2, :2], hsc.bands[:2], hsc.inverse_variance[1:2, :2], hsc.mask[1:2, :2],
        psf_fwhm=hsc.psf_fwhm[1:2, :2],
    )  # fmt: skip
    target = modality("image/legacysurvey")

    together = image_tokenizer.decode(image_tokenizer.encode(stack([whole, blue])), target)

    for row, part in enumerate((whole, blue)):
        alone = image_tokenizer.decode(image_tokenizer.encode(part), target)
        largest = alone.flux.abs().max()
        assert torch.allclose(together.flux[row], alone.flux[0], atol=1e-4 * largest)


def test_bands_may_come_in_any_order(image_tokenizer, sky):
    observation = sky["image/hsc"]
    order = [3, 0, 4, 2, 1]
    turned = ImageObservation(
        observation.modality,
        observation.object_id,
        observation.flux[:, order],
        [observation.bands[i] for i in order],
        observation.inverse_variance[:, order],
        observation.mask[:, order],
        psf_fwhm=observation.psf_fwhm[:, order],
        depth=observation.depth[:, order],
    )
    assert torch.equal(image_tokenizer.encode(turned).codes, image_tokenizer.encode(observation).codes)


def test_the_loss_ignores_masked_pixels_and_has_a_gradient_for_every_weight(image_tokenizer, sky):
    observation = sky["image/legacysurvey"]
    mask = observation.mask.clone()
    mask[:, :, 5:9, 5:9] = False
    losses = []
    for spoil in (0.0, 50.0):
        flux = torch.where(mask, observation.flux, spoil)
        spoiled = ImageObservation(
            observation.modality, observation.object_id, flux, observation.bands, observation.inverse_variance, mask
        )
        torch.manual_seed(0)  # of the details that are dropped
        losses.append(image_tokenizer.loss(spoiled).loss)
    assert losses[0] == losses[1]
    gradients = torch.autograd.grad(losses[0], list(image_tokenizer.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_a_few_steps_on_one_batch_bring_the_loss_down(sky):
    tokenizer = small_image_tokenizer(sky, lively=False).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = tokenizer.loss(sky["image/legacysurvey"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


def test_what_lies_below_the_noise_has_no_details(image_tokenizer, sky):
    """The same galaxies under a hundred times the noise need fewer tokens, and pure noise hardly any."""
    clean = sky["image/legacysurvey"]
    rng = torch.Generator().manual_seed(0)
    deviation = clean.inverse_variance.clamp(min=1e-9).rsqrt()
    noise = torch.randn(clean.flux.shape, generator=rng) * deviation

    def details(flux, ivar):
        observation = ImageObservation(clean.modality, clean.object_id, flux, clean.bands, ivar, clean.mask)
        return image_tokenizer.encode(observation).mask[:, 4 + 16 :].sum().item()

    bright = details(clean.flux, clean.inverse_variance)
    faint = details(clean.flux + 99 * noise, clean.inverse_variance / 1e4)
    nothing = details(noise, clean.inverse_variance)
    assert bright > 60
    assert faint < 0.5 * bright
    assert nothing < 0.2 * bright


@pytest.mark.parametrize("signal", [1e3, 1e4, 1e6])
def test_light_far_beyond_all_that_was_seen_stays_within_its_bounds(image_tokenizer, signal):
    """A blob that is no point source, however bright: digits reach only so far, and must not run off."""
    hsc = modality("image/hsc")
    blank = ImageObservation(hsc, ["a"], torch.zeros(1, 5, 36, 36), "grizy")
    y, x = torch.meshgrid(torch.arange(36) - 17.5, torch.arange(36) - 17.5, indexing="ij")
    blob = torch.exp(-0.5 * ((x / 2) ** 2 + (y / 4) ** 2))
    flux = signal * blank.noise()[..., None, None] * blob
    observation = ImageObservation(hsc, ["a"], flux, "grizy")

    back = image_tokenizer.decode(image_tokenizer.encode(observation), observation)

    assert back.flux.isfinite().all()
    assert ((back.flux - flux).abs().amax((2, 3)) < flux.amax((2, 3))).all()


def test_more_details_bring_chi2_nearer_to_that_of_the_noise(image_tokenizer, sky):
    observation = sky["image/hsc"]
    tokens = image_tokenizer.encode(observation)
    errors = []
    for most in (0, 1, 3, 6):
        kept = replace(tokens, mask=tokens.mask & (tokens.positions[..., 3] <= most))
        back = image_tokenizer.decode(kept, observation)
        square = (back.flux - observation.flux).square() * observation.inverse_variance
        errors.append(square[observation.mask].mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 * errors[0]


@pytest.mark.parametrize("tilt", [-0.6, 0.6])
def test_without_details_patches_have_the_colours_of_their_object(image_tokenizer, tilt):
    hsc = modality("image/hsc")
    blank = ImageObservation(hsc, ["a"], torch.zeros(1, 5, 48, 48), "grizy")
    y, x = torch.meshgrid(torch.arange(48) - 23.5, torch.arange(48) - 23.5, indexing="ij")
    shape = torch.exp(-torch.hypot(x, y) / 6)
    wavelength = torch.tensor([band.wavelength for band in hsc.card.bands])
    colours = (wavelength / 7000) ** (1 + 2 * tilt)
    image = ImageObservation(hsc, ["a"], (0.1 * colours[:, None, None] * shape)[None], "grizy")
    tokens = image_tokenizer.encode(image)
    plain = replace(tokens, mask=tokens.mask & (tokens.positions[..., DETAIL] <= 0))
    assert plain.mask.sum() < tokens.mask.sum()

    light = image_tokenizer.decode(plain, blank).flux[0].sum((1, 2))

    ratio = light / image.flux[0].sum((1, 2))
    assert (ratio / ratio.mean() - 1).abs().max() < 0.05


def test_fewer_details_are_the_first_ones_and_no_other_number_is_decoded(image_tokenizer, sky):
    observation = sky["image/hsc"]
    tokens = image_tokenizer.encode(observation)

    fewer = image_tokenizer.with_details(2)
    short = fewer.encode(observation)

    kept = tokens.positions[0, :, 3] <= 2
    for name in ("codes", "mask", "positions"):
        assert torch.equal(getattr(short, name), getattr(tokens, name)[:, kept]), name
    only_first = replace(tokens, mask=tokens.mask & kept)
    assert torch.equal(fewer.decode(short).flux, image_tokenizer.decode(only_first).flux)
    with pytest.raises(ObservationError, match=r"expected 6 details .* 8 point sources, found 2 and 8"):
        image_tokenizer.decode(short)
    with pytest.raises(ValueError, match="at most 6 details, found 7"):
        image_tokenizer.with_details(7)


@pytest.mark.parametrize(("wavelength", "named"), [(2500.0, "2500 A"), (33500.0, "33500 A")])
def test_a_band_beyond_the_range_is_an_error_that_names_it_and_the_object(image_tokenizer, wavelength, named):
    card = modality("image/hsc").card
    band = card.bands[0].model_copy(update={"wavelength": wavelength})
    far = Modality("image/far", card.model_copy(update={"bands": (band,)}))
    observation = ImageObservation(far, ["m31"], torch.zeros(1, 1, 8, 8), ["g"])
    with pytest.raises(ObservationError, match=f"object m31: .* from 3000 to 11500 A; hsc g lies at {named}"):
        image_tokenizer.encode(observation)


def test_a_patch_too_bright_for_any_survey_is_an_error_that_names_the_object(image_tokenizer):
    flux = torch.zeros(2, 1, 8, 8)
    flux[1] = 1e7
    observation = ImageObservation(modality("image/hsc"), ["vega", "sirius"], flux, ["g"])
    with pytest.raises(ObservationError, match="object sirius: the mean brightness of a patch must lie in"):
        image_tokenizer.encode(observation)


def test_images_decode_to_images_of_as_many_objects_only(image_tokenizer, sky):
    tokens = image_tokenizer.encode(sky["image/hsc"])
    with pytest.raises(ObservationError, match="images decode to images; found the target spectrum/desi"):
        image_tokenizer.decode(tokens, modality("spectrum/desi"))
    with pytest.raises(ObservationError, match="expected a target of 6 objects, found 2"):
        image_tokenizer.decode(tokens, sky["image/hsc"].select([0, 1]))


def test_a_vocabulary_beyond_int16_is_refused():
    with pytest.raises(ValueError, match="must not exceed 32768"):
        ImageTokenizerSettings(digits_per_token=7)
