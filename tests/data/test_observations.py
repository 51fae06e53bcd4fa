"""Observations: bad input is refused with a message that says what and where; good input is kept as it came."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.data.modalities import modality
from armillary.data.observations import (
    CoefficientsObservation,
    ImageObservation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
)
from armillary.data.stacking import stack

HSC, DESI, REDSHIFT = modality("image/hsc"), modality("spectrum/desi"), modality("scalar/redshift")


def image(num_objects=2, bands=("g", "r"), size=(5, 4), seed=0, **options):
    flux = np.random.default_rng(seed).normal(size=(num_objects, len(bands), *size)).astype(np.float32)
    names = options.pop("object_id", [f"{seed}-{i}" for i in range(num_objects)])
    return ImageObservation(HSC, names, options.pop("flux", flux), bands, **options)


def spectrum(num_objects=2, length=30, seed=0, **options):
    flux = np.random.default_rng(seed).normal(size=(num_objects, length)).astype(np.float32)
    names = [f"{seed}-{i}" for i in range(num_objects)]
    wavelength = options.pop("wavelength", 4000 + 0.8 * np.arange(length))
    ivar = options.pop("inverse_variance", np.ones_like(flux))
    return SpectrumObservation(DESI, names, options.pop("flux", flux), wavelength, ivar, **options)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_an_image_full_of_nan_is_refused_and_the_object_named():
    flux = np.zeros((2, 1, 4, 4), np.float32)
    flux[1] = np.nan
    with pytest.raises(ObservationError, match=r"image/hsc, object b: flux must be finite.*16 of 16.*mask=False"):
        ImageObservation(HSC, ["a", "b"], flux, ["g"])


def test_an_image_full_of_nan_that_is_masked_has_no_valid_pixel():
    with pytest.raises(ObservationError, match="object a: no valid pixel"):
        ImageObservation(HSC, ["a"], np.full((1, 1, 2, 2), np.nan), ["g"], mask=np.zeros((1, 1, 2, 2), bool))


def test_an_unsorted_wavelength_grid_is_refused_with_the_pixel():
    wavelength = 4000 + 0.8 * np.arange(30)
    wavelength[[11, 12]] = wavelength[[12, 11]]
    with pytest.raises(ObservationError, match=r"object 0-0: wavelength must increase strictly; it falls at pixel 12"):
        spectrum(wavelength=wavelength)


def test_zero_padded_wavelengths_are_refused_and_the_message_says_so():
    wavelength = np.tile(4000 + 0.8 * np.arange(30), (2, 1))
    wavelength[1, 20:] = 0
    with pytest.raises(ObservationError, match=r"object 0-1: wavelength.* 0\.0 at pixel 20.*Padded\? Pass mask=False"):
        spectrum(wavelength=wavelength)


def test_zero_padded_wavelengths_are_accepted_where_masked():
    wavelength = np.tile(4000 + 0.8 * np.arange(30), (2, 1))
    wavelength[1, 20:] = 0
    mask = wavelength > 0
    assert spectrum(wavelength=wavelength, mask=mask).mask.sum() == 50


def test_wavelengths_must_increase_across_a_masked_gap_too():
    wavelength = 4000 + 0.8 * np.arange(30)
    wavelength[15:] -= 20
    mask = np.ones((2, 30), bool)
    mask[:, 14:16] = False
    with pytest.raises(ObservationError, match="falls at pixel 16"):
        spectrum(wavelength=wavelength, mask=mask)


def test_an_unknown_band_names_the_known_ones():
    with pytest.raises(ObservationError, match=r"unknown band 'u'.*'g', 'r', 'i', 'z', 'y'"):
        image(bands=("g", "u"))


def test_a_nan_scalar_is_refused_and_a_masked_one_is_zero():
    with pytest.raises(ObservationError, match=r"scalar/redshift, object b: value must lie in.*nan"):
        ScalarObservation(REDSHIFT, ["a", "b"], [0.1, np.nan])
    masked = ScalarObservation(REDSHIFT, ["a", "b"], [0.1, np.nan], [True, False])
    assert masked.values.tolist() == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: image(bands=("g", "g")), "bands must differ"),
        (lambda: image(flux=np.zeros((2, 3, 4, 4))), r"flux must have shape \[objects = 2, bands = 2"),
        (lambda: image(flux=np.zeros((2, 2, 0, 4))), "flux must have shape"),
        (lambda: image(mask=np.ones((2, 2, 5, 4))), "mask must be boolean"),
        (lambda: image(mask=np.ones((2, 5, 4), bool)), "mask must have shape"),
        (lambda: image(inverse_variance=np.full((2, 2, 5, 4), -1.0)), "inverse_variance must be finite and not neg"),
        (lambda: image(psf_fwhm=[[1.0, 0.0]] * 2), "psf_fwhm must be finite and positive"),
        (lambda: image(dec=[0.0, 95.0]), r"object 0-1: dec must lie in"),
        (lambda: image(ra=[0.0, 360.0]), r"object 0-1: ra must lie in"),
        (lambda: image(ra=[0.0]), "one number for each of 2 objects"),
        (lambda: spectrum(flux=np.zeros(30)), "flux must have shape"),
        (lambda: spectrum(wavelength=np.arange(7)), "wavelength must have shape"),
        (lambda: spectrum(resolving_power=np.zeros((2, 30))), "resolving_power must be positive"),
        (lambda: spectrum(flux=np.full((2, 30), np.inf)), "flux must be finite"),
        (lambda: ScalarObservation(REDSHIFT, ["a"], [50.0]), r"lie in \[-0.01, 8.0\] dimensionless"),
        (lambda: ScalarObservation(REDSHIFT, ["a"], [0.1], None, [-1.0]), "error must not be negative"),
        (lambda: ScalarObservation(DESI, ["a"], [0.1]), "expected a modality of kind scalar, found spectrum/desi"),
        (lambda: ScalarObservation(REDSHIFT, ["a"], ["fast"]), "values"),
        (lambda: ScalarObservation(REDSHIFT, ["a"], [1j]), "real numbers"),
    ],
)
def test_bad_input_is_refused(make, problem):
    with pytest.raises(ObservationError, match=problem):
        make()


# ---- good input ------------------------------------------------------------------------------------------------------


def test_the_callers_arrays_are_not_changed():
    flux = np.random.default_rng(0).normal(size=(2, 1, 4, 4)).astype(np.float32)
    flux[0, 0, 0, 0] = np.nan
    given_arrays = {
        "flux": flux,
        "inverse_variance": np.full_like(flux, 2.0),
        "mask": np.isfinite(flux),
        "ra": np.array([1.0, 2.0]),
        "psf_fwhm": np.ones((2, 1)),
    }
    before = copy.deepcopy(given_arrays)
    observation = ImageObservation(HSC, ["a", "b"], bands=["g"], **given_arrays)
    assert observation.flux[0, 0, 0, 0] == 0
    for name, array in given_arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_pixel_without_inverse_variance_is_masked_and_holds_zero():
    ivar = np.ones((2, 30))
    ivar[0, 3] = 0
    observed = spectrum(inverse_variance=ivar)
    assert not observed.mask[0, 3]
    assert observed.flux[0, 3] == 0
    assert observed.mask.sum() == 59


def coefficients(values, **more):
    return CoefficientsObservation(modality("coefficients/gaia_bp_rp"), ["a", "b"], values, **more)


def test_coefficients_hold_zero_where_they_are_masked_and_the_callers_array_is_not_changed():
    values, mask = np.ones((2, 110)), np.ones((2, 110), bool)
    values[1, 3], mask[1, 3] = np.nan, False
    observed = coefficients(values, mask=mask)
    assert np.isnan(values[1, 3])
    assert observed.values[1, 3] == 0
    assert observed.values.sum() == 219
    assert torch.equal(observed.mask, torch.from_numpy(mask))
    assert observed.error.isnan().all()
    assert observed.select([1]).object_id == ("b",)


@pytest.mark.parametrize(
    "values, more, problem",
    [
        (np.ones((2, 55)), {}, r"values must have shape \[2, 110\], found \[2, 55\]"),
        (np.full((2, 110), np.inf), {}, r"object a: values must be finite where they are valid .*found inf at \[0\]"),
        (np.ones((2, 110)), {"error": np.full((2, 110), -1.0)}, "object a: error must not be negative; found -1"),
        (np.ones((2, 110)), {"mask": np.ones((2, 110))}, "mask must be boolean"),
    ],
)
def test_coefficients_that_cannot_be_are_refused(values, more, problem):
    with pytest.raises(ObservationError, match=problem):
        coefficients(values, **more)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, lambda a: a.tolist(), lambda a: a.astype(">f8")])
def test_numpy_torch_lists_and_big_endian_arrays_give_the_same_observation(convert):
    flux = np.arange(60, dtype=np.float64).reshape(2, 30)
    wavelength = 4000 + 0.8 * np.arange(30)
    observed = SpectrumObservation(DESI, [1, 2], convert(flux), convert(wavelength), convert(np.ones((2, 30))))
    assert observed.flux.tolist() == flux.tolist()
    assert observed.wavelength.dtype == torch.float64
    assert observed.object_id == ("1", "2")


def test_the_default_noise_puts_a_point_source_of_the_depth_at_five_sigma():
    observed = image(bands=("g",))
    sigma = observed.noise()[0, 0].item()
    width = 0.79 / 2.3548 / 0.168
    axis = np.arange(-30, 31)
    profile = np.exp(-(axis[:, None] ** 2 + axis**2) / 2 / width**2) / (2 * np.pi * width**2)
    flux = 10 ** (0.4 * (22.5 - 26.5))
    assert flux * np.sqrt((profile**2).sum()) / sigma == pytest.approx(5, rel=1e-3)
    assert observed.inverse_variance[0, 0, 0, 0].item() == pytest.approx(sigma**-2)


def test_select_keeps_rows_together_and_in_the_order_asked():
    observed = image(3, ra=[1.0, 2.0, 3.0])
    chosen = observed.select([2, 0])
    assert chosen.object_id == ("0-2", "0-0")
    assert chosen.ra.tolist() == [3.0, 1.0]
    assert torch.equal(chosen.flux, observed.flux[[2, 0]])
    assert observed.select(slice(1, None)).object_id == ("0-1", "0-2")


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    bands=st.lists(st.sampled_from([("g",), ("r", "g"), ("g", "r", "i")]), min_size=3, max_size=3),
)
def test_stacked_images_keep_their_values_and_padding_is_masked(sizes, bands):
    parts = [image(1, b, size, seed=n) for n, (size, b) in enumerate(zip(sizes, bands, strict=False))]
    together = stack(parts)
    for row, part in enumerate(parts):
        height, width = part.flux.shape[2:]
        place = [together.bands.index(name) for name in part.bands]
        assert torch.equal(together.flux[row, place, :height, :width], part.flux[0])
        assert torch.equal(together.inverse_variance[row, place, :height, :width], part.inverse_variance[0])
        assert torch.equal(together.mask[row, place, :height, :width], part.mask[0])
        assert torch.equal(together.psf_fwhm[row, place], part.psf_fwhm[0])
        assert together.mask[row].sum() == part.mask.sum()
    assert (together.flux[~together.mask] == 0).all()


def test_stacked_spectra_keep_their_values_and_padding_is_masked():
    parts = [spectrum(1, 10, 0), spectrum(2, 30, 1)]
    together = stack(parts)
    assert together.flux.shape == (3, 30)
    assert torch.equal(together.flux[0, :10], parts[0].flux[0])
    assert not together.mask[0, 10:].any()
    assert torch.equal(together.wavelength[1:], parts[1].wavelength)
    assert together.object_id == ("0-0", "1-0", "1-1")


def test_stacking_nothing_or_mixed_modalities_is_refused():
    with pytest.raises(ObservationError, match="found none"):
        stack([])
    with pytest.raises(ObservationError, match=r"one modality, found \['image/hsc', 'spectrum/desi'\]"):
        stack([image(), spectrum()])


# ---- turned images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(8))
def test_an_image_is_turned_with_all_that_belongs_to_its_pixels(number):
    flux = np.random.default_rng(0).normal(size=(2, 2, 5, 4)).astype(np.float32)
    source = [(1, 3), (4, 0)]
    for row, at in enumerate(source):
        flux[row, :, at[0], at[1]] = 100
    mask = np.ones(flux.shape, bool)
    mask[0, 1, 2, 0] = False
    first = image(flux=flux, mask=mask, inverse_variance=np.exp(flux / 50), center=source)
    turned = first.turned(number)
    expected = np.rot90(np.where(mask, flux, 0), number % 4, (2, 3))
    assert np.array_equal(turned.flux, expected[..., ::-1] if number >= 4 else expected)
    for row in range(2):
        place = tuple(turned.center[row].long().tolist())
        assert (turned.flux[row][:, place[0], place[1]] == 100).all()
        assert (turned.inverse_variance[row][:, place[0], place[1]] == first.inverse_variance.max()).all()
    assert (turned.flux[~turned.mask] == 0).all()
    assert int((~turned.mask).sum()) == 1
    assert turned.object_id == first.object_id
    undone = turned.turned(number if number >= 4 else -number % 4)  # a mirroring undoes itself
    for name in ("flux", "mask", "inverse_variance", "center"):
        assert torch.equal(getattr(undone, name), getattr(first, name)), name


def test_an_image_does_not_lie_in_a_ninth_way():
    with pytest.raises(ValueError, match="images lie in 8 ways, from 0; found 8"):
        image().turned(8)
