"""FITS uploads: real files and made ones, with the values that astropy reads, and what is wrong named."""

import io

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from fake_model import FakeModel
from fits_uploads import HSC_SCALE, fits_bytes, image_hdu, one, read
from http_bodies import assert_problem
from starlette.testclient import TestClient

from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation
from armillary.data.readers.desi import read_desi
from armillary.data.readers.sdss import read_sdss_spec
from armillary.data.real_files import real_file
from armillary.serving.app import create_app
from armillary.serving.formats.observation_files import image_fits, spectrum_fits
from armillary.serving.limits import Limits
from armillary.serving.problems import ProblemError

RNG = np.random.default_rng(8)
PIXELS = RNG.normal(1, 0.5, (3, 20, 24)).astype(np.float32)
HSC = {"modality": "image/hsc"}
NMGY = {"BUNIT": "nanomaggy"}


def refused(body, pointer, says, kind="invalid-observation", **query):
    with pytest.raises(ProblemError) as caught:
        one(body, **query)
    assert caught.value.kind == kind, caught.value.detail
    assert says in caught.value.detail, caught.value.detail
    assert pointer in [error["pointer"] for error in caught.value.errors] or pointer is None


# Real files


def test_a_real_field_of_hsc_has_astropys_pixels_at_its_zero_point():
    path = real_file("hsc-10054-r.fits")
    found = one(path.read_bytes(), **HSC, bands="r", zero_point=27.0)
    expected = fits.getdata(path).astype(np.float64) * 10 ** (0.4 * (22.5 - 27.0))
    np.testing.assert_allclose(found.flux[0, 0].numpy(), expected, rtol=1e-6)
    assert found.bands == ("r",)


def test_size_cuts_the_middle_out_of_a_field_that_is_too_large():
    path = real_file("hsc-10054-r.fits")
    limits = Limits(max_image_side=128)
    with pytest.raises(ProblemError, match=r"at most 128 pixels on a side, found \[512, 512\]; `size` cuts"):
        one(path.read_bytes(), limits, **HSC, bands="r", zero_point=27)
    found = one(path.read_bytes(), limits, **HSC, bands="r", zero_point=22.5, size=96)
    np.testing.assert_array_equal(found.flux[0, 0].numpy(), fits.getdata(path)[208:304, 208:304])
    np.testing.assert_allclose(found.center.numpy(), [[47.5, 47.5]])


def test_a_real_desi_coadd_is_read_as_by_its_reader():
    path = real_file("desi-coadd-4-80613.fits")
    found, expected = one(path.read_bytes()), read_desi(path)
    for name in ("flux", "wavelength", "inverse_variance", "mask", "resolving_power", "ra", "dec"):
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(expected, name).numpy(), err_msg=name)
    assert found.object_id == ("39633345008634465",)
    with fits.open(path) as hdus:
        blue = np.isin(np.round(found.wavelength[0].numpy(), 3), np.round(hdus["B_WAVELENGTH"].data[:2000], 3))
        good = found.mask[0].numpy() & blue
        stored = np.where(hdus["B_MASK"].data[0] == 0, hdus["B_FLUX"].data[0], 0)[:2000]
        np.testing.assert_allclose(found.flux[0].numpy()[good], stored[good[blue.nonzero()[0]]], rtol=1e-5)
    assert one(path.read_bytes(), object_id="mine").object_id == ("mine",)


def test_many_fibres_are_many_objects_and_empty_ones_fail_alone():
    path = real_file("desi-coadd-sv3-dark-26065.fits")
    found, expected = read(path.read_bytes()), read_desi(path)
    assert [isinstance(entry, ProblemError) for entry in found] == [True, True, False, True, False]
    assert found[0].errors[0]["pointer"] == "/input/0/data"
    for entry, row in ((found[2], 0), (found[4], 1)):
        np.testing.assert_array_equal(entry[0].flux.numpy(), expected.flux[row : row + 1].numpy())
        assert entry[0].object_id == expected.object_id[row : row + 1]
    with pytest.raises(ProblemError, match="at most 4 objects"):
        read(path.read_bytes(), Limits(max_items=4))


def test_a_real_sdss_spectrum_is_read_as_by_its_reader():
    path = real_file("sdss-spec-0266-51602-0031.fits")
    found, expected = one(path.read_bytes(), modality="spectrum/sdss"), read_sdss_spec(path)
    for name in ("flux", "wavelength", "inverse_variance", "mask", "resolving_power", "ra"):
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(expected, name).numpy(), err_msg=name)
    refused(path.read_bytes(), "/modality", "the file is a spectrum/sdss", modality="spectrum/desi")


