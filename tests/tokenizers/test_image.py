"""Images to tokens and back, as the same camera or another one sees them."""

import math

import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ObservationError, stack
from armillary.tokenizers.image import ImageTokenizer, ImageTokenizerSettings


def test_positions_are_the_offsets_of_the_patches_middles_in_arcsec(image_tokenizer):
    center = torch.tensor([[3.0, 7.5], [12.0, 0.0]])
    observation = ImageObservation(modality("image/hsc"), "ab", torch.zeros(2, 5, 13, 20), "grizy", center=center)
    tokens = image_tokenizer.encode(observation)
    scale = observation.card.pixel_scale
    for row in range(2):
        place = len(observation.card.bands)
        for top in (0, 8):
            for left in (0, 8, 16):
                y = sum(range(top, top + 8)) / 8 - center[row, 0].item()
                x = sum(range(left, left + 8)) / 8 - center[row, 1].item()
                assert tokens.positions[row, place].tolist() == pytest.approx([x * scale, y * scale, 0], abs=1e-5)
                place += 1


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
    assert not back.mask[1, :, 16:].any()
    assert not back.mask[1, :, :, 16:].any()


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
        losses.append(image_tokenizer.loss(spoiled))
    assert losses[0] == losses[1]
    gradients = torch.autograd.grad(losses[0], list(image_tokenizer.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_a_few_steps_on_one_batch_bring_the_loss_down(sky):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ImageTokenizerSettings(width=32, num_blocks=1))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = tokenizer.loss(sky["image/legacysurvey"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_images_decode_to_images_of_as_many_objects_only(image_tokenizer, sky):
    tokens = image_tokenizer.encode(sky["image/hsc"])
    with pytest.raises(ObservationError, match="images decode to images; found the target spectrum/desi"):
        image_tokenizer.decode(tokens, modality("spectrum/desi"))
    with pytest.raises(ObservationError, match="expected a target of 6 objects, found 2"):
        image_tokenizer.decode(tokens, sky["image/hsc"].select([0, 1]))


def test_a_vocabulary_beyond_int16_is_refused():
    with pytest.raises(ValueError, match="must not exceed 32768"):
        ImageTokenizerSettings(levels=(8, 8, 8, 8, 9))
