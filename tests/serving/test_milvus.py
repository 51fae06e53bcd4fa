"""What is Milvus's own: addresses, builds that are interrupted or replaced, and the ways around what engines cannot do.

What every index promises is in test_index_suite.py.
"""

import builtins
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_engines import numbers_of, pairs_of, queries, sky_table, slow_search

from armillary.models.neighbour_prediction import NeighbourPredictor
from armillary.serving.index.cone import Cone
from armillary.serving.index.opening import manifest_text, open_index
from armillary.serving.index.place import index_place, is_milvus
from armillary.serving.index.protocol import EmbeddingIndexError
from armillary.serving.milvus import build as milvus_build
from armillary.serving.milvus import changes as milvus_changes
from armillary.serving.milvus import engine as milvus_engine
from armillary.serving.milvus import search as milvus_search
from armillary.serving.milvus.engine import MilvusAddress, num_cells
from armillary.serving.milvus.milvus_index import MilvusIndex
from armillary.serving.milvus.rows import cone_box, row_id

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    pytest.importorskip("milvus_lite")
    return str(tmp_path_factory.mktemp("milvus") / "index.db")


@pytest.fixture
def place(database, request):
    """A name of its own for each test: a file of milvus-lite holds many indexes."""
    return f"{database}#{request.node.name.partition('[')[0][:60]}"


def published(place, table, labels=None, **options):
    MilvusIndex.build(place, table, labels, **options).publish()
    return MilvusIndex.open(place)


def test_addresses_are_told_from_folders_and_keep_their_slashes():
    for address in ("http://localhost:19530", "https://host:1#sky", "runs/sky.db", "/data/sky.db#galaxies"):
        assert is_milvus(address)
        assert index_place(address) == address
    assert not is_milvus("runs/index")
    assert index_place("runs/index") == Path("runs/index")
    assert MilvusAddress.parse("http://h:19530#sky") == MilvusAddress("http://h:19530", "sky")
    assert MilvusAddress.parse("sky.db").name == "objects"


def test_wrong_addresses_are_refused_and_passwords_are_not_repeated():
    with pytest.raises(
        EmbeddingIndexError, match=r"expected the address of a Milvus server \(http://HOST:19530#NAME\)"
    ):
        MilvusAddress.parse("runs/index")
    with pytest.raises(EmbeddingIndexError, match=r"letters, digits and underscores.*found 'my-sky'"):
        MilvusAddress.parse("sky.db#my-sky")
    assert "secret" not in str(MilvusAddress.parse("http://root:secret@host:19530#sky"))


@pytest.mark.parametrize(
    "module, place, extra", [("pymilvus", "http://127.0.0.1:1", "milvus"), ("milvus_lite", "nowhere.db", "milvus-lite")]
)
def test_what_is_not_installed_is_named(monkeypatch, module, place, extra):
    real_import = builtins.__import__

    def without(name, *arguments, **options):
        if name == module:
            raise ImportError(f"No module named {module!r}")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"pip install 'armillary\[{extra}\]'"):
        MilvusIndex.build(place, sky_table(4))


def test_a_server_that_is_not_there_is_an_error(monkeypatch):
    import pymilvus

    real = pymilvus.MilvusClient
    monkeypatch.setattr(pymilvus, "MilvusClient", lambda *a, **k: real(*a, **{**k, "timeout": 0.5}))
    with pytest.raises(EmbeddingIndexError, match=r"http://127.0.0.1:1#objects: cannot be opened; is the server up"):
        MilvusIndex.open("http://127.0.0.1:1")


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0, 360, exclude_max=True),
    st.floats(-90, 90),
    st.floats(0, 180),
    st.integers(0, 2**32),
)
def test_no_place_within_a_cone_lies_outside_its_box(ra, dec, radius, seed):
    rng = np.random.default_rng(seed)
    # Places everywhere, and many at the very rim.
    turn, reach = rng.uniform(0, 2 * np.pi, 200), np.radians(radius) * np.sqrt(rng.uniform(0, 1, 200))
    reach[:100] = np.radians(radius)
    a, d = np.radians(ra), np.radians(dec)
    centre = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    east = np.array([-np.sin(a), np.cos(a), 0])
    north = np.cross(centre, east)
    aside = np.cos(turn)[:, None] * east + np.sin(turn)[:, None] * north
    places = np.cos(reach)[:, None] * centre + np.sin(reach)[:, None] * aside
    for component, (low, high) in zip(places.T, cone_box(Cone(ra, dec, radius)), strict=True):
        assert (component >= low).all()
        assert (component <= high).all()


def test_a_small_cone_has_a_small_box():
    for dec in (-90.0, 0.0, 90.0):
        for low, high in cone_box(Cone(0.0, dec, 0.01)):
            assert high - low < 2.1 * np.radians(0.01)


