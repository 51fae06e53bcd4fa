"""What was tokenized once is not tokenized again, and no answer is another for it."""

import importlib.util
from pathlib import Path

import pytest
import torch
from http_bodies import encoded
from starlette.testclient import TestClient

from armillary.models.foundation import FoundationModel
from armillary.serving.app import create_app
from armillary.serving.engine import EngineSettings
from armillary.serving.middleware.metrics import ServerMetrics
from armillary.serving.token_cache import TokenCachingModel

_SPEC = importlib.util.spec_from_file_location("tiny_models", Path(__file__).parents[1] / "models" / "conftest.py")
_TINY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TINY)
sky, tokenizers, transformer, head, model = _TINY.sky, _TINY.tokenizers, _TINY.transformer, _TINY.head, _TINY.model

IMAGE, SPECTRUM, REDSHIFT = "image/hsc", "spectrum/desi", "scalar/redshift"
MUCH = 2**24
TENSORS = ("codes", "mask", "positions", "instrument")


@pytest.fixture
def cached(model):
    return TokenCachingModel(model, MUCH, ServerMetrics())


@pytest.fixture
def tokenized(monkeypatch):
    """The sizes of the batches that tokenizers saw, by kind."""
    seen = []
    tokenize = FoundationModel.tokenize

    def noted(self, observation):
        seen.append((observation.modality.kind, len(observation)))
        return tokenize(self, observation)

    monkeypatch.setattr(FoundationModel, "tokenize", noted)
    return seen


def assert_same(grid, expected):
    assert tuple(grid.object_id) == tuple(expected.object_id)
    for name in TENSORS:
        assert torch.equal(getattr(grid, name), getattr(expected, name)), name


@pytest.mark.parametrize("name", [IMAGE, SPECTRUM, REDSHIFT])
def test_tokens_of_an_object_are_the_same_alone_in_a_batch_and_from_the_cache(model, cached, sky, name):
    whole = model.tokenize(sky[name])
    for row in (4, 1):
        alone = cached.tokenize(sky[name].select([row]))
        assert_same(alone, whole.select(torch.tensor([row])))
    assert_same(cached.tokenize(sky[name]), whole)
    shuffled = [3, 4, 0, 1, 5]
    named = sky[name].select(shuffled).renamed(tuple("abcde"))
    again = cached.tokenize(named)
    assert tuple(again.object_id) == tuple("abcde")
    assert torch.equal(again.codes, whole.codes[shuffled])


def test_only_what_is_new_is_tokenized(cached, sky, tokenized):
    spectra = sky[SPECTRUM]
    cached.tokenize(spectra.select([0, 1]))
    cached.tokenize(spectra.select([1, 2, 0, 3]))
    cached.tokenize(spectra.select([3, 0]))
    changed = spectra.select([0])
    cached.tokenize(
        type(changed)(
            changed.modality,
            changed.object_id,
            changed.flux * 2,
            changed.wavelength[0].numpy(),
            changed.inverse_variance,
        )
    )
    assert tokenized == [("spectrum", 2), ("spectrum", 2), ("spectrum", 1)]


def test_every_answer_is_that_of_the_model_to_the_bit(model, cached, sky):
    given = [sky[IMAGE], sky[SPECTRUM]]
    one = [observation.select([2]) for observation in given]
    for _ in range(2):
        for space in ("aligned", "encoder"):
            assert torch.equal(cached.embed(given, space).vectors, model.embed(given, space).vectors)
        assert torch.equal(cached.embed_tokens(one).vectors, model.embed_tokens(one).vectors)
        predicted = cached.predict_scalar(given, REDSHIFT).probabilities
        assert torch.equal(predicted, model.predict_scalar(given, REDSHIFT).probabilities)
        asked = {"targets": [SPECTRUM, REDSHIFT], "num_stages": 2, "seed": 4}
        samples, expected = (m.generate(one[:1], **asked)[SPECTRUM].values() for m in (cached, model))
        assert torch.equal(samples, expected)


def test_the_cache_keeps_to_its_bytes(model, sky, tokenized):
    of_one = sum(getattr(model.tokenize(sky[SPECTRUM].select([0])), name).nbytes for name in TENSORS) + 400
    cached = TokenCachingModel(model, 2 * of_one, ServerMetrics())
    tokenized.clear()
    for row in (0, 1, 2, 1, 0):
        cached.tokenize(sky[SPECTRUM].select([row]))
    assert len(tokenized) == 4


def test_a_server_tokenizes_an_image_once_for_both_spaces_a_prediction_and_samples(model, sky, tokenized):
    image = sky[IMAGE].select([0])
    item = {"modality": IMAGE, "bands": list(image.bands), **encoded(image.flux[0].numpy())}
    with TestClient(create_app(model)) as http:
        for space in ("aligned", "encoder"):
            assert http.post("/v1/embeddings", json={"input": item, "space": space}).status_code == 200
        asked = {"property": REDSHIFT, "method": "model", "observations": [item]}
        assert http.post("/v1/predict", json=asked).status_code == 200
        asked = {"target": SPECTRUM, "observations": [item], "num_stages": 1}
        assert http.post("/v1/generate", json=asked).status_code == 200
        assert 'armillary_token_cache_lookups_total{result="hit"} 3.0' in http.get("/metrics").text
    assert tokenized == [("image", 1)]


def test_a_server_without_that_memory_serves_the_model_itself(model):
    app = create_app(model, batching=EngineSettings(token_cache_mib=0))
    assert app.state.service.model is model
