"""`POST /v1/generate` against `FoundationModel.generate`, with a real model, tiny and untrained."""

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from fake_model import FakeModel
from http_bodies import assert_problem, encoded, typed_image
from starlette.testclient import TestClient

from armillary.data.observations import SpectrumObservation
from armillary.serving.app import create_app
from armillary.serving.limits import Limits

_SPEC = importlib.util.spec_from_file_location("tiny_models", Path(__file__).parents[1] / "models" / "conftest.py")
_TINY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TINY)
sky, tokenizers, transformer, head, model = _TINY.sky, _TINY.tokenizers, _TINY.transformer, _TINY.head, _TINY.model

SPECTRUM, LEGACY, REDSHIFT = "spectrum/desi", "image/legacysurvey", "scalar/redshift"


@pytest.fixture
def http(model):
    with TestClient(create_app(model)) as client:
        yield client


def image_of(sky, row=2):
    given = sky[LEGACY]
    fields = {"modality": LEGACY, "bands": list(given.bands), **encoded(given.flux[row].numpy())}
    for name in ("inverse_variance", "psf_fwhm", "depth", "center"):
        if getattr(given, name) is not None:
            fields[name] = encoded(getattr(given, name)[row].numpy())
    fields["mask"] = encoded(given.mask[row].numpy(), "bool")
    return fields


def locally(model, sky, target, row=2, **options):
    given = sky[LEGACY].select([row]).renamed(("0",))
    return model.generate([given], [target], **options)[target]


def ask(http, sky, target, accept="application/json", **body):
    content = {"observations": [image_of(sky)], "target": target, **body}
    return http.post("/v1/generate", json=content, headers={"accept": accept})


def decoded(array):
    import base64

    return np.frombuffer(base64.b64decode(array["data"]), array["dtype"]).reshape(array["shape"])


def test_spectra_are_those_of_the_model_with_mean_and_interval(http, model, sky):
    answer = ask(http, sky, SPECTRUM, num_samples=7, seed=3, num_stages=2)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    expected = locally(model, sky, SPECTRUM, num_samples=7, seed=3, num_stages=2)
    samples = decoded(body["samples"])
    assert np.allclose(samples, expected.values()[:, 0].numpy(), rtol=1e-4, atol=1e-5)
    assert np.ptp(samples, axis=0).max() > 0
    assert np.array_equal(decoded(body["mask"]), expected.mask[0].numpy())
    assert np.allclose(decoded(body["wavelength"]), model.modality(SPECTRUM).card.wavelength())
    assert np.allclose(decoded(body["mean"]), samples.mean(0), atol=1e-5)
    low, high = expected.interval(0.68)
    assert body["interval"]["level"] == 0.68
    assert np.allclose(decoded(body["interval"]["lower"]), low[0].numpy(), rtol=1e-4, atol=1e-5)
    assert np.allclose(decoded(body["interval"]["upper"]), high[0].numpy(), rtol=1e-4, atol=1e-5)
    assert (body["unit"], body["kind"], body["num_samples"]) == (model.modality(SPECTRUM).unit, "spectrum", 7)
    assert body["provenance"]["model_id"] == model.model_id


def test_equal_seeds_give_equal_samples_and_others_do_not(http, sky):
    first, again, other = (
        decoded(ask(http, sky, SPECTRUM, seed=seed, num_stages=2).json()["samples"]) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_spectrum_comes_on_the_wavelengths_that_are_asked_for(http, model, sky):
    wavelength = np.linspace(4000, 8000, 300)
    body = ask(http, sky, SPECTRUM, wavelength=encoded(wavelength, "float64"), num_stages=2).json()
    blank = torch.ones(1, 300)
    like = SpectrumObservation(model.modality(SPECTRUM), ("0",), blank, wavelength, blank)
    expected = locally(model, sky, SPECTRUM, like=[like], num_stages=2)
    assert np.allclose(decoded(body["samples"]), expected.values()[:, 0].numpy(), rtol=1e-4, atol=1e-5)
    assert np.allclose(decoded(body["wavelength"]), wavelength)


def test_images_come_as_npy_and_safetensors_too(http, model, sky):
    asked = {"num_samples": 2, "seed": 5, "image_size": 24, "num_stages": 2}
    expected = locally(model, sky, "image/hsc", **asked).values()[:, 0].numpy()
    array = ask(http, sky, "image/hsc", "application/x-npy", **asked)
    assert array.headers["armillary-model-id"] == model.model_id
    assert np.allclose(np.load(io.BytesIO(array.content)), expected, rtol=1e-4, atol=1e-5)
    file = ask(http, sky, "image/hsc", "application/vnd.safetensors", **asked).content
    tensors = safetensors.numpy.load(file)
    assert np.array_equal(tensors["samples"], np.load(io.BytesIO(array.content)))
    metadata = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])["__metadata__"]
    assert json.loads(metadata["bands"]) == [band.name for band in model.modality("image/hsc").card.bands]
    assert json.loads(metadata["seed"]) == 5
    assert tensors["samples"].shape == (2, 5, 24, 24)


