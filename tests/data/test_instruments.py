"""Instrument cards."""

import numpy as np
import pytest

from armillary.data.instruments import (
    BAND_FEATURES,
    INSTRUMENT_FEATURES,
    ImagingInstrument,
    band_features,
    instrument,
    instrument_names,
    parse_card,
    read_card,
)
from armillary.settings import SettingsError

CARD = {
    "kind": "image",
    "name": "toy",
    "description": "a toy",
    "reference": "none",
    "pixel_scale": 0.3,
    "bands": [{"name": "g", "wavelength": 4800, "width": 1400, "psf_fwhm": 1.0, "depth": 24.0}],
}


@pytest.mark.parametrize("name", instrument_names())
def test_every_shipped_card_loads_and_its_features_are_finite_and_of_order_one(name):
    features = instrument(name).features() if name_is_whole(name) else instrument(name).quantities[0].features()
    assert features.shape == (len(INSTRUMENT_FEATURES),)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.abs(features).max() < 6


def name_is_whole(name):
    return instrument(name).kind != "scalar"


def test_linear_and_logarithmic_grids_cover_the_stated_range():
    desi, sdss = instrument("desi").wavelength(), instrument("sdss").wavelength()
    assert len(desi) == 7781
    assert desi[[0, -1]] == pytest.approx([3600, 9824])
    assert np.diff(np.log10(sdss)) == pytest.approx(1e-4, rel=1e-6)
    assert sdss[-1] <= instrument("sdss").wavelength_max < sdss[-1] * 10**1e-4


def test_resolving_power_is_linear_between_knots_and_constant_beyond():
    desi = instrument("desi")
    assert desi.resolving_power_at(np.array([1000.0, 4700.0, 20000.0])) == pytest.approx([2000, 2650, 5300])


def test_each_number_of_a_band_moves_its_own_feature():
    card = parse_card(CARD, "toy")
    assert isinstance(card, ImagingInstrument)
    plain = band_features(card.bands[0], 0.3)
    assert plain.shape == (len(BAND_FEATURES),)
    seeing = band_features(card.bands[0], 0.3, psf_fwhm=0.5)
    depth = band_features(card.bands[0], 0.3, depth=26.0)
    assert np.flatnonzero(plain != seeing).tolist() == [BAND_FEATURES.index("log_psf_fwhm")]
    assert np.flatnonzero(plain != depth).tolist() == [BAND_FEATURES.index("depth")]


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"pixel_scale": -1}, "pixel_scale"),
        ({"kind": "radio"}, "radio"),
        ({"seeing": 1.0}, "seeing"),
        ({"bands": []}, "bands"),
        ({"bands": CARD["bands"] * 2}, "found twice: .'g'"),
    ],
)
def test_a_wrong_card_is_an_error_that_names_source_and_key(change, problem):
    with pytest.raises(SettingsError, match=f"(?s)toy.yaml.*{problem}"):
        parse_card({**CARD, **change}, "toy.yaml")


def test_a_card_file_that_is_missing_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SettingsError, match="nowhere"):
        read_card(tmp_path / "nowhere.yaml")


def test_knots_out_of_order_are_refused():
    card = instrument("desi").model_dump(mode="json")
    card["resolving_power"] = [[5000, 2000], [4000, 3000]]
    with pytest.raises(SettingsError, match="increase strictly"):
        parse_card(card, "desi")


def test_an_unknown_instrument_or_band_names_the_known_ones():
    with pytest.raises(LookupError, match="nearest known is 'desi'"):
        instrument("dezi")
    with pytest.raises(LookupError, match=r"g.*r.*i.*z.*y"):
        instrument("hsc").band("u")
