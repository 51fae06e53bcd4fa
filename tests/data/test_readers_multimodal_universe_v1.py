"""Multimodal Universe v1, on small files written as its build scripts write them, real spectra and images inside."""

import logging
import math
import tracemalloc

import h5py
import hpgeom
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table, join
from astropy.wcs import WCS

from armillary.data.dataset import ObservationDataset
from armillary.data.import_survey import import_survey
from armillary.data.observations import ObservationError
from armillary.data.readers import multimodal_universe_v1
from armillary.data.readers.catalogues import magnitudes
from armillary.data.readers.desi import read_desi
from armillary.data.readers.images import cut_out, read_image
from armillary.data.readers.multimodal_universe_v1 import read_multimodal_universe_tile, tile_files
from armillary.data.readers.sdss import read_sdss_spec
from armillary.data.readers.survey_sources import SOURCES
from armillary.data.real_files import real_file
from armillary.data.validate import validate_dataset

SIZE = 24
NANOMAGGIES_PER_HSC_COUNT = 10 ** (-0.4 * 4.5)


def read(path, survey):
    """All observations of a tile, by modality, groups of objects joined."""
    found = {}
    for observation in read_multimodal_universe_tile(path, survey):
        found.setdefault(observation.modality.name, []).append(observation)
    assert all(len(groups) == 1 for groups in found.values())
    return {name: groups[0] for name, groups in found.items()}