# Images


def test_a_cube_with_everything_beside_it():
    ivar, mask = RNG.uniform(1, 2, PIXELS.shape), np.zeros(PIXELS.shape, np.int32)
    mask[1, 3, 4] = 8
    broken = PIXELS.copy()
    broken[0, 0, 0] = np.nan
    body = fits_bytes(
        image_hdu(broken, scale=HSC_SCALE, BANDS="g,r,i", **NMGY),
        image_hdu(ivar.astype(np.float32), "IVAR"),
        image_hdu(mask, "MASK"),
        image_hdu(np.array([0.7, 0.6, 0.5], np.float32), "PSF_FWHM"),
        image_hdu(PIXELS * 100, "MODEL"),
    )
    found = one(body, **HSC)
    assert found.bands == ("g", "r", "i")
    valid = np.ones(PIXELS.shape, bool)
    valid[1, 3, 4] = valid[0, 0, 0] = False
    np.testing.assert_array_equal(found.mask[0].numpy(), valid)
    np.testing.assert_array_equal(found.flux[0].numpy()[valid], PIXELS[valid])
    np.testing.assert_array_equal(found.inverse_variance[0].numpy()[valid], ivar.astype(np.float32)[valid])
    np.testing.assert_allclose(found.psf_fwhm.numpy(), [[0.7, 0.6, 0.5]])
    np.testing.assert_allclose([found.ra[0], found.dec[0]], [150, 2], atol=1e-9)


def test_bands_in_extensions_of_their_own_go_with_their_noise_by_name():
    ivar = RNG.uniform(1, 2, PIXELS.shape).astype(np.float32)
    body = fits_bytes(
        image_hdu(PIXELS[0], "SCI_G", **NMGY),
        image_hdu(ivar[1], "IVAR_R"),
        image_hdu(PIXELS[1], "SCI_R", **NMGY),
        image_hdu(ivar[0], "G_INVVAR"),
        image_hdu(np.eye(20, 24, dtype=np.uint8), "MASK"),
    )
    found = one(body, **HSC)
    assert found.bands == ("g", "r")
    good = np.broadcast_to(np.eye(20, 24) == 0, (2, 20, 24))
    np.testing.assert_array_equal(found.mask[0].numpy(), good)
    np.testing.assert_array_equal(found.inverse_variance[0].numpy()[good], ivar[:2][good])


@pytest.mark.parametrize(
    "cards",
    [{"FILTER": "HSC-R"}, {"BAND": "r"}, {"FILTER": "r DECam SDSS c0002 6415.0 1480.0"}, {"FILTER": "R"}],
    ids=str,
)
def test_names_of_filters_are_understood(cards):
    assert one(fits_bytes(image_hdu(PIXELS[0], **cards, **NMGY)), **HSC).bands == ("r",)


def test_bands_of_a_cube_may_be_numbered_cards():
    viewer = {"BANDS": "gri", "BAND0": "g", "BAND1": "r", "BAND2": "i"}
    numbered = {"FILTER1": "HSC-G", "FILTER2": "HSC-R", "FILTER3": "HSC-I"}
    for cards in (viewer, numbered, {"BAND0": "g", "BAND1": "r", "BAND2": "i"}):
        assert one(fits_bytes(image_hdu(PIXELS, **cards, **NMGY)), **HSC).bands == ("g", "r", "i")


@pytest.mark.parametrize(
    "cards, query, factor",
    [
        ({"BUNIT": "nJy"}, {}, 1 / 3630.78),
        ({"BUNIT": "nanomaggies/pixel"}, {}, 1.0),
        ({"BUNIT": "adu", "MAGZERO": 25.0}, {}, 0.1),
        ({"PHOTZP": 27.5}, {}, 0.01),
        ({"FLUXMAG0": 10**10.8}, {}, 10**-1.8),
        ({"BUNIT": "MJy/sr"}, {}, 1e6 * (0.168 * units.arcsec).to_value("rad") ** 2 / 3630.78e-9),
        ({"BUNIT": "count"}, {"zero_point": 20.0}, 10.0),
        ({}, {"unit": "nanomaggies per pixel"}, 1.0),
        ({"BUNIT": "nanomaggy", "MAGZERO": 22.5}, {}, 1.0),
    ],
    ids=str,
)
def test_units_and_zero_points_become_nanomaggies(cards, query, factor):
    ivar = np.full(PIXELS[0].shape, 2.0, np.float32)
    body = fits_bytes(image_hdu(PIXELS[0], **cards), image_hdu(ivar, "IVAR"))
    found = one(body, **HSC, bands="g", **query)
    # AB is defined by 3630.78 Jy, and astropy's nanomaggy by 3631: a part in 17,000.
    np.testing.assert_allclose(found.flux[0, 0].numpy(), PIXELS[0] * factor, rtol=2e-4)
    np.testing.assert_allclose(found.inverse_variance[0, 0].numpy(), 2 / factor**2, rtol=4e-4)


