"""Cross-matching: every mode against a comparison of all pairs, and the same matches from both engines."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord, match_coordinates_sky, search_around_sky
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.data.crossmatch import close_pairs, match
from armillary.data.crossmatch.match import crossmatch
from armillary.data.crossmatch.sky_table import SkyTable
from armillary.data.observations import ObservationError

from .conftest import ARCSEC, hard_places, pairs_of, perturbed, reference_pairs

MODES = ["one-to-one", "nearest", "all"]


@pytest.fixture(params=["tree", "lsdb"])
def engine(request):
    return request.param


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("radius", [0.7, 5.0])
def test_matches_are_those_of_comparing_all_pairs(hard_catalogues, engine, mode, radius):
    left, right = hard_catalogues
    found = pairs_of(crossmatch(left, right, radius, mode=mode, engine=engine), left, right)
    assert found == reference_pairs(left, right, radius, mode)


@pytest.mark.parametrize("mode", MODES)
def test_both_engines_give_the_same_matches_to_the_bit_in_many_pixels(monkeypatch, mode):
    from armillary.data.crossmatch import lsdb_pairs

    monkeypatch.setattr(lsdb_pairs, "PARTITION_ROWS", 400)  # dozens of pixels, of several orders
    random = np.random.default_rng(0)
    ra, dec = hard_places(random, 3000)
    left = SkyTable("left", np.arange(3000), ra, dec)
    right = SkyTable("right", np.arange(3000), *perturbed(random, ra, dec, 0.5))
    tree, lsdb = (crossmatch(left, right, 3.0, mode=mode, engine=engine) for engine in ("tree", "lsdb"))
    assert len(tree) > 2000
    for name in ("left_row", "right_row", "separation"):
        assert getattr(tree, name).tobytes() == getattr(lsdb, name).tobytes(), name


def test_pairs_across_the_borders_of_pixels_need_the_margin(monkeypatch):
    """Each object lies within 2 arcsec of the corner of a pixel, its partner on the other side."""
    from armillary.data.crossmatch import lsdb_pairs

    monkeypatch.setattr(lsdb_pairs, "PARTITION_ROWS", 4)
    corners = np.arange(0.0, 360.0, 45.0)
    left = SkyTable("left", np.arange(8), (corners + ARCSEC) % 360, np.full(8, 0.3 * ARCSEC))
    right = SkyTable("right", np.arange(8), (corners - ARCSEC) % 360, np.full(8, -0.3 * ARCSEC))
    matches = crossmatch(left, right, 3.0, engine="lsdb")
    assert matches.left_row.tolist() == matches.right_row.tolist() == list(range(8))
    monkeypatch.setattr(lsdb_pairs, "_margins", lambda *_arguments: {})
    assert len(crossmatch(left, right, 3.0, engine="lsdb")) < 8


def test_nearest_and_all_agree_with_astropy():
    random = np.random.default_rng(3)
    ra, dec = hard_places(random, 5000)
    right_ra, right_dec = perturbed(random, ra[::2], dec[::2], 0.7)
    left, right = SkyTable("left", np.arange(5000), ra, dec), SkyTable("right", np.arange(2500), right_ra, right_dec)
    one, other = SkyCoord(ra, dec, unit="deg"), SkyCoord(right_ra, right_dec, unit="deg")
    index, distance, _ = match_coordinates_sky(one, other)
    near = np.flatnonzero(distance.arcsec <= 2.0)
    found = crossmatch(left, right, 2.0, mode="nearest", engine="tree")
    assert found.left_row.tolist() == near.tolist()
    assert found.right_row.tolist() == index[near].tolist()
    np.testing.assert_allclose(found.separation, distance.arcsec[near], rtol=1e-7, atol=1e-7)
    first, second, _, _ = search_around_sky(one, other, 2.0 * u.arcsec)
    found = crossmatch(left, right, 2.0, mode="all", engine="tree")
    assert sorted(zip(found.left_row.tolist(), found.right_row.tolist(), strict=True)) == sorted(
        zip(first.tolist(), second.tolist(), strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ties_on_a_grid_are_broken_by_id_whatever_the_order_of_rows(data):
    """Objects on few places of a small grid at the pole, at wrap and elsewhere, so that most distances are equal."""
    centre = data.draw(st.sampled_from([(0.0, 0.0), (12.5, 90.0), (359.9999, -45.0)]))
    cells = st.tuples(st.integers(-2, 2), st.integers(-2, 2))
    tables = []
    for name in ("left", "right"):
        places = np.array(data.draw(st.lists(cells, min_size=1, max_size=12)), dtype=float)
        ids = data.draw(st.permutations([f"{name}{i}" for i in range(len(places))]))
        ra, dec = centre[0] + places[:, 0] * ARCSEC, centre[1] + places[:, 1] * ARCSEC
        tables.append(SkyTable(name, ids, ra % 360, np.where(dec > 90, 180 - dec, dec), allow_duplicates=True))
    left, right = tables
    mode = data.draw(st.sampled_from(MODES))
    expected = reference_pairs(left, right, 2.0, mode)
    assert pairs_of(crossmatch(left, right, 2.0, mode=mode, engine="tree"), left, right) == expected
    order = [np.array(data.draw(st.permutations(range(len(t)))), dtype=np.int64) for t in tables]
    left, right = (table.rows(rows) for table, rows in zip(tables, order, strict=True))
    assert pairs_of(crossmatch(left, right, 2.0, mode=mode, engine="tree"), left, right) == expected


def test_one_to_one_is_the_same_from_either_side(hard_catalogues):
    left, right = hard_catalogues
    there = pairs_of(crossmatch(left, right, 5.0, engine="tree"), left, right)
    back = pairs_of(crossmatch(right, left, 5.0, engine="tree"), right, left)
    assert there == {(i, j): d for (j, i), d in back.items()}


def test_matches_come_in_order(hard_catalogues):
    left, right = hard_catalogues
    matches = crossmatch(left, right, 5.0, mode="all", engine="tree")
    ids = right.object_id.take(matches.right_row).to_pylist()
    keys = list(zip(matches.left_row.tolist(), matches.separation.tolist(), ids, strict=True))
    assert keys == sorted(keys)


def test_a_wide_radius_takes_portions_and_loses_nothing(hard_catalogues, monkeypatch):
    left, right = hard_catalogues
    whole = {mode: crossmatch(left, right, 3600.0, mode=mode, engine="tree") for mode in MODES}
    assert len(whole["all"]) > 50_000
    monkeypatch.setattr(close_pairs, "MAX_PAIRS_AT_ONCE", 500)
    monkeypatch.setattr(close_pairs, "STRIP_ROWS", 37)
    for mode, expected in whole.items():
        found = crossmatch(left, right, 3600.0, mode=mode, engine="tree")
        for name in ("left_row", "right_row", "separation"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_radius_is_a_radius_of_the_sky_and_not_of_its_coordinates():
    """At declination 89, a minute of right ascension is a second of arc."""
    left = SkyTable("left", ["a"], [10.0], [89.0])
    right = SkyTable("right", ["b"], [10.0 + 1 / 60], [89.0])
    separation = crossmatch(left, right, 2.0, mode="all", engine="tree").separation
    assert separation == pytest.approx([60 * np.cos(np.radians(89))], rel=1e-6)
    assert len(crossmatch(left, right, 1.0, mode="all", engine="tree")) == 0


def test_fast_stars_are_found_where_they_are_at_the_common_epoch(engine):
    """Barnard's star and a field: 16 years at 10.4 arcsec a year."""
    star = {"pm_ra": [-801.551, 0.0], "pm_dec": [10362.394, 0.0]}
    gaia = SkyTable("gaia", ["barnard", "quiet"], [269.448502, 200.0], [4.739420, 10.0], **star, epoch=2016.0)
    seen = SkyTable("twomass", ["b", "q"], [269.4520776, 200.0], [4.6933654, 10.0], epoch=2000.0)
    matches = crossmatch(gaia, seen, 1.0, engine=engine)
    assert matches.left_row.tolist() == matches.right_row.tolist() == [0, 1]
    still = SkyTable("gaia", ["barnard", "quiet"], gaia.ra, gaia.dec, epoch=2016.0)
    assert crossmatch(still, seen, 1.0, engine=engine).left_row.tolist() == [1]


