"""/metrics tells how well an approximate index finds what callers ask for."""

import threading

import numpy as np
import pytest
from fake_model import FakeModel
from starlette.testclient import TestClient

from armillary.models.embeddings import EmbeddingTable
from armillary.serving.app import create_app
from armillary.serving.index import recall_sample
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.index.recall_sample import RecallSample, SearchSettings
from armillary.serving.middleware.metrics import ServerMetrics

pytestmark = pytest.mark.usefixtures("no_rest")
COUNT, K = 1500, 10
IMAGE, SPECTRUM = "image/hsc", "spectrum/desi"


@pytest.fixture
def no_rest(monkeypatch):
    monkeypatch.setattr(recall_sample, "REST", 0)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """An IVF index that was built for a low recall, of two modalities that lie together."""
    patch = pytest.MonkeyPatch()
    patch.setattr("armillary.serving.index.part.EXACT_ROWS", 0)
    vectors = np.random.default_rng(0).normal(size=(COUNT, 8)).astype(np.float16)
    table = EmbeddingTable(
        object_id=tuple(f"object-{n // 2}" for n in range(COUNT)),
        modality=(IMAGE, SPECTRUM) * (COUNT // 2),
        ra=np.full(COUNT, 1.0),
        dec=np.full(COUNT, 2.0),
        vectors=vectors,
        space="aligned",
        model_id=FakeModel.model_id,
    )
    folder = tmp_path_factory.mktemp("coarse") / "index"
    EmbeddingIndex.build(table, index_type="ivf", target_recall=0.3).save(folder)
    yield EmbeddingIndex.load(folder)
    patch.undo()


def settled():
    for thread in threading.enumerate():
        if thread.name == "armillary-recall":
            thread.join(20)


def sampled(app, modality=IMAGE):
    """Neighbours found and expected so far."""
    settled()
    read = app.state.service.metrics.registry.get_sample_value
    names = (f"armillary_sampled_neighbours_{what}_total" for what in ("found", "expected"))
    return [read(name, {"modality": modality}) or 0 for name in names]


def search(http, **body):
    answer = http.post("/v1/collections/objects/search", json={"k": K, **body})
    assert answer.status_code == 200, answer.text
    return answer


def test_found_and_expected_neighbours_are_those_of_an_exact_search(coarse):
    app = create_app(FakeModel(), coarse, searching=SearchSettings(recall_sample=1.0))
    queries = np.random.default_rng(1).normal(size=(12, 8)).astype(np.float32)
    counts = {IMAGE: [0, 0], SPECTRUM: [0, 0]}
    with TestClient(app) as http:
        for query in queries:
            answer = search(http, vector=query.tolist())
            settled()
            told = {(row["object_id"], row["modality"]) for row in answer.json()["neighbours"]}
            true = coarse.search(query[None], K, exact=True)
            for pair in zip(true.object_id[0], true.modality[0], strict=True):
                counts[pair[1]][0] += pair in told
                counts[pair[1]][1] += 1
        assert {name: sampled(app, name) for name in counts} == counts
    found, expected = np.sum(list(counts.values()), axis=0)
    assert expected == K * len(queries)
    assert found < expected


def test_the_exact_search_has_the_filters_of_the_search(coarse):
    app = create_app(FakeModel(), coarse, searching=SearchSettings(recall_sample=1.0))
    with TestClient(app) as http:
        search(http, object_id="object-3", modality=IMAGE, target_modality=SPECTRUM)
        assert sampled(app, SPECTRUM)[1] == K
        assert sampled(app, IMAGE)[1] == 0


def test_searches_that_are_exact_are_not_compared_nor_any_where_the_share_is_nought(coarse, index):
    for searched, share, body in ((coarse, 1.0, {"exact": True}), (index, 1.0, {}), (coarse, 0.0, {})):
        app = create_app(FakeModel(), searched, searching=SearchSettings(recall_sample=share))
        with TestClient(app) as http:
            search(http, object_id="object-3", **body)
            assert sampled(app) == [0, 0]


def test_one_search_is_compared_at_a_time_and_none_while_the_model_has_work(coarse):
    begun, release, compared, is_busy = threading.Event(), threading.Event(), [], [False]
    sample = RecallSample(1.0, ServerMetrics(), lambda: is_busy[0])
    queries = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    found = coarse.search(queries, K)

    def exact(query):
        compared.append(query)
        begun.set()
        assert release.wait(20)
        return coarse.search(query, K, exact=True)

    sample.consider(coarse, queries, K, found, exact)
    assert begun.wait(20)
    sample.consider(coarse, queries, K, found, exact)
    release.set()
    settled()
    assert [query.shape for query in compared] == [(1, 8)]
    is_busy[0] = True
    sample.consider(coarse, queries, K, found, exact)
    is_busy[0] = False
    settled()
    assert len(compared) == 1
    sample.consider(coarse, queries, K, found, exact)
    settled()
    assert len(compared) == 2


def test_a_comparison_is_followed_by_a_rest(coarse, monkeypatch):
    monkeypatch.setattr(recall_sample, "REST", 1e9)
    sample = RecallSample(1.0, ServerMetrics(), lambda: False)
    query = np.ones((1, 8), np.float32)
    compared = []
    for _ in range(3):
        sample.consider(
            coarse, query, K, coarse.search(query, K), lambda asked: compared.append(1) or coarse.search(asked, K)
        )
        settled()
    assert len(compared) == 1
