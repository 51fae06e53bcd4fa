"""Objects of astropy, arrays and files become observations: values, errors, masks and positions, by number."""

from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from astropy.wcs import WCS

from armillary.data.astropy_tables import from_table
from armillary.data.astropy_units import vacuum_wavelengths
from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ObservationError
from armillary.data.observe import as_observations, observe
from armillary.data.readers.sdss import read_sdss_spec
from armillary.data.real_files import real_file

HSC = modality("image/hsc")
DESI = modality("spectrum/desi")
SIDE = 6


@pytest.fixture
def pixels():
    return np.random.default_rng(0).normal(1, 0.1, (SIDE, SIDE))


def celestial(scale_arcsec, ra=150.0, dec=2.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(SIDE + 1) / 2] * 2
    wcs.wcs.cdelt = [-scale_arcsec / 3600, scale_arcsec / 3600]
    return wcs


@pytest.mark.parametrize(
    ("unit", "zero_point", "nanomaggies"),
    [
        ("nmgy", None, 1.0),
        ("uJy", None, 1 / 3.631),
        (u.erg / u.s / u.cm**2 / u.Hz, None, 1e23 / 3631 * 1e9),
        ("adu", 27.0, 10 ** (-0.4 * 4.5)),
        ("electron / s", 22.5, 1.0),
    ],
)
def test_images_of_every_unit_become_nanomaggies(pixels, unit, zero_point, nanomaggies):
    found = observe(CCDData(pixels, unit=unit), HSC, bands="g", zero_point=zero_point)
    np.testing.assert_allclose(found.flux[0, 0], pixels * nanomaggies, rtol=2e-6)


@pytest.mark.parametrize("kind", ["std", "variance", "inverse", "std in another unit"])
def test_every_uncertainty_becomes_the_inverse_variance_of_nanomaggies(pixels, kind):
    sigma = np.linspace(0.1, 0.4, SIDE**2).reshape(SIDE, SIDE)
    uncertainty = {
        "std": StdDevUncertainty(sigma),
        "variance": VarianceUncertainty(sigma**2),
        "inverse": InverseVariance(sigma**-2),
        "std in another unit": StdDevUncertainty(sigma * 1e3, unit="nJy"),
    }[kind]
    found = observe(CCDData(pixels, unit="uJy", uncertainty=uncertainty), HSC, bands=["i"])
    np.testing.assert_allclose(found.inverse_variance[0, 0], (sigma / 3.631) ** -2, rtol=1e-5)


def test_astropys_mask_is_turned_round_and_bad_pixels_may_hold_nan(pixels):
    bad = np.zeros((SIDE, SIDE), bool)
    bad[2, 3] = True
    pixels[2, 3] = np.nan
    found = observe(CCDData(pixels, unit="nmgy", mask=bad), HSC, bands="g")
    assert found.mask[0, 0].numpy().tolist() == (~bad).tolist()
    with pytest.raises(ObservationError, match=r"flux must be finite .* 1 of 36"):
        observe(CCDData(pixels, unit="nmgy"), HSC, bands="g")


def test_one_image_for_each_band_has_the_place_of_its_coordinates(pixels):
    planes = {band: CCDData(pixels * i, unit="nmgy", wcs=celestial(0.168)) for i, band in enumerate("gri", 1)}
    found = observe(planes, "image/hsc", object_id="mine")
    assert found.bands == ("g", "r", "i")
    assert found.object_id == ("mine",)
    np.testing.assert_allclose(found.flux[0], pixels * np.array([1, 2, 3])[:, None, None], rtol=1e-6)
    np.testing.assert_allclose([found.ra[0], found.dec[0]], [150.0, 2.0], atol=1e-9)


def test_pixels_of_another_size_than_the_cameras_are_refused(pixels):
    with pytest.raises(ObservationError, match=r"its pixels are 0.168 arcsec, those of the image 0.262"):
        observe(CCDData(pixels, unit="nmgy", wcs=celestial(0.262)), HSC, bands="g")


