"""Bad input on its way to tokens: an error that names the object, or a masked token; never a code that means nothing.

Every case starts from the caller's arrays, as files and requests do, and ends at codes. A spoilt value must not get
through; the same value under the mask must not matter.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.data.modalities import modality
from armillary.data.observations import (
    CoefficientsObservation,
    ImageObservation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
)
from armillary.tokenizers.token_grid import TokenGrid

IMAGE, SPECTRUM, SCALAR = modality("image/hsc"), modality("spectrum/desi"), modality("scalar/redshift")
COEFFICIENTS = modality("coefficients/gaia_bp_rp")
CLASSES = {
    "image": ImageObservation,
    "spectrum": SpectrumObservation,
    "scalar": ScalarObservation,
    "coefficients": CoefficientsObservation,
}
IDS = ["good", "odd one", "fine"]
few = settings(max_examples=5, deadline=None, derandomize=True)


def arrays(kind):
    """What a caller would pass for three good objects, by name."""
    rng = np.random.default_rng(3)
    if kind == "image":
        flux = rng.normal(0, 0.1, (3, 5, 16, 11))
        numbers = {"psf_fwhm": np.full((3, 5), 0.7), "depth": np.full((3, 5), 25.0)}
        return {
            "modality": IMAGE,
            "flux": flux,
            "bands": "grizy",
            "inverse_variance": np.full(flux.shape, 90.0),
        } | numbers
    if kind == "spectrum":
        flux = rng.normal(2, 1, (3, 300))
        grid = np.tile(np.linspace(4000, 9000, 300), (3, 1))
        numbers = {"wavelength": grid, "resolving_power": np.full(flux.shape, 3000.0)}
        return {"modality": SPECTRUM, "flux": flux, "inverse_variance": np.ones(flux.shape)} | numbers
    if kind == "coefficients":
        values = 1000 * np.cos(np.linspace(0, 3, 110)) * rng.uniform(0.8, 1.2, (3, 110))
        return {"modality": COEFFICIENTS, "values": values, "error": np.full(values.shape, 10.0)}
    return {"modality": SCALAR, "values": rng.uniform(0.05, 0.4, 3), "error": np.full(3, 0.01)}


def encode(tokenizers, kind, **changes):
    given = {"object_id": IDS, **arrays(kind), **changes}
    return tokenizers[kind].encode(CLASSES[kind](**given))


def assert_meaningful(tokenizers, tokens):
    """Codes are in the vocabulary, masked ones are zero, and what they decode to is finite wherever it is valid."""
    tokenizer = tokenizers[tokens.modality.kind]
    outside = (tokens.codes < 0) | (tokens.codes >= tokenizer.vocabulary_size(tokens.modality))
    assert tokens.codes[outside].tolist() == []
    assert (tokens.codes[~tokens.mask] == 0).all()
    back = tokenizer.decode(tokens)
    values = back.values if hasattr(back, "values") else back.flux
    assert values[back.mask].isfinite().all()


@dataclass(frozen=True)
class Poison:
    """A value that cannot be, in one place of an array; `problem` is what the error must say of it."""

    kind: str
    field: str
    value: float
    problem: str

    def __str__(self):
        return f"{self.kind} {self.field} {self.value}"

    def into(self, row, place):
        """The field's array with the value at a place of a row."""
        spoilt = arrays(self.kind)[self.field].copy()
        spoilt[row : row + 1].flat[place % spoilt[row].size] = self.value
        return {self.field: spoilt}


NOT_FINITE = [np.nan, np.inf, -np.inf]
PIXELS = [
    *(Poison(kind, "flux", value, "flux must be finite") for kind in ("image", "spectrum") for value in NOT_FINITE),
    *(
        Poison(kind, "inverse_variance", value, "inverse_variance must be finite and not negative")
        for kind in ("image", "spectrum")
        for value in [*NOT_FINITE, -1.0]
    ),
    *(
        Poison("spectrum", "wavelength", value, "wavelength must be finite and positive")
        for value in [*NOT_FINITE, 0.0]
    ),
    *(
        Poison("spectrum", "resolving_power", value, "resolving_power must be positive")
        for value in (np.nan, 0.0, -9.0)
    ),
    Poison("spectrum", "wavelength", 20000.0, "wavelength must increase strictly"),
]
NUMBERS = [
    *(Poison("coefficients", "values", value, "values must be finite") for value in NOT_FINITE),
    Poison("coefficients", "error", -0.1, "error must not be negative"),
    *(
        Poison("image", name, value, f"{name} must be finite")
        for name in ("psf_fwhm", "depth")
        for value in [np.nan, 0.0]
    ),
    *(Poison("scalar", "values", value, "value must lie in") for value in [*NOT_FINITE, -1.0, 1e9]),
    Poison("scalar", "error", -0.1, "error must not be negative"),
]


