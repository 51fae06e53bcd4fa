"""Gaia's coefficients: what GaiaXPy would make of them, and noise that is what its errors say."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from armillary.data.filters import filter_curve, flux_to_magnitude, photometry_weights
from armillary.data.modalities import modality
from armillary.data.simulation import gaia_spectra
from armillary.data.simulation.gaia_spectra import (
    ARMS,
    NUM_COEFFICIENTS,
    coefficient_matrix,
    coefficient_noise,
    sampled_basis,
)
from armillary.data.simulation.observe_gaia import (
    FAINTEST,
    FAINTEST_SPECTRUM,
    ZERO_POINTS,
    is_compact,
    observe_gaia_scalars,
    observe_gaia_spectra,
    parallax_error,
)
from armillary.data.simulation.sky_objects import Population, SkyObjects, draw_objects
from armillary.data.simulation.wavelength_grid import observed_wavelength

XP = modality("coefficients/gaia_bp_rp")

GAIAXPY = {
    "bp": ((380.0, 450.0, 520.0, 600.0), {
        1: (-0.492023, -0.470243, -0.241831, 0.0870095),
        7: (4.06289, 0.364778, 0.173804, 0.0748821),
        54: (-17.8628, 3.16738, -1.30157, 0.349528),
    }),
    "rp": ((660.0, 750.0, 850.0, 980.0), {
        1: (-0.274398, -0.00176959, 0.0699799, 0.353746),
        7: (0.623172, -0.262634, -0.201528, -0.548552),
        54: (-0.30247, -0.895315, 0.877191, 7.52684),
    }),
}  # fmt: skip
"""Functions of wavelength (nm) that GaiaXPy 2.1.5 multiplies some coefficients with, 1e-17 erg/s/cm2/A:
SampledBasisFunctions.from_external_instrument_model, models v375wi and v142r."""


@pytest.fixture(scope="module")
def objects() -> SkyObjects:
    population = Population(9, 18.0, star_fraction=0.5, quasar_fraction=0.2, shard_size=1000, healpix_order=1)
    return draw_objects(population, np.arange(300))


def absolute_basis(arm, wavelength):
    """The functions [55, L] by which GaiaXPy turns coefficients into a spectrum, from the shipped table."""
    table = gaia_spectra._table(arm)
    place = gaia_spectra._scaled(table, CubicSpline(*table["dispersion"])(wavelength))
    response = np.interp(wavelength, *table["response"])
    mixing = np.linalg.inv(table["projection"]).T
    per_photon = 6.62607004e-34 * 2.99792458e8 * 1e9 / (0.7278 * response * wavelength)
    return mixing @ gaia_spectra._hermite(place) * per_photon / 1e-19


@pytest.mark.parametrize("arm", ARMS)
def test_shipped_table_says_what_gaiaxpy_says(arm):
    wavelength, known = GAIAXPY[arm]
    basis = absolute_basis(arm, np.array(wavelength))
    for number, values in known.items():
        np.testing.assert_allclose(basis[number], values, rtol=2e-3, atol=2e-3)


def test_spectra_that_gaiaxpy_can_represent_come_back_as_the_same_coefficients():
    wavelength = observed_wavelength() / 10
    rng = np.random.default_rng(0)
    for place, arm in enumerate(ARMS):
        table = gaia_spectra._table(arm)
        seen = np.interp(wavelength, *table["response"], left=0, right=0) > 1e-6
        coefficients = rng.standard_normal(12) * np.exp(-np.arange(12.0))
        # Where Gaia sees nothing, neither do we; low orders reach little beyond.
        spectrum = np.zeros(len(wavelength))
        spectrum[seen] = coefficients @ absolute_basis(arm, wavelength[seen])[:12]
        found = coefficient_matrix().double().numpy() @ spectrum
        own = found[place * NUM_COEFFICIENTS : (place + 1) * NUM_COEFFICIENTS]
        np.testing.assert_allclose(own[:12], coefficients, atol=0.03)


def test_coefficients_make_the_spectrum_again(objects):
    """What GaiaXPy's formula makes of our coefficients of real stars is their spectrum, a little blurred."""
    bright = np.flatnonzero(objects.object_class == 1)[:40]
    spectra = objects.spectra[torch.from_numpy(bright)].sum(1).double().numpy()
    coefficients = spectra @ coefficient_matrix().double().numpy().T
    grid = observed_wavelength() / 10
    for place, (arm, low, high) in enumerate((("bp", 400, 640), ("rp", 640, 1000))):
        wavelength = np.arange(low, high, 1.0)
        own = coefficients[:, place * NUM_COEFFICIENTS : (place + 1) * NUM_COEFFICIENTS]
        again = own @ absolute_basis(arm, wavelength)
        truth = np.array([np.interp(wavelength, grid, np.convolve(s, np.full(200, 1 / 200), "same")) for s in spectra])
        ratio = again / truth
        assert np.abs(np.median(ratio) - 1) < 0.005
        assert np.median(np.abs(ratio - 1)) < 0.04