def write(path, columns, *, is_packed=False):
    """Datasets as the scripts create them: plain (spectra, Gaia), or gzipped and growable (images)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packing = {"compression": "gzip", "chunks": True} if is_packed else {}
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            shape = {"maxshape": (None, *np.shape(values)[1:])} if is_packed else {}
            file.create_dataset(name, data=values, **packing, **shape)
    return path


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(file, name, values):
    del file[name]
    file[name] = values


# ---- files as the source writes them ---------------------------------------------------------------------------------


def legacysurvey_columns(num_objects=3):
    """`scripts/legacysurvey`: cutouts of a brick around catalogue places, joined to the sweep catalogue."""
    rng = np.random.default_rng(1)
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.crval, wcs.wcs.cdelt = [60.5, 60.5], [54.2, -12.5], [-0.262 / 3600, 0.262 / 3600]
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    places = rng.uniform(40, 80, (num_objects, 2))  # column and row, counted from 0
    ra, dec = wcs.all_pix2world(places, 0).T
    rows, columns = np.mgrid[:120, :120]
    stars = sum(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8) for x, y in places)
    brick = {
        band: (stars * brightness).astype(np.float32) for band, brightness in zip("griz", (1, 2, 3, 4), strict=True)
    }
    maskbits = np.zeros((120, 120), dtype=np.int16)
    maskbits[::7] = 2**1
    clean = (maskbits & 2**1) == 0

    def cutout(image, x, y):
        return Cutout2D(image, (x, y), (SIZE, SIZE), wcs=wcs).data

    out = []
    for number, (x, y) in enumerate(np.stack(wcs.all_world2pix(ra, dec, 1), 1)):
        out.append(
            {
                "gid": number,
                "object_id": f"0542m125-{number + 17}".encode(),
                "image_band": np.array([b"des-g", b"des-r", b"des-i", b"des-z"]),
                "image_ivar": np.stack([np.full((SIZE, SIZE), 1e4 * k, dtype=np.float32) for k in (4, 3, 2, 1)]),
                "image_array": np.stack([cutout(brick[band], x, y) for band in "griz"]),
                "image_mask": cutout(clean, x, y).astype(bool),
                "image_psf_fwhm": np.array([1.3, 1.2, 1.15, 1.1]),
                "image_scale": np.full(4, 0.262, dtype=np.float32),
            }
        )
    images = Table({name: [row[name] for row in out] for name in out[0]})
    catalogue = Table(
        {
            "gid": np.arange(num_objects),
            "BRICKNAME": ["0542m125"] * num_objects,
            "TYPE": ["SER", "REX", "DEV"][:num_objects],
            "RA": ra,
            "DEC": dec,
            "EBV": np.full(num_objects, 0.05, dtype=np.float32),
            "SHAPE_R": np.array([1.5, 0.0, 0.8], dtype=np.float32)[:num_objects],
            "SHAPE_E1": np.array([0.2, 0.0, -0.1], dtype=np.float32)[:num_objects],
            "SHAPE_E2": np.zeros(num_objects, dtype=np.float32),
            "healpix": np.full(num_objects, 1234),
            "ra": ra,
            "dec": dec,
        }
    )
    for place, band in enumerate(("G", "R", "I", "Z", "W1", "W2")):
        catalogue[f"FLUX_{band}"] = np.array([10.0 + place, 5.0, 2.0], dtype=np.float32)[:num_objects]
        catalogue[f"FLUX_IVAR_{band}"] = np.array([400.0, 100.0, 0.0], dtype=np.float32)[:num_objects]
    catalogue["FLUX_W2"][1] = -0.4
    joined = join(catalogue, images, "gid", join_type="inner")
    return {
        name: np.char.encode(joined[name], "utf-8") if joined[name].dtype.kind == "U" else np.asarray(joined[name])
        for name in joined.colnames
    }


def hsc_columns():
    """`scripts/hsc`: cutouts of coadds, here of the shipped real field in g r i; `nan_to_num` of 1 / variance."""
    with fits.open(real_file("hsc-10054-g.fits")) as g, fits.open(real_file("hsc-10054-r.fits")) as r:
        coadds = np.stack([g[0].data, r[0].data]).astype(np.float32)
    corners = ((100, 120), (300, 40))
    variance = np.full((2, 2, SIZE, SIZE), 0.01, dtype=np.float32)
    variance[0, 1, 3, 4] = 0
    mask = np.ones((2, 2, SIZE, SIZE), dtype=bool)
    mask[1, 0, 5] = False
    with np.errstate(divide="ignore"):
        ivar = np.nan_to_num(1.0 / variance)
    return {
        "object_id": np.array([43158034708376549, 43158034708376550]),
        "ra": np.array([150.1, 150.2]),
        "dec": np.array([2.1, 2.2]),
        "image_band": np.array([[b"hsc-g", b"hsc-r"]] * 2),
        "image_array": np.stack([coadds[:, top : top + SIZE, left : left + SIZE] for top, left in corners]),
        "image_ivar": ivar,
        "image_mask": mask,
        "image_psf_fwhm": np.array([[0.7, 0.6], [0.8, 0.0]], dtype=np.float32),
        "image_scale": np.full((2, 2), 0.168, dtype=np.float32),
        "g_cmodel_mag": np.array([22.1, np.inf], dtype=np.float32),
        "g_cmodel_magerr": np.array([0.01, np.inf], dtype=np.float32),
    }


def sdss_columns():
    """`scripts/sdss`: two plates of different length, the shorter padded (flux and lsf by edge, lambda by -1)."""
    with fits.open(real_file("sdss-spec-0266-51602-0031.fits")) as hdus:
        table = hdus[1].data
        flux, ivar, loglam, and_mask, wdisp = (
            np.asarray(table[name]).astype(table[name].dtype.newbyteorder("="))
            for name in ("flux", "ivar", "loglam", "and_mask", "wdisp")
        )
    lengths = (len(flux), len(flux) - 30)
    longest = max(lengths)
    columns = {}
    for name, values, mode in (
        ("spectrum_flux", flux, {"mode": "edge"}),
        ("spectrum_ivar", ivar, {"mode": "constant"}),
        ("spectrum_lambda", (10 ** loglam.astype(np.float64)).astype(np.float32), {"constant_values": -1}),
        ("spectrum_lsf_sigma", wdisp, {"mode": "edge"}),
        ("spectrum_mask", and_mask.astype(bool) | (ivar <= 1e-6), {"constant_values": True}),
    ):
        columns[name] = np.stack([np.pad(values[:length], (0, longest - length), **mode) for length in lengths])
    return columns | {
        "object_id": np.array([b"    299489677444933632", b"   2575025233207519232"]),
        "ra": np.array([146.9, 136.5]),
        "dec": np.array([-0.9, 23.8]),
        "Z": np.array([0.1, 0.2], dtype=np.float32),
        "Z_ERR": np.array([1e-5, -6.0], dtype=np.float32),
        "ZWARNING": np.array([0, 0], dtype=np.int32),
    }


def desi_columns():
    """`scripts/desi`: cameras joined on 7781 pixels, here of a real galaxy, twice."""
    galaxy = read_desi(real_file("desi-coadd-4-80613.fits"))
    bad = np.zeros(galaxy.flux.shape, dtype=bool)
    bad[0, 100:200] = True
    columns = {
        "TARGETID": np.array([39633345008634465, 39633345008634466]),
        "TARGET_RA": np.array([105.48977452, 105.5]),
        "ra": np.array([105.48977452, 105.5]),
        "dec": np.array([56.66930006, 56.7]),
        "Z": np.array([0.36874355, 0.2]),
        "ZERR": np.array([1.2e-6, 1e-4]),
        "ZWARN": np.array([0, 4]),
        "FLUX_G": np.array([3.24, -99.0], dtype=np.float32),
        "FLUX_IVAR_G": np.array([1000.0, -99.0], dtype=np.float32),
        "FLUX_R": np.array([5.95, 3.0], dtype=np.float32),
        "spectrum_flux": galaxy.flux.numpy().repeat(2, 0),
        "spectrum_ivar": galaxy.inverse_variance.numpy().repeat(2, 0),
        "spectrum_lambda": galaxy.wavelength.numpy().astype(np.float32).repeat(2, 0),
        "spectrum_mask": bad.repeat(2, 0),
        "spectrum_lsf_sigma": np.full((2, 7781), 0.8615, dtype=np.float32),
    }
    return columns | {"object_id": columns["TARGETID"]}


def gaia_columns(dtype=np.float64, num_objects=10):
    """`scripts/gaia`: source table and BP/RP coefficients side by side; the first object is one of the release."""
    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(300, 310, num_objects), rng.uniform(-5, 5, num_objects)
    ra[0], dec[0] = hpgeom.pixel_to_angle(2**29, 833383574405302936, nest=True, lonlat=True, degrees=True)
    source_id = (hpgeom.angle_to_pixel(2**12, ra, dec, nest=True, lonlat=True, degrees=True).astype(np.int64) << 35) + 7
    source_id[0] = 1666767135588491904
    columns = {
        "source_id": source_id,
        "ra": ra.astype(dtype),
        "dec": dec.astype(dtype),
        "coeff": rng.normal(0, 100, (num_objects, 110)).astype(np.float32),
        "coeff_error": rng.uniform(0.1, 1, (num_objects, 110)).astype(np.float32),
        "parallax": rng.normal(0, 1, num_objects),
        "parallax_error": np.full(num_objects, 0.03, dtype=np.float32),
        "pmra": rng.normal(0, 5, num_objects),
        "pmra_error": np.full(num_objects, 0.02, dtype=np.float32),
        "pmdec": rng.normal(0, 5, num_objects),
        "ra_error": np.full(num_objects, 0.03, dtype=np.float32),
        "dec_error": np.full(num_objects, 0.04, dtype=np.float32),
        "radial_velocity": np.where(np.arange(num_objects) % 2, np.nan, 12.5).astype(np.float32),
        "radial_velocity_error": np.where(np.arange(num_objects) % 2, np.nan, 0.5).astype(np.float32),
        "healpix": np.full(num_objects, 740),
    }
    for band, magnitude in (("g", 15.0), ("bp", 15.5), ("rp", 14.4)):
        columns[f"phot_{band}_mean_mag"] = np.full(num_objects, magnitude, dtype=np.float32)
        columns[f"phot_{band}_mean_flux"] = np.full(num_objects, 7000.0)
        columns[f"phot_{band}_mean_flux_error"] = np.full(num_objects, 7.0, dtype=np.float32)
    return columns


@pytest.fixture
def legacysurvey(tmp_path):
    return write(tmp_path / "dr10_south_21/healpix=1234/001-of-001.hdf5", legacysurvey_columns(), is_packed=True)


@pytest.fixture
def hsc(tmp_path):
    return write(tmp_path / "pdr3_dud_22.5/healpix=77/001-of-001.hdf5", hsc_columns(), is_packed=True)


@pytest.fixture
def sdss(tmp_path):
    return write(tmp_path / "sdss/healpix=583/001-of-001.hdf5", sdss_columns())


@pytest.fixture
def desi(tmp_path):
    return write(tmp_path / "edr_sv3/healpix=26065/001-of-001.hdf5", desi_columns())


@pytest.fixture
def gaia(tmp_path):
    return write(tmp_path / "gaia/healpix=740/001-of-001.hdf5", gaia_columns())


# ---- images ----------------------------------------------------------------------------------------------------------


def test_images_of_the_legacy_surveys_stay_in_nanomaggies(legacysurvey):
    image, written = read(legacysurvey, "legacysurvey")["image/legacysurvey"], legacysurvey_columns()
    assert image.bands == ("g", "r", "i", "z")
    assert image.object_id == ("0542m125-17", "0542m125-18", "0542m125-19")
    valid = image.mask.numpy()
    np.testing.assert_array_equal(image.flux.numpy()[valid], written["image_array"][valid])
    np.testing.assert_array_equal(image.inverse_variance.numpy()[valid], written["image_ivar"][valid])
    np.testing.assert_allclose(image.psf_fwhm[0], [1.3, 1.2, 1.15, 1.1])
    np.testing.assert_array_equal(image.ra, written["RA"])
    np.testing.assert_array_equal(image.dec, written["DEC"])


def test_an_image_mask_is_true_where_pixels_are_good_and_one_mask_serves_all_bands(legacysurvey):
    image, written = read(legacysurvey, "legacysurvey")["image/legacysurvey"], legacysurvey_columns()["image_mask"]
    assert 0 < written.mean() < 1
    for band in range(4):
        np.testing.assert_array_equal(image.mask[:, band], written)


def test_objects_lie_where_center_says_one_pixel_off_the_middle(legacysurvey):
    """The source hands places counted from 1 to a function that counts from 0."""
    image, written = read(legacysurvey, "legacysurvey")["image/legacysurvey"], legacysurvey_columns()["image_array"]
    rows, columns = np.mgrid[:SIZE, :SIZE]
    near = (np.abs(rows - SIZE / 2) < 6) & (np.abs(columns - SIZE / 2) < 6)
    for pixels, center in zip(written[:, 0], image.center.numpy(), strict=True):
        light = np.where(near & (pixels > 0.2), pixels, 0)
        peak = np.array([(light * rows).sum(), (light * columns).sum()]) / light.sum()
        assert np.abs(peak - center).max() <= 0.75
        assert center.tolist() == [SIZE / 2 - 1.5] * 2


def test_depth_is_that_of_each_objects_own_noise(legacysurvey):
    image = read(legacysurvey, "legacysurvey")["image/legacysurvey"]
    noise = image.noise().numpy()
    np.testing.assert_allclose(noise[0], (np.array([4, 3, 2, 1]) * 1e4) ** -0.5, rtol=1e-4)


def test_fluxes_of_the_catalogue_become_magnitudes(legacysurvey):
    found, written = read(legacysurvey, "legacysurvey"), legacysurvey_columns()
    for band in ("g", "r", "i", "z", "w1"):
        scalar = found[f"scalar/legacysurvey_{band}"]
        flux, ivar = written[f"FLUX_{band.upper()}"], written[f"FLUX_IVAR_{band.upper()}"]
        expected, error, _ = magnitudes(flux, ivar)
        assert scalar.mask.all()
        np.testing.assert_allclose(scalar.values[:2], expected[:2], rtol=1e-6)
        np.testing.assert_allclose(scalar.error[:2], error[:2], rtol=1e-5)
        assert math.isnan(scalar.error[2])  # no inverse variance: the flux counts, its error is unknown
    assert found["scalar/legacysurvey_w2"].mask.tolist() == [True, False, True]
    assert found["scalar/legacysurvey_half_light_radius"].mask.tolist() == [True, False, True]
    assert found["scalar/legacysurvey_ebv"].values.tolist() == pytest.approx([0.05] * 3)


def test_hsc_counts_become_nanomaggies_as_the_readers_of_coadds_have_them(hsc):
    image = read(hsc, "hsc")["image/hsc"]
    paths = {band: real_file(f"hsc-10054-{band}.fits") for band in "gr"}
    field = read_image(paths, "image/hsc", zero_point=27.0)
    middle = (SIZE - 1) / 2
    expected = cut_out(field, np.array([[100 + middle, 120 + middle], [300 + middle, 40 + middle]]), SIZE)
    both = image.mask & expected.mask
    assert both.float().mean() > 0.9
    torch.testing.assert_close(image.flux[both], expected.flux[both], rtol=1e-5, atol=1e-9)
    assert image.inverse_variance[1, 1, 0, 0].item() == pytest.approx(100 / NANOMAGGIES_PER_HSC_COUNT**2, rel=1e-5)
    assert image.object_id == ("43158034708376549", "43158034708376550")


def test_zero_variance_written_as_a_huge_inverse_variance_is_masked(hsc):
    written = hsc_columns()["image_ivar"]
    assert written[0, 1, 3, 4] > 1e38
    image = read(hsc, "hsc")["image/hsc"]
    assert not image.mask[0, 1, 3, 4]
    assert not image.mask[1, 0, 5].any()
    assert image.mask.sum() == image.mask.numel() - 1 - SIZE


def test_a_psf_that_was_not_measured_is_the_cards(hsc):
    image = read(hsc, "hsc")["image/hsc"]
    np.testing.assert_allclose(image.psf_fwhm, [[0.7, 0.6], [0.8, image.card.band("r").psf_fwhm]], rtol=1e-6)


def test_infinite_magnitudes_are_missing(hsc):
    scalar = read(hsc, "hsc")["scalar/hsc_g"]
    assert scalar.mask.tolist() == [True, False]
    assert scalar.values[0].item() == pytest.approx(22.1)


# ---- spectra ---------------------------------------------------------------------------------------------------------


def test_a_spectrum_mask_is_true_where_pixels_are_bad(desi):
    spectrum = read(desi, "desi")["spectrum/desi"]
    expected = read_desi(real_file("desi-coadd-4-80613.fits"))
    bad = desi_columns()["spectrum_mask"][0]
    assert not spectrum.mask[:, bad].any()
    np.testing.assert_array_equal(spectrum.mask[0, ~bad], expected.mask[0, ~bad])
    np.testing.assert_array_equal(spectrum.flux[0, ~bad], expected.flux[0, ~bad])
    np.testing.assert_allclose(spectrum.wavelength[0], expected.wavelength[0], atol=1e-3)
    assert spectrum.object_id == ("39633345008634465", "39633345008634466")


def test_line_widths_of_desi_are_pixels_of_its_grid(desi):
    spectrum = read(desi, "desi")["spectrum/desi"]
    fwhm = 2.354820045 * 0.8615 * 0.8
    np.testing.assert_allclose(spectrum.resolving_power[0], spectrum.wavelength[0] / fwhm, rtol=1e-5)


def test_padding_by_wavelength_minus_one_is_no_pixel(sdss):
    spectrum, written = read(sdss, "sdss")["spectrum/sdss"], sdss_columns()
    expected = read_sdss_spec(real_file("sdss-spec-0266-51602-0031.fits"))
    assert (written["spectrum_lambda"][1, -30:] == -1).all()
    assert (written["spectrum_flux"][1, -30:] != 0).all()
    assert not spectrum.mask[1, -30:].any()
    assert (spectrum.flux[1, -30:] == 0).all()
    np.testing.assert_array_equal(spectrum.mask[0], expected.mask[0])
    np.testing.assert_array_equal(spectrum.flux[0], expected.flux[0])
    valid = spectrum.mask[0]
    np.testing.assert_allclose(spectrum.resolving_power[0, valid], expected.resolving_power[0, valid], rtol=1e-3)


def test_wavelength_minus_one_is_no_pixel_even_where_mask_and_noise_say_nothing(sdss):
    def forget(file):
        file["spectrum_mask"][1, -30:] = False
        file["spectrum_ivar"][1, -30:] = 1.0

    assert not read(edit(sdss, forget), "sdss")["spectrum/sdss"].mask[1, -30:].any()


def test_padding_that_all_spectra_have_is_cut_off(sdss):
    def shorten(file):
        file["spectrum_lambda"][0, -50:] = -1
        file["spectrum_mask"][0, -50:] = True

    length = sdss_columns()["spectrum_flux"].shape[1]
    assert read(edit(sdss, shorten), "sdss")["spectrum/sdss"].flux.shape == (2, length - 30)


def test_ids_of_sdss_lose_their_blanks(sdss):
    assert read(sdss, "sdss")["spectrum/sdss"].object_id == ("299489677444933632", "2575025233207519232")


def test_spectra_without_a_valid_pixel_are_left_out_with_a_warning_that_names_them(desi, caplog):
    def blind(file):
        file["spectrum_mask"][1] = True

    with caplog.at_level(logging.WARNING):
        found = read(edit(desi, blind), "desi")
    assert found["spectrum/desi"].object_id == ("39633345008634465",)
    assert "39633345008634466" in caplog.text
    assert len(found["scalar/redshift"]) == 2


# ---- redshift flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("survey, flag", [("desi", "ZWARN"), ("sdss", "ZWARNING")])
def test_a_flag_stored_as_bits_is_zero_where_all_is_well_in_both_surveys(survey, flag, request):
    def set_flags(file):
        replace(file, flag, np.array([0, 4], dtype=np.int32))
        replace(file, "ZERR" if survey == "desi" else "Z_ERR", np.array([1e-5, 1e-5]))

    redshift = read(edit(request.getfixturevalue(survey), set_flags), survey)["scalar/redshift"]
    assert redshift.mask.tolist() == [True, False]


def test_a_boolean_flag_of_sdss_is_a_warning_but_of_desi_nobody_knows(sdss, desi):
    """DESI's loading script inverts the flag, that of SDSS does not."""
    replace_flag = {"sdss": (sdss, "ZWARNING"), "desi": (desi, "ZWARN")}
    for path, flag in replace_flag.values():
        edit(path, lambda file, flag=flag: replace(file, flag, np.array([False, True])))
    assert read(sdss, "sdss")["scalar/redshift"].mask.tolist() == [True, False]
    with pytest.raises(ObservationError, match=r"hdf5: flag ZWARN is a boolean.*`flag_true_means: warning` or `good`"):
        read(desi, "desi")


