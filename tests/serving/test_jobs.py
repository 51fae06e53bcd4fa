"""Bulk jobs: uploads, results, phases, aborts; and what is left after kill -9."""

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from fake_model import FakeModel, images, spectra
from http_bodies import assert_problem
from starlette.testclient import TestClient

from armillary.serving.app import create_app
from armillary.serving.jobs import jobs
from armillary.serving.jobs.jobs import JobSettings
from armillary.serving.jobs.worker import MAX_ATTEMPTS
from armillary.serving.limits import Limits
from armillary.serving.state_stores import open_stores, stores_of

HERE = Path(__file__).parent
SAFETENSORS, NPY = "application/vnd.safetensors", "application/x-npy"
ARROW, FITS = "application/vnd.apache.arrow.stream", "application/fits"
HSC = "image/hsc"
QUICK = JobSettings(chunk_objects=5)


def image_file(count=23, flux=None, **metadata):
    given = images(count)
    flux = given.flux.numpy() if flux is None else flux
    about = {"modality": HSC, "bands": "g,r", "object_id": json.dumps(list(given.object_id)), **metadata}
    return safetensors.numpy.save({"flux": flux, "ra": given.ra.numpy(), "dec": given.dec.numpy()}, about)


def app_with(model, index, state, settings=QUICK, **options):
    app = create_app(model, index, state=state, **options)
    open_stores(app.state.service, settings)
    return app


@pytest.fixture
def http(model, index, tmp_path):
    with TestClient(app_with(model, index, tmp_path / "state")) as client:
        yield client


def post(http, body, media_type=SAFETENSORS, headers=None, **query):
    about = {"content-type": media_type, **(headers or {})}
    return http.post("/v1/jobs", params={"kind": "embed", **query}, content=body, headers=about)


def finished(http, response):
    assert response.status_code == 202, response.text
    address = response.headers["location"]
    assert response.json()["links"]["self"] == address
    return http.get(address, params={"wait": 30}).json()


def table_of(http, job):
    assert job["phase"] == "COMPLETED", job
    answer = http.get(job["links"]["result"])
    assert answer.headers["content-type"] == ARROW
    return pa.ipc.open_stream(answer.content).read_all()


def vectors_of(table):
    return np.array(table["embedding"].to_pylist(), np.float32)


# ---- results -----------------------------------------------------------------------------------------------------