@pytest.mark.parametrize("poison", [*PIXELS, *NUMBERS], ids=str)
@few
@given(place=st.integers(0, 10_000))
def test_a_value_that_cannot_be_is_an_error_that_names_the_object(tokenizers, poison, place):
    # The last pixel may lie at any wavelength above the others, and so is left alone.
    place = place % 299 if poison.field == "wavelength" else place
    with pytest.raises(ObservationError, match=f"object odd one: {poison.problem}"):
        encode(tokenizers, poison.kind, **poison.into(1, place))


@pytest.mark.parametrize("poison", [*PIXELS, *(p for p in NUMBERS if p.kind not in ("image", "scalar"))], ids=str)
@few
@given(place=st.integers(0, 10_000))
def test_the_same_value_under_the_mask_changes_no_token(tokenizers, poison, place):
    mask = np.ones(arrays(poison.kind)[poison.field].shape, bool)
    mask[1].flat[place % mask[1].size] = False
    tokens = encode(tokenizers, poison.kind, mask=mask, **poison.into(1, place))
    assert_meaningful(tokenizers, tokens)
    # Where a masked pixel lies may matter (it says what is bad); what was measured there must not.
    if poison.field != "wavelength":
        clean = encode(tokenizers, poison.kind, mask=mask)
        assert torch.equal(tokens.codes, clean.codes)
        assert torch.equal(tokens.mask, clean.mask)


@pytest.mark.parametrize("kind", ["image", "spectrum"])
@pytest.mark.parametrize("how", ["masked", "without inverse variance"])
def test_an_object_without_a_valid_pixel_is_an_error_that_names_it(tokenizers, kind, how):
    valid = np.ones(arrays(kind)["flux"].shape, bool)
    valid[1] = False
    changes = {"mask": valid} if how == "masked" else {"inverse_variance": valid.astype(float)}
    with pytest.raises(ObservationError, match="object odd one: no valid pixel"):
        encode(tokenizers, kind, **changes)


@pytest.mark.parametrize("kind", ["image", "spectrum"])
@few
@given(place=st.integers(0, 10_000))
def test_an_object_with_one_valid_pixel_has_tokens_that_mean_something(tokenizers, kind, place):
    mask = np.ones(arrays(kind)["flux"].shape, bool)
    mask[1] = False
    mask[1].flat[place % mask[1].size] = True
    tokens = encode(tokenizers, kind, mask=mask)
    assert_meaningful(tokenizers, tokens)
    assert tokens.mask[1].any()
    assert tokens.mask[1].sum() < tokens.mask[0].sum()


@pytest.mark.parametrize("kind", ["scalar", "coefficients"])
def test_missing_numbers_are_masked_tokens_and_stay_missing(tokenizers, kind):
    values = arrays(kind)["values"]
    mask = np.ones(values.shape, bool)
    values[1], mask[1] = np.nan, False
    tokens = encode(tokenizers, kind, values=values, mask=mask)
    assert tokens.mask.any(1).tolist() == [True, False, True]
    assert tokenizers[kind].decode(tokens).mask.reshape(3, -1).any(1).tolist() == [True, False, True]
    assert_meaningful(tokenizers, tokens)


EXTREMES = [
    *((kind, "flux", value) for kind in ("image", "spectrum") for value in (1e-30, 1e30, -1e-30, -1e30)),
    *((kind, "inverse_variance", value) for kind in ("image", "spectrum") for value in (1e-38, 1e38)),
    *(("coefficients", "values", value) for value in (1e-30, 1e30, -1e30, 0.0)),
    *(("coefficients", "error", value) for value in (0.0, 1e-38, 1e38)),
]


@pytest.mark.parametrize("kind, field, value", EXTREMES)
def test_extreme_values_give_meaningful_tokens_or_an_error_that_names_the_object(tokenizers, kind, field, value):
    numbers = arrays(kind)[field]
    numbers[1] = value
    try:
        tokens = encode(tokenizers, kind, **{field: numbers})
    except ObservationError as error:
        assert "object odd one" in str(error)  # noqa: PT017
    else:
        assert_meaningful(tokenizers, tokens)