def test_a_negative_redshift_error_and_a_flux_of_minus_99_are_missing(sdss, desi):
    assert read(sdss, "sdss")["scalar/redshift"].mask.tolist() == [True, False]
    found = read(desi, "desi")
    assert found["scalar/redshift"].values[0].item() == pytest.approx(0.36874355, abs=1e-7)
    assert found["scalar/redshift"].mask.tolist() == [True, False]
    assert found["scalar/legacysurvey_g"].mask.tolist() == [True, False]
    assert found["scalar/legacysurvey_g"].values[0].item() == pytest.approx(22.5 - 2.5 * math.log10(3.24), abs=1e-5)


# ---- Gaia ------------------------------------------------------------------------------------------------------------


def test_gaia_gives_coefficients_photometry_and_motion(gaia):
    found, written = read(gaia, "gaia"), gaia_columns()
    coefficients = found["coefficients/gaia_bp_rp"]
    np.testing.assert_array_equal(coefficients.values, written["coeff"])
    np.testing.assert_array_equal(coefficients.error, written["coeff_error"])
    assert coefficients.object_id[0] == "1666767135588491904"
    np.testing.assert_array_equal(coefficients.ra, written["ra"])
    np.testing.assert_allclose(found["scalar/gaia_pm_ra"].values, written["pmra"], rtol=1e-6)
    np.testing.assert_allclose(found["scalar/gaia_pm_ra"].error, 0.02, rtol=1e-6)
    assert found["scalar/gaia_radial_velocity"].mask.tolist() == [True, False] * 5
    assert found["scalar/gaia_bp"].error[0].item() == pytest.approx(2.5 / math.log(10) / 1000, rel=1e-5)
    np.testing.assert_allclose(found["scalar/gaia_position_error"].values, 0.05, rtol=1e-4)