def test_whole_numbers_are_scaled_and_blanks_are_masked():
    stored = np.arange(24 * 20, dtype=np.int16).reshape(20, 24)
    hdu = image_hdu(stored, **NMGY)
    hdu.header["BLANK"] = 7
    body = bytearray(fits_bytes(hdu))
    at = body.index(b"BLANK   ")
    for number, card in enumerate(("BSCALE  =                  0.5", "BZERO   =                100.0")):
        end = body.index(b"END     ", at)
        body[end : end + 80], body[end + 80 : end + 160] = card.ljust(80).encode(), b"END".ljust(80)
        assert number < 2
    found = one(bytes(body), **HSC, bands="g")
    np.testing.assert_array_equal(~found.mask[0, 0].numpy(), stored == 7)
    np.testing.assert_array_equal(found.flux[0, 0].numpy(), np.where(stored == 7, 0, stored * 0.5 + 100))
    unsigned = one(fits_bytes(image_hdu(stored.astype(np.uint16) + 40_000, **NMGY)), **HSC, bands="g")
    np.testing.assert_array_equal(unsigned.flux[0, 0].numpy(), stored + 40_000.0)


@pytest.mark.parametrize("codec", ["RICE_1", "GZIP_1", "GZIP_2", "NOCOMPRESS"])
def test_tile_compressed_images_are_astropys(codec):
    pixels = RNG.normal(0, 10, (120, 130)).astype(np.float32)
    made = fits.CompImageHDU(pixels, compression_type=codec, tile_shape=(32, 50))
    made.header["BUNIT"] = "nanomaggy"
    body = fits_bytes(made)
    with fits.open(io.BytesIO(body)) as hdus:
        expected = np.array(hdus[1].data)
    np.testing.assert_array_equal(one(body, **HSC, bands="g").flux[0, 0].numpy(), expected)
    cut = one(body, **HSC, bands="g", size=40)
    np.testing.assert_array_equal(cut.flux[0, 0].numpy(), expected[40:80, 45:85])


def test_a_position_finds_its_pixel_by_the_wcs():
    hdu = image_hdu(PIXELS, scale=HSC_SCALE, BANDS="gri", **NMGY)
    sky = WCS(hdu.header).celestial.pixel_to_world(5.3, 12.8)
    found = one(fits_bytes(hdu), **HSC, ra=sky.ra.deg, dec=sky.dec.deg)
    np.testing.assert_allclose(found.center.numpy(), [[12.8, 5.3]], atol=1e-3)
    assert found.ra[0].item() == pytest.approx(sky.ra.deg)
    cut = one(fits_bytes(hdu), **HSC, ra=sky.ra.deg, dec=sky.dec.deg, size=16)
    # Rows 5 to 20 and columns -2 to 13 of the file: what lies beyond its edge is masked.
    np.testing.assert_array_equal(cut.flux[0, :, :15, 2:].numpy(), PIXELS[:, 5:20, 0:14])
    assert not cut.mask[0, :, 15:].any()
    assert not cut.mask[0, :, :, :2].any()
    np.testing.assert_allclose(cut.center.numpy(), [[12.8 - 5, 5.3 + 2]], atol=1e-3)
    refused(fits_bytes(hdu), "/ra", "is not on the image", **HSC, ra=151.0, dec=2.0)
    refused(fits_bytes(hdu), "/ra", "is not on the image", **HSC, ra=330.0, dec=-2.0)