def test_an_amplitude_beyond_all_surveys_is_an_error_that_names_the_object(tokenizers):
    for scale in (1e-15, 1e15):
        pixels = {name: arrays("spectrum")[name] for name in ("flux", "inverse_variance")}
        pixels["flux"][1] *= scale
        pixels["inverse_variance"][1] /= scale**2
        with pytest.raises(ObservationError, match=r"object odd one: .*flux"):
            encode(tokenizers, "spectrum", **pixels)


def test_a_valid_pixel_beyond_the_wavelengths_of_the_tokenizer_is_an_error_that_names_the_object(tokenizers):
    grid = arrays("spectrum")["wavelength"]
    grid[1] = np.linspace(4000, 25000, 300)
    with pytest.raises(ObservationError, match=r"object odd one: .*wavelength"):
        encode(tokenizers, "spectrum", wavelength=grid)
    tokens = encode(tokenizers, "spectrum", wavelength=grid, mask=grid < 9000)
    assert_meaningful(tokenizers, tokens)


def test_a_scalar_beyond_what_was_learned_is_told_apart_from_the_extremes_within(tokenizers):
    sample = np.sort(np.random.default_rng(3).gamma(2.0, 0.1, 1000))  # as in conftest.py
    values = np.array([sample[0] - 1e-4, sample[1], sample[-2], sample[-1] + 0.5])
    tokens = tokenizers["scalar"].encode(ScalarObservation(SCALAR, "abcd", values))
    assert tokens.mask[:, 0].all()
    assert len(tokens.codes[:, 0].unique()) == 4


SHAPES = {
    "image": [
        ({"flux": np.zeros((5, 16, 11))}, "flux must have shape .* found"),
        ({"flux": np.zeros((3, 4, 16, 11))}, "flux must have shape .* found"),
        ({"flux": np.zeros((3, 5, 0, 11))}, "flux must have shape .* found"),
        ({"bands": ["g", "r", "i", "z", "K"]}, r"unknown band 'K'.*'g', 'r', 'i', 'z', 'y'"),
        ({"bands": ["g", "r", "i", "z", "g"]}, "bands must differ"),
        ({"inverse_variance": np.ones((3, 5, 11, 16))}, "inverse_variance must have shape"),
        ({"mask": np.ones((3, 5, 16, 11))}, "mask must be boolean"),
        ({"mask": np.ones((3, 1, 16, 11), bool)}, "mask must have shape"),
        ({"psf_fwhm": np.ones(5)}, "psf_fwhm must have shape"),
        ({"flux": "bright"}, "flux must be an array of numbers"),
        ({"flux": np.zeros((3, 5, 16, 11), complex)}, "flux must hold real numbers"),
    ],
    "spectrum": [
        ({"flux": np.zeros(300)}, "flux must have shape .* found"),
        ({"flux": np.zeros((2, 300))}, "flux must have shape .* found"),
        ({"flux": np.zeros((3, 0))}, "flux must have shape .* found"),
        ({"wavelength": np.linspace(4000, 9000, 299)}, "wavelength must have shape"),
        ({"inverse_variance": np.ones((3, 301))}, "inverse_variance must have shape"),
        ({"mask": np.ones((3, 300), int)}, "mask must be boolean"),
        ({"resolving_power": np.ones(300)}, "resolving_power must have shape"),
    ],
    "scalar": [
        ({"values": np.zeros((3, 2))}, "values must have shape"),
        ({"values": np.zeros(2)}, "values must have shape"),
        ({"values": ["a", "b", "c"]}, "values must be an array of numbers"),
        ({"mask": np.ones(4, bool)}, "mask must have shape"),
        ({"error": np.zeros(4)}, "error must have shape"),
    ],
}


SHAPES["coefficients"] = [
    ({"values": np.zeros((3, 109))}, r"values must have shape \[3, 110\], found \[3, 109\]"),
    ({"values": np.zeros(110)}, "values must have shape"),
    ({"mask": np.ones(110, bool)}, "mask must have shape"),
    ({"error": np.ones(3)}, "error must have shape"),
]


@pytest.mark.parametrize("kind, changes, problem", [(k, *case) for k, cases in SHAPES.items() for case in cases])
def test_arrays_that_do_not_fit_are_an_error_that_says_what_was_expected(tokenizers, kind, changes, problem):
    with pytest.raises(ObservationError, match=f"^{arrays(kind)['modality'].name}: {problem}"):
        encode(tokenizers, kind, **changes)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_modality_of_another_kind_is_an_error(tokenizers, kind):
    for other in (IMAGE, SPECTRUM, SCALAR, COEFFICIENTS):
        if other.kind != kind:
            with pytest.raises(ObservationError, match=f"expected a modality of kind {kind}, found {other.name}"):
                encode(tokenizers, kind, modality=other)


