"""Bulk work through both clients: files go up as they are, results come down whole."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from both_clients import KINDS, open_client
from fake_model import FakeModel, images
from flaky_app import FlakyApp

from armillary.serving.app import create_app
from armillary.serving.client.batches import Batch, objects_of
from armillary.serving.client.client import ApiError, NotFoundError


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def served(index, run, tmp_path):
    app = FlakyApp(create_app(FakeModel(), index, state=tmp_path / "state"), [], only="/v1/jobs")
    with run(app) as url:
        yield app, url


@pytest.fixture
def client(kind, served):
    with open_client(kind, served[1]) as client:
        yield client


@pytest.fixture
def upload(tmp_path):
    body, _ = Batch(0, tuple(objects_of([images(30)]))).body("aligned", 10**9)
    path = tmp_path / "objects.safetensors"
    path.write_bytes(body)
    return path


def test_a_file_goes_up_is_embedded_and_comes_down(client, tmp_path, upload):
    job = client.start_embedding_job(upload)
    assert (job.kind, job.num_objects, job.model_id) == ("embed", 30, FakeModel.model_id)
    done = client.wait_for_job(job.id)
    assert (done.phase, done.num_done, done.is_finished) == ("COMPLETED", 30, True)
    assert job.id in [one.id for one in client.jobs()]
    expected = FakeModel().embed([images(30)]).numpy()
    path = client.download_result(job.id, tmp_path / "vectors.npy")
    np.testing.assert_allclose(np.load(path), expected, atol=1e-6)
    table = pq.read_table(client.download_result(job.id, str(tmp_path / "vectors.parquet")))
    assert table["object_id"].to_pylist() == list(images(30).object_id)
    client.delete_job(job.id)
    with pytest.raises(NotFoundError):
        client.job(job.id)
    with pytest.raises(ValueError, match="expected one of"):
        client.download_result(job.id, tmp_path / "vectors.csv")


def test_an_array_needs_its_modality_and_lost_answers_make_no_second_job(client, served, tmp_path):
    np.save(tmp_path / "images.npy", images(4).flux.numpy())
    with pytest.raises(ApiError, match="modality"):
        client.start_embedding_job(tmp_path / "images.npy")
    served[0].failures = ["lost", "cut"]
    job = client.start_embedding_job(tmp_path / "images.npy", "encoder", modality="image/hsc", bands="g,r")
    assert client.wait_for_job(job.id).phase == "COMPLETED"
    assert len(client.jobs()) == 1
    with pytest.raises(ValueError, match=r"expected one of \['.arrow"):
        client.start_embedding_job(tmp_path / "images.csv")


def test_neighbours_of_many_objects_are_those_of_each(client, tmp_path):
    job = client.start_neighbours_job(["object-3", "object-40"], 2, modality="image/hsc", target_modality="image/hsc")
    client.wait_for_job(job.id)
    rows = pq.read_table(client.download_result(job.id, tmp_path / "near.parquet")).to_pylist()
    expected = [
        (name, neighbour.object_id)
        for name in ("object-3", "object-40")
        for neighbour in client.neighbours(name, 2, modality="image/hsc", target_modality="image/hsc")
    ]
    assert [(row["query_id"], row["object_id"]) for row in rows] == expected


def test_a_result_that_is_not_there_leaves_no_file(client, tmp_path, upload):
    job = client.start_embedding_job(upload)
    client.wait_for_job(job.id)
    client.delete_job(job.id)
    with pytest.raises(NotFoundError):
        client.download_result(job.id, tmp_path / "gone.npy")
    assert not list(tmp_path.glob("*gone*"))


def test_a_download_that_is_cut_comes_again(client, served, tmp_path, upload):
    job = client.start_embedding_job(upload)
    client.wait_for_job(job.id)
    served[0].failures = ["cut", "503"]
    path = client.download_result(job.id, tmp_path / "vectors.npy")
    assert np.load(path).shape == (30, 8)
    assert not served[0].failures
    assert not list(tmp_path.glob(".vectors*"))