def test_a_galactic_wcs_gives_icrs():
    hdu = image_hdu(PIXELS[0], scale=HSC_SCALE, **NMGY)
    hdu.header["CTYPE1"], hdu.header["CTYPE2"] = "GLON-TAN", "GLAT-TAN"
    found = one(fits_bytes(hdu), **HSC, bands="g")
    expected = SkyCoord(150, 2, unit="deg", frame="galactic").icrs
    np.testing.assert_allclose([found.ra[0], found.dec[0]], [expected.ra.deg, expected.dec.deg], atol=1e-7)


def test_pixels_of_another_size_are_refused():
    good = image_hdu(PIXELS[0], scale=HSC_SCALE * 1.015, **NMGY)
    assert one(fits_bytes(good), **HSC, bands="g").flux.shape == (1, 1, 20, 24)
    wrong = image_hdu(PIXELS[0], scale=0.262 / 3600, **NMGY)
    refused(fits_bytes(wrong), "/data", "pixels of hsc are 0.168 arcsec wide", **HSC, bands="g")
    assert one(fits_bytes(wrong), modality="image/legacysurvey", bands="g").flux.shape == (1, 1, 20, 24)
    shifted = [
        image_hdu(PIXELS[0], "SCI_G", scale=HSC_SCALE, **NMGY),
        image_hdu(PIXELS[1], "SCI_R", scale=HSC_SCALE, center=(150.001, 2.0), **NMGY),
    ]
    refused(fits_bytes(*shifted), "/data", "bands must show one place", **HSC)


PLAIN = fits_bytes(image_hdu(PIXELS[0], FILTER="g", **NMGY))
WRONG = {
    "no modality": (PLAIN, {}, "/modality", "expected the modality", "invalid-request"),
    "unknown modality": (PLAIN, {"modality": "image/hcs"}, None, "'image/hsc'", "not-found"),
    "a scalar": (PLAIN, {"modality": "scalar/redshift"}, "/modality", "kind scalar", "invalid-observation"),
    "an image as a spectrum": (PLAIN, {"modality": "spectrum/desi"}, "/data", "FLUX", "invalid-observation"),
    "too many bands": (PLAIN, {**HSC, "bands": "g,r"}, "/bands", "1 planes, found 2", "invalid-observation"),
    "unknown band": (PLAIN, {**HSC, "bands": "v"}, "/bands", "'v'", "invalid-observation"),
    "no band": (fits_bytes(image_hdu(PIXELS[0], **NMGY)), HSC, "/bands", "FILTER, BAND", "invalid-observation"),
    "no unit": (
        fits_bytes(image_hdu(PIXELS[0])),
        {**HSC, "bands": "g"},
        "/zero_point",
        "zero_point=",
        "invalid-observation",
    ),
    "counts": (
        fits_bytes(image_hdu(PIXELS[0], BUNIT="count")),
        {**HSC, "bands": "g"},
        "/zero_point",
        "BUNIT = 'count'",
        "invalid-observation",
    ),
    "zero points that disagree": (
        fits_bytes(image_hdu(PIXELS[0], BUNIT="nanomaggy", MAGZERO=25.0)),
        {**HSC, "bands": "g"},
        "/zero_point",
        "MAGZERO says 25.000, BUNIT = 'nanomaggy' says 22.500",
        "invalid-observation",
    ),
    "another unit asked": (PLAIN, {**HSC, "unit": "Jy"}, "/unit", "'Jy'", "invalid-observation"),
    "ra that is no number": (PLAIN, {**HSC, "ra": "east"}, "/ra", "number", "invalid-request"),
    "ra beyond the sky": (PLAIN, {**HSC, "ra": 400, "dec": 0}, "/ra", "360", "invalid-request"),
    "size zero": (PLAIN, {**HSC, "size": 0}, "/size", "from 1 to 512", "invalid-observation"),
    "one axis": (fits_bytes(image_hdu(PIXELS[0, 0])), HSC, "/data", "expected an image", "invalid-observation"),
    "four axes": (fits_bytes(image_hdu(PIXELS[None])), HSC, "/data", "expected an image", "invalid-observation"),
    "too many planes": (
        fits_bytes(image_hdu(np.zeros((9, 4, 4)))),
        HSC,
        "/data",
        "9 planes",
        "invalid-observation",
    ),
    "noise of another size": (
        fits_bytes(image_hdu(PIXELS[0], FILTER="g", **NMGY), image_hdu(PIXELS[0, :4], "IVAR")),
        HSC,
        "/inverse_variance",
        "as the flux",
        "invalid-observation",
    ),
    "noise for one band of three": (
        fits_bytes(image_hdu(PIXELS, BANDS="gri", **NMGY), image_hdu(PIXELS[0], "IVAR")),
        HSC,
        "/inverse_variance",
        "one plane for each",
        "invalid-observation",
    ),
    "nothing valid": (
        fits_bytes(image_hdu(PIXELS[0] * np.nan, FILTER="g", **NMGY)),
        HSC,
        "/data",
        "no valid pixel",
        "invalid-observation",
    ),
    "bands of two sizes": (
        fits_bytes(image_hdu(PIXELS[0], "SCI_G", **NMGY), image_hdu(PIXELS[1, :9], "SCI_R", **NMGY)),
        HSC,
        "/data",
        "one height and width",
        "invalid-observation",
    ),
}


