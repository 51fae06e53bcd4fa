"""Answers of a search as tables: what is read from each format is what JSON says."""

import csv
import io
import json
import warnings

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from astropy.io.votable import exceptions, parse
from astropy.table import Table
from astropy.units import Unit
from fake_model import FakeModel, embedding_table, images
from http_bodies import assert_problem
from starlette.testclient import TestClient

from armillary.data.modalities import MODALITIES
from armillary.models.embeddings import EmbeddingTable
from armillary.serving.app import create_app
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.routes.search_answers import label_column

ADDRESS = "/v1/collections/objects/search"
TYPES = {
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
    "votable": "application/x-votable+xml",
    "csv": "text/csv",
}
COLUMNS = ["query", "object_id", "modality", "similarity", "ra", "dec"]


@pytest.fixture
def http(model, index):
    with TestClient(create_app(model, index)) as client:
        yield client


def columns_of(kind, content):
    """The columns of a file as lists, with None for what is not known."""
    if kind == "arrow":
        return pa.ipc.open_stream(content).read_all().to_pydict()
    if kind == "parquet":
        return pq.read_table(io.BytesIO(content)).to_pydict()
    if kind == "csv":
        return pa.csv.read_csv(io.BytesIO(content)).to_pydict()
    table = Table.read(io.BytesIO(content), format="votable", use_names_over_ids=True)
    return {
        name: [None if one is np.ma.masked or one != one else one for one in table[name].tolist()]
        for name in table.colnames
    }


@pytest.mark.parametrize("kind", TYPES)
def test_a_table_has_what_json_has(http, kind):
    body = {"object_id": "object-95", "k": 20, "include": ["labels"]}
    wanted = http.post(ADDRESS, json=body).json()
    answer = http.post(ADDRESS, json=body, headers={"Accept": TYPES[kind]})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith(TYPES[kind])
    found = columns_of(kind, answer.content)
    assert list(found) == [*COLUMNS, "scalar/redshift", "scalar/stellar_mass"]
    assert found["query"] == [0] * 20
    for name in ("object_id", "modality"):
        assert found[name] == [n[name] for n in wanted["neighbours"]]
    for name in ("similarity", "ra", "dec"):
        np.testing.assert_allclose(found[name], [n[name] for n in wanted["neighbours"]], rtol=1e-6)
    redshifts = [n["labels"].get("scalar/redshift") for n in wanted["neighbours"]]
    assert found["scalar/redshift"] == pytest.approx(redshifts)
    assert None in redshifts  # objects from 100 on have none
    assert answer.headers["armillary-next-cursor"] == wanted["next_cursor"]
    assert answer.headers["armillary-index-id"] == wanted["provenance"]["index_id"]


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_arrow_and_parquet_say_units_and_provenance(http, kind):
    answer = http.get(ADDRESS, params={"object_id": "object-5", "k": 3}, headers={"Accept": TYPES[kind]})
    if kind == "arrow":
        schema = pa.ipc.open_stream(answer.content).schema
    else:
        schema = pq.read_schema(io.BytesIO(answer.content))
    assert schema.field("ra").metadata[b"unit"] == b"deg"
    assert schema.field("similarity").metadata[b"ucd"] == b"stat.correlation"
    assert json.loads(schema.metadata[b"provenance"])["model_id"] == FakeModel.model_id


def test_a_votable_is_valid_and_says_units_ucds_and_frame(http):
    body = {"object_id": "object-5", "k": 3, "include": ["labels"]}
    content = http.post(ADDRESS, json=body, headers={"Accept": TYPES["votable"]}).content
    with warnings.catch_warnings():
        warnings.simplefilter("error", exceptions.VOTableSpecWarning)
        document = parse(io.BytesIO(content), verify="exception")
    fields = {field.name: field for field in document.get_first_table().fields}
    assert (fields["ra"].unit, fields["dec"].unit) == (u.deg, u.deg)
    assert (fields["ra"].ucd, fields["object_id"].ucd) == ("pos.eq.ra;meta.main", "meta.id;meta.main")
    assert fields["scalar/redshift"].ucd == "src.redshift"
    (frame,) = document.resources[0].coordinate_systems
    assert (fields["ra"].ref, frame.ID, frame.system) == ("icrs", "icrs", "ICRS")
    said = {info.name: info.value for info in document.resources[0].infos}
    assert said["QUERY_STATUS"] == "OK"
    assert json.loads(said["provenance"])["space"] == "aligned"