def test_a_catalogue_without_a_partner_in_reach_gives_no_matches(engine):
    left = SkyTable("left", ["a", "b"], [10.0, 20.0], [0.0, 0.0])
    right = SkyTable("right", ["c"], [190.0], [60.0])
    assert len(crossmatch(left, right, 10.0, engine=engine)) == 0
    empty = SkyTable("empty", [], [], [])
    assert len(crossmatch(left, empty, 10.0, engine=engine)) == 0
    assert len(crossmatch(empty, right, 10.0, engine=engine)) == 0


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cluster_is_used_by_its_address(tmp_path, processes):
    """A scheduler and two workers, spoken to over TCP."""
    from distributed import LocalCluster

    random = np.random.default_rng(1)
    ra, dec = hard_places(random, 2000)
    left = SkyTable("left", np.arange(2000), ra, dec)
    right = SkyTable("right", np.arange(2000), *perturbed(random, ra, dec, 0.5))
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": processes, "protocol": "tcp"}
    with LocalCluster(**options, dashboard_address=None) as cluster:
        found = crossmatch(left, right, 3.0, scheduler=cluster.scheduler_address, work_folder=tmp_path)
        assert list(tmp_path.iterdir()) == []
        from armillary.data.crossmatch import lsdb_pairs

        elsewhere = tmp_path / "elsewhere"
        with (
            pytest.raises(ObservationError, match=r"elsewhere: the worker tcp://.* does not see it"),
            lsdb_pairs._dask(cluster.scheduler_address, elsewhere),
        ):
            pass
    expected = crossmatch(left, right, 3.0, engine="tree")
    assert found.left_row.tolist() == expected.left_row.tolist()
    assert found.right_row.tolist() == expected.right_row.tolist()