def test_the_header_may_name_the_band_and_must_where_nobody_else_does(pixels):
    assert observe(CCDData(pixels, unit="nmgy", meta={"FILTER": "r"}), HSC).bands == ("r",)
    for header in ({}, {"FILTER": "Halpha"}):
        with pytest.raises(ObservationError, match="expected bands"):
            observe(CCDData(pixels, unit="nmgy", meta=header), HSC)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (lambda p: CCDData(p, unit="adu"), {}, "say zero_point"),
        (lambda p: CCDData(p, unit="MJy / sr"), {}, "expected a flux per pixel"),
        (lambda p: CCDData(p, unit="uJy"), {"zero_point": 27}, "goes with counts"),
        (lambda p: NDData(p), {}, "the image has no unit"),
        (lambda p: CCDData(p, unit="nmgy", uncertainty=UnknownUncertainty(p)), {}, "found UnknownUncertainty"),
        (lambda p: CCDData(p[0], unit="nmgy"), {}, "expected an image"),
        (lambda p: p, {"in_air": True}, "image/hsc has no in_air"),
        (lambda p: [["a"]], {}, "expected an array of numbers"),
    ],
)
def test_what_cannot_become_an_image_is_said(pixels, value, options, message):
    with pytest.raises(ObservationError, match=message):
        observe(value(pixels), HSC, bands="g", **options)


def spectrum_like(**changes):
    wave = np.linspace(4000, 9000, 40) * u.AA
    fields = {
        "spectral_axis": wave,
        "flux": np.linspace(1, 2, 40) * 1e-17 * u.erg / u.s / u.cm**2 / u.AA,
        "uncertainty": StdDevUncertainty(np.full(40, 0.5) * 1e-17, unit=u.erg / u.s / u.cm**2 / u.AA),
        "mask": None,
        "meta": {},
    }
    return SimpleNamespace(**fields | changes)


def test_a_spectrum_in_frequency_and_jansky_is_that_in_wavelength():
    plain = spectrum_like()
    wave = plain.spectral_axis
    bad = np.arange(40) == 3
    other = spectrum_like(
        spectral_axis=wave.to(u.GHz, u.spectral()),
        flux=plain.flux.to(u.mJy, u.spectral_density(wave)),
        uncertainty=StdDevUncertainty((0.5e-17 * plain.flux.unit).to(u.mJy, u.spectral_density(wave))),
        mask=bad,
    )
    # Rising frequencies are falling wavelengths.
    reverse = SimpleNamespace(
        spectral_axis=other.spectral_axis[::-1],
        flux=other.flux[::-1],
        uncertainty=StdDevUncertainty(other.uncertainty.array[::-1], unit="mJy"),
        mask=bad[::-1],
        meta={},
    )
    for given in (other, reverse):
        found = observe(given, DESI)
        np.testing.assert_allclose(found.wavelength[0], wave.value, rtol=1e-12)
        np.testing.assert_array_equal(found.mask[0].numpy(), ~bad)
        np.testing.assert_allclose(found.flux[0].numpy()[~bad], np.linspace(1, 2, 40)[~bad], rtol=1e-6)
        np.testing.assert_allclose(found.inverse_variance[0].numpy()[~bad], 4.0, rtol=1e-6)


def test_air_becomes_vacuum_as_known_lines_say():
    # NIST: H alpha, [O III], Ca K, [S III], in air and in vacuum.
    air, vacuum = [6562.79, 5006.843, 3933.663, 9068.6], [6564.60, 5008.240, 3934.777, 9071.1]
    np.testing.assert_allclose(vacuum_wavelengths(np.array(air)), vacuum, atol=0.02)


def test_wavelengths_in_air_are_refused_and_converted_where_asked():
    for meta in ({"AIRORVAC": "air"}, {"VACUUM": False}, {"header": {"CTYPE1": "AWAV"}}):
        with pytest.raises(ObservationError, match="in_air=True"):
            observe(spectrum_like(meta=meta), DESI)
    found = observe(spectrum_like(meta={"AIRORVAC": "air"}), DESI, in_air=True)
    np.testing.assert_allclose(
        found.wavelength[0] - torch.linspace(4000, 9000, 40), np.linspace(1.13, 2.47, 40), atol=0.05
    )
    assert observe(spectrum_like(meta={"AIRORVAC": "vac"}), DESI).wavelength[0, 0] == 4000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uncertainty": None}, "no uncertainty"),
        ({"flux": np.ones(40) * u.adu}, "expected a flux density"),
        ({"spectral_axis": np.arange(1, 41) * u.km / u.s}, "expected wavelengths"),
    ],
)
def test_what_cannot_become_a_spectrum_is_said(changes, message):
    with pytest.raises(ObservationError, match=message):
        observe(spectrum_like(**changes), DESI)


