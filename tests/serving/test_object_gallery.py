"""Labelled objects found by the mean of their vectors: against plain loops, chosen on validation objects, served."""

import json

import numpy as np
import pytest
from fake_model import FakeModel
from starlette.testclient import TestClient

from armillary.models.embeddings import EmbeddingTable
from armillary.models.neighbour_prediction import NeighbourPredictor
from armillary.serving.app import create_app
from armillary.serving.index.build_index import calibrate_predictor
from armillary.serving.index.cone import Cone
from armillary.serving.index.embedding_index import EmbeddingIndex, EmbeddingIndexError
from armillary.serving.index.labelled_neighbours import labelled_neighbours

REDSHIFT, HSC, DESI = "scalar/redshift", "image/hsc", "spectrum/desi"
NUM_LABELLED, NUM_HELD = 400, 300
TRUTH = np.random.default_rng(3).uniform(0, 1, NUM_LABELLED + NUM_HELD)
IDS = [f"object-{i}" for i in range(len(TRUTH))]


def table(scatter, kinds=(HSC, DESI), with_spectrum=lambda i: i % 5):
    """Vectors on an arc whose angle is the redshift, each survey's with noise of its own; not all have a spectrum."""
    rng = np.random.default_rng(1)
    rows = [(i, name) for name in kinds for i in range(len(IDS)) if name == HSC or with_spectrum(i)]
    angle = np.array([TRUTH[i] for i, _ in rows]) * 2
    vectors = np.zeros((len(rows), 8))
    vectors[:, 0], vectors[:, 1] = np.cos(angle), np.sin(angle)
    vectors += np.array([scatter[name] for _, name in rows])[:, None] * rng.normal(size=vectors.shape)
    place = np.array([i for i, _ in rows])
    return EmbeddingTable(
        object_id=tuple(IDS[i] for i in place),
        modality=tuple(name for _, name in rows),
        ra=10.0 + 0.1 * place,
        dec=np.full(len(rows), 5.0),
        vectors=vectors.astype(np.float16),
        space="aligned",
        model_id=FakeModel.model_id,
    )


def built(scatter, **options):
    labels = {"object_id": IDS[:NUM_LABELLED], REDSHIFT: TRUTH[:NUM_LABELLED]}
    return EmbeddingIndex.build(table(scatter, **options), labels)


@pytest.fixture(scope="module")
def index():
    return built({HSC: 0.25, DESI: 0.25})


@pytest.fixture(scope="module")
def predictor(index):
    truth = dict(zip(IDS[NUM_LABELLED : NUM_LABELLED + 150], TRUTH[NUM_LABELLED:], strict=False))
    return calibrate_predictor(index, REDSHIFT, truth, HSC)


def slow_means(index, query, allowed):
    """The cosine of each allowed object's mean vector, one object after another."""
    cosine = {}
    for name in allowed:
        mean = np.mean([index.vector(name, kind).astype(np.float64) for kind in index.modalities_of(name)], axis=0)
        cosine[name] = float(query @ mean / np.linalg.norm(query) / np.linalg.norm(mean))
    return cosine


@pytest.mark.parametrize("cone", [None, Cone(20.0, 5.0, 8.0)])
def test_objects_are_found_by_their_means_under_filters(index, cone):
    queries = index.vectors(IDS[:3], HSC)
    found = index.search_objects(
        queries, 20, has_label=REDSHIFT, exclude=["object-7"], exclude_each=[IDS[0], "", IDS[2]], cone=cone
    )
    for row in range(3):
        allowed = [i for i in IDS[:NUM_LABELLED] if i != "object-7" and (row == 1 or i != IDS[row])]
        if cone is not None:
            allowed = [i for i in allowed if abs(index.position_of(i)[0] - 20) < 9 and cone.contains(*_place(index, i))]
        cosine = slow_means(index, queries[row], allowed)
        names = found.object_id[row].tolist()
        assert len(set(names)) == 20
        np.testing.assert_allclose(found.similarity[row], [cosine[name] for name in names], atol=1e-3)
        np.testing.assert_allclose(found.similarity[row], sorted(cosine.values(), reverse=True)[:20], atol=1e-3)
        assert found.modality[row].tolist() == ["+".join(index.modalities_of(name)) for name in names]


def _place(index, name):
    return tuple(np.array([coordinate]) for coordinate in index.position_of(name))


