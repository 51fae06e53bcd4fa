"""Tables of positions: what is refused, and how epochs are brought together."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from armillary.data.crossmatch.sky_table import SkyTable, at_common_epoch
from armillary.data.observations import ObservationError


def table(name="gaia", **columns):
    defaults = {"object_id": ["a", "b", "c"], "ra": [10.0, 20.0, 30.0], "dec": [-5.0, 0.0, 5.0]}
    return SkyTable(name, **(defaults | columns))


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"ra": [10.0, np.nan, np.nan]}, r"gaia, object b: ra is missing \(2 objects in all\)"),
        ({"dec": [10.0, 1.0, np.nan]}, "gaia, object c: dec is missing"),
        ({"ra": np.ma.masked_array([1.0, 2.0, 3.0], [True, False, False])}, "gaia, object a: ra is missing"),
        ({"ra": [10.0, 360.0, 30.0]}, r"gaia, object b: ra must lie in \[0, 360\) degrees; found 360.0"),
        ({"ra": [10.0, 20.0, -1e-9]}, r"gaia, object c: ra must lie"),
        ({"dec": [10.0, 90.01, 30.0]}, r"gaia, object b: dec must lie in \[-90, 90\] degrees; found 90.01"),
        ({"dec": [10.0, np.inf, 30.0]}, "gaia, object b: dec must lie"),
        ({"object_id": ["a", "b", "a"]}, r"gaia: object a comes twice \(1 such ids.*--set gaia.object_id=null"),
        ({"object_id": [5, 7, 5]}, "gaia: object 5 comes twice"),
        ({"object_id": ["a", None, "c"]}, "gaia: the object id of row 1 is missing"),
        ({"object_id": [1.0, 2.0, 3.0]}, "gaia: object ids must be strings or whole numbers"),
        ({"ra": [10.0, 20.0]}, r"gaia: ra must hold one number for each of 3 objects, found shape \[2\]"),
        ({"pm_ra": [1.0, 2.0, 3.0]}, "gaia: expected both pm_ra and pm_dec"),
        ({"pm_ra": [1.0, np.inf, 3.0], "pm_dec": [0.0, 0.0, 0.0]}, "gaia, object b: pm_ra must be finite"),
        ({"epoch": 57000.0}, "gaia: epoch must be in Julian years"),
        ({"epoch": [2016.0, 2016.0, 57000.0]}, "gaia, object c: epoch must be in Julian years"),
    ],
)
def test_what_cannot_be_matched_is_an_error_that_names_catalogue_and_object(columns, message):
    with pytest.raises(ObservationError, match=message):
        table(**columns)


@pytest.mark.parametrize(
    "ra, dec",
    [
        ([10.0, 10.0, 30.0], [-5.0, -5.0, 5.0]),
        ([0.0, -0.0, 30.0], [0.0, -0.0, 5.0]),
        ([10.0, 200.0, 30.0], [90.0, 90.0, 5.0]),
    ],
)
def test_two_objects_at_one_place_are_an_error_unless_allowed(ra, dec):
    with pytest.raises(ObservationError, match="objects a and b are at exactly one place"):
        table(ra=ra, dec=dec)
    assert len(table(ra=ra, dec=dec, allow_duplicates=True)) == 3


def test_ids_are_text_even_where_they_look_like_numbers():
    assert table(object_id=["1", "01", "+1"]).object_id.to_pylist() == ["1", "01", "+1"]


def test_places_that_share_one_coordinate_are_not_one_place():
    assert len(table(ra=[10.0, 10.0, 30.0], dec=[5.0, -5.0, 5.0])) == 3


def test_columns_of_any_library_are_taken_and_left_as_they_are():
    ra = np.array([10.0, 20.0, 30.0], dtype=">f8")
    ra.flags.writeable = False
    made = table(object_id=np.array([7, 8, 9], dtype=">i8"), ra=ra, dec=torch.tensor([1.0, 2.0, 3.0]))
    assert made.object_id.to_pylist() == ["7", "8", "9"]
    assert table(object_id=pa.chunked_array([["x"], ["y", "z"]])).object_id.to_pylist() == ["x", "y", "z"]
    assert made.ra.tolist() == [10.0, 20.0, 30.0]
    assert made.dec.tolist() == [1.0, 2.0, 3.0]


def moving(epoch, name="gaia"):
    return table(name, pm_ra=[0.0, 1000.0, np.nan], pm_dec=[2000.0, np.nan, 5.0], epoch=epoch)


def test_objects_move_by_their_proper_motion_and_those_without_one_rest():
    later = moving(2016.0).at_epoch(2017.0)
    assert later.epoch == 2017.0
    np.testing.assert_allclose((later.dec - moving(2016.0).dec) * 3600, [2.0, 0.0, 0.0], atol=1e-9)
    assert later.ra[1:].tolist() == [20.0, 30.0]


def test_each_object_may_have_an_epoch_of_its_own():
    epochs = np.array([2014.0, 2016.0, 2017.0])
    made = table(pm_ra=[0.0, 0.0, 0.0], pm_dec=[1000.0, 1000.0, 1000.0], epoch=epochs).at_epoch(2016.0)
    np.testing.assert_allclose((made.dec - [-5.0, 0.0, 5.0]) * 3600, [2.0, 0.0, -1.0], atol=1e-9)


def test_the_common_epoch_is_that_of_the_table_which_cannot_be_moved():
    gaia, twomass = at_common_epoch([moving(2016.0), table("twomass", epoch=2000.0)])
    assert gaia.epoch == 2000.0
    np.testing.assert_allclose((gaia.dec[0] + 5.0) * 3600, -32.0, rtol=1e-6)
    assert twomass.ra.tolist() == [10.0, 20.0, 30.0]
    both = at_common_epoch([moving(2016.0), moving(2000.0, "hipparcos")])
    assert [t.epoch for t in both] == [2016.0, 2016.0]
    asked = at_common_epoch([moving(2016.0), table("twomass", epoch=2000.0)], 2010.0)
    assert asked[0].epoch == 2010.0


def test_an_epoch_that_is_needed_and_not_known_is_an_error():
    with pytest.raises(ObservationError, match="gaia: has proper motions, but no epoch"):
        at_common_epoch([moving(None), table("twomass", epoch=2000.0)])
    with pytest.raises(ObservationError, match="twomass: no epoch is known to which"):
        at_common_epoch([moving(2016.0), table("twomass")])
    with pytest.raises(ObservationError, match="twomass: each object has an epoch of its own"):
        at_common_epoch([moving(2016.0), table("twomass", epoch=[2000.0, 2000.1, 2000.2])])


def test_without_proper_motions_no_epoch_is_needed():
    assert [t.epoch for t in at_common_epoch([table(), table("twomass", epoch=2000.0)])] == [None, 2000.0]
