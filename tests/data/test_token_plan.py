"""Who goes where in a token store: against a plain reference, in parts, and beside objects that stand already."""

import numpy as np
import pytest

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import DatasetWriter
from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.data.sky_partition import healpix_index
from armillary.data.token_manifest import finish_store
from armillary.data.token_plan import plan_shards, sweep
from armillary.data.token_shards import TokenStoreError, object_key, write_object_shard, write_token_shard
from armillary.data.token_store import TokenStore

VALUES = {"scalar/redshift": 0.5, "scalar/sdss_r": 20.0, "scalar/stellar_mass": 10.0}
NAMES = tuple(VALUES)


def sky_of(numbers):
    """Positions that follow from the numbers; every ninth object has none, and some share one."""
    rng = np.random.default_rng(5)
    ra, dec = rng.uniform(0, 360, 2000), np.degrees(np.arcsin(rng.uniform(-1, 1, 2000)))
    ra[10:14], dec[10:14] = ra[10], dec[10]
    ra[::9] = dec[::9] = np.nan
    return ra[numbers], dec[numbers]


def write(folder, members, file_bytes=2000):
    """A dataset of objects s<number>, by modality, in many small files."""
    with DatasetWriter(folder, allow_unplaced=True, file_bytes=file_bytes) as writer:
        for name, numbers in members.items():
            ra, dec = sky_of(np.asarray(numbers))
            values = np.full(len(numbers), VALUES[name])
            writer.write(ScalarObservation(modality(name), [f"s{n}" for n in numbers], values, ra=ra, dec=dec))
    return ObservationDataset(folder)


@pytest.fixture(scope="module")
def members():
    rng = np.random.default_rng(1)
    return {
        name: np.sort(rng.choice(300, count, replace=False)) for name, count in zip(NAMES, (280, 130, 40), strict=True)
    }


@pytest.fixture(scope="module")
def dataset(members, tmp_path_factory):
    found = write(tmp_path_factory.mktemp("data"), members)
    assert len(found.files("scalar/redshift")) > 4
    assert len({len(found.files(name)) for name in NAMES}) > 1  # pixels of different orders
    return found


def reference(members):
    """All ids along the sky."""
    numbers = sorted({int(n) for some in members.values() for n in some})
    index = healpix_index(*sky_of(np.array(numbers)))
    ids = [f"s{n}" for n in numbers]
    places = dict(zip(ids, index.tolist(), strict=True))
    # Those without a position (-1) come last.
    return sorted(ids, key=lambda name: (places[name] < 0, places[name], name))


def check_members(plan, dataset, places):
    """Rows of the dataset and places in the shards belong to the same objects; every row is planned once."""
    for name in NAMES:
        ids = dataset.sky_index(name).object_id
        seen = []
        for shard in plan.shards:
            local, rows = shard.members[name]
            assert (np.diff(rows) > 0).all()
            for place, row in zip(local.tolist(), rows.tolist(), strict=True):
                assert places[ids[row]] == (shard.index, place)
            seen += rows.tolist()
            expected = np.full(shard.num_objects, -1)
            expected[np.sort(local)] = np.arange(len(local))
            assert np.array_equal(shard.rows(name), expected)
        assert sorted(seen) == list(range(len(ids)))