def test_a_file_is_embedded_as_in_one_call_and_comes_in_three_formats(http):
    body = image_file()
    job = finished(http, post(http, body))
    assert (job["kind"], job["progress"], job["model_id"]) == ("embed", {"done": 23, "total": 23}, FakeModel.model_id)
    table = table_of(http, job)
    expected = http.post("/v1/embeddings", content=body, headers={"content-type": SAFETENSORS, "accept": NPY})
    expected = np.load(io.BytesIO(expected.content))
    assert np.array_equal(vectors_of(table), expected)
    assert table["object_id"].to_pylist() == [f"object-{i}" for i in range(23)]
    assert table["modalities"].to_pylist() == [[HSC]] * 23
    assert json.loads(table.schema.metadata[b"provenance"])["model_id"] == FakeModel.model_id
    address = job["links"]["result"]
    parquet = pq.read_table(io.BytesIO(http.get(address, params={"format": "parquet"}).content))
    assert parquet.equals(table)
    array = http.get(address, headers={"accept": NPY})
    assert np.array_equal(np.load(io.BytesIO(array.content)), expected)
    part = http.get(address, headers={"accept": NPY, "range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, array.content[10:20])
    assert_problem(http.get(address, params={"format": "csv"}), 422, "invalid-request")
    assert_problem(http.get(address, headers={"accept": "text/csv"}), 406, "not-acceptable")


def test_a_bad_object_fails_alone_and_is_named_by_its_place_in_the_file(http):
    flux = images(23).flux.numpy().copy()
    flux[17, 0, 3, 3] = np.nan
    table = table_of(http, finished(http, post(http, image_file(flux=flux))))
    assert [row for row, text in enumerate(table["error"].to_pylist()) if text] == [17]
    assert "/input/17/data" in table["error"][17].as_py()
    assert table["embedding"].null_count == 1
    assert table["embedding"][17].as_py() is None
    array = np.load(io.BytesIO(http.get(f"/v1/jobs/{_only(http)['id']}/result", params={"format": "npy"}).content))
    assert np.isnan(array).all(1).tolist() == [row == 17 for row in range(23)]
    good = [row for row in range(23) if row != 17]
    assert np.array_equal(array[good], vectors_of(table.take(good)))


def _only(http):
    (job,) = http.get("/v1/jobs").json()["jobs"]
    return job


def arrow_file(given, batch=4):
    flux = given.flux.numpy()
    nested = pa.array(flux.tolist(), pa.list_(pa.list_(pa.list_(pa.float32()))))
    table = pa.table({"object_id": list(given.object_id), "flux": nested}, metadata={"modality": HSC, "bands": "g,r"})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return sink.getvalue()


def npy_file(array):
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def fits_file(observation):
    from astropy.io import fits

    header = fits.Header({"FILTER1": "g", "BUNIT": "nanomaggy"})
    parts = [fits.PrimaryHDU(observation.flux[0].numpy(), header)]
    sink = io.BytesIO()
    fits.HDUList(parts).writeto(sink)
    return sink.getvalue()


def grid_file(given):
    """Spectra whose wavelengths are common to all."""
    tensors = {name: getattr(given, name).numpy() for name in ("flux", "inverse_variance")}
    tensors["wavelength"] = given.wavelength[0].numpy().copy()
    return safetensors.numpy.save(tensors, {"modality": "spectrum/desi"})


@pytest.mark.parametrize("kind", ["arrow", "npy", "spectra", "grid", "fits"])
def test_uploads_mean_the_same_as_bodies_of_embeddings(http, kind):
    given = spectra(12)
    stacked = np.stack([given.flux.numpy(), given.inverse_variance.numpy(), given.wavelength.numpy()], 1)
    body, media_type, query = {
        "arrow": (arrow_file(images(12)), ARROW, {}),
        "npy": (npy_file(images(12).flux.numpy()), NPY, {"modality": HSC, "bands": "g,r"}),
        "spectra": (npy_file(stacked.astype(np.float64)), NPY, {"modality": "spectrum/desi"}),
        "grid": (grid_file(given), SAFETENSORS, {}),
        "fits": (fits_file(images(1)), FITS, {"modality": HSC, "bands": "g,r"}),
    }[kind]
    answer = post(http, body, media_type, **query)
    table = table_of(http, finished(http, answer))
    direct = http.post(
        "/v1/embeddings", params=query, content=body, headers={"content-type": media_type, "accept": NPY}
    )
    assert direct.status_code == 200, direct.text
    assert np.array_equal(vectors_of(table), np.load(io.BytesIO(direct.content)))
    assert table.num_rows == (1 if kind == "fits" else 12)


def test_neighbours_of_many_objects_are_those_of_a_search(http):
    ids = [f"object-{i}" for i in range(13)]
    ids[6] = "object-999"
    body = {"object_ids": ids, "modality": HSC, "target_modality": "spectrum/desi", "k": 3}
    table = table_of(http, finished(http, http.post("/v1/jobs", params={"kind": "neighbours"}, json=body)))
    rows = table.to_pylist()
    assert len(rows) == 12 * 3 + 1
    wrong = [row for row in rows if row["error"]]
    assert [row["query_id"] for row in wrong] == ["object-999"]
    assert "no object" in wrong[0]["error"] or "object-999" in wrong[0]["error"]
    asked = {"object_id": ids[9], "modality": HSC, "target_modality": "spectrum/desi", "k": 3}
    expected = http.post("/v1/collections/objects/search", json=asked).json()["neighbours"]
    found = [row for row in rows if row["query_id"] == ids[9]]
    assert [row["rank"] for row in found] == [0, 1, 2]
    assert [row["object_id"] for row in found] == [neighbour["object_id"] for neighbour in expected]
    assert [row["ra"] for row in found] == [neighbour["ra"] for neighbour in expected]
    assert [row["similarity"] for row in found] == pytest.approx([n["similarity"] for n in expected], abs=1e-6)
    address = f"/v1/jobs/{_only(http)['id']}/result"
    assert_problem(http.get(address, params={"format": "npy"}), 406, "not-acceptable", says="Arrow or Parquet")


def test_chunks_of_another_index_are_made_again(http, index, tmp_path):
    body = {"object_ids": ["object-1", "object-2"], "k": 2}
    expected = table_of(http, finished(http, http.post("/v1/jobs", params={"kind": "neighbours"}, json=body)))
    app = app_with(FakeModel(), index, tmp_path / "other")
    store = stores_of(app.state.service).jobs
    job = TestClient(app).post("/v1/jobs", params={"kind": "neighbours"}, json=body).json()
    store.update(store.get(job["id"]), {"phase": "EXECUTING", "index_id": "another", "done": 2})
    path = store.place(job["id"]) / "chunks" / f"{0:012d}.arrow"
    with pa.ipc.new_file(str(path), expected.schema) as writer:
        writer.write_table(expected.slice(0, 1))
    with TestClient(app) as started:
        found = table_of(started, started.get(job["links"]["self"], params={"wait": 30}).json())
    assert found.equals(expected)


# ---- kill -9 -----------------------------------------------------------------------------------------------------


class Process:
    def __init__(self, folder, seconds, index):
        self.ready = folder / "ready.json"
        self.ready.unlink(missing_ok=True)
        arguments = [folder / "state", self.ready, seconds, index]
        self.process = subprocess.Popen(
            [sys.executable, HERE / "job_server.py", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self):
        for _ in range(3000):
            if self.ready.exists():
                self.http = httpx.Client(base_url=json.loads(self.ready.read_text())["url"], timeout=60)
                return self
            assert self.process.poll() is None, self.process.stderr.read().decode()
            time.sleep(0.02)
        raise AssertionError("the server did not start")

    def __exit__(self, *_):
        self.http.close()
        self.process.kill()
        self.process.communicate()


def until(happens, seconds=60):
    for _ in range(int(seconds / 0.02)):
        if happens():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_a_job_goes_on_after_kill_9_and_nothing_acknowledged_is_lost(index, index_folder, http, tmp_path):
    body, count, folder = image_file(60), 60, tmp_path / "killed"
    folder.mkdir()
    undisturbed = table_of(http, finished(http, post(http, body)))
    key = {"Idempotency-Key": "once"}
    probe = {"label": "z", "examples": [{"object_id": f"object-{i}", "value": i / 99} for i in range(60)]}
    with Process(folder, 0.15, index_folder) as server:
        first = post(server.http, body, headers=key)
        card = server.http.post("/v1/probes", json=probe, headers=key).json()
        waiting = post(server.http, image_file(9))
        address = first.headers["location"]
        until(lambda: server.http.get(address).json()["progress"]["done"] >= 20)
        done = server.http.get(address).json()
        assert (done["phase"], done["progress"]["done"] < count) == ("EXECUTING", True)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(20)
    chunks = len(list((folder / "state" / "jobs" / done["id"] / "chunks").glob("*.arrow")))
    assert 4 <= chunks < 12
    fresh = FakeModel()
    with TestClient(app_with(fresh, index, folder / "state")) as again:
        assert post(again, body, headers=key).json()["id"] == done["id"]
        job = again.get(address, params={"wait": 60}).json()
        assert (job["phase"], job["created"]) == ("COMPLETED", done["created"])
        assert again.get(waiting.headers["location"], params={"wait": 60}).json()["phase"] == "COMPLETED"
        assert fresh.num_rows == count - 5 * chunks + 9
        found = pa.ipc.open_stream(again.get(job["links"]["result"]).content).read_all()
        assert found.equals(undisturbed, check_metadata=True)
        assert again.get("/v1/probes").json()["probes"] == [card]
        assert again.post("/v1/probes", json=probe, headers=key).json() == card


@pytest.mark.slow
def test_a_job_ends_well_however_often_its_server_is_killed(http, index_folder, tmp_path):
    body, folder = image_file(60), tmp_path / "killed"
    folder.mkdir()
    undisturbed = table_of(http, finished(http, post(http, body)))
    address = None
    for delay in (0.0, 0.31, 0.02, 0.44):
        with Process(folder, 0.1, index_folder) as server:
            address = address or post(server.http, body).headers["location"]
            time.sleep(delay)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(20)
    with Process(folder, 0.0, index_folder) as server:
        job = server.http.get(address, params={"wait": 60}).json()
        found = pa.ipc.open_stream(server.http.get(job["links"]["result"]).content).read_all()
        assert found.equals(undisturbed, check_metadata=True)


def test_a_server_that_ends_leaves_its_job_to_the_next(model, index, tmp_path):
    body, started, release = image_file(23), threading.Event(), threading.Event()

    class Slow(FakeModel):
        def embed(self, observations, space="aligned"):
            if self.num_rows >= 10:
                started.set()
                release.wait(30)
            return super().embed(observations, space)

    slow = Slow()
    with TestClient(app_with(slow, index, tmp_path)) as http:
        job = post(http, body).json()
        assert started.wait(30)
        release.set()
    assert slow.num_rows < 23
    with TestClient(app_with(model, index, tmp_path)) as http:
        job = http.get(job["links"]["self"], params={"wait": 30}).json()
        assert (job["phase"], job["progress"]) == ("COMPLETED", {"done": 23, "total": 23})
    assert model.num_rows + slow.num_rows == 23


def test_a_job_that_ends_the_process_each_time_is_given_up(http, index, tmp_path):
    body = image_file()
    with TestClient(app_with(None, index, tmp_path / "other")) as loading:
        assert_problem(post(loading, body), 503, "not-ready")
        assert list((tmp_path / "other" / "jobs").glob("*")) in ([], [tmp_path / "other" / "jobs" / ".lock"])
    app = app_with(FakeModel(), index, tmp_path / "other")
    jobs = stores_of(app.state.service).jobs
    job = post(TestClient(app), body).json()
    assert job["phase"] == "QUEUED"
    jobs.update(jobs.get(job["id"]), {"phase": "EXECUTING", "attempts": MAX_ATTEMPTS})
    with TestClient(app) as http:
        found = http.get(job["links"]["self"], params={"wait": 30}).json()
    assert (found["phase"], found["error"]["type"]) == ("ERROR", "/problems/internal")
    assert "given up" in found["error"]["detail"]


def test_a_job_of_another_model_does_not_go_on(index, tmp_path):
    class Other(FakeModel):
        model_id = "armillary-ffffffffffff"

    job = post(TestClient(app_with(FakeModel(), index, tmp_path)), image_file()).json()
    with TestClient(app_with(Other(), None, tmp_path)) as http:
        found = http.get(job["links"]["self"], params={"wait": 30}).json()
    assert (found["phase"], found["error"]["type"]) == ("ERROR", "/problems/conflict")


# ---- abort, expiry, keys -----------------------------------------------------------------------------------------


def test_a_job_is_aborted_while_it_runs_and_while_it_waits(index, tmp_path):
    started, release = threading.Event(), threading.Event()

    class Slow(FakeModel):
        def embed(self, observations, space="aligned"):
            started.set()
            assert release.wait(30)
            return super().embed(observations, space)

    model = Slow()
    with TestClient(app_with(model, index, tmp_path)) as http:
        jobs = [post(http, image_file(20 + i)).json() for i in range(3)]
        assert started.wait(30)
        assert [http.get(job["links"]["self"]).json()["phase"] for job in jobs] == ["EXECUTING", "QUEUED", "QUEUED"]
        for job in jobs[:2]:
            answer = http.delete(job["links"]["self"])
            assert (answer.status_code, answer.json()["phase"]) == (200, "ABORTED")
        assert_problem(http.get(f"{jobs[0]['links']['self']}/result"), 409, "not-finished", says="ABORTED")
        release.set()
        assert http.get(jobs[2]["links"]["self"], params={"wait": 30}).json()["phase"] == "COMPLETED"
        listed = http.get("/v1/jobs", params={"phase": "ABORTED"}).json()["jobs"]
        assert [job["id"] for job in listed] == [jobs[1]["id"], jobs[0]["id"]]
        # The engine knows the first object, which all three files have, from the first job.
        assert model.num_rows == 5 + 21
        assert not (tmp_path / "jobs" / jobs[0]["id"] / "chunks").exists()
        for job in jobs:
            assert http.delete(job["links"]["self"]).status_code == 204
            assert_problem(http.get(job["links"]["self"]), 404, "not-found")
        until(lambda: [path.name for path in (tmp_path / "jobs").iterdir()] == [".lock"])


def test_finished_jobs_are_forgotten_after_their_time(model, index, tmp_path):
    with TestClient(app_with(model, index, tmp_path)) as http:
        job = finished(http, post(http, image_file()))
        assert job["expires"] == pytest.approx(job["finished"] + QUICK.keep_seconds)
    brief = JobSettings(chunk_objects=5, keep_seconds=0.001)
    with TestClient(app_with(model, index, tmp_path, brief)) as http:
        until(lambda: http.get("/v1/jobs").json() == {"jobs": []})
        assert_problem(http.get(f"{job['links']['self']}/result"), 404, "not-found")


def test_the_same_upload_under_one_key_is_one_job(http):
    key = {"Idempotency-Key": "upload-1"}
    body = image_file()
    first, again = (post(http, body, headers=key) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert_problem(post(http, image_file(22), headers=key), 409, "key-reused")
    assert_problem(post(http, body, headers=key, space="encoder"), 409, "key-reused")
    assert len(http.get("/v1/jobs").json()["jobs"]) == 1


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_an_upload_that_is_no_job_leaves_nothing_behind(model, index, tmp_path):
    settings = JobSettings(max_input_bytes=18_000, max_objects=30)
    with TestClient(app_with(model, index, tmp_path, settings, limits=Limits(max_body_bytes=10_000))) as http:
        good, wide = image_file(10), images(2, side=32)
        bad_modality = safetensors.numpy.save({"flux": images(3).flux.numpy()}, {"modality": "image/none"})
        large_row = safetensors.numpy.save({"flux": wide.flux.numpy()}, {"modality": HSC, "bands": "g,r"})
        scalar = {"modality": "scalar/redshift"}
        for status, kind, response in (
            (413, "too-large", post(http, image_file(40))),
            (413, "too-large", post(http, iter([b"x" * 15_000] * 2))),
            (413, "too-large", post(http, large_row)),
            (413, "too-large", post(http, npy_file(np.ones(31)), NPY, modality="scalar/redshift", space="encoder")),
            (400, "malformed-body", post(http, good[:-7])),
            (400, "malformed-body", post(http, b"")),
            (400, "malformed-body", post(http, b"\x93NUMPY\x01\x00\x46\x00{'descr': 'O'", NPY, **scalar)),
            (400, "malformed-body", post(http, b"PK\x03\x04" + b"\0" * 50, NPY, **scalar)),
            (400, "malformed-body", post(http, b"nothing", ARROW)),
            (400, "malformed-body", post(http, arrow_file(images(3))[:-300], ARROW)),
            (400, "malformed-body", post(http, b"nothing", FITS)),
            (404, "not-found", post(http, bad_modality)),
            (415, "unsupported-media-type", post(http, good, "text/csv")),
            (415, "unsupported-media-type", post(http, good, "application/json")),
            (422, "invalid-request", post(http, good, space="odd")),
            (422, "invalid-request", post(http, good, kind="odd")),
            (422, "invalid-request", post(http, npy_file(np.ones(0)), NPY, **scalar)),
            (404, "not-found", http.get("/v1/jobs/0123456789abcdef")),
            (404, "not-found", http.get("/v1/jobs/%2e%2e%2fprobes")),
            (404, "not-found", http.delete(f"/v1/jobs/{'x' * 300}")),
            (422, "invalid-request", http.get("/v1/jobs", params={"phase": "DONE"})),
        ):
            assert_problem(response, status, kind)
        assert http.get("/v1/jobs").json() == {"jobs": []}
        assert [path.name for path in (tmp_path / "jobs").iterdir()] == [".lock"]
        body = {"object_ids": ["object-1"], "target_modality": "spectrum/odd"}
        assert_problem(http.post("/v1/jobs", params={"kind": "neighbours"}, json=body), 404, "not-found")
        body = {"object_ids": []}
        assert_problem(http.post("/v1/jobs", params={"kind": "neighbours"}, json=body), 422, "invalid-request")


def test_compressed_arrow_batches_are_refused_and_large_ones_explained(model, index, tmp_path):
    table = pa.ipc.open_stream(arrow_file(images(12))).read_all()
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    with TestClient(app_with(model, index, tmp_path, limits=Limits(max_body_bytes=3_000))) as http:
        assert_problem(post(http, sink.getvalue(), ARROW), 422, "invalid-request", says="compress")
        assert_problem(post(http, arrow_file(images(12), 12), ARROW), 413, "too-large", says="max_chunksize")
        job = finished(http, post(http, arrow_file(images(12), 2), ARROW))
        assert job["progress"] == {"done": 12, "total": 12}


@pytest.mark.parametrize("kind", ["safetensors", "npy", "arrow", "fits"])
def test_damaged_uploads_are_refused_or_done_and_never_a_fault(http, kind):
    query = {"modality": HSC, "bands": "g,r"}
    body, media_type, query = {
        "safetensors": (image_file(6), SAFETENSORS, {}),
        "npy": (npy_file(images(6).flux.numpy()), NPY, query),
        "arrow": (arrow_file(images(6)), ARROW, {}),
        "fits": (fits_file(images(1)), FITS, query),
    }[kind]
    rng, refused = np.random.default_rng(3), 0
    for number in range(30):
        damaged = bytearray(body)
        if number % 3 == 0:
            damaged = damaged[: rng.integers(0, len(body))]
        for place in rng.integers(0, max(1, min(len(damaged), 600)), 3):
            damaged[place : place + 1] = rng.bytes(1)
        answer = post(http, bytes(damaged), media_type, **query)
        assert answer.status_code == 202 or 400 <= answer.status_code < 500, answer.text
        refused += answer.status_code != 202
    assert refused
    until(lambda: not any(job["finished"] is None for job in http.get("/v1/jobs").json()["jobs"]))
    ended = http.get("/v1/jobs").json()["jobs"]
    assert all(job["error"] is None or job["error"]["type"] != "/problems/internal" for job in ended)


def test_no_more_jobs_wait_than_may(index, tmp_path):
    app = app_with(FakeModel(), index, tmp_path, JobSettings(max_waiting=2))
    http = TestClient(app)  # not started: nothing works on them
    assert [post(http, image_file(5 + i)).status_code for i in range(2)] == [202, 202]
    full = post(http, image_file(9))
    assert_problem(full, 429, "busy")
    assert int(full.headers["retry-after"]) > 0


def test_a_caller_that_leaves_in_mid_upload_leaves_nothing(model, index, tmp_path, run):
    with run(app_with(model, index, tmp_path)) as url:
        address = urlparse(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = f"POST /v1/jobs?kind=embed HTTP/1.1\r\nHost: x\r\nContent-Type: {SAFETENSORS}\r\n"
            connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + b"x" * 5000)
            until(lambda: list((tmp_path / "jobs").glob(".*/input")))
        until(lambda: [path.name for path in (tmp_path / "jobs").iterdir()] == [".lock"])
        assert httpx.get(f"{url}/v1/jobs").json() == {"jobs": []}


def test_a_server_without_a_folder_takes_no_jobs(model, index):
    with TestClient(create_app(model, index)) as http:
        assert_problem(post(http, image_file()), 409, "no-state")
        assert_problem(http.get("/v1/jobs"), 409, "no-state")


def test_a_full_disk_is_said_and_leaves_nothing(http, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "replacing", full)
        assert_problem(post(http, image_file()), 507, "storage-full")
    assert http.get("/v1/jobs").json() == {"jobs": []}
    assert finished(http, post(http, image_file()))["phase"] == "COMPLETED"