def test_what_is_added_and_removed_changes_the_means(index, tmp_path):
    index.save(tmp_path / "index")
    changed = EmbeddingIndex.load(tmp_path / "index")
    query = changed.vectors(IDS[1:2], HSC)
    before = changed.search_objects(query, 1, has_label=REDSHIFT).object_id[0, 0]
    changed.remove([before])
    rows = table({HSC: 0.0, DESI: 0.0})
    keep = [n for n, name in enumerate(rows.object_id) if name == "object-2"]
    changed.add(
        EmbeddingTable(
            object_id=("object-2",) * len(keep),
            modality=tuple(rows.modality[n] for n in keep),
            ra=rows.ra[keep],
            dec=rows.dec[keep],
            vectors=np.repeat(query.astype(np.float16), len(keep), 0),
            space="aligned",
            model_id=FakeModel.model_id,
        )
    )
    found = changed.search_objects(query, 400, has_label=REDSHIFT)
    assert (found.object_id[0, 0], found.object_id.shape[1]) == ("object-2", NUM_LABELLED - 1)
    assert found.similarity[0, 0] == pytest.approx(1, abs=2e-3)
    assert before not in found.object_id[0].tolist()


def test_means_are_chosen_where_validation_objects_are_told_as_well_by_them(index, predictor):
    assert predictor.gallery == "objects"
    vectors, truth = index.vectors(IDS[NUM_LABELLED + 150 :], HSC), TRUTH[NUM_LABELLED + 150 :]
    errors = {}
    for gallery in ("rows", "objects"):
        found, labels = labelled_neighbours(index, vectors, REDSHIFT, predictor.k, gallery=gallery)
        value = NeighbourPredictor(REDSHIFT, predictor.k, predictor.temperature).predict(found.similarity, labels).value
        errors[gallery] = float(np.square(value - truth).mean())
    assert errors["objects"] < errors["rows"]


def test_rows_are_kept_where_another_survey_only_blurs():
    blurred = built({HSC: 0.02, DESI: 2.0})
    truth = dict(zip(IDS[NUM_LABELLED:], TRUTH[NUM_LABELLED:], strict=True))
    assert calibrate_predictor(blurred, REDSHIFT, truth, HSC).gallery == "rows"
    assert calibrate_predictor(blurred, REDSHIFT, truth, HSC, target_modality=HSC).gallery == "rows"


def test_a_server_follows_the_predictor_and_its_intervals_hold_the_truth(index, predictor):
    fresh = IDS[NUM_LABELLED + 150 :]
    asked = {"property": REDSHIFT, "input": [{"object_id": name, "modality": HSC} for name in fresh]}
    with TestClient(create_app(FakeModel(), index, {f"{REDSHIFT} from {HSC}": predictor})) as http:
        answer = http.post("/v1/predict", json=asked).json()
        one = {"property": REDSHIFT, "object_id": fresh[0], "modality": HSC}
        alone = http.post("/v1/predict", json=one).json()
        other = http.post("/v1/predict", json={**one, "target_modality": HSC}).json()
    data = answer["data"]
    assert {(datum["gallery"], datum["calibrated"]) for datum in data} == {("objects", True)}
    held = [d["intervals"][1]["lower"] <= TRUTH[IDS.index(d["object_id"])] <= d["intervals"][1]["upper"] for d in data]
    # 150 objects at level 0.9: below 0.8 with probability less than 1e-3, calibration's own scatter included.
    assert np.mean(held) > 0.8
    names = {neighbour["object_id"] for datum in data for neighbour in datum["neighbours"]}
    assert names <= set(IDS[:NUM_LABELLED])
    assert f"{HSC}+{DESI}" in {neighbour["modality"] for neighbour in alone["neighbours"]}
    assert alone["value"] == pytest.approx(data[0]["value"])
    assert (alone["gallery"], other["gallery"], other["calibrated"]) == ("objects", "rows", False)


def test_a_predictor_of_means_is_refused_where_an_index_has_none(index, predictor):
    class Rows:
        """An index that finds rows alone, as that on Milvus does."""

        def __getattr__(self, name):
            if name in ("search_objects", "num_labelled"):
                raise AttributeError(name)
            return getattr(index, name)

        def __len__(self):
            return len(index)

    with pytest.raises(EmbeddingIndexError, match="finds objects by means"):
        create_app(FakeModel(), Rows(), {REDSHIFT: predictor})


def test_predictors_that_were_saved_before_are_of_rows():
    content = json.loads(NeighbourPredictor(REDSHIFT).to_json())
    del content["gallery"]
    assert NeighbourPredictor.from_json(json.dumps(content)).gallery == "rows"
