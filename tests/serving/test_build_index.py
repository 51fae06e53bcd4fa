"""From embedding shards and a dataset to an index that a server predicts with, without a label of a held-out object."""

import numpy as np
import pytest
from fake_model import FakeModel, embedding_table, images, spectra
from starlette.testclient import TestClient

from armillary import cli
from armillary.data.dataset_writer import write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.models.embeddings import write_embedding_shard
from armillary.models.neighbour_prediction import CANDIDATE_COUNTS, NeighbourPredictionError, choose_neighbours
from armillary.serving import server
from armillary.serving.app import create_app
from armillary.serving.index.build_index import build_index
from armillary.serving.index.embedding_index import EmbeddingIndex, EmbeddingIndexError
from armillary.serving.index.files import predictors_of
from armillary.serving.index.labelled_neighbours import labelled_neighbours, predictor_for, predictor_key

COUNT = 400
REDSHIFT = np.linspace(0, 1, COUNT)
IDS = [f"object-{i}" for i in range(COUNT)]
HELD_OUT = IDS[::3]
# At random: every other one would differ from the rest, for labels are missing at every tenth object.
VALIDATION = np.random.default_rng(0).permutation(HELD_OUT)[:67].tolist()
FROM_IMAGE = predictor_key("scalar/redshift", "image/hsc")
FROM_SPECTRUM = predictor_key("scalar/redshift", "spectrum/desi")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards of images of all and spectra of half the objects; a dataset with their redshifts; two files of ids."""
    folder = tmp_path_factory.mktemp("made")
    for number, observation in enumerate((images(COUNT), spectra(COUNT // 2))):
        table = embedding_table(FakeModel(), [observation])
        write_embedding_shard(
            folder / "embeddings" / f"{number}.parquet",
            table.object_id,
            table.modality,
            table.vectors,
            model_id=table.model_id,
            space=table.space,
            ra=table.ra,
            dec=table.dec,
        )
    mask = np.arange(COUNT) % 10 != 9
    redshift = ScalarObservation(modality("scalar/redshift"), IDS, REDSHIFT, mask)
    mass = ScalarObservation(modality("scalar/stellar_mass"), [*IDS[:50], "nobody"], np.full(51, 10.0))
    write_dataset(folder / "data", (redshift, mass), allow_unplaced=True)
    (folder / "held_out.txt").write_text("\n".join(HELD_OUT) + "\n")
    (folder / "validation.txt").write_text("\n".join(VALIDATION) + "\n")
    return folder


@pytest.fixture(scope="module")
def inputs(made):
    return {
        "embeddings": made / "embeddings",
        "data": made / "data",
        "held_out": made / "held_out.txt",
        "validation": made / "validation.txt",
    }


@pytest.fixture(scope="module")
def folder(made, inputs):
    build_index(index=made / "index", **inputs)
    return made / "index"


def test_no_label_of_a_held_out_object_enters_the_index_but_its_vectors_do(folder):
    index = EmbeddingIndex.load(folder)
    assert index.manifest.labels == ("scalar/redshift", "scalar/stellar_mass")
    assert set(index.labels["object_id"].to_pylist()).isdisjoint(HELD_OUT)
    assert all(index.labels_of(object_id) == {} and len(index.rows_of(object_id)) for object_id in HELD_OUT)
    for i in (1, 2, 4, 391):
        assert index.labels_of(IDS[i])["scalar/redshift"] == pytest.approx(REDSHIFT[i])
    assert "scalar/redshift" not in index.labels_of(IDS[19])


def test_the_predictor_is_that_of_the_neighbours_by_plain_loops(folder):
    index = EmbeddingIndex.load(folder)
    queries = [i for i in sorted(VALIDATION) if IDS.index(i) % 10 != 9]
    similarities = np.full((len(queries), max(CANDIDATE_COUNTS)), -np.inf)
    labels = np.full(similarities.shape, np.nan)
    known = [other for other in IDS if "scalar/redshift" in index.labels_of(other)]
    vectors = {other: [index.vector(other, name) for name in index.modalities_of(other)] for other in known}
    for row, query in enumerate(queries):
        vector = index.vector(query, "image/hsc")
        best = {other: max(float(vector @ v) for v in vectors[other]) for other in known}
        for place, other in enumerate(sorted(best, key=best.get, reverse=True)[: similarities.shape[1]]):
            similarities[row, place] = best[other]
            labels[row, place] = index.labels_of(other)["scalar/redshift"]
    truth = np.array([REDSHIFT[IDS.index(i)] for i in queries])
    expected = choose_neighbours("scalar/redshift", similarities, labels, truth, model_id=FakeModel.model_id)
    found = predictors_of(folder, index.manifest)
    assert list(found) == [FROM_IMAGE]
    assert (found[FROM_IMAGE].k, found[FROM_IMAGE].temperature) == (expected.k, expected.temperature)
    assert found[FROM_IMAGE].factors == pytest.approx(expected.factors, rel=1e-3)
    assert found[FROM_IMAGE].num_calibration == expected.num_calibration > 20


def test_calibrated_intervals_hold_the_truth_of_held_out_objects(folder):
    index = EmbeddingIndex.load(folder)
    predictors = predictors_of(folder, index.manifest)
    fresh = [i for i in HELD_OUT if i not in VALIDATION]
    covered = 0
    with TestClient(create_app(FakeModel(), index, predictors)) as http:
        for object_id in fresh:
            body = {"property": "scalar/redshift", "object_id": object_id, "modality": "image/hsc"}
            answer = http.post("/v1/predict", json=body).json()
            assert answer["calibrated"] is True
            covered += (
                answer["intervals"][-1]["lower"] <= REDSHIFT[IDS.index(object_id)] <= answer["intervals"][-1]["upper"]
            )
    # 66 or more objects at level 0.95: below 0.82 with probability less than 1e-3, calibration's own scatter included.
    assert covered / len(fresh) > 0.82


def test_a_predictor_calibrated_on_images_is_not_used_for_other_queries(folder):
    index = EmbeddingIndex.load(folder)
    predictors = predictors_of(folder, index.manifest)
    with TestClient(create_app(FakeModel(), index, predictors)) as http:
        for query in ({"modality": "spectrum/desi"}, {}):
            body = {"property": "scalar/redshift", "object_id": "object-3", **query}
            assert http.post("/v1/predict", json=body).json()["calibrated"] is False
        vector = {"property": "scalar/redshift", "vector": [1.0] * 8}
        assert http.post("/v1/predict", json=vector).json()["calibrated"] is False
        assert http.get("/v1/collections").json()["collections"][0]["predictors"] == [FROM_IMAGE]


def test_a_predictor_is_chosen_by_what_the_query_was_made_of(folder):
    made = predictors_of(folder, EmbeddingIndex.load(folder).manifest)
    any_query = made[FROM_IMAGE]
    assert predictor_for(made, "scalar/redshift", ["image/hsc"]) is made[FROM_IMAGE]
    assert predictor_for(made, "scalar/redshift", ["image/hsc", "spectrum/desi"]).num_calibration == 0
    assert predictor_for(made, "scalar/stellar_mass", ["image/hsc"]).num_calibration == 0
    assert predictor_for({"scalar/redshift": any_query}, "scalar/redshift", []) is any_query


def test_queries_and_neighbours_may_be_of_chosen_modalities(inputs, tmp_path):
    manifest = build_index(
        index=tmp_path / "index",
        query_modalities=("spectrum/desi", "image/hsc"),
        target_modality="spectrum/desi",
        **{**inputs, "validation": inputs["held_out"]},
    )
    found = predictors_of(tmp_path / "index", manifest)
    assert sorted(found) == [FROM_IMAGE, FROM_SPECTRUM]
    assert {predictor.target_modality for predictor in found.values()} == {"spectrum/desi"}


def test_without_validation_there_are_labels_and_no_predictors(inputs, tmp_path):
    build_index(inputs["embeddings"], tmp_path / "index", inputs["data"])
    index = EmbeddingIndex.load(tmp_path / "index")
    assert index.labels_of(HELD_OUT[1])["scalar/redshift"] == pytest.approx(REDSHIFT[3])
    assert predictors_of(tmp_path / "index", index.manifest) == {}
    assert build_index(inputs["embeddings"], tmp_path / "bare").labels == ()


def test_each_object_is_one_neighbour_and_short_rows_are_filled_up(folder):
    index = EmbeddingIndex.load(folder)
    vectors = np.stack([index.vector("object-1", "image/hsc"), index.vector("object-1", "spectrum/desi")])
    found, labels = labelled_neighbours(index, vectors, "scalar/stellar_mass", 60)
    for names, values in zip(found.object_id, labels, strict=True):
        kept = [name for name in names if name]
        assert len(kept) == len(set(kept)) == sum(np.isfinite(values)) == 33
    assert ((found.row < 0) == np.isnan(labels)).all()


def assert_refused(tmp_path, inputs, says, kind=EmbeddingIndexError, **changes):
    with pytest.raises(kind, match=says):
        build_index(index=tmp_path / "index", **{**inputs, **changes})
    assert not (tmp_path / "index").exists()


def test_validation_objects_that_are_not_held_out_are_refused(inputs, tmp_path):
    (tmp_path / "ids").write_text("object-0\nobject-1\n")
    assert_refused(
        tmp_path,
        inputs,
        "1 of 2 validation objects are not held out, the first: 'object-1'",
        validation=tmp_path / "ids",
    )
    assert_refused(tmp_path, inputs, "67 of 67 validation objects are not held out", held_out=None)


def test_lists_that_cannot_be_meant_are_refused(inputs, tmp_path):
    (tmp_path / "ids").write_text("object_id,ra\nobject-0,1.0\n")
    assert_refused(tmp_path, inputs, "none of its 2 objects", held_out=tmp_path / "ids", validation=None)
    (tmp_path / "ids").write_text("\n")
    assert_refused(
        tmp_path, inputs, "expected object ids, one in a line, found none", held_out=tmp_path / "ids", validation=None
    )
    assert_refused(tmp_path, inputs, "needs the dataset", data=None)


def test_properties_and_modalities_that_are_not_there_are_refused(inputs, tmp_path):
    assert_refused(tmp_path, inputs, "no labels of 'scalar/age'", calibrate=("scalar/age",))
    assert_refused(tmp_path, inputs, "no query modality 'image/hcs'", query_modalities=("image/hcs",))
    few = {"calibrate": ("scalar/stellar_mass",)}
    assert_refused(tmp_path, inputs, "queries of image/hsc: .* at least", NeighbourPredictionError, **few)


def test_a_changed_predictor_is_refused(inputs, tmp_path):
    build_index(index=tmp_path / "index", **inputs)
    path = tmp_path / "index" / "predictors.json"
    path.write_text(path.read_text().replace('"num_calibration": ', '"num_calibration": 1'))
    with pytest.raises(EmbeddingIndexError, match=r"predictors\.json: its SHA-256"):
        EmbeddingIndex.load(tmp_path / "index")


def test_the_commands_build_an_index_and_serve_it_with_its_predictors(inputs, tmp_path, monkeypatch, capsys):
    options = [f"--{name.replace('_', '-')}={path}" for name, path in inputs.items() if name != "embeddings"]
    named = ["--query-modality=image/hsc", "--calibrate=scalar/redshift"]
    assert cli.main(["index", str(inputs["embeddings"]), str(tmp_path / "index"), *options, *named]) == 0
    assert "600 rows of 400 objects" in capsys.readouterr().out
    assert cli.main(["index", str(inputs["embeddings"]), str(tmp_path / "index"), *options]) == 2
    assert "something already" in capsys.readouterr().err

    class Checkpoint(FakeModel):
        @classmethod
        def load(cls, folder, device="cpu"):
            assert (folder, device) == ("checkpoint", "meta")
            return cls()

    served = []
    monkeypatch.setattr("armillary.serving.served.FoundationModel", Checkpoint)
    monkeypatch.setattr(server, "run_app", lambda *given, **named: served.append((given, named)))
    (tmp_path / "key").write_text("secret\n")
    serve = ["serve", "checkpoint", "--index", str(tmp_path / "index"), "--device=meta"]
    files = [f"--ready-file={tmp_path / 'ready.json'}", f"--api-key-file={tmp_path / 'key'}"]
    assert cli.main([*serve, "--host=0.0.0.0", "--port=0", *files]) == 0
    (app, host, port), named = served.pop()
    assert (host, port, named["ready_file"]) == ("0.0.0.0", 0, tmp_path / "ready.json")
    with TestClient(app) as http:
        assert http.get("/v1/models").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        entry = http.get("/v1/collections", headers=headers).json()["collections"][0]
        assert entry["predictors"] == [FROM_IMAGE]


@pytest.mark.parametrize("content", ["", "two words", "schlüssel"])
def test_a_file_that_holds_no_key_is_refused(tmp_path, content):
    (tmp_path / "key").write_text(content)
    with pytest.raises(ValueError, match="expected a key"):
        server.read_key(tmp_path / "key")
