import threading
import time

import httpx
import numpy as np
import pytest
import torch
from fake_model import FakeModel, images, spectra

from armillary.data.observations import ObservationError
from armillary.serving.app import create_app
from armillary.serving.content_cache import ContentCache, content_key
from armillary.serving.engine import Engine, EngineSettings
from armillary.serving.middleware.callers import _CALLER, Caller, as_bulk
from armillary.serving.problems import ProblemError

WAIT = 20.0


class Gate:
    """A model that notes its batches, and works only while it is open."""

    def __init__(self, most=None):
        self.model = FakeModel()
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.batches = []
        self.most = most

    def embed(self, observations, space):
        self.entered.set()
        assert self.open.wait(WAIT)
        ids = {i for o in observations for i in o.object_id}
        self.batches.append((len(ids), [tuple(o.mask.shape[1:]) for o in observations]))
        if self.most is not None and len(ids) > self.most:
            raise RuntimeError("out of memory")
        return self.model.embed(observations, space)


@pytest.fixture
def make():
    engines = []

    def made(gate, **settings):
        engines.append(Engine(gate.embed, EngineSettings(**{"cache_mib": 0, **settings})))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()


def until_true(condition):
    until = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def objects(count, seed=0, **more):
    batch = images(count, seed=seed, **more)
    return [[batch.select([row])] for row in range(count)]


def alone(given):
    return [FakeModel().embed(observations).numpy()[0] for observations in given]


def together(engine, requests, gate):
    """Results of requests that all wait before the model opens."""
    gate.open.clear()
    gate.entered.clear()
    results = [None] * len(requests)
    blocker = threading.Thread(target=engine.embed, args=(objects(1, seed=99), "encoder", "m"))
    blocker.start()
    assert gate.entered.wait(WAIT)

    def ask(number):
        try:
            results[number] = engine.embed(requests[number], "aligned", "m")
        except ProblemError as error:
            results[number] = error

    threads = []
    for number in range(len(requests)):
        before = engine.num_waiting
        threads.append(threading.Thread(target=ask, args=(number,)))
        threads[-1].start()
        until_true(lambda number=number, before=before: engine.num_waiting > before or results[number] is not None)
    gate.open.set()
    for thread in [*threads, blocker]:
        thread.join(WAIT)
    return results


def test_requests_that_wait_share_batches_and_each_gets_its_own_vectors(make):
    gate = Gate()
    engine = make(gate, max_batch=16)
    requests = [objects(3, seed=seed) for seed in range(10)]
    results = together(engine, requests, gate)
    assert [size for size, _ in gate.batches[1:]] == [16, 14]
    for request, found in zip(requests, results, strict=True):
        np.testing.assert_allclose([vector for vector, _ in found], alone(request), atol=1e-6)
        assert {names for _, names in found} == {("image/hsc",)}


def test_objects_of_other_shapes_or_bands_are_not_padded_into_a_batch(make):
    gate = Gate()
    requests = [objects(2), objects(2, side=12), objects(2, bands=("g",)), [[spectra(1)]], objects(1, seed=5)]
    results = together(make(gate), requests, gate)
    assert sorted(gate.batches[1:]) == sorted([(3, [(2, 8, 8)]), (2, [(2, 12, 12)]), (2, [(1, 8, 8)]), (1, [(50,)])])
    for request, found in zip(requests, results, strict=True):
        np.testing.assert_allclose([vector for vector, _ in found], alone(request), atol=1e-6)


def test_an_object_at_fault_fails_alone(make):
    gate = Gate()
    bright = spectra(1)
    bad = type(bright)(bright.modality, ("x",), bright.flux * 1e7, bright.wavelength, bright.inverse_variance)
    results = together(make(gate), [[[spectra(1, seed=3)]], [[bad]], [[spectra(1, seed=4)]]], gate)
    assert isinstance(results[1][0], ObservationError)
    np.testing.assert_allclose(results[0][0][0], alone([[spectra(1, seed=3)]])[0], atol=1e-6)
    np.testing.assert_allclose(results[2][0][0], alone([[spectra(1, seed=4)]])[0], atol=1e-6)


def test_a_batch_too_large_for_memory_is_halved(make):
    gate = Gate(most=3)
    given = objects(8)
    found = make(gate).embed(given, "aligned", "m")
    np.testing.assert_allclose([vector for vector, _ in found], alone(given), atol=1e-6)
    assert [size for size, _ in gate.batches] == [8, 4, 2, 2, 4, 2, 2]