def test_a_scalar_has_its_whole_distribution(http, model, sky):
    body = ask(http, sky, REDSHIFT).json()
    given = sky[LEGACY].select([2]).renamed(("0",))
    expected = model.predict_scalar([given], REDSHIFT)
    assert body["value"] == pytest.approx(float(expected.median()[0]), rel=1e-4)
    assert body["distribution"]["probability"] == pytest.approx(expected.probabilities[0].tolist(), abs=1e-5)
    assert body["intervals"][0]["lower"] == pytest.approx(float(expected.interval(0.68)[0][0]), rel=1e-3)
    assert (body["samples"], body["num_samples"]) == (None, 0)
    assert_problem(ask(http, sky, REDSHIFT, "application/x-npy"), 406, "not-acceptable")


def test_what_was_observed_of_the_target_is_not_used(http, sky):
    plain = ask(http, sky, LEGACY, image_size=24)
    assert_problem(plain, 422, "invalid-observation", "/observations", says="other than of image/legacysurvey")
    spectrum = sky[SPECTRUM]
    given = {
        "modality": SPECTRUM,
        **encoded(spectrum.flux[0].numpy()),
        "wavelength": encoded(spectrum.wavelength[0].numpy(), "float64"),
        "inverse_variance": encoded(spectrum.inverse_variance[0].numpy()),
    }
    both = http.post("/v1/generate", json={"observations": [image_of(sky), given], "target": SPECTRUM, "num_stages": 2})
    alone = ask(http, sky, SPECTRUM, num_stages=2)
    assert decoded(both.json()["samples"]).tolist() == decoded(alone.json()["samples"]).tolist()


@pytest.mark.parametrize(
    ("changes", "status", "kind", "pointer", "says"),
    [
        ({"target": "spectrum/desy"}, 404, "not-found", "/target", "spectrum/desi"),
        ({"target": "image/des"}, 404, "not-found", "/target", ""),
        ({"target": "image/hsc"}, 422, "invalid-request", "/image_size", "needs it"),
        ({"target": "image/hsc", "image_size": 4096}, 422, "invalid-request", "/image_size", "at most 64"),
        ({"image_size": 32}, 422, "invalid-request", "/image_size", "goes with images"),
        ({"num_samples": 65}, 422, "invalid-request", "/num_samples", "64"),
        ({"num_samples": 0}, 422, "invalid-request", "/num_samples", ""),
        ({"seed": -1}, 422, "invalid-request", "/seed", ""),
        ({"top_p": 0}, 422, "invalid-request", "/top_p", ""),
        ({"wavelength": [4000.0, 3000.0]}, 422, "invalid-request", "/wavelength", "increase"),
        ({"wavelength": [4000.0]}, 422, "invalid-request", "/wavelength", "2 to"),
        ({"wavelength": "AAAA"}, 422, "invalid-request", "/wavelength", "shape"),
        ({"target": REDSHIFT, "wavelength": [4000.0, 5000.0]}, 422, "invalid-request", "/wavelength", "goes with"),
        ({"observations": []}, 422, "invalid-observation", "/observations", "at least one"),
        ({"odd": 1}, 422, "invalid-request", "/odd", "not permitted"),
    ],
)
def test_what_cannot_be_made_is_refused_where_it_is(model, sky, changes, status, kind, pointer, says):
    body = {"observations": [image_of(sky)], "target": SPECTRUM, **changes}
    with TestClient(create_app(model, limits=Limits(max_image_side=64))) as http:
        assert_problem(http.post("/v1/generate", json=body), status, kind, pointer, says=says)


def test_an_answer_is_bounded_whatever_is_asked_for(model, sky):
    body = {"observations": [image_of(sky)], "target": "image/hsc", "image_size": 512, "num_samples": 64}
    with TestClient(create_app(model)) as http:
        assert_problem(http.post("/v1/generate", json=body), 413, "too-large", "/num_samples", says="ask for fewer")


def test_models_that_make_nothing_or_cannot_make_this_say_so(model, sky):
    body = {"observations": [typed_image()], "target": SPECTRUM}
    with TestClient(create_app(FakeModel())) as http:
        assert_problem(http.post("/v1/generate", json=body), 409, "conflict", says="generates nothing")
    unable = replace(model, tokenizers={k: t for k, t in model.tokenizers.items() if k != "spectrum"})
    with TestClient(create_app(unable)) as http:
        assert_problem(ask(http, sky, SPECTRUM), 409, "conflict", says="cannot make spectrum/desi")
