"""Chained decoding, and what users get of it."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ObservationError, ScalarObservation, SpectrumObservation
from armillary.models.foundation import FoundationModel
from armillary.models.generation import ChainSettings, Wanted, draw_codes, generate_tokens, nucleus
from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig
from armillary.models.token_batch import TokenBatch

SPECTRUM, IMAGE, HSC = "spectrum/desi", "image/legacysurvey", "image/hsc"
ORDERS = pytest.mark.parametrize("order", ["random", "maskgit"])


# ---- drawing one code ------------------------------------------------------------------------------------------------


def test_codes_come_as_often_as_their_probability_says():
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, -30.0])
    chance = (torch.arange(100_000) + 0.5) / 100_000
    codes, log_probability = draw_codes(logits.expand(len(chance), -1), chance)
    frequency = torch.bincount(codes, minlength=5) / len(chance)
    assert torch.allclose(frequency, logits.softmax(0), atol=2e-5)
    assert torch.allclose(log_probability, logits.log_softmax(0)[codes], atol=1e-5)


@pytest.mark.parametrize("chance", [2**-25, 0.5, 1 - 2**-24])
def test_a_code_without_probability_is_never_drawn(chance):
    logits = torch.full((300, 9), -torch.inf)
    logits[:, 3:6] = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    codes, _ = draw_codes(logits, torch.full((300,), chance))
    assert ((codes >= 3) & (codes < 6)).all()


def test_the_nucleus_is_the_fewest_codes_that_hold_the_share():
    probability = torch.tensor([[0.05, 0.4, 0.15, 0.3, 0.1]])
    for top_p, kept in (
        (0.3, {1}),
        (0.4 + 1e-6, {1, 3}),
        (0.7 + 1e-6, {1, 2, 3}),
        (0.94, {0, 1, 2, 3, 4} - {0}),
        (1.0, {0, 1, 2, 3, 4}),
    ):
        found = nucleus(probability, top_p)
        assert set(found[0].nonzero()[:, 0].tolist()) == kept, top_p
        assert torch.equal(found[0, list(kept)], probability[0, list(kept)])


def test_a_low_temperature_gives_the_most_probable_code():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(1))
    chance = torch.rand(50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(draw_codes(logits, chance, temperature=1e-4)[0], logits.argmax(1))
    assert torch.equal(draw_codes(logits, chance, top_p=1e-6)[0], logits.argmax(1))
    assert not torch.equal(draw_codes(logits, chance)[0], logits.argmax(1))


# ---- chains ----------------------------------------------------------------------------------------------------------

NUM_BITS = 6


class Flock(MaskedTransformer):
    """Tokens of two codes that all agree: the first is fair, and those seen decide the others, but for one in a
    hundred. A token of its own vocabulary, observed, leans them to code 1."""

    def __init__(self, lean=0.0):
        super().__init__(
            MaskedTransformerConfig(
                1,
                1,
                width=32,
                num_heads=4,
                vocabularies={"bits": 4, "seen": 2},
                code_feature_sizes={"bits": 1, "seen": 1},
            )
        )
        self.lean, self.encodes, self.widest = lean, 0, 0
        with torch.no_grad():
            self.codes.rows.copy_(torch.eye(6, 32))  # so that the logits are what decode says
            self.codes.factors.zero_()

    def encode(self, inputs, vectors=None):
        self.encodes += 1
        self.widest = max(self.widest, inputs.codes.shape[1])
        is_bit = inputs.mask & (inputs.slot_vocabularies[inputs.slots] == 0)
        is_hint = inputs.mask & (inputs.slot_vocabularies[inputs.slots] == 1)
        votes = (is_bit * (2 * (inputs.codes - 1) - 1)).sum(1)
        vectors = torch.zeros(*inputs.codes.shape, 32)
        vectors[:, :, 0] = (votes.sign() * math.log(99) + self.lean * is_hint.any(1))[:, None]
        return vectors

    def decode(self, encoded, input_mask, targets):
        hidden = torch.full((*targets.codes.shape, 32), 50.0)  # codes 0 and 3 would win, and are not legal
        hidden[..., 1] = 0.0
        hidden[..., 2] = encoded[:, :1, 0]
        return hidden


def tokens(num_objects, count, vocabulary):
    return TokenBatch(
        codes=torch.zeros(num_objects, count, dtype=torch.long),
        mask=torch.ones(num_objects, count, dtype=torch.bool),
        positions=torch.zeros(num_objects, count, 4),
        slots=torch.zeros(num_objects, count, dtype=torch.long),
        slot_vocabularies=torch.tensor([vocabulary]),
        instruments=torch.zeros(num_objects, 1, 11),
    )


NONE_REFINES = torch.zeros(NUM_BITS, dtype=torch.bool)


def flock(flock_model, num_objects=1, num_observed=1, batch_size=512, refines=NONE_REFINES, **settings):
    wanted = Wanted(tokens(num_objects, NUM_BITS, 0), torch.zeros(NUM_BITS, dtype=torch.long), [(0, 1, 3)], refines)
    keys = torch.arange(num_objects) * 7919
    observed = tokens(num_objects, num_observed, 1)
    return generate_tokens(flock_model, observed, wanted, keys, ChainSettings(**settings), batch_size) - 1


def share_that_agrees(bits):
    return ((bits == bits[..., :1]).all(-1)).float().mean().item()


def test_a_chain_reproduces_a_joint_distribution_that_one_pass_cannot():
    chained = flock(Flock(), num_samples=4000, num_stages=NUM_BITS, order="random")
    alone = flock(Flock(), num_samples=4000, num_stages=1)
    # Each of five followers leaves with a chance of one in a hundred.
    assert share_that_agrees(chained) == pytest.approx(0.99**5, abs=0.015)
    assert share_that_agrees(alone) == pytest.approx(2 / 2**NUM_BITS, abs=0.015)
    assert chained.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_maskgit_agrees_more_than_the_joint_distribution_does():
    """It keeps the likely values among those it draws."""
    bits = flock(Flock(), num_samples=4000, num_stages=NUM_BITS, order="maskgit")
    assert share_that_agrees(bits) > 0.99**5 + 0.02
    assert bits.float().mean().item() == pytest.approx(0.5, abs=0.03)


@ORDERS
@pytest.mark.parametrize("num_stages", [1, 3, 6, 50])
def test_the_encoder_runs_once_a_stage_for_all_samples_and_no_more_often_than_there_are_tokens(order, num_stages):
    model = Flock()
    flock(model, num_objects=3, num_samples=5, num_stages=num_stages, order=order)
    assert model.encodes == min(num_stages, NUM_BITS)


def test_one_stage_draws_from_the_distribution_that_one_pass_predicts():
    bits = flock(Flock(lean=1.0), num_samples=4000, num_stages=1)
    expected = torch.tensor(1.0).sigmoid()
    counts = bits.sum(0)[0].double()
    chi2 = ((counts - 4000 * expected) ** 2 / (4000 * expected * (1 - expected))).sum()
    assert chi2 < 22.5  # one in a thousand, of six degrees of freedom


def test_guidance_strengthens_what_was_observed_and_one_is_none():
    plain = flock(Flock(lean=0.5), num_samples=500, num_stages=3)
    model = Flock(lean=0.5)
    assert torch.equal(plain, flock(model, num_samples=500, num_stages=3, guidance=1.0))
    assert model.encodes == 3
    guided = flock(model, num_samples=500, num_stages=3, guidance=20.0)
    assert model.encodes == 3 + 3 + 2  # at the first stage nothing is generated yet
    assert guided.float().mean() > plain.float().mean() + 0.05


@ORDERS
def test_a_token_that_others_refine_comes_first(order):
    """The leader is drawn when nothing is known, and those that refine it follow it."""

    class Leader(Flock):
        """Of two codes that are alike unless a token was seen: then 1."""

        def encode(self, inputs, vectors=None):
            vectors = super().encode(inputs)
            is_bit = inputs.mask & (inputs.slot_vocabularies[inputs.slots] == 0)
            vectors[:, :, 0] = torch.where(is_bit.any(1), 30.0, -30.0)[:, None]
            return vectors

    refines = torch.arange(NUM_BITS) != 4
    bits = flock(Leader(), num_samples=50, num_stages=NUM_BITS, order=order, refines=refines)
    assert torch.equal(bits, refines.long().expand_as(bits))


def test_the_encoder_never_sees_more_than_the_budget():
    for num_observed in (2, 30):
        model = Flock()
        flock(model, num_observed=num_observed, num_samples=4, num_stages=6, max_inputs=6)
        assert model.widest == 6


@pytest.mark.parametrize(
    "setting, problem",
    [
        ({"num_samples": 0}, "num_samples must be at least 1, found 0"),
        ({"num_stages": 0}, "num_stages must be at least 1, found 0"),
        ({"temperature": 0.0}, r"temperature must be positive, found 0\.0"),
        ({"temperature": math.nan}, "temperature must be positive, found nan"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], found 0\.0"),
        ({"top_p": 1.1}, r"top_p must lie in \(0, 1\], found 1\.1"),
        ({"guidance": -1.0}, r"guidance must not be negative, found -1\.0"),
        ({"guidance": 2.0, "num_stages": 1}, "needs num_stages of at least 2, found 1"),
    ],
)
def test_a_setting_that_means_nothing_is_an_error(setting, problem):
    with pytest.raises(ValueError, match=problem):
        ChainSettings(**setting)


# ---- what users get --------------------------------------------------------------------------------------------------


def values(model: FoundationModel, observations, target=SPECTRUM, **settings):
    return model.generate(observations, [target], **{"num_samples": 3, "num_stages": 3, **settings})[target].values()


@ORDERS
def test_samples_of_an_object_depend_on_the_seed_alone(model, sky, order):
    images = sky[IMAGE]
    together = values(model, [images], order=order, seed=4)
    assert torch.equal(values(model, [images], order=order, seed=4), together)
    assert not torch.equal(values(model, [images], order=order, seed=5), together)
    assert torch.allclose(values(model, [images], order=order, seed=4, batch_size=5), together, rtol=1e-4, atol=1e-4)
    alone = values(model, [images.select([4, 1])], order=order, seed=4)
    assert torch.allclose(alone, together[:, [4, 1]], rtol=1e-4, atol=1e-4)
    more = values(model, [images], order=order, seed=4, num_samples=5)
    assert torch.allclose(more[:3], together, rtol=1e-4, atol=1e-4)


def test_samples_differ_from_each_other_and_from_object_to_object(model, sky):
    found = values(model, [sky[IMAGE]])
    for first, second in itertools.combinations(range(3), 2):
        assert not torch.equal(found[first], found[second])
    assert not torch.equal(found[0, 0], found[0, 1])


@pytest.mark.parametrize("target", [SPECTRUM, HSC])
def test_generated_observations_decode_to_finite_values_where_the_instrument_measures(model, sky, target):
    found = model.generate([sky[IMAGE]], [target], num_samples=2, num_stages=2, like=[sky[HSC]])[target]
    observation = sky[target]
    assert found.object_id == sky[IMAGE].object_id
    assert found.values().shape == (2, *observation.flux.shape)
    assert found.mask[observation.mask].all()
    assert found.values().isfinite().all()
    low, high = found.interval(0.68)
    assert ((low <= high) & (found.quantile(0.0) <= low) & (high <= found.quantile(1.0))).all()


def test_an_interval_of_few_samples_holds_another_one_as_often_as_it_says(model, sky):
    found = model.generate([sky[IMAGE].select([0])], [SPECTRUM], num_samples=2)[SPECTRUM]
    numbers = torch.randn(20, 1, 100_000, generator=torch.Generator().manual_seed(0))
    spectra = found.observations[0]
    few = replace(found, observations=tuple(replace_flux(spectra, flux) for flux in numbers[:-1]))
    for level in (0.5, 0.68, 0.9):
        low, high = few.interval(level)
        assert ((low <= numbers[-1]) & (numbers[-1] <= high)).float().mean().item() == pytest.approx(level, abs=0.01)


def replace_flux(spectra, flux):
    wavelength = torch.linspace(4000, 9000, flux.shape[1], dtype=torch.float64)
    return SpectrumObservation(spectra.modality, spectra.object_id, flux, wavelength, torch.ones_like(flux))


def test_every_code_is_one_that_its_place_can_have(model, sky, tokenizers):
    found = model.generate([sky["scalar/redshift"]], [SPECTRUM, IMAGE], num_samples=4, num_stages=2, image_size=24)
    spectra, images = tokenizers["spectrum"], tokenizers["image"]
    sizes = spectra.codebook_sizes()
    for grid in found[SPECTRUM].tokens:
        first, windows = grid.codes[:, 0], grid.codes[:, 1:13]
        assert ((first >= sizes["window"]) & (first < sizes["window"] + sizes["amplitude"])).all()
        assert (windows < sizes["window"]).all()
        assert not grid.mask[:, 13:].any()
    sizes = images.codebook_sizes()
    start = sizes["detail"] + sizes["patch brightness"]
    for grid in found[IMAGE].tokens:
        bands, patches = grid.codes[:, :4], grid.codes[:, 4:][grid.mask[:, 4:]]
        assert ((bands >= start) & (bands < start + sizes["object brightness"])).all()
        assert ((patches >= sizes["detail"]) & (patches < start)).all()


@pytest.mark.parametrize("name", [IMAGE, HSC, SPECTRUM])
def test_the_places_are_those_of_an_observation(sky, tokenizers, name):
    """Positions, instrument and necessary tokens as encoding gives them, and each code in its place's range."""
    observation = sky[name]
    tokenizer = tokenizers[observation.modality.kind]
    places, grid = tokenizer.token_places(observation), tokenizer.encode(observation)
    assert torch.equal(places.grid.positions, grid.positions)
    assert torch.equal(places.grid.instrument, grid.instrument)
    assert torch.equal(places.always & grid.mask, places.always)
    sources = places.low == tokenizer.codebook_sizes().get("point source", -1)
    assert not (grid.mask & ~places.grid.mask)[:, ~sources].any() or name != SPECTRUM
    inside = (grid.codes >= places.low) & (grid.codes < places.high)
    assert inside[grid.mask].all()
    assert torch.equal(places.meaningful(grid.mask), grid.mask)