def test_spectra_of_specutils_are_known_by_their_attributes():
    specutils = pytest.importorskip("specutils")
    plain = spectrum_like()
    found = observe(
        specutils.Spectrum(flux=plain.flux, spectral_axis=plain.spectral_axis, uncertainty=plain.uncertainty), DESI
    )
    np.testing.assert_allclose(found.flux[0], np.linspace(1, 2, 40), rtol=1e-6)
    np.testing.assert_allclose(found.inverse_variance[0], 4.0, rtol=1e-6)


def test_spectra_of_arrays_with_and_without_units_agree():
    wave, flux, ivar = np.linspace(4000, 9000, 30), np.linspace(1, 2, 30), np.full(30, 4.0)
    plain = observe(flux, DESI, wavelength=wave, inverse_variance=ivar)
    stacked = observe(torch.tensor(np.stack([flux, ivar, wave])), DESI)
    quantity = observe(
        flux * 1e-14 * u.erg / u.s / u.cm**2 / u.um * 10,
        DESI,
        wavelength=wave / 10 * u.nm,
        inverse_variance=ivar,
    )
    for other in (stacked, quantity):
        torch.testing.assert_close(other.wavelength, plain.wavelength, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.inverse_variance, plain.inverse_variance)
    torch.testing.assert_close(stacked.flux, plain.flux)
    torch.testing.assert_close(quantity.flux, plain.flux, rtol=1e-6, atol=0)
    with pytest.raises(ObservationError, match="needs inverse_variance"):
        observe(flux, DESI, wavelength=wave)


def test_rows_of_a_table_become_scalars_in_our_units():
    table = QTable(
        {
            "name": ["a", "b", "c"],
            "RA": [10.0, 20.0, -1.0] * u.deg,
            "DEC": [0.0, 60.0, 120.0] * u.arcmin,
            "z": Masked([0.1, 0.2, 0.3], mask=[False, True, False]),
            "mass": [1e10, 1e11, np.nan] * u.solMass,
            "pm": [1.0, 2.0, 3.0] * u.arcsec / u.yr,
            "e_pm": [0.1, 0.2, 0.3] * u.arcsec / u.yr,
        }
    )
    redshift, mass, motion = from_table(
        table,
        {"scalar/redshift": "z", "scalar/stellar_mass": "mass", "scalar/gaia_pm_ra": "pm"},
        errors={"scalar/gaia_pm_ra": "e_pm"},
        object_id="name",
        ra="RA",
        dec="DEC",
    )
    assert redshift.object_id == ("a", "b", "c")
    assert redshift.mask.tolist() == [True, False, True]
    np.testing.assert_allclose(redshift.values, [0.1, 0, 0.3], rtol=1e-6)
    np.testing.assert_allclose(redshift.ra, [10, 20, 359])
    np.testing.assert_allclose(redshift.dec, [0, 1, 2])
    assert mass.mask.tolist() == [True, True, False]
    np.testing.assert_allclose(mass.values[:2], [10, 11])
    np.testing.assert_allclose(motion.values, [1000, 2000, 3000])
    np.testing.assert_allclose(motion.error, [100, 200, 300])


def test_a_table_with_columns_called_like_modalities_needs_no_mapping():
    table = Table({"scalar/redshift": MaskedColumn([0.1, 0.2], mask=[False, True]), "object_id": ["x", "y"]})
    (found,) = as_observations(table)
    assert found.object_id == ("x", "y")
    assert found.mask.tolist() == [True, False]
    with pytest.raises(ObservationError, match="no column 'Z'"):
        from_table(table, {"scalar/redshift": "Z"})
    with pytest.raises(ObservationError, match="expected columns named like scalars"):
        from_table(Table({"z": [0.1]}))


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        (0.25, "scalar/redshift", 0.25),
        (3.631 * u.uJy, "scalar/hsc_g", 22.5),
        (19.5 * u.ABmag, "scalar/hsc_g", 19.5),
        (18.0 * u.mag, "scalar/gaia_g", 18.0),
        (30 * u.km / u.s, "scalar/gaia_radial_velocity", 30.0),
    ],
)
def test_numbers_and_quantities_become_scalars(value, name, expected):
    found = observe(value, name)
    np.testing.assert_allclose(found.values, [expected], rtol=1e-5)