def test_samples_add_up_to_the_magnitudes_of_bp_and_rp(objects):
    """The electrons of all samples are those that the zero points of BP and RP give: units are right throughout."""
    spectra = objects.spectra.sum(1).double().numpy()
    coefficients = spectra @ coefficient_matrix().double().numpy().T
    for place, arm in enumerate(ARMS):
        weights = photometry_weights([filter_curve(f"gaiadr3-{arm.upper()}")], observed_wavelength())[0]
        expected = 10 ** (0.4 * (ZERO_POINTS[arm] - flux_to_magnitude(spectra @ weights)))
        own = coefficients[:, place * NUM_COEFFICIENTS : (place + 1) * NUM_COEFFICIENTS]
        np.testing.assert_allclose((own @ sampled_basis(arm)).sum(1), expected, rtol=0.03)


def test_noise_has_the_stated_errors_and_falls_with_light():
    rng = np.random.default_rng(1)
    flat = coefficient_matrix().double().numpy() @ np.full(len(observed_wavelength()), 250.0)  # about G = 15
    noise, error = coefficient_noise(np.tile(flat, (2000, 1)), rng.standard_normal((2000, 120)), np.full(2000, 40.0))
    np.testing.assert_allclose(noise.std(0) / error[0], 1, atol=0.08)
    first = [0, NUM_COEFFICIENTS]

    def signal_to_noise(brightness, transits):
        own = brightness * flat[None]
        _, deviation = coefficient_noise(own, np.zeros((1, 120)), np.array([transits]))
        return (np.abs(own) / deviation)[0, first]

    assert (signal_to_noise(1.0, 40.0) > 200).all()
    assert (signal_to_noise(0.01, 40.0) < 0.1 * signal_to_noise(1.0, 40.0)).all()  # five magnitudes fainter
    np.testing.assert_allclose(signal_to_noise(0.01, 160.0) / signal_to_noise(0.01, 40.0), 2, rtol=0.05)


def test_only_bright_points_have_spectra(objects):
    observed = observe_gaia_spectra(objects, XP)
    seen = observed.mask.all(1).numpy()
    assert (seen == observed.mask.any(1).numpy()).all()
    magnitude = observe_gaia_scalars(objects, modality("scalar/gaia_g"))
    is_star, is_galaxy = objects.object_class == 1, objects.object_class == 0
    bright = magnitude.values.numpy() < FAINTEST_SPECTRUM - 0.1
    assert seen[is_star & bright & magnitude.mask.numpy()].all()
    assert not seen[~magnitude.mask.numpy()].any()
    assert seen[is_galaxy].mean() < 0.2
    assert is_compact(objects)[is_star].all()
    assert (observed.error[observed.mask] > 0).all()
    pull = (observed.values - objects.spectra.sum(1) @ coefficient_matrix().T) / observed.error
    assert pull[observed.mask].std().item() == pytest.approx(1, abs=0.1)


def test_motions_scatter_by_their_errors(objects):
    for name in ("parallax", "pm_ra", "pm_dec"):
        observed = observe_gaia_scalars(objects, modality(f"scalar/gaia_{name}"))
        truth = np.nan_to_num(objects.truth[name])
        pull = ((observed.values.numpy() - truth) / observed.error.numpy())[observed.mask.numpy()]
        assert pull.std() == pytest.approx(1, abs=0.2)
        assert np.abs(pull.mean()) < 0.3
    quasars = torch.from_numpy(objects.object_class == 2) & observed.mask
    assert quasars.sum() > 10
    assert observed.values[quasars].abs().max() < 5 * observed.error[quasars].max()
    np.testing.assert_allclose(parallax_error(np.array([15.0, 20.0])), [0.0295, 0.617], rtol=0.02)  # ESA's table


def test_magnitudes_are_vega_and_faint_objects_missing():
    faint = draw_objects(Population(9, 23.0, 1.0, 0.0, 1000, 1), np.arange(200))
    observed = observe_gaia_scalars(faint, modality("scalar/gaia_g"))
    weights = photometry_weights([filter_curve("gaiadr3-G")], observed_wavelength())[0]
    vega = flux_to_magnitude(faint.spectra.sum(1).double().numpy() @ weights) - 0.1136
    np.testing.assert_array_equal(observed.mask, vega < FAINTEST)
    pull = (observed.values.numpy() - vega)[observed.mask] / observed.error[observed.mask].numpy()
    assert np.abs(pull).max() < 5
    with pytest.raises(LookupError, match="radial_velocity is not simulated"):
        observe_gaia_scalars(faint, modality("scalar/gaia_radial_velocity"))