@pytest.mark.parametrize("kind", ["image", "spectrum"])
def test_a_batch_of_no_objects_is_an_error(tokenizers, kind):
    empty = {name: value[:0] for name, value in arrays(kind).items() if isinstance(value, np.ndarray)}
    with pytest.raises(ObservationError, match="flux must have shape"):
        encode(tokenizers, kind, object_id=[], **empty)


@pytest.mark.parametrize("kind", ["scalar", "coefficients"])
def test_a_batch_of_no_numbers_is_a_batch_of_no_tokens(tokenizers, kind):
    empty = {name: arrays(kind)[name][:0] for name in ("values", "error")}
    tokens = encode(tokenizers, kind, object_id=[], **empty)
    assert isinstance(tokens, TokenGrid)
    assert tokens.codes.shape[0] == len(tokens) == 0
    assert len(tokenizers[kind].decode(tokens)) == 0


@pytest.mark.parametrize("kind", ["image", "spectrum"])
def test_decoding_for_other_objects_or_another_kind_is_an_error(tokenizers, kind):
    tokens = encode(tokenizers, kind)
    observation = CLASSES[kind](**{"object_id": IDS, **arrays(kind)})
    with pytest.raises(ObservationError, match="expected a target of 3 objects, found 2"):
        tokenizers[kind].decode(tokens, observation.select([0, 2]))
    other = SPECTRUM if kind == "image" else IMAGE
    with pytest.raises(ObservationError, match=f"found the target {other.name}"):
        tokenizers[kind].decode(tokens, other)


WRONG_KIND = """
import json, sys, torch
from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ScalarObservation, SpectrumObservation
from armillary.tokenizers.image import ImageTokenizer, ImageTokenizerSettings
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings
from armillary.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerSettings

flux = torch.linspace(1, 2, 60)
observations = {
    "image": ImageObservation(modality("image/hsc"), "a", flux.view(1, 1, 6, 10), "g"),
    "spectrum": SpectrumObservation(
        modality("spectrum/desi"), "a", flux[None], torch.linspace(4000, 9000, 60), torch.ones(1, 60)
    ),
    "scalar": ScalarObservation(modality("scalar/redshift"), "a", [0.1]),
}
tokenizers = {
    "image": ImageTokenizer(ImageTokenizerSettings()).eval(),
    "spectrum": SpectrumTokenizer(SpectrumTokenizerSettings()).eval(),
    "scalar": ScalarTokenizer(ScalarTokenizerSettings(num_codes=8)).fit({"scalar/redshift": flux.numpy()}),
}
grids = {kind: tokenizers[kind].encode(observation) for kind, observation in observations.items()}
found = {}
for kind, tokenizer in tokenizers.items():
    for other in tokenizers:
        for verb, given in (("encode", observations[other]), ("decode", grids[other])):
            if other != kind:
                try:
                    getattr(tokenizer, verb)(given)
                    found[f"{kind} {verb} {other}"] = "nothing was raised"
                except Exception as error:
                    found[f"{kind} {verb} {other}"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def test_an_observation_of_another_kind_is_an_error_that_names_both_kinds():
    """In a process of its own: here the checks of types would speak first."""
    run = subprocess.run([sys.executable, "-c", WRONG_KIND], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert len(found) == 12
    for case, message in found.items():
        kind, _, other = case.split()
        assert message.startswith("ObservationError: "), f"{case}: {message}"
        assert kind in message, f"{case}: {message}"
        assert f"{other}/" in message, f"{case}: {message}"


def test_tokens_of_another_quantity_are_an_error_that_names_those_that_were_fitted(tokenizers):
    observation = ScalarObservation(modality("scalar/stellar_mass"), ["a"], [10.5])
    with pytest.raises(ObservationError, match=r"scalar/stellar_mass: .*scalar/redshift"):
        tokenizers["scalar"].encode(observation)


def test_rows_of_good_objects_are_not_touched_by_a_bad_one_that_is_left_out(tokenizers):
    good = encode(tokenizers, "image")
    flux = arrays("image")["flux"]
    flux[1] = np.nan
    with pytest.raises(ObservationError, match="object odd one"):
        encode(tokenizers, "image", flux=flux)
    kept = {k: v[[0, 2]] for k, v in arrays("image").items() if isinstance(v, np.ndarray)}
    again = encode(tokenizers, "image", object_id=["good", "fine"], **kept)
    assert torch.equal(again.codes, good.codes[[0, 2]])
    assert again.object_id == ("good", "fine")