def test_a_velocity_is_no_redshift():
    with pytest.raises(ObservationError, match="expected a unit like 'dimensionless', found km / s"):
        observe(3000 * u.km / u.s, "scalar/redshift")


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor, lambda array: array.tolist()])
def test_arrays_of_any_library_are_the_same_image(make):
    cube = np.random.default_rng(1).normal(size=(2, SIDE, SIDE)).astype(np.float32)
    found = observe(make(cube), HSC, bands=["g", "r"], ra=10, dec=-5, center=[2.0, 3.0])
    expected = ImageObservation(HSC, ["0"], cube[None], ["g", "r"], ra=[10.0], dec=[-5.0], center=[[2.0, 3.0]])
    for field in ("flux", "inverse_variance", "mask", "center", "ra", "dec"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-6, atol=0)
    batch = observe(make(np.stack([cube, cube])), HSC, bands=["g", "r"], object_id=["a", "b"])
    assert batch.object_id == ("a", "b")
    with pytest.raises(ObservationError, match="expected bands"):
        observe(cube, HSC)


def test_files_hold_what_their_arrays_are(tmp_path, pixels):
    np.save(tmp_path / "image.npy", pixels[None])
    bad = np.zeros(pixels.shape, bool)
    bad[0, 0] = True
    ccd = CCDData(
        pixels, unit="uJy", mask=bad, uncertainty=StdDevUncertainty(np.full(pixels.shape, 0.2)), wcs=celestial(0.168)
    )
    ccd.write(tmp_path / "image.fits")
    torch.testing.assert_close(
        observe(tmp_path / "image.npy", HSC, bands="g").flux, observe(pixels, HSC, bands="g").flux
    )
    direct, read = observe(ccd, HSC, bands="r"), observe(str(tmp_path / "image.fits"), HSC, bands="r")
    for field in ("flux", "inverse_variance", "mask", "ra", "dec"):
        torch.testing.assert_close(getattr(read, field), getattr(direct, field), rtol=1e-6, atol=1e-12)


def test_a_cube_of_the_legacy_surveys_viewer_says_its_bands(tmp_path, pixels):
    header = fits.Header({"BANDS": "grz"})
    fits.PrimaryHDU(np.stack([pixels] * 3).astype(">f4"), header).writeto(tmp_path / "cutout.fits")
    with pytest.raises(ObservationError, match="no BUNIT"):
        observe(tmp_path / "cutout.fits", "image/legacysurvey")
    found = observe(tmp_path / "cutout.fits", "image/legacysurvey", unit="nmgy")
    assert found.bands == ("g", "r", "z")
    np.testing.assert_allclose(found.flux[0, 2], pixels, rtol=1e-6)


def test_a_spectrum_in_a_table_and_one_of_sdss_are_read(tmp_path):
    plain = spectrum_like()
    table = QTable(
        {"wavelength": plain.spectral_axis.to(u.nm), "flux": plain.flux, "error": plain.uncertainty.quantity}
    )
    table.write(tmp_path / "spectrum.fits")
    found, expected = observe(tmp_path / "spectrum.fits", DESI), observe(plain, DESI)
    torch.testing.assert_close(found.flux, expected.flux, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.inverse_variance, expected.inverse_variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.wavelength, expected.wavelength, rtol=1e-12, atol=0)
    path = real_file("sdss-spec-0266-51602-0031.fits")
    torch.testing.assert_close(observe(path, "spectrum/sdss").flux, read_sdss_spec(path).flux)


@pytest.mark.parametrize("name", ["broken.fits", "broken.npy", "picture.jpg"])
def test_files_of_nothing_usable_are_said(tmp_path, name):
    (tmp_path / name).write_bytes(b"not that")
    with pytest.raises(ObservationError, match=name):
        observe(tmp_path / name, HSC, bands="g")
    with pytest.raises((ObservationError, OSError), match="absent"):
        observe(tmp_path / f"absent.{name.split('.')[1]}", HSC, bands="g")


def test_values_by_modality_are_one_object_and_wrong_things_are_said():
    image = observe(np.ones((1, SIDE, SIDE)), HSC, bands="g")
    found = as_observations({"image/hsc": image, "scalar/redshift": 0.2})
    assert [o.object_id for o in found] == [("0",), ("0",)]
    assert as_observations({"scalar/redshift": [0.1, 0.2]}, first_number=7)[0].object_id == ("7", "8")
    with pytest.raises(ObservationError, match=r"found ndarray; make an observation with armillary.observe"):
        as_observations(np.ones(3))
    with pytest.raises(ObservationError, match="found str at place 1"):
        as_observations([image, "image.fits"])
    with pytest.raises(LookupError, match="nearest known is 'image/hsc'"):
        as_observations({"image/hcs": np.ones(3)})
    with pytest.raises(ObservationError, match="an observation says all of itself already"):
        observe(image, HSC, bands="g")