def test_what_does_not_fit_the_queue_is_refused_with_a_time_and_the_rest_is_answered(make):
    gate = Gate()
    results = together(make(gate, max_queue=4), [objects(3), objects(3, seed=1), objects(1, seed=2)], gate)
    assert isinstance(results[1], ProblemError)
    assert results[1].kind == "busy"
    assert results[1].retry_after >= 1
    assert len(results[0]) == 3
    assert len(results[2]) == 1


def test_a_request_larger_than_the_queue_is_taken_when_nobody_waits(make):
    assert len(make(Gate(), max_queue=2, max_batch=2).embed(objects(5), "aligned", "m")) == 5


def test_whoever_waits_too_long_is_told_and_its_work_is_not_done(make):
    gate = Gate()
    gate.open.clear()
    engine = make(gate, max_seconds=0.3)

    def ask():
        with pytest.raises(ProblemError, match="no time"):
            engine.embed(objects(1), "encoder", "m")

    first = threading.Thread(target=ask)
    first.start()
    assert gate.entered.wait(WAIT)
    with pytest.raises(ProblemError) as caught:
        engine.embed(objects(2, seed=1), "aligned", "m")
    assert caught.value.kind == "too-slow"
    first.join(WAIT)
    gate.open.set()
    assert engine.call(lambda: "done") == "done"
    assert [size for size, _ in gate.batches] == [1]


def test_objects_whose_caller_has_left_are_passed_over(make):
    gate = Gate()
    gate.open.clear()
    engine = make(gate)
    threading.Thread(target=engine.embed, args=(objects(1), "encoder", "m"), daemon=True).start()
    assert gate.entered.wait(WAIT)
    here, raised = Caller(), []

    def ask():
        _CALLER.set(here)
        with pytest.raises(ProblemError) as caught:
            engine.embed(objects(5, seed=1), "aligned", "m")
        raised.append(caught.value.kind)

    thread = threading.Thread(target=ask)
    thread.start()
    until_true(lambda: engine.num_waiting == 5)
    here.has_left = True
    thread.join(WAIT)
    assert raised == ["caller-left"]
    gate.open.set()
    engine.call(lambda: None)
    assert [size for size, _ in gate.batches] == [1]


def test_bulk_work_gives_way(make):
    gate = Gate()
    gate.open.clear()
    engine = make(gate, max_batch=2)
    order = []

    def ask(name, count, is_bulk):
        if is_bulk:
            as_bulk()
        for observations in objects(count, seed=count):
            engine.embed([observations], "aligned", "m")
        order.append(name)

    threading.Thread(target=engine.embed, args=(objects(1), "encoder", "m"), daemon=True).start()
    assert gate.entered.wait(WAIT)
    threads = [threading.Thread(target=ask, args=args) for args in (("bulk", 6, True), ("person", 3, False))]
    for number, thread in enumerate(threads, 1):
        thread.start()
        until_true(lambda number=number: engine.num_waiting == number)
    gate.open.set()
    for thread in threads:
        thread.join(WAIT)
    assert order == ["person", "bulk"]


def test_the_same_content_is_embedded_once_whoever_asks_and_other_content_anew(make):
    gate = Gate()
    engine = make(gate, cache_mib=1)
    first = images(1)
    again = first.renamed(("another name",))
    masked = type(first)(first.modality, ("a",), first.flux, first.bands, mask=first.mask & (torch.rand(8, 8) > 0.5))
    (one,), (two,) = (engine.embed([[image]], "aligned", "m") for image in (first, again))
    np.testing.assert_array_equal(one[0], two[0])
    assert len(gate.batches) == 1
    for observations, space, model in ((masked, "aligned", "m"), (first, "encoder", "m"), (first, "aligned", "other")):
        engine.embed([[observations]], space, model)
    assert len(gate.batches) == 4
    engine.forget()
    engine.embed([[first]], "aligned", "m")
    assert len(gate.batches) == 5


def test_a_key_depends_on_every_measured_number_and_not_on_order():
    image, spectrum = images(1), spectra(1)
    assert content_key([image, spectrum], "p") == content_key([spectrum, image], "p")
    keys = {content_key([image, spectrum], "p"), content_key([image], "p"), content_key([image, spectrum], "q")}
    for name in ("flux", "inverse_variance", "psf_fwhm", "depth", "center"):
        values = getattr(image, name).clone()
        values.view(-1)[0] *= 1.01
        keys.add(content_key([image._unchecked(**{name: values}), spectrum], "p"))
    assert len(keys) == 8


