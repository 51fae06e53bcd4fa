"""Groups over many surveys: rules that hold for each group, against a plain loop over all pairs."""

import numpy as np
import pytest

from armillary.data.crossmatch.object_groups import group_objects
from armillary.data.crossmatch.sky_table import SkyTable
from armillary.data.crossmatch.sphere import separations, unit_vectors
from armillary.data.observations import ObservationError

from .conftest import ARCSEC, hard_places, perturbed


def table(name, *places, **columns):
    """Objects `<name>0`, `<name>1`, ... at these right ascensions in arcsec on the equator."""
    ids = [f"{name}{i}" for i in range(len(places))]
    return SkyTable(name, ids, np.array(places, dtype=float) * ARCSEC, np.zeros(len(places)), **columns)


def members_of(groups, tables):
    """Group id -> id of the member in each survey, or None."""
    ids = [[*t.object_id.to_pylist(), None] for t in tables]
    rows = groups.member_row.tolist()
    return {
        group: tuple(ids[s][row] for s, row in enumerate(line))
        for group, line in zip(groups.group_id.to_pylist(), rows, strict=True)
    }


def found(*tables, radius=1.0, **options):
    return members_of(group_objects(tables, radius, engine="tree", **options), tables)


def slow_groups(tables, radius):
    """The same rules, pair by pair: references in order, pairs by (separation, reference id, object id)."""
    groups = {f"{tables[0].name}:{i}": [i] for i in tables[0].object_id.to_pylist()}
    places = dict(zip(groups, unit_vectors(tables[0].ra, tables[0].dec), strict=True))
    for number, t in enumerate(tables[1:], 1):
        ids, vectors = t.object_id.to_pylist(), unit_vectors(t.ra, t.dec)
        pairs = []
        for group, place in places.items():
            distance = separations(np.broadcast_to(place, vectors.shape), vectors)
            pairs += [(distance[i], group, ids[i]) for i in np.flatnonzero(distance <= radius)]
        joined, taken = {}, set()
        for _, group, i in sorted(pairs):
            if group not in joined and i not in taken:
                joined[group] = i
                taken.add(i)
        for group in groups:
            groups[group].append(joined.get(group))
        for i, vector in zip(ids, vectors, strict=True):
            if i not in taken:
                groups[f"{t.name}:{i}"] = [*[None] * number, i]
                places[f"{t.name}:{i}"] = vector
    return {group: tuple(members) for group, members in groups.items()}


def test_every_object_is_in_one_group_under_the_id_of_its_reference():
    a, b, c = table("a", 0.0, 50.0), table("b", 0.3, 100.0), table("c", 0.2, 50.1, 200.0)
    assert found(a, b, c) == {
        "a:a0": ("a0", "b0", "c0"),
        "a:a1": ("a1", None, "c1"),
        "b:b1": (None, "b1", None),
        "c:c2": (None, None, "c2"),
    }


def test_a_chain_whose_ends_are_too_far_apart_is_not_one_object():
    assert found(table("a", 0.0), table("b", 0.8), table("c", 1.6)) == {
        "a:a0": ("a0", "b0", None),
        "c:c0": (None, None, "c0"),
    }


def test_an_object_joins_the_nearest_reference_of_any_survey():
    """b0 is too far from a0 to join it; c0 is within reach of both and nearer to b0."""
    assert found(table("a", 0.0), table("b", 1.4), table("c", 0.9)) == {
        "a:a0": ("a0", None, None),
        "b:b0": (None, "b0", "c0"),
    }


def test_two_that_want_one_reference_go_by_separation_and_the_other_takes_what_is_left():
    a, b = table("a", 0.0, 0.9), table("b", 0.3, 0.4)
    # b0 is nearest to a0 (0.3); b1 is nearer to a0 (0.4) than to a1 (0.5), but a0 is taken.
    assert found(a, b) == {"a:a0": ("a0", "b0"), "a:a1": ("a1", "b1")}


def test_a_group_has_at_most_one_member_of_each_survey():
    assert found(table("a", 0.0), table("b", 0.1, 0.2, 0.3)) == {
        "a:a0": ("a0", "b0"),
        "b:b1": (None, "b1"),
        "b:b2": (None, "b2"),
    }


def test_equal_separations_are_decided_by_id():
    place = {"ra": np.array([10.0]), "dec": np.array([0.0])}
    a = SkyTable("a", ["x"], **place)
    b = SkyTable("b", ["n", "m"], [10.0, 10.0], [0.5 * ARCSEC, -0.5 * ARCSEC])
    assert found(a, b) == {"a:x": ("x", "m"), "b:n": (None, "n")}
    assert found(b, a) == {"b:m": ("m", "x"), "b:n": ("n", None)}


@pytest.mark.parametrize("radius", [0.8, 6.0])
def test_groups_are_those_of_a_loop_over_all_pairs_whatever_the_order_of_rows(radius):
    random = np.random.default_rng(4)
    ra, dec = hard_places(random, 300)
    tables = []
    for name in "abcd":
        chosen = random.choice(300, 220, replace=False)
        ids = [f"{name}{i}" for i in random.permutation(220)]
        tables.append(SkyTable(name, ids, *perturbed(random, ra[chosen], dec[chosen], 0.4)))
    expected = slow_groups(tables, radius)
    assert found(*tables, radius=radius) == expected
    shuffled = [t.rows(random.permutation(len(t))) for t in tables]
    assert found(*shuffled, radius=radius) == expected


def test_positions_and_separations_are_those_of_the_reference():
    tables = table("a", 0.0), table("b", 0.4, 70.0)
    groups = group_objects(tables, 1.0)
    place = groups.group_id.to_pylist().index("a:a0")
    assert (groups.ra[place], groups.dec[place]) == (0.0, 0.0)
    np.testing.assert_allclose(groups.separation[place], [0.0, 0.4], atol=1e-9)
    other = groups.group_id.to_pylist().index("b:b1")
    assert groups.ra[other] == 70.0 * ARCSEC
    np.testing.assert_array_equal(groups.separation[other], [np.nan, 0.0])
    assert sorted(groups.num_members.tolist()) == [1, 2]
    assert groups.select(groups.num_members > 1).group_id.to_pylist() == ["a:a0"]


def test_groups_are_formed_where_objects_are_at_the_common_epoch():
    gaia = SkyTable("gaia", ["star"], [100.0], [0.0], [1000.0], [0.0], epoch=2016.0)
    image = SkyTable("image", ["i"], [100.0 - 6 * ARCSEC], [0.0], epoch=2010.0)
    assert found(gaia, image, radius=0.1) == {"gaia:star": ("star", "i")}
    groups = group_objects([gaia, image], 0.1)
    assert groups.ra[0] == pytest.approx(100.0 - 6 * ARCSEC, abs=1e-12)


def test_both_engines_give_the_same_groups():
    random = np.random.default_rng(9)
    ra, dec = hard_places(random, 800)
    tables = [SkyTable(name, np.arange(800), *perturbed(random, ra, dec, 0.4)) for name in "abc"]
    tree, lsdb = (group_objects(tables, 2.0, engine=engine) for engine in ("tree", "lsdb"))
    assert tree.group_id.equals(lsdb.group_id)
    for name in ("ra", "dec", "member_row", "separation"):
        assert getattr(tree, name).tobytes() == getattr(lsdb, name).tobytes()


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "b:c"], ["a", ""]])
def test_catalogues_need_names_of_their_own(names):
    with pytest.raises(ObservationError, match="expected at least two catalogues with names of their own"):
        group_objects([table(name, 0.0) for name in names], 1.0)