def test_positions_in_32_bits_are_kept_and_their_rounding_told(tmp_path, caplog):
    exact, columns = gaia_columns(), gaia_columns(np.float32)
    path = write(tmp_path / "gaia/healpix=1/001-of-001.hdf5", columns)
    with caplog.at_level(logging.WARNING):
        found = read(path, "gaia")
    assert "001-of-001.hdf5: positions are 32-bit floats, good to 0.055 arcsec only" in caplog.text
    position = found["coefficients/gaia_bp_rp"]
    assert position.ra.dtype == torch.float64
    np.testing.assert_array_equal(position.ra, columns["ra"].astype(np.float64))
    error = found["scalar/gaia_position_error"].values.numpy()
    true_offset = (position.ra.numpy() - exact["ra"]) * np.cos(np.radians(exact["dec"])) * 3.6e6
    assert 10 < np.sqrt(np.mean(true_offset[1:] ** 2)) < 60  # mas
    np.testing.assert_allclose(error[1:], 2.0**-15 / math.sqrt(12) * 3.6e6, rtol=0.02)


def test_64_bit_positions_are_preferred_where_a_file_has_both(tmp_path, caplog):
    exact, columns = gaia_columns(num_objects=3), gaia_columns(np.float32, num_objects=3)
    columns |= {"RA": exact["ra"]}
    path = write(tmp_path / "gaia/healpix=1/001-of-001.hdf5", columns)
    with caplog.at_level(logging.WARNING):
        position = read(path, "gaia")["coefficients/gaia_bp_rp"]
    np.testing.assert_array_equal(position.ra, exact["ra"])
    np.testing.assert_array_equal(position.dec, columns["dec"].astype(np.float64))
    assert "32-bit" in caplog.text  # dec, of three objects