def test_a_cache_keeps_its_bytes_and_forgets_what_was_used_longest_ago():
    cache = ContentCache(3 * (40 + 400))
    vectors = np.arange(50, dtype=np.float32).reshape(5, 10)
    for number in range(3):
        cache.put(bytes([number]), vectors[number], ("a",))
    assert cache.get(b"\0") is not None
    cache.put(b"\3", vectors[3], ("a",))
    assert cache.get(b"\1") is None
    assert cache.get(b"\0") is not None
    assert cache.num_bytes == 3 * 440
    cache.put(b"big", np.zeros(1000, np.float32), ())
    assert len(cache) == 3


def test_a_function_runs_between_batches_and_its_error_is_its_callers(make):
    engine = make(Gate())
    assert engine.call(lambda: threading.current_thread().name) == "armillary-engine"
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0)
    assert len(engine.embed(objects(2), "aligned", "m")) == 2


def test_closing_tells_those_who_wait(make):
    gate = Gate()
    engine = make(gate)
    gate.open.clear()
    threading.Thread(target=engine.embed, args=(objects(1), "encoder", "m"), daemon=True).start()
    assert gate.entered.wait(WAIT)
    kinds = []

    def ask():
        (found,) = engine.embed(objects(1, seed=3), "aligned", "m")
        kinds.append(found.kind)

    waiting = threading.Thread(target=ask)
    waiting.start()
    until_true(lambda: engine.num_waiting)
    closing = threading.Thread(target=engine.close)
    closing.start()
    waiting.join(WAIT)
    gate.open.set()
    closing.join(WAIT)
    assert kinds == ["not-ready"]
    with pytest.raises(ProblemError, match="stopping"):
        engine.embed(objects(1), "aligned", "m")


class SlowModel(FakeModel):
    """Takes its time, so that callers can leave before it is done."""

    def __init__(self):
        super().__init__()
        self.open, self.entered = threading.Event(), threading.Event()

    def embed(self, observations, space="aligned"):
        self.entered.set()
        assert self.open.wait(WAIT)
        return super().embed(observations, space)


def test_a_caller_that_hangs_up_costs_the_model_nothing(run):
    model = SlowModel()
    app = create_app(model, batching=EngineSettings(cache_mib=0))
    service = app.state.service
    with run(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=WAIT) as client:
        body = {"input": {"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}}
        held = threading.Thread(target=lambda: client.post("/v1/embeddings", json=body))
        held.start()
        assert model.entered.wait(WAIT)
        with pytest.raises(httpx.TimeoutException), httpx.Client(base_url=url, trust_env=False, timeout=0.3) as hasty:
            hasty.post("/v1/embeddings", json={**body, "space": "encoder"})
        until_true(lambda: service.metrics.registry.get_sample_value("armillary_abandoned_objects_total"))
        model.open.set()
        held.join(WAIT)
        text = client.get("/metrics").text
    assert model.num_rows == 1
    assert "armillary_abandoned_objects_total 1.0" in text
    assert 'armillary_request_seconds_count{method="POST",route="/v1/embeddings",status="200"} 1.0' in text


def test_seconds_of_searches_are_counted_apart(model, index, run):
    with run(create_app(model, index)) as url, httpx.Client(base_url=url, trust_env=False) as client:
        client.post("/v1/collections/objects/search", json={"object_id": "object-3"})
        client.post("/v1/embeddings", json={"input": {"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0]]]}})
        text = client.get("/metrics").text
    for stage in ("search", "queue", "model"):
        assert f'armillary_stage_seconds_count{{stage="{stage}"}} 1.0' in text


def test_metrics_do_not_grow_with_addresses_that_are_no_route(run):
    with run(create_app(FakeModel())) as url, httpx.Client(base_url=url, trust_env=False) as client:
        for number in range(5):
            client.get(f"/nothing/{number}")
        text = client.get("/metrics").text
    assert "/nothing/" not in text
    assert 'armillary_request_seconds_count{method="",route="(none)",status="404"} 5.0' in text


def test_a_full_queue_is_429_over_http_with_the_time_to_come_back(run):
    model = SlowModel()
    app = create_app(model, batching=EngineSettings(max_queue=1, cache_mib=0))
    statuses = []
    item = {"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}
    with run(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=WAIT) as client:

        def ask():
            statuses.append(client.post("/v1/embeddings", json={"input": item}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert model.entered.wait(WAIT)
        threads[1].start()
        until_true(lambda: app.state.service.engine.num_waiting)
        answer = client.post("/v1/embeddings", json={"input": [item, item]})
        model.open.set()
        for thread in threads:
            thread.join(WAIT)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["type"] == "/problems/busy"
    assert statuses == [200, 200]
