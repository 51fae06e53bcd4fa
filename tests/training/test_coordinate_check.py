"""Activations over width and depth, over the first steps of training."""

import pytest

from armillary import cli
from armillary.training.coordinate_check import PLACES, coordinate_check

DECODED, LOGITS = PLACES.index("decoded"), PLACES.index("logits")


def test_with_the_transfer_activations_keep_their_size_as_the_width_grows():
    sizes = coordinate_check([32, 128], steps=4)
    growth = sizes[1] / sizes[0]
    assert growth.max() < 1.5
    assert growth[1:].min() > 0.4
    without = coordinate_check([32, 128], steps=4, transfer=False)
    assert without[1, -1, DECODED] / without[0, -1, DECODED] > 5


def test_and_as_the_depth_grows():
    sizes = coordinate_check([64], steps=5, depths=(2, 8))
    growth = sizes[1] / sizes[0]
    assert growth.max() < 1.6
    assert growth.min() > 0.5
    without = coordinate_check([64], steps=5, depths=(2, 8), transfer=False)
    assert without[1, -1, DECODED] / without[0, -1, DECODED] > 4


def test_the_command_draws_a_picture_and_refuses_odd_widths(tmp_path, capsys):
    picture = tmp_path / "new" / "coordinates.png"
    assert cli.main(["coord-check", str(picture), "--widths", "16", "32", "--steps", "2"]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in picture.parent.iterdir()] == ["coordinates.png"]
    assert cli.main(["coord-check", str(picture), "--widths", "20"]) == 2
    assert "widths must be multiples of 16, found [20]" in capsys.readouterr().err


def test_the_first_sizes_are_of_order_one():
    assert coordinate_check([64], steps=1).numpy() == pytest.approx(1.5, abs=1)