def test_32_bit_numbers_in_64_bit_columns_are_noticed_and_true_64_bit_ones_are_not(tmp_path, gaia, caplog):
    columns = gaia_columns(np.float32)
    columns |= {name: columns[name].astype(np.float64) for name in ("ra", "dec")}
    path = write(tmp_path / "other/healpix=1/001-of-001.hdf5", columns)
    with caplog.at_level(logging.WARNING):
        read(gaia, "gaia")
        assert "32-bit" not in caplog.text
        read(path, "gaia")
        assert "32-bit" in caplog.text


def test_positions_of_other_rows_than_the_source_ids_are_found_out(gaia):
    """The merging script puts tables side by side by row, without looking at ids."""

    def shift(file):
        replace(file, "source_id", np.roll(file["source_id"][()], 1))

    with pytest.raises(ObservationError, match=r"hdf5, object \d+: the source_id says .* rows were mixed up"):
        read(edit(gaia, shift), "gaia")


# ---- what a file may lack or get wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("survey", ["legacysurvey", "hsc", "sdss", "desi", "gaia"])
def test_a_file_without_positions_is_an_error(survey, request):
    def remove(file):
        for name in ("ra", "RA"):
            if name in file:
                del file[name]

    path = edit(request.getfixturevalue(survey), remove)
    with pytest.raises(ObservationError, match=r"001-of-001\.hdf5: column ra is missing"):
        read(path, survey)


