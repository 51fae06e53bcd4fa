"""The routes of search and prediction on an index of Milvus: the tests of the FAISS index, with another index."""

import numpy as np
import pytest
from fake_model import FakeModel, embedding_table, images, spectra
from test_build_index import FROM_IMAGE, inputs, made  # noqa: F401
from test_search_routes import (  # noqa: F401
    http,
    predictor,
    test_a_search_other_than_the_calibrated_one_is_not_called_calibrated,
    test_an_object_counts_once_though_two_of_its_modalities_are_near,
    test_an_object_has_position_modalities_labels_and_links,
    test_prediction_comes_from_labelled_neighbours_and_is_calibrated,
    test_prediction_from_measurements_and_without_predictor,
    test_provenance_names_model_index_and_metric,
    test_search_by_measurements_finds_the_object_itself,
    test_search_by_object_leaves_it_out_unless_asked,
    test_search_by_vector_equals_the_index,
    test_the_address_form_gives_the_same_answer,
    test_wrong_predictions_say_what_is_wrong,
    test_wrong_searches_say_what_is_wrong,
)

from armillary import cli
from armillary.serving.index.build_index import build_index
from armillary.serving.index.opening import open_index
from armillary.serving.milvus.milvus_index import MilvusIndex

NUM_OBJECTS = 120


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """What conftest.py builds with FAISS."""
    pytest.importorskip("milvus_lite")
    table = embedding_table(FakeModel(), [images(NUM_OBJECTS), spectra(60)])
    labels = {
        "object_id": [f"object-{i}" for i in range(100)],
        "scalar/redshift": np.linspace(0, 1, NUM_OBJECTS)[:100],
        "scalar/stellar_mass": np.full(100, np.nan),
    }
    place = tmp_path_factory.mktemp("milvus") / "index.db"
    MilvusIndex.build(place, table, labels).publish()
    with MilvusIndex.open(place) as opened:
        yield opened


def test_the_command_builds_it_with_the_predictors_of_a_folder(inputs, tmp_path, capsys):  # noqa: F811
    """From shards and a dataset, by `armillary index`: what is calibrated on it is what FAISS's neighbours give."""
    pytest.importorskip("milvus_lite")
    place = f"{tmp_path}/index.db#sky"
    options = {name.replace("_", "-"): str(path) for name, path in inputs.items() if name != "embeddings"}
    words = [word for name, path in options.items() for word in (f"--{name}", path)]
    assert cli.main(["index", str(inputs["embeddings"]), place, *words]) == 0
    build_index(index=tmp_path / "index", **inputs)
    index, predictors = open_index(place)
    expected = open_index(tmp_path / "index")[1]
    assert list(predictors) == list(expected) == [FROM_IMAGE]
    assert predictors[FROM_IMAGE].k == expected[FROM_IMAGE].k
    assert predictors[FROM_IMAGE].factors == pytest.approx(expected[FROM_IMAGE].factors, rel=1e-3)
    before = len(index)
    (tmp_path / "gone.txt").write_text("object-0\nobject-399\n")
    assert cli.main(["index-remove", place, str(tmp_path / "gone.txt")]) == 0
    assert open_index(place)[0].modalities_of("object-0") == ()
    capsys.readouterr()
    assert cli.main(["index-info", place]) == 0
    assert f'"num_rows": {before - 3}' in capsys.readouterr().out
    assert cli.main(["index", str(inputs["embeddings"]), place]) != 0
    assert "there is something already" in capsys.readouterr().err
