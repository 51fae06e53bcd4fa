"""Photometry: closed forms, the cards' numbers, and a real galaxy measured by two instruments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.data.filters import (
    FilterCurve,
    ab_flux,
    filter_curve,
    filter_names,
    flux_to_magnitude,
    magnitude_to_flux,
    photometry_weights,
)
from armillary.data.instruments import Catalogue, ImagingInstrument, instrument
from armillary.data.readers.desi import read_desi
from armillary.data.real_files import real_file
from armillary.data.simulation.observe_scalars import CATALOGUE_FILTERS
from armillary.data.simulation.wavelength_grid import observed_wavelength

GRID = np.arange(2900.0, 11400.0, 1.0)


@pytest.mark.parametrize("name", filter_names())
def test_source_of_3631_jansky_has_magnitude_zero(name):
    flux = photometry_weights([filter_curve(name)], GRID) @ ab_flux(GRID)
    assert flux_to_magnitude(flux) == pytest.approx(0.0, abs=1e-4)


def test_narrow_line_counts_by_response_at_its_wavelength():
    curve = filter_curve("decam2014-r")
    row = photometry_weights([curve], GRID)[0]
    at = {wavelength: row[np.searchsorted(GRID, wavelength)] for wavelength in (6000.0, 6800.0)}
    response = np.interp([6000, 6800], curve.wavelength, curve.response)
    # Photons count, so the weight of a unit of energy grows with wavelength.
    assert at[6800.0] / at[6000.0] == pytest.approx(response[1] * 6800 / (response[0] * 6000), rel=2e-3)


def test_weights_agree_with_fine_numerical_integral():
    curve = filter_curve("sdss2010-g")
    coarse = np.arange(3000.0, 7000.0, 37.0)
    flux = 1 + 0.5 * np.sin(coarse / 200)
    fine = np.arange(3000.0, 6990.0, 0.05)
    response = np.interp(fine, curve.wavelength, curve.response, left=0, right=0)
    expected = 1e9 * np.sum(np.interp(fine, coarse, flux) * response * fine) / np.sum(ab_flux(fine) * response * fine)
    assert photometry_weights([curve], coarse)[0] @ flux == pytest.approx(expected, rel=1e-3)


def test_top_hat_has_its_own_width_and_wavelength():
    wavelength = np.r_[4999.9, np.arange(5000, 6001.0), 6000.1]
    curve = FilterCurve("box", wavelength, np.r_[0, np.full(1001, 0.7), 0])
    assert curve.effective_width == pytest.approx(1000, abs=0.2)
    assert curve.effective_wavelength == pytest.approx(1000 / np.log(6 / 5), abs=0.2)


def test_spectrum_that_misses_part_of_the_filter_is_refused():
    with pytest.raises(ValueError, match=r"MzLS-z needs wavelengths .*at least"):
        photometry_weights([filter_curve("MzLS-z")], np.arange(3600.0, 9600.0))


def test_unknown_curve_names_the_nearest():
    with pytest.raises(LookupError, match="decam2014-g"):
        filter_curve("decam2015-g")


@given(wavelength=st.integers(3500, 10000), width=st.integers(20, 3000))
def test_a_synthetic_filter_is_what_its_name_says(wavelength, width):
    curve = filter_curve(f"synthetic-{wavelength}-{width}")
    assert curve.name == f"synthetic-{wavelength}-{width}"
    assert curve.effective_wavelength == pytest.approx(wavelength, rel=1e-3)
    assert curve.effective_width == pytest.approx(width, rel=1e-3)
    assert (np.diff(curve.wavelength) > 0).all()
    assert curve.response[[0, -1]] == pytest.approx([0, 0], abs=1e-12)
    assert 0 <= curve.response.min() <= curve.response.max() <= 1


def test_flanks_of_a_synthetic_filter_are_as_steep_as_those_of_real_ones():
    def rise(name: str) -> float:
        """From 10 to 90 % of the response at the blue edge, over the wavelength."""
        curve = filter_curve(name)
        top = int(curve.response.argmax()) + 1
        response = np.maximum.accumulate(curve.response[:top]) / curve.response.max()
        low, high = np.interp([0.1, 0.9], response, curve.wavelength[:top])
        return (high - low) / curve.effective_wavelength

    real = [rise(name) for name in ("BASS-r", "hsc2017-r", "hsc2017-i", "hsc2017-z", "decam2014-i")]
    assert min(real) < rise("synthetic-7000-1400") < max(real)


def test_a_source_of_3631_jansky_has_magnitude_zero_through_a_synthetic_filter():
    flux = photometry_weights([filter_curve("synthetic-6200-1400")], GRID) @ ab_flux(GRID)
    assert flux_to_magnitude(flux) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("name", ["synthetic-3000-600", "synthetic-10800-1600"])
def test_a_synthetic_filter_beyond_the_spectra_of_the_sky_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} needs wavelengths .* the spectrum has 2950 to 11299 A"):
        photometry_weights([filter_curve(name)], observed_wavelength())


@pytest.mark.parametrize("name", ["synthetic-6200", "synthetic-0-100", "synthetic-6200-1400.5", "synthetic-900-901"])
def test_a_synthetic_filter_that_cannot_be_is_explained(name):
    with pytest.raises(LookupError, match=f"{name}.*synthetic-WAVELENGTH-WIDTH"):
        filter_curve(name)


def test_magnitudes_and_nanomaggies_are_inverse():
    magnitudes = np.linspace(10, 25, 7)
    np.testing.assert_allclose(flux_to_magnitude(magnitude_to_flux(magnitudes)), magnitudes)
    assert magnitude_to_flux(np.array([22.5])) == 1


@pytest.mark.parametrize("name", ["legacysurvey", "hsc", "sdss_imaging", "bass_mzls", *CATALOGUE_FILTERS])
def test_cards_agree_with_their_curves(name):
    card = instrument(name)
    if isinstance(card, ImagingInstrument):
        entries = [(band, filter_curve(band.filter_curve)) for band in card.bands]
    else:
        assert isinstance(card, Catalogue)
        entries = [
            (quantity, filter_curve(f"{CATALOGUE_FILTERS[name]}-{quantity.name}")) for quantity in card.quantities
        ]
    for entry, curve in entries:
        assert entry.wavelength == pytest.approx(curve.effective_wavelength, abs=5.1), entry.name
        assert entry.width == pytest.approx(curve.effective_width, abs=5.1), entry.name


def test_real_desi_spectrum_has_the_flux_known_through_bass_and_mzls():
    spectrum = read_desi(real_file("desi-coadd-4-80613.fits"))
    wavelength, flux = spectrum.wavelength[0].numpy(), spectrum.flux[0].double().numpy()
    # The spectrum ends within the z filter; the known number took its median flux beyond the end, as speclite pads.
    beyond = np.arange(wavelength[-1] + 1, 10600)
    wavelength, flux = np.append(wavelength, beyond), np.append(flux, np.full(len(beyond), np.median(flux)))
    curves = [filter_curve(name) for name in ("BASS-g", "BASS-r", "MzLS-z")]
    # Known from an independent integration of this file (speclite, units of nanomaggies).
    np.testing.assert_allclose(photometry_weights(curves, wavelength) @ flux, [2.81, 4.68, 6.46], rtol=5e-3)


def test_part_of_a_filter_gives_the_flux_of_a_flat_source_all_the_same():
    grid = np.arange(3600.0, 9825.0)
    weights = photometry_weights([filter_curve("MzLS-z")], grid, min_coverage=0.85)
    assert (weights @ ab_flux(grid, 20.0))[0] == pytest.approx(10.0, rel=1e-4)