def test_what_is_masked_in_a_template_is_not_asked_for(sky, tokenizers):
    spectra, images = sky[SPECTRUM], sky[HSC]
    mask = spectra.mask & (spectra.wavelength > 6000)
    places = tokenizers["spectrum"].token_places(replace(spectra, mask=mask))
    assert torch.equal(places.always[:, :13], tokenizers["spectrum"].encode(replace(spectra, mask=mask)).mask[:, :13])
    mask = images.mask.clone()
    mask[..., :16] = False
    places = tokenizers["image"].token_places(replace(images, mask=mask))
    grid = tokenizers["image"].encode(replace(images, mask=mask))
    assert torch.equal(places.always, grid.mask & places.always)
    assert places.always.sum() < tokenizers["image"].token_places(images).always.sum()


def test_a_scalar_comes_as_the_whole_distribution_whatever_else_is_asked_for(model, sky):
    given = [sky[IMAGE], sky["scalar/stellar_mass"]]
    found = model.generate(given, ["scalar/redshift", SPECTRUM], num_stages=2)
    assert list(found) == ["scalar/redshift", SPECTRUM]
    expected = model.predict_scalar(given, "scalar/redshift")
    assert torch.equal(found["scalar/redshift"].probabilities, expected.probabilities)


def test_observations_of_the_targets_are_left_out(model, sky):
    plain = values(model, [sky[IMAGE]])
    assert torch.equal(values(model, [sky[SPECTRUM], sky[IMAGE]]), plain)
    assert not torch.equal(values(model, [sky[IMAGE], sky["scalar/redshift"]]), plain)