def test_ids_are_hashes_that_fit_a_signed_integer():
    ids = [row_id(f"object-{i}", modality) for i in range(2000) for modality in ("image/hsc", "spectrum/desi")]
    assert len(set(ids)) == 4000
    assert all(0 <= i < 2**63 for i in ids)
    assert np.mean([i < 2**62 for i in ids]) == pytest.approx(0.5, abs=0.05)


def test_types_are_chosen_by_size_and_say_why():
    def choose(rows, **options):
        return milvus_build.choose_type(
            rows, 512, options.get("wanted"), options.get("flat_limit", 50_000), options.get("is_lite", False)
        )

    assert choose(50_000).index_type == "flat"
    assert choose(1_000_000).index_type == "ivf"
    assert choose(140_000_000).index_type == "ivf_sq8"
    assert choose(140_000_000, wanted="hnsw").index_type == "hnsw"
    assert choose(1_000_000, is_lite=True).index_type == "flat"
    assert "287 GB" in choose(140_000_000).reason
    with pytest.raises(EmbeddingIndexError, match=r"must be one of \['flat', 'ivf', 'ivf_sq8', 'hnsw'\]"):
        choose(10, wanted="ivf_rabitq")
    assert num_cells(10**9, 512) == num_cells(10**6, 512) < 4000  # a segment bounds it


def test_more_neighbours_than_an_engine_gives_are_found_all_the_same(place, monkeypatch):
    table = sky_table(60)
    index = published(place, table, *numbers_of(table)[:1])
    cone = Cone(120.0, 10.0, 80.0)
    whole, inside = index.search(queries(), 80), index.search(queries(), 80, cone=cone)
    monkeypatch.setattr(milvus_search, "MAX_HITS", 24)
    for before, after in ((whole, index.search(queries(), 80)), (inside, index.search(queries(), 80, cone=cone))):
        assert [pairs_of(after, q) for q in range(5)] == [pairs_of(before, q) for q in range(5)]
        np.testing.assert_allclose(after.similarity, before.similarity, atol=1e-6)
    few = index.search(queries(), 5, cone=cone)
    assert [pairs_of(few, q) for q in range(5)] == [pairs_of(inside, q)[:5] for q in range(5)]


def test_cells_that_hold_too_few_rows_are_not_all_that_is_looked_at(place, monkeypatch):
    """IVF with one cell looked at: what it lacks is found in the others."""
    table = sky_table(120)
    index = published(place, table, index_type="ivf")
    monkeypatch.setattr(milvus_search, "FEW_ROWS", 0)
    index._manifest = milvus_build.replace(index.manifest, effort=1)
    found = index.search(queries(), 100)
    every = np.ones(len(table), bool)
    for q, query in enumerate(queries()):
        assert set(pairs_of(found, q)) == set(slow_search(table, query, 100, every)[0])


@pytest.fixture
def lite():
    pytest.importorskip("milvus_lite")


def run_killed(program):
    text = f"import sys\nsys.path.insert(0, {str(HERE)!r})\n" + textwrap.dedent(program)
    process = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr[-2000:]


def test_a_build_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch, lite):
    place = str(tmp_path / "index.db")
    run_killed(f"""
        import os, signal
        from index_engines import sky_table, numbers_of
        from armillary.serving.milvus import build as milvus_build
        from armillary.serving.milvus.milvus_index import MilvusIndex
        milvus_build.ROWS_PER_RECORD = 60
        milvus_build.INSERT_BYTES = 25 * (4 * 12 + 300)

        def progress(done, total):
            if done >= 200:
                os.kill(os.getpid(), signal.SIGKILL)

        MilvusIndex.build({place!r}, sky_table(), *numbers_of(sky_table())[:1], progress=progress)
    """)
    with pytest.raises(EmbeddingIndexError, match=r"there is no index 'objects' \(one was begun"):
        MilvusIndex.open(place)
    seen = []
    table = sky_table()
    monkeypatch.setattr(milvus_build, "INSERT_BYTES", 25 * (4 * 12 + 300))
    MilvusIndex.build(place, table, numbers_of(table)[0], progress=lambda done, total: seen.append(done)).publish()
    assert seen[0] > 150
    assert seen[-1] == len(table)
    with MilvusIndex.open(place) as index:
        found = index.search(queries(), 10)
        every = np.ones(len(table), bool)
        assert [pairs_of(found, q) for q in range(5)] == [slow_search(table, v, 10, every)[0] for v in queries()]
        assert len(index.objects_with("image/hsc")) == 160


def test_a_build_from_other_embeddings_begins_anew_and_sweeps_up(place):
    MilvusIndex.build(place, sky_table(20))  # not published: as if it was left
    index = published(place, sky_table(30, seed=1))
    assert len(index) == len(sky_table(30))
    assert index._engine.builds_of(index.manifest.name) == [index.manifest.collection]