def test_auto_takes_lsdb_for_long_catalogues_alone(monkeypatch):
    assert not match.uses_lsdb("auto", match.LSDB_ROWS, None)
    assert match.uses_lsdb("auto", match.LSDB_ROWS + 1, None)
    assert match.uses_lsdb("auto", 10, "tcp://127.0.0.1:8786")
    monkeypatch.setattr(match.importlib.util, "find_spec", lambda _name: None)
    assert not match.uses_lsdb("auto", match.LSDB_ROWS + 1, None)
    with pytest.raises(ObservationError, match=r"LSDB is not installed; pip install 'armillary\[lsdb\]'"):
        match.uses_lsdb("lsdb", 10, None)


@pytest.mark.parametrize(
    "radius, mode, engine, message",
    [
        (0.0, "all", "auto", r"radius must lie in \(0, 3600\] arcsec, found 0.0"),
        (float("nan"), "all", "auto", "radius must lie"),
        (4000.0, "all", "auto", "radius must lie"),
        (1.0, "best", "auto", "mode must be one of one-to-one, nearest, all; found 'best'"),
        (1.0, "all", "fast", "engine must be one of auto, tree, lsdb; found 'fast'"),
    ],
)
def test_wrong_arguments_are_errors_that_say_what_is_right(radius, mode, engine, message):
    with pytest.raises(ObservationError, match=message):
        match.check_arguments(radius, mode, engine)


def test_a_scheduler_that_cannot_be_used_is_an_error_that_names_it():
    table = SkyTable("t", ["a"], [0.0], [0.0])
    with pytest.raises(ObservationError, match="engine tree runs in this process and cannot use the scheduler tcp://h"):
        crossmatch(table, table, 1.0, engine="tree", scheduler="tcp://h:1")
    with pytest.raises(ObservationError, match="no Dask scheduler answers at nonsense"):
        crossmatch(table, table, 1.0, scheduler="nonsense")