def test_the_budget_of_pretraining_holds_for_generation(model, sky):
    limited = replace(model, record={"pretrain": {"num_inputs": 8}})
    assert not torch.equal(values(limited, [sky[IMAGE]]), values(model, [sky[IMAGE]]))


def test_impossible_requests_are_errors_that_say_why(model, sky):
    images = sky[IMAGE]
    with pytest.raises(LookupError, match="no modality 'spectrum/sdss'; it was trained on"):
        model.generate([images], ["spectrum/sdss"])
    with pytest.raises(ValueError, match="at least one target, each once, found"):
        model.generate([images], [SPECTRUM, SPECTRUM])
    with pytest.raises(ValueError, match="at least one target, each once, found"):
        model.generate([images], [])
    with pytest.raises(ObservationError, match="at least one observation other than of"):
        model.generate([images], [IMAGE], image_size=24)
    with pytest.raises(ObservationError, match=r"image/hsc: expected `image_size` \(pixels to a side\)"):
        model.generate([images], [HSC])
    with pytest.raises(ObservationError, match="`like` must have every object, but lacks"):
        model.generate([images], [HSC], like=[sky[HSC].select([0])])
    with pytest.raises(ValueError, match="top_p must lie in"):
        model.generate([images], [SPECTRUM], top_p=2.0)
    ids = images.object_id
    missing = ScalarObservation(modality("scalar/redshift"), ids, [0.1] * 6, [True] * 5 + [False])
    with pytest.raises(ObservationError, match=f"object {ids[5]}: every value is missing"):
        model.generate([missing], [SPECTRUM])