@pytest.mark.parametrize("body, query, pointer, says, kind", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(body, query, pointer, says, kind):
    refused(body, pointer, says, kind, **query)


# Spectra


WAVELENGTH = np.linspace(4000, 9000, 60)
FLUX = RNG.normal(1, 0.3, (3, 60))
IVAR = RNG.uniform(1, 2, (3, 60))


def table(units=None, **columns):
    found = []
    for name, values in columns.items():
        values = np.asarray(values)
        code = {"f": "D", "i": "K"}.get(values.dtype.kind, "12A")
        size = values.shape[1] if values.ndim == 2 else ""
        found.append(fits.Column(name, f"{size}{code}", unit=(units or {}).get(name), array=values))
    return fits.BinTableHDU.from_columns(found)


def test_a_table_of_pixels_is_one_spectrum():
    mask = np.zeros(60, int)
    mask[4] = 2
    body = fits_bytes(table(LOGLAM=np.log10(WAVELENGTH), flux=FLUX[0], IVAR=IVAR[0], MASK=mask))
    found = one(body, modality="spectrum/desi", object_id="mine", ra=10.5, dec=-3)
    np.testing.assert_allclose(found.wavelength[0].numpy(), WAVELENGTH, rtol=1e-12)
    np.testing.assert_array_equal(found.mask[0].numpy(), mask == 0)
    np.testing.assert_allclose(found.flux[0].numpy()[mask == 0], FLUX[0][mask == 0], rtol=1e-6)
    assert (found.object_id, found.ra[0].item(), found.dec[0].item()) == (("mine",), 10.5, -3)


def test_a_table_of_objects_is_many_spectra_and_a_bad_one_fails_alone():
    wavelength = np.tile(WAVELENGTH, (3, 1))
    wavelength[1, 7] = 100.0
    body = fits_bytes(
        table(
            TARGETID=[11, 12, 13], RA=[1.0, 2.0, 3.0], DEC=[4.0, 5.0, 6.0], WAVELENGTH=wavelength, FLUX=FLUX, IVAR=IVAR
        )
    )
    found = read(body, modality="spectrum/desi")
    assert found[1].errors[0]["pointer"] == "/input/1/wavelength"
    for row in (0, 2):
        np.testing.assert_allclose(found[row][0].flux[0].numpy(), FLUX[row], rtol=1e-6)
        assert found[row][0].object_id == (str(11 + row),)
        assert (found[row][0].ra[0].item(), found[row][0].dec[0].item()) == (1.0 + row, 4.0 + row)


def test_image_extensions_are_spectra_and_errors_become_inverse_variance():
    body = fits_bytes(
        image_hdu(FLUX, "FLUX"), image_hdu(IVAR**-0.5, "ERROR"), image_hdu(WAVELENGTH / 10, "WAVE", BUNIT="nm")
    )
    found = read(body, modality="spectrum/desi")
    assert len(found) == 3
    for row in range(3):
        np.testing.assert_allclose(found[row][0].inverse_variance[0].numpy(), IVAR[row], rtol=1e-5)
        np.testing.assert_allclose(found[row][0].wavelength[0].numpy(), WAVELENGTH, rtol=1e-12)


def test_units_of_spectra_are_converted():
    jansky = (FLUX[0] * 1e-17 * units.Unit("erg/(s cm2 AA)")).to_value(
        "mJy", equivalencies=units.spectral_density(WAVELENGTH * units.AA)
    )
    per = FLUX[0] / jansky
    columns = {"WAVELENGTH": WAVELENGTH / 1e4, "FLUX": jansky, "IVAR": IVAR[0] * per**2}
    body = fits_bytes(table({"WAVELENGTH": "um", "FLUX": "mJy", "IVAR": "mJy-2"}, **columns))
    found = one(body, modality="spectrum/desi")
    np.testing.assert_allclose(found.flux[0].numpy(), FLUX[0], rtol=1e-5)
    np.testing.assert_allclose(found.inverse_variance[0].numpy(), IVAR[0], rtol=1e-5)
    plain = {"WAVELENGTH": WAVELENGTH, "FLUX": FLUX[0], "IVAR": IVAR[0]}
    for stated, pointer in (({"FLUX": "K"}, "/unit"), ({"WAVELENGTH": "s"}, "/wavelength")):
        refused(fits_bytes(table(stated, **plain)), pointer, "expected", modality="spectrum/desi")
    mixed = {"FLUX": "erg/(s cm2 Angstrom)", "IVAR": "Jy-2"}
    refused(fits_bytes(table(mixed, **plain)), "/inverse_variance", "does not go with", modality="spectrum/desi")


def test_a_spectrum_that_is_too_long_is_refused():
    body = fits_bytes(table(WAVELENGTH=WAVELENGTH, FLUX=FLUX[0], IVAR=IVAR[0]))
    with pytest.raises(ProblemError, match="at most 50 wavelengths, found 60"):
        one(body, Limits(max_wavelengths=50), modality="spectrum/desi")


# What was downloaded from us


def test_a_downloaded_image_comes_back_as_it_was():
    ivar = RNG.uniform(1, 2, PIXELS.shape).astype(np.float32)
    mask = RNG.uniform(size=PIXELS.shape) > 0.1
    stored = ImageObservation(
        modality("image/hsc"),
        ["field 7, object é"],
        PIXELS[None],
        ["i", "g", "z"],
        ivar[None],
        mask[None],
        psf_fwhm=[[0.5, 0.6, 0.7]],
        depth=[[25, 26, 27]],
        center=[[8.25, 13.5]],
        ra=[359.99],
        dec=[-45.5],
    )
    found = one(image_fits(stored))
    assert (found.bands, found.modality.name) == (stored.bands, "image/hsc")
    for name in ("flux", "inverse_variance", "mask", "psf_fwhm", "depth", "ra", "dec"):
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(stored, name).numpy(), err_msg=name)
    np.testing.assert_allclose(found.center.numpy(), stored.center.numpy(), atol=1e-4)


