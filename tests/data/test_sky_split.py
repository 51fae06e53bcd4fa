"""Training, validation and test by region: against separations by astropy, and what a user would find in the files."""

from collections import Counter

import hpgeom
import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord

from armillary.cli import main
from armillary.data.dataset_writer import DatasetWriter
from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.data.sky_split import HELD_OUT, MARGIN, read_parts, split_positions, split_sky, write_parts


def dense_sky(count=4000, seed=0):
    """Objects on 4 by 4 degrees across right ascension zero: 7 arcmin apart, several regions of order 5."""
    random = np.random.default_rng(seed)
    return [f"object-{i}" for i in range(count)], random.uniform(-2, 2, count) % 360, random.uniform(-2, 2, count)


def test_no_training_object_lies_within_the_margin_of_one_held_out():
    ids, ra, dec = dense_sky()
    part = split_sky(ids, ra, dec, test=0.3, validation=0.2, margin=300.0, seed=3)
    count = Counter(part.tolist())
    assert min(count[name] for name in ("train", "validation", "test", MARGIN)) > 20

    place = SkyCoord(ra * units.deg, dec * units.deg)
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        _, separation, _ = place[part == one].match_to_catalog_sky(place[part == other])
        assert separation.arcsec.min() > 300.0
    # Only what lies near another part was left out.
    _, separation, _ = place[part == MARGIN].match_to_catalog_sky(place[np.isin(part, ("validation", "test"))])
    assert separation.arcsec.max() <= 300.0


def test_regions_are_healpix_pixels_whose_part_does_not_depend_on_other_objects():
    ids, ra, dec = dense_sky()
    part = split_sky(ids, ra, dec, order=6, test=0.3, validation=0.2, margin=0.0)
    pixel = hpgeom.angle_to_pixel(64, ra, dec, nest=True)
    assert all(len(set(part[pixel == one])) == 1 for one in np.unique(pixel))

    few = slice(0, 500)
    assert np.array_equal(
        split_sky(ids[few], ra[few], dec[few], order=6, test=0.3, validation=0.2, margin=0.0), part[few]
    )


def test_shares_are_those_asked_for_over_the_whole_sky():
    random = np.random.default_rng(1)
    ra, dec = random.uniform(0, 360, 30_000), np.degrees(np.arcsin(random.uniform(-1, 1, 30_000)))
    part = split_sky([str(i) for i in range(30_000)], ra, dec, order=5, test=0.2, validation=0.1)
    count = Counter(part.tolist())
    assert count["test"] / 30_000 == pytest.approx(0.2, abs=0.02)
    assert count["validation"] / 30_000 == pytest.approx(0.1, abs=0.015)


def test_objects_without_a_position_are_divided_by_their_id():
    ids = [f"object-{i}" for i in range(2000)]
    nowhere = np.full(2000, np.nan)
    count = Counter(split_sky(ids, nowhere, nowhere, test=0.3, validation=0.1).tolist())
    assert count["test"] / 2000 == pytest.approx(0.3, abs=0.04)
    assert MARGIN not in count


@pytest.mark.parametrize(
    "options, message",
    [
        ({"test": 0.6, "validation": 0.4}, "sum is below 1"),
        ({"test": -0.1}, "shares"),
        ({"order": 13}, r"order must lie in \[0, 12\]"),
        ({"margin": float("nan")}, "margin must be an angle"),
    ],
)
def test_impossible_divisions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        split_positions({"a": (1.0, 2.0)}, **options)


def test_files_hold_every_object_once_and_an_overlap_is_refused(tmp_path):
    write_parts(tmp_path, ["a", "b", "c", "d"], ["test", "train", "margin", "validation"])
    assert read_parts(tmp_path) == {"a": "test", "b": "train", "d": "validation"}
    assert (tmp_path / f"{HELD_OUT}.txt").read_text().split() == ["a", "c", "d"]

    (tmp_path / "train.txt").write_text("b\na\n")
    with pytest.raises(ValueError, match=r"object 'a' is also in train\.txt"):
        read_parts(tmp_path)


def test_the_command_divides_a_dataset(tmp_path, capsys):
    ids, ra, dec = dense_sky(600)
    with DatasetWriter(tmp_path / "data") as writer:
        writer.write(
            ScalarObservation(
                modality=modality("scalar/redshift"),
                object_id=tuple(ids),
                ra=ra,
                dec=dec,
                values=np.full(600, 0.1, np.float32),
            )
        )
    assert main(["data", "split", str(tmp_path / "data"), str(tmp_path / "parts"), "--test", "0.3", "--seed", "3"]) == 0
    assert "test" in capsys.readouterr().out
    expected = split_positions(
        dict(zip(ids, zip(ra.tolist(), dec.tolist(), strict=True), strict=True)), test=0.3, seed=3
    )
    assert read_parts(tmp_path / "parts") == {i: p for i, p in expected.items() if p != MARGIN}