def test_uppercase_positions_serve_where_the_others_are_absent(legacysurvey):
    def remove(file):
        del file["ra"], file["dec"]

    assert (
        read(edit(legacysurvey, remove), "legacysurvey")["image/legacysurvey"].ra[0] == legacysurvey_columns()["RA"][0]
    )


def test_two_columns_of_one_name_that_disagree_are_an_error(legacysurvey):
    with pytest.raises(ObservationError, match=r"columns \['ra', 'RA'\] contradict each other: a join"):
        read(edit(legacysurvey, lambda file: replace(file, "ra", file["ra"][()][::-1])), "legacysurvey")


def test_columns_that_a_join_has_renamed_are_pointed_out(desi):
    def rename(file):
        file.move("Z", "Z_1")
        file["Z_2"] = np.zeros(2)

    with pytest.raises(ObservationError, match=r"columns \['Z'\] are missing \(Z_1 and Z_2 are there: a join"):
        read(edit(desi, rename), "desi")


def test_a_truncated_file_is_an_error_that_names_it(legacysurvey):
    content = legacysurvey.read_bytes()
    legacysurvey.write_bytes(content[: len(content) // 2])
    with pytest.raises(ObservationError, match=r"healpix=1234/001-of-001\.hdf5: cannot be read as HDF5, cut short"):
        read(legacysurvey, "legacysurvey")


def test_a_damaged_chunk_is_an_error_that_names_the_file(legacysurvey):
    with h5py.File(legacysurvey) as file:
        chunk = file["image_array"].id.get_chunk_info(0)
    content = bytearray(legacysurvey.read_bytes())
    content[chunk.byte_offset + chunk.size // 2 : chunk.byte_offset + chunk.size] = bytes(chunk.size - chunk.size // 2)
    legacysurvey.write_bytes(content)
    with pytest.raises(ObservationError, match=r"001-of-001\.hdf5: cannot be read as HDF5, cut short or damaged"):
        read(legacysurvey, "legacysurvey")


def test_missing_datasets_are_listed(hsc):
    def remove(file):
        del file["image_ivar"], file["image_mask"]

    with pytest.raises(
        ObservationError, match=r"hdf5: columns \['image_ivar', 'image_mask'\] are missing; found \['dec'"
    ):
        read(edit(hsc, remove), "hsc")


@pytest.mark.parametrize(
    "survey, name, values, message",
    [
        ("desi", "Z", np.zeros(3), r"Z must hold 2 objects as object_id does, found shape \[3\]"),
        ("desi", "spectrum_ivar", np.zeros((2, 7)), r"ivar must have shape \[2, 7781\], found \[2, 7\]"),
        ("hsc", "image_mask", np.ones((2, 2, 9, SIZE), dtype=bool), r"mask must have shape"),
        ("gaia", "coeff", np.zeros((10, 55), np.float32), r"coeff_error must have shape \[10, 55\], found \[10, 110\]"),
        (
            "desi",
            "ra",
            np.array([1.0, np.nan]),
            r"object 39633345008634466: ra must lie in \[0, 360\] degrees, found nan",
        ),
        (
            "desi",
            "dec",
            np.array([91.0, 0]),
            r"object 39633345008634465: dec must lie in \[-90, 90\] degrees, found 91",
        ),
        ("desi", "object_id", np.array([7, 7]), r"object 7 comes twice, in rows 0 and 1"),
        ("sdss", "object_id", np.array([b"  ", b"1"]), r"row 0 has no object id"),
        (
            "hsc",
            "image_band",
            np.array([[b"hsc-g", b"hsc-r"], [b"hsc-g", b"hsc-q"]]),
            r"object 43158034708376550: unknown band 'hsc-q'; expected some of \['hsc-g', 'hsc-r'",
        ),
        (
            "hsc",
            "image_scale",
            np.array([[0.168, 0.168], [0.168, 0.262]]),
            r"object 43158034708376550: pixel scale must be 0.168 arcsec, found 0.262 in r",
        ),
    ],
)
def test_bad_columns_are_errors_that_name_file_and_object(survey, name, values, message, request):
    path = edit(request.getfixturevalue(survey), lambda file: replace(file, name, values))
    with pytest.raises(ObservationError, match=r"001-of-001\.hdf5.*" + message):
        read(path, survey)


def test_no_file_and_no_tiles_are_errors(tmp_path):
    with pytest.raises(ObservationError, match=r"none\.hdf5: no such file"):
        read(tmp_path / "none.hdf5", "desi")
    with pytest.raises(ObservationError, match="expected HDF5 tiles"):
        tile_files(tmp_path)


# ---- streaming -------------------------------------------------------------------------------------------------------


def test_tiles_come_in_the_order_of_their_pixels_and_locks_are_no_tiles(tmp_path):
    for subset, pixel in (("sdss", 1000), ("sdss", 9), ("boss", 100)):
        write(tmp_path / f"sdss/{subset}/healpix={pixel}/001-of-001.hdf5", {"object_id": [1]})
    (tmp_path / "sdss/sdss/healpix=9/001-of-001.hdf5.lock").touch()
    found = SOURCES["mmu-v1-sdss"].files(tmp_path / "sdss")
    assert [file.parent.name for file in found] == ["healpix=100", "healpix=9", "healpix=1000"]
    assert tile_files(found[0]) == [found[0]]


def test_a_tile_is_read_in_bounded_groups_and_nothing_is_lost(tmp_path, monkeypatch):
    one = hsc_columns()
    count = 60
    columns = {name: np.concatenate([values[:1]] * count) for name, values in one.items()}
    columns["object_id"] = np.arange(count)
    columns["image_array"] = columns["image_array"] + np.arange(count, dtype=np.float32)[:, None, None, None]
    path = write(tmp_path / "pdr3/healpix=5/001-of-001.hdf5", columns, is_packed=True)
    row_bytes = 2 * SIZE**2 * (4 + 4 + 1)
    monkeypatch.setattr(multimodal_universe_v1, "CHUNK_BYTES", 8 * row_bytes)
    ids, flux = [], []
    tracemalloc.start()
    for observation in read_multimodal_universe_tile(path, "hsc"):
        if observation.modality.name == "image/hsc":
            assert len(observation) <= 8
            ids += observation.object_id
            flux += observation.flux[:, 0, 8, 8].tolist()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ids == [str(number) for number in range(count)]
    np.testing.assert_allclose(flux, columns["image_array"][:, 0, 8, 8] * NANOMAGGIES_PER_HSC_COUNT, rtol=1e-5)
    assert peak < count * row_bytes


# ---- into a dataset --------------------------------------------------------------------------------------------------


def test_surveys_with_columns_of_one_name_share_a_dataset_and_overwrite_nothing(tmp_path, sdss, desi, gaia):
    """Z of SDSS and of DESI are one modality of different objects; the source's own join keeps the last."""
    for name, path in (("sdss", sdss), ("desi", desi), ("gaia", gaia)):
        import_survey(f"mmu-v1-{name}", [path], tmp_path / "dataset")
    assert validate_dataset(tmp_path / "dataset") == []
    dataset = ObservationDataset(tmp_path / "dataset")
    redshift = dataset.scalars(["scalar/redshift"])["scalar/redshift"]
    assert redshift == pytest.approx({"299489677444933632": 0.1, "39633345008634465": 0.36874355}, abs=1e-6)
    assert dataset.num_objects("scalar/redshift") == 4
    spectrum = dataset.read("spectrum/desi", ["39633345008634465"])
    np.testing.assert_array_equal(spectrum.flux, read(desi, "desi")["spectrum/desi"].select([0]).flux)
    assert dataset.num_objects("coefficients/gaia_bp_rp") == 10