def test_a_downloaded_spectrum_comes_back_as_it_was():
    stored = read_sdss_spec(real_file("sdss-spec-0266-51602-0031.fits"))
    found = one(spectrum_fits(stored))
    assert found.object_id == stored.object_id
    for name in ("flux", "wavelength", "inverse_variance", "mask", "resolving_power", "ra", "dec"):
        np.testing.assert_allclose(getattr(found, name).numpy(), getattr(stored, name).numpy(), rtol=1e-6, err_msg=name)
    assert one(spectrum_fits(stored), object_id="mine", modality="spectrum/sdss").object_id == ("mine",)


# Over HTTP


def test_vectors_of_a_fits_body_are_those_of_the_model(model, index):
    body = fits_bytes(image_hdu(PIXELS, scale=HSC_SCALE, BANDS="gri", **NMGY))
    local = ImageObservation(modality("image/hsc"), ["x"], PIXELS[None], ["g", "r", "i"])
    with TestClient(create_app(model, index)) as http:
        for media_type in ("application/fits", "image/fits"):
            answer = http.post(
                "/v1/embeddings?modality=image/hsc&object_id=x", content=body, headers={"content-type": media_type}
            )
            assert answer.status_code == 200, answer.text
            (datum,) = answer.json()["data"]
            assert datum["object_id"] == "x"
            np.testing.assert_allclose([datum["embedding"]], FakeModel().embed([local]).numpy(), atol=1e-6)
        many = real_file("desi-coadd-sv3-dark-26065.fits").read_bytes()
        answer = http.post("/v1/embeddings", content=many, headers={"content-type": "application/fits"})
        assert [datum["embedding"] is None for datum in answer.json()["data"]] == [True, True, False, True, False]
        bad = http.post("/v1/embeddings?modality=image/hsc", content=body, headers={"content-type": "application/fits"})
        assert bad.status_code == 200
        cut = http.post(
            "/v1/embeddings?modality=image/hsc", content=body[:-4000], headers={"content-type": "application/fits"}
        )
        assert_problem(cut, 400, "malformed-body", says="bytes follow")