def test_the_units_of_labels_are_units_of_astropy():
    for modality in MODALITIES:
        said = label_column(modality.name).metadata or {}
        assert Unit(said.get(b"unit", b"").decode(), format="vounit") is not None
    assert label_column("scalar/legacysurvey_r").metadata[b"unit"] == b"mag"
    assert b"unit" not in label_column("made up").metadata


NAMES = ["=1+1", "+a", "-3", "@b", " =c", "'d", "\te", "\uff1df", 'g,"h"', "i\nj", "plain-=1"]


@pytest.fixture
def strange(model):
    """An index whose ids are what a spreadsheet would compute, and one with a character that XML has not."""
    given = embedding_table(model, [images(len(NAMES) + 1)])
    ids = (*NAMES, "k\x01l")
    table = EmbeddingTable(ids, given.modality, given.ra, given.dec, given.vectors, given.space, given.model_id)
    with TestClient(create_app(model, EmbeddingIndex.build(table))) as client:
        yield client


def test_csv_computes_nothing_and_gives_the_ids_back(strange):
    body = {"vector": [1.0] * 8, "k": len(NAMES) + 1}
    answer = strange.post(ADDRESS, json=body, headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    cells = [row["object_id"] for row in rows]
    assert not [cell for cell in cells if cell.lstrip()[0] in "=+-@\uff1d"]
    assert {cell.removeprefix("'") for cell in cells} == {*NAMES, "k\x01l"}
    assert {cell for cell in cells if cell.startswith("'")} == {f"'{name}" for name in NAMES[:8]}


def test_a_votable_of_strange_ids_can_be_read(strange):
    body = {"vector": [1.0] * 8, "k": len(NAMES) + 1}
    answer = strange.post(ADDRESS, json=body, headers={"Accept": TYPES["votable"]})
    found = columns_of("votable", answer.content)["object_id"]
    assert {'g,"h"', "i\nj", "=1+1", "k\ufffdl"} <= set(found)


def test_many_queries_are_numbered(http, index):
    vectors = np.stack([index.vector(f"object-{i}", "image/hsc") for i in (3, 70)])
    file = io.BytesIO()
    np.save(file, vectors)
    headers = {"Content-Type": "application/x-npy", "Accept": TYPES["parquet"]}
    answer = http.post(f"{ADDRESS}?k=2&include=labels", content=file.getvalue(), headers=headers)
    found = columns_of("parquet", answer.content)
    assert found["query"] == [0, 0, 1, 1]
    assert found["object_id"] == index.search(vectors, 2).object_id.reshape(-1).tolist()
    assert found["scalar/redshift"][0] == pytest.approx(index.labels_of(found["object_id"][0])["scalar/redshift"])


@pytest.mark.parametrize("kind", TYPES)
def test_objects_near_a_place_are_a_table_too(http, kind):
    query = {"ra": 10.5, "dec": 5.0, "radius_deg": 0.25, "limit": 3}
    wanted = http.get("/v1/objects", params=query).json()
    answer = http.get("/v1/objects", params=query, headers={"Accept": TYPES[kind]})
    found = columns_of(kind, answer.content)
    assert found["object_id"] == [one["object_id"] for one in wanted["objects"]]
    assert found["separation_deg"] == pytest.approx([one["separation_deg"] for one in wanted["objects"]])
    assert answer.headers["armillary-next-cursor"] == wanted["next_cursor"]
    every = http.get("/v1/objects", params={"limit": 2}, headers={"Accept": TYPES[kind]})
    assert columns_of(kind, every.content)["separation_deg"] == [None, None]


def test_no_neighbours_are_a_table_of_no_rows(http):
    body = {"object_id": "object-5", "cone": {"ra": 200.0, "dec": -80.0, "radius_deg": 0.1}}
    for kind, media_type in TYPES.items():
        answer = http.post(ADDRESS, json=body, headers={"Accept": media_type})
        assert answer.status_code == 200, answer.text
        assert {name: list(values) for name, values in columns_of(kind, answer.content).items()} == {
            name: [] for name in COLUMNS
        }


def test_another_type_is_refused_and_those_that_there_are_are_named(http):
    wrong = http.post(ADDRESS, json={"object_id": "object-5"}, headers={"Accept": "text/html"})
    assert_problem(wrong, 406, "not-acceptable", says="text/csv")