def test_objects_are_cut_into_shards_along_the_sky_and_stand_there_by_key(dataset, members):
    plan = plan_shards(dataset, None, shard_size=64)
    ids = reference(members)
    assert plan.num_shards == len(plan.shards) == -(-len(ids) // 64)
    places = {}
    for shard in plan.shards:
        expected = sorted(ids[shard.index * 64 : (shard.index + 1) * 64], key=object_key)
        assert shard.object_id == expected
        ra, dec = sky_of(np.array([int(name[1:]) for name in expected]))
        assert np.array_equal(shard.sky, np.stack([ra, dec], 1), equal_nan=True)
        places |= {name: (shard.index, place) for place, name in enumerate(expected)}
    check_members(plan, dataset, places)


@pytest.mark.parametrize("num_parts", [2, 5, 9])
def test_parts_agree_and_make_the_whole(dataset, num_parts):
    whole = plan_shards(dataset, None, shard_size=32)
    parts = [plan_shards(dataset, None, 32, part, num_parts) for part in range(num_parts)]
    assert {part.num_shards for part in parts} == {whole.num_shards}
    found = {shard.index: shard for part in parts for shard in part.shards}
    assert sorted(found) == list(range(whole.num_shards))
    for number, part in enumerate(parts):
        assert all(shard.index % num_parts == number for shard in part.shards)
    for shard in whole.shards:
        assert found[shard.index].object_id == shard.object_id
        for name in NAMES:
            for one, other in zip(found[shard.index].members[name], shard.members[name], strict=True):
                assert np.array_equal(one, other)


def register(folder, plan):
    """The store of a plan, with redshifts of nothing in particular."""
    for shard in plan.shards:
        digest = write_object_shard(folder, shard.index, plan.num_shards, shard.object_id, shard.sky)
        count = len(shard.members["scalar/redshift"][0])
        arrays = {
            "codes": np.zeros((count, 1), np.int64),
            "mask": np.ones((count, 1), bool),
            "positions": np.zeros((count, 1, 3), np.float32),
            "instrument": np.zeros((count, 11), np.float32),
        }
        names = {"tokenizer_hash": "a", "objects": digest}
        write_token_shard(
            folder, modality("scalar/redshift"), shard.index, shard.rows("scalar/redshift"), arrays, **names
        )
    assert finish_store(folder, "first", {})
    return TokenStore(folder)


def test_objects_that_stand_keep_their_place_and_new_ones_follow(dataset, members, tmp_path):
    store = register(tmp_path / "store", plan_shards(dataset, None, shard_size=64))
    num_old = len(store.starts) - 1
    again = plan_shards(dataset, store, shard_size=50)
    assert again.num_shards == num_old
    assert all(shard.object_id is None for shard in again.shards)
    old = {name: (i, int(p - store.starts[i])) for p, name in enumerate(store.object_ids()) for i in [place(store, p)]}
    check_members(again, dataset, old)

    more = {name: np.concatenate([numbers, np.arange(400, 520)]) for name, numbers in members.items()}
    larger = write(tmp_path / "more", more)
    plan = plan_shards(larger, store, shard_size=50)
    assert plan.num_shards == num_old + 3
    new = {name: (shard.index, i) for shard in plan.shards if shard.object_id for i, name in enumerate(shard.object_id)}
    assert sorted(new) == sorted(f"s{n}" for n in range(400, 520))
    check_members(plan, larger, {**old, **new})
    for part in range(2):
        assert all(shard.index % 2 == part for shard in plan_shards(larger, store, 50, part, 2).shards)


def place(store, number):
    return int(np.searchsorted(store.starts, number, side="right")) - 1


def test_the_sweep_goes_along_the_sky_and_meets_every_row_once(dataset, members):
    ids = [name for region in sweep(dataset) for name in region.object_id.to_pylist()]
    assert ids == reference(members)
    assert len(list(sweep(dataset))) > 2
    for number, declared in enumerate(dataset.modalities):
        rows = np.concatenate([region.row[region.modality == number] for region in sweep(dataset)])
        assert np.array_equal(np.sort(rows), np.arange(dataset.num_objects(declared.name)))


def test_an_object_at_two_positions_is_refused(tmp_path, monkeypatch):
    dataset = write(tmp_path, {"scalar/redshift": [1, 2, 3], "scalar/sdss_r": [2, 4]})
    regions = list(sweep(dataset))
    other = [type(r)(r.object_id, r.key, r.sky + 1, r.object, r.modality, r.row) for r in regions]
    monkeypatch.setattr("armillary.data.token_plan.sweep", lambda dataset: iter([*regions, *other]))
    with pytest.raises(TokenStoreError, match=r"object s\d stands at two positions, \(.*\) and \(.*\); in one dataset"):
        plan_shards(dataset, None, 10)


def test_an_object_that_comes_twice_in_a_modality_is_refused(tmp_path, monkeypatch):
    dataset = write(tmp_path, {"scalar/redshift": [1, 2, 3]})
    files = dataset.files("scalar/redshift")
    monkeypatch.setattr(ObservationDataset, "files", lambda self, name: (*files, files[-1]))
    with pytest.raises(TokenStoreError, match=r"object s\d comes twice in scalar/redshift"):
        plan_shards(dataset, None, 10)