def test_readers_see_the_old_index_until_the_new_one_is_whole(place):
    old = published(place, sky_table(20))
    with pytest.raises(EmbeddingIndexError, match="something already"):
        MilvusIndex.build(place, sky_table(30))
    new = MilvusIndex.build(place, sky_table(30), replace_old=True)
    assert len(MilvusIndex.open(place)) == len(sky_table(20))
    told = {"p": NeighbourPredictor("p", k=3)}
    new.publish(told)
    assert len(MilvusIndex.open(place)) == len(sky_table(30))
    # Who has the old one open may go on reading, and may not change it by mistake.
    assert old.search(queries(1), 3).row.shape == (1, 3)
    with pytest.raises(EmbeddingIndexError, match="built anew since it was opened"):
        old.remove(["object-1"])
    assert old.refresh()
    assert len(old) == len(sky_table(30))
    assert old.predictors == open_index(place)[1] == told
    MilvusIndex.drop(place)
    with pytest.raises(EmbeddingIndexError, match="there is no index"):
        MilvusIndex.open(place)


def test_after_a_change_that_did_not_end_counts_are_those_of_what_is_there(place, monkeypatch):
    index = published(place, sky_table(20))
    more = sky_table(6, prefix="new-")

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(milvus_changes, "_changed", killed)
    with pytest.raises(KeyboardInterrupt):
        index.add(more)
    monkeypatch.undo()
    opened = MilvusIndex.open(place)
    assert (len(opened), opened.manifest.num_objects) == (len(sky_table(20)) + len(more), 26)
    opened.remove(["new-1"])
    assert MilvusIndex.open(place).manifest.num_objects == 25


def test_a_file_that_another_process_has_open_is_an_error(tmp_path, lite):
    place = str(tmp_path / "index.db")
    with published(place, sky_table(4)):
        text = f"""
            from armillary.serving.milvus.milvus_index import MilvusIndex
            from armillary.serving.index.protocol import EmbeddingIndexError
            try:
                MilvusIndex.open({place!r})
            except EmbeddingIndexError as error:
                print(error)
        """
        told = subprocess.run([sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True)
    assert "is it open in another process? milvus-lite lets in one at a time" in told.stdout


def test_a_long_record_is_kept_whole(place):
    index = MilvusIndex.build(place, sky_table(4))
    told = {f"scalar/{'x' * 200}/{i}": NeighbourPredictor(f"p{i}", k=i + 1) for i in range(400)}
    index.publish(told)
    assert MilvusIndex.open(place).predictors == told
    assert '"index_type": "flat"' in manifest_text(place)


def test_an_id_that_is_too_long_is_refused(place):
    table = sky_table(2, prefix="ä" * 300)
    with pytest.raises(EmbeddingIndexError, match="has 601 bytes; at most 512 go into Milvus"):
        MilvusIndex.build(place, table)


def test_every_row_is_read_once_in_blocks_of_any_size(place, monkeypatch):
    table = sky_table(60)
    index = published(place, table)
    monkeypatch.setattr(milvus_engine, "READ_BYTES", 2000)
    for expression, expected in (("", len(table)), ('modality == "spectrum/desi"', 20), ('modality == "none"', 0)):
        blocks = list(index._engine.every_row(index.manifest.collection, expression, ["object_id"]))
        ids = [row["id"] for block in blocks for row in block]
        assert len(ids) == len(set(ids)) == expected
        assert len(blocks) >= expected / 20


def test_an_exact_search_that_would_read_too_much_is_refused(place, monkeypatch):
    index = published(place, sky_table(60), index_type="ivf")
    monkeypatch.setattr(milvus_search, "MOST_ROWS_READ", 25)
    few = index.search(queries(), 3, target_modality="spectrum/desi", exact=True)
    assert few.row.shape == (5, 3)
    with pytest.raises(EmbeddingIndexError, match=r"exact search of 122 rows on Milvus reads them all, and at most 25"):
        index.search(queries(), 3, exact=True)


def test_what_an_engine_refuses_names_it_and_the_call(place):
    index = published(place, sky_table(4))
    MilvusIndex.drop(place)
    with pytest.raises(ConnectionError, match=r"index.db#.*: Milvus refused search \("):
        index.search(queries(), 3)


class RefusedError(Exception):
    code = 1


@pytest.mark.parametrize(
    "message, times, calls",
    [
        ("at /faiss/impl/index_read.cpp:252", 2, 3),
        ("could only read 0 elements. (file seems not fully written?)", 1, 2),
        ("no such field", 1, 1),
    ],
)
def test_a_structure_that_is_still_written_is_read_again_and_other_refusals_are_not(monkeypatch, message, times, calls):
    monkeypatch.setattr(milvus_engine, "_PAUSE", 0.0)
    made = []

    class Client:
        def load_collection(self, name):
            made.append(name)
            if len(made) <= times:
                raise RefusedError(message)
            return "loaded"

    client = milvus_engine._Client(Client(), RefusedError, MilvusAddress("milvus.db", "here"))
    if calls > times:
        assert client.load_collection("c") == "loaded"
    else:
        with pytest.raises(ConnectionError, match=r"Milvus refused load_collection .*no such field"):
            client.load_collection("c")
    assert len(made) == calls
