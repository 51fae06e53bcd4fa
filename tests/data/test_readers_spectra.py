"""Readers of spectra, on the real files: DESI, SDSS, BOSS and MaNGA."""

import logging
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from armillary.data.observations import ObservationError
from armillary.data.readers.desi import read_desi, read_redrock
from armillary.data.readers.desi_arms import line_width
from armillary.data.readers.fits_sources import PlateSettings, read_plate
from armillary.data.readers.manga import manga_batches, read_manga, read_manga_redshift
from armillary.data.readers.sdss import (
    boss_plate_batches,
    estimated_noise,
    read_boss_plate,
    read_sdss_redshift,
    read_sdss_spec,
)
from armillary.data.real_files import real_file, real_file_names

GALAXY, FIBRES = real_file("desi-coadd-4-80613.fits"), real_file("desi-coadd-sv3-dark-26065.fits")
STAR, PLATE, MANGA = (
    real_file("sdss-spec-0266-51602-0031.fits"),
    real_file("boss-spPlate-4055-55359.fits"),
    real_file("manga-spectra.fits.gz"),
)


def changed(path, folder, change):
    """A copy of a FITS file after `change(hdus)`."""
    copy = folder / path.name
    with fits.open(path) as hdus:
        change(hdus)
        hdus.writeto(copy, checksum=True)
    return copy


# ---- DESI ------------------------------------------------------------------------------------------------------------


def joined_by_loops(path, row):
    """Arms joined pixel by pixel, in Python floats: flux and inverse variance by the number of the 0.8 A pixel."""
    weight, weighted = {}, {}
    with fits.open(path) as hdus:
        for arm in "BRZ":
            columns = [hdus[f"{arm}_{name}"].data for name in ("WAVELENGTH", "FLUX", "IVAR", "MASK")]
            for wavelength, flux, ivar, mask in zip(columns[0], *(c[row] for c in columns[1:]), strict=True):
                pixel = round((float(wavelength) - 3600) / 0.8)
                if mask == 0 and ivar > 0:
                    weight[pixel] = weight.get(pixel, 0.0) + float(ivar)
                    weighted[pixel] = weighted.get(pixel, 0.0) + float(ivar) * float(flux)
    return {pixel: weighted[pixel] / weight[pixel] for pixel in weight}, weight


@pytest.mark.parametrize("path, row", [(GALAXY, 0), (FIBRES, 2)])
def test_arms_are_joined_as_a_double_loop_over_pixels_joins_them(path, row):
    read = read_desi(path, [row])
    flux, weight = joined_by_loops(path, row)
    assert read.flux.shape == (1, 7781)
    assert np.flatnonzero(read.mask[0]).tolist() == sorted(weight)
    pixels = sorted(weight)
    np.testing.assert_allclose(read.flux[0, pixels], [flux[p] for p in pixels], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(read.inverse_variance[0, pixels], [weight[p] for p in pixels], rtol=1e-6)
    np.testing.assert_allclose(read.wavelength[0], 3600 + 0.8 * np.arange(7781), atol=1e-6)


def test_the_galaxy_is_the_one_expected():
    read = read_desi(GALAXY)
    assert read.modality.name == "spectrum/desi"
    assert read.object_id == ("39633345008634465",)
    assert read.ra.item() == pytest.approx(105.48977452, abs=1e-8)
    assert read.dec.item() == pytest.approx(56.66930006, abs=1e-8)
    assert read.mask.all()


def test_the_redshift_is_the_one_of_redrock():
    read = read_redrock(real_file("desi-redrock-4-80613.fits"))
    assert read.object_id == ("39633345008634465",)
    assert read.values.item() == pytest.approx(0.36874355, abs=1e-7)
    assert read.error.item() == pytest.approx(1.1796e-6, rel=1e-3)
    assert read.mask.item()
    assert read.ra.item() == pytest.approx(105.48977452)


def test_a_redshift_with_a_warning_is_masked(tmp_path):
    def warn(hdus):
        hdus["REDSHIFTS"].data["ZWARN"] = 4

    assert not read_redrock(changed(real_file("desi-redrock-4-80613.fits"), tmp_path, warn)).mask.any()


def test_emission_lines_of_the_galaxy_lie_at_its_redshift():
    read, redshift = read_desi(GALAXY), 0.36874355
    wavelength, flux = read.wavelength[0].numpy(), read.flux[0].numpy()
    for rest in (3728.5, 5008.24, 6564.61):  # [O II], [O III] and H alpha, vacuum
        near = np.abs(wavelength - rest * (1 + redshift)) < 40
        peak = wavelength[near][flux[near].argmax()]
        if flux[near].max() > 3 * np.median(flux[near]):
            assert peak == pytest.approx(rest * (1 + redshift), abs=4)


def test_fibres_without_light_are_left_out_with_a_warning_that_names_them(caplog):
    with caplog.at_level(logging.WARNING):
        read = read_desi(FIBRES)
    assert read.object_id == ("39627866878511337", "39627866878514741")
    assert read.mask.sum(1).tolist() == [7746, 7781]
    assert "616088619186127404" in caplog.text
    with pytest.raises(ObservationError, match=r"no valid pixel in 3 of 5 fibres.*616088619186127404"):
        read_desi(FIBRES, empty="raise")
    with pytest.raises(ObservationError, match="no valid pixel"):
        read_desi(FIBRES, [0, 1])


def test_masked_pixels_are_excluded_however_good_they_look(tmp_path):
    def spoil(hdus):
        hdus["R_MASK"].data[0, 500:600] = 1
        hdus["R_FLUX"].data[0, 500:600] = 1e9

    read, clean = read_desi(changed(GALAXY, tmp_path, spoil)), read_desi(GALAXY)
    assert (~read.mask).sum() == 100
    assert read.flux.max() < 1e3
    assert np.array_equal(read.flux[read.mask], clean.flux[read.mask])


def test_the_resolving_power_follows_the_resolution_matrix():
    read = read_desi(GALAXY)
    power = read.resolving_power[0].numpy()
    assert (power > 1500).all()
    assert (power < 6500).all()
    card = read.card.resolving_power_at(read.wavelength[0].numpy())
    assert np.median(power / card) == pytest.approx(1, abs=0.15)
    assert not np.allclose(power, card)


def test_the_line_width_of_a_gaussian_is_its_fwhm():
    offset = np.arange(5, -6, -1.0)[:, None]
    sigma = np.array([1.0, 1.3])
    bands = 0.97 * np.exp(-(offset**2) / 2 / sigma**2)[None]
    assert line_width(bands, 0.8)[0] == pytest.approx(2.35482 * 0.8 * sigma, rel=2e-3)


@pytest.mark.parametrize("rows", [[5], [-1], []])
def test_rows_that_are_not_there_are_an_error(rows):
    with pytest.raises(ObservationError, match="from 0 to 4"):
        read_desi(FIBRES, rows)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda hdus: hdus.pop("Z_IVAR"), "extension Z_IVAR is missing"),
        (lambda hdus: hdus.pop("FIBERMAP"), "extension FIBERMAP is missing"),
        (lambda hdus: hdus["FIBERMAP"].columns.del_col("TARGETID"), r"missing: \['TARGETID'\]"),
        (
            lambda hdus: setattr(hdus["B_FLUX"], "data", hdus["B_FLUX"].data[:, :-1]),
            r"shape \[1, 2751\], found \[1, 27",
        ),
        (lambda hdus: hdus["B_FLUX"].header.set("BUNIT", "erg/(s cm2 Angstrom)"), "BUNIT.*which is 1e.17 of it"),
        (lambda hdus: hdus["B_FLUX"].header.set("BUNIT", "Jy"), "BUNIT of extension B_FLUX must be"),
        (lambda hdus: hdus["B_WAVELENGTH"].header.set("BUNIT", "nm"), "BUNIT of extension B_WAVELENGTH"),
        (lambda hdus: hdus["R_WAVELENGTH"].data.__iadd__(0.3), "R_WAVELENGTH must lie on a common grid"),
    ],
)
def test_a_malformed_coadd_is_an_error_that_names_the_file(tmp_path, change, problem):
    with pytest.raises(ObservationError, match=rf"{GALAXY.name}: .*{problem}"):
        read_desi(changed(GALAXY, tmp_path, change))


def test_flipped_bytes_do_not_agree_with_the_checksum(tmp_path):
    copy = tmp_path / GALAXY.name
    content = bytearray(GALAXY.read_bytes())
    with fits.open(GALAXY) as hdus:
        start = hdus["R_FLUX"].fileinfo()["datLoc"]
    content[start + 1000] ^= 0x40
    copy.write_bytes(content)
    with pytest.raises(ObservationError, match=r"bytes of extension R_FLUX do not agree with its DATASUM"):
        read_desi(copy)


# ---- SDSS and BOSS ---------------------------------------------------------------------------------------------------


def test_the_sdss_star_is_read_as_its_table_has_it():
    read = read_sdss_spec(STAR)
    with fits.open(STAR) as hdus:
        table = hdus[1].data
        good = (table["ivar"] > 0) & (table["and_mask"] == 0)
    assert read.object_id == ("0266-51602-0031",)
    assert (read.ra.item(), read.dec.item()) == pytest.approx((147.32107, -0.0065757249), abs=1e-6)
    assert np.array_equal(read.mask[0].numpy(), good)
    assert np.array_equal(read.flux[0].numpy()[good], table["flux"][good])
    assert np.array_equal(read.inverse_variance[0].numpy()[good], table["ivar"][good])
    np.testing.assert_allclose(read.wavelength[0], 10 ** table["loglam"].astype(float), rtol=1e-12)
    assert 1300 < read.resolving_power.min() < read.resolving_power.max() < 2600


def test_the_sdss_star_does_not_move():
    read = read_sdss_redshift(STAR)
    assert read.values.item() == pytest.approx(-3.69145e-5, rel=1e-4)
    assert read.error.item() == pytest.approx(8.84e-5, rel=1e-2)
    assert read.mask.item()


def test_wavelengths_in_air_are_refused(tmp_path):
    with pytest.raises(ObservationError, match="must be in vacuum"):
        read_sdss_spec(changed(STAR, tmp_path, lambda hdus: hdus[0].header.set("VACUUM", False)))


def test_a_plate_without_inverse_variance_asks_for_one():
    with pytest.raises(ObservationError, match=r"boss-spPlate.*no inverse variance.*estimate_noise=True"):
        read_boss_plate(PLATE)
    with pytest.raises(ObservationError, match=r"inverse_variance must have shape \[20, 4637\]"):
        read_boss_plate(PLATE, inverse_variance=np.ones((20, 4636)))
    read = read_boss_plate(PLATE, inverse_variance=np.full((20, 4637), 4.0))
    assert read.mask.all()
    assert (read.inverse_variance == 4).all()


def test_a_plate_is_read_on_the_grid_of_its_header():
    read = read_boss_plate(PLATE, estimate_noise=True)
    with fits.open(PLATE) as hdus:
        assert np.array_equal(read.flux.numpy()[read.mask.numpy()], hdus[0].data[read.mask.numpy()])
    assert read.object_id[0] == "4055-55359-row0"
    np.testing.assert_allclose(read.wavelength[3], 10 ** (3.5529 + 1e-4 * np.arange(4637)), rtol=1e-12)
    assert read.ra.isnan().all()


KINDS = ["GALAXY", "SKY", "NA", "QSO", "SPECTROPHOTO_STD", *["GALAXY"] * 15]


def complete(hdus):
    """The other planes of the data model behind the real flux: ivar, and mask, or mask, dispersion, plug map, sky."""
    shape = hdus[0].data.shape
    and_mask, or_mask, dispersion = np.zeros(shape, np.int32), np.full(shape, 16, np.int32), np.full(shape, 1.1)
    and_mask[7, 100], dispersion[3, 50] = 4, 0
    columns = [
        fits.Column("FIBERID", "J", array=np.arange(20) + 5),
        fits.Column("RA", "D", array=np.append(-0.9, np.linspace(-1e-17, 1, 19))),
        fits.Column("DEC", "D", array=np.linspace(-1, 1, 20)),
        fits.Column("OBJTYPE", "16A", array=KINDS),
    ]
    hdus.extend([fits.ImageHDU(np.full(shape, 3.0, np.float32)), fits.ImageHDU(and_mask), fits.ImageHDU(or_mask)])
    hdus.append(fits.ImageHDU(dispersion.astype(np.float32)))
    hdus.append(fits.BinTableHDU.from_columns(columns))
    hdus.append(fits.ImageHDU(np.zeros(shape, np.float32)))


@pytest.fixture(scope="module")
def plate(tmp_path_factory):
    return changed(PLATE, tmp_path_factory.mktemp("boss"), complete)


def test_a_whole_plate_needs_no_estimate(plate):
    read = read_boss_plate(plate)
    assert read.object_id[7] == "4055-55359-0012"
    assert (~read.mask).nonzero().tolist() == [[7, 100]]
    assert (read.inverse_variance[read.mask] == 3).all()
    with pytest.raises(ObservationError, match="give neither"):
        read_boss_plate(plate, estimate_noise=True)


def test_positions_of_a_plate_are_those_of_its_plug_map(plate):
    read = read_boss_plate(plate)
    assert read.ra[0].item() == pytest.approx(359.1)
    assert read.ra[1] == 0
    assert read.ra[-1].item() == 1
    assert read.dec[0].item() == -1


def test_the_resolving_power_of_a_plate_follows_its_dispersion(plate):
    """R = lambda / FWHM, and sigma of 1.1 pixels of 1e-4 dex is 1.1e-4 ln(10) lambda."""
    read = read_boss_plate(plate)
    assert read.resolving_power[0, 7].item() == pytest.approx(1 / (2.35482 * 1.1e-4 * np.log(10)), rel=1e-5)
    card = read.card.resolving_power_at(read.wavelength[3].numpy())
    assert read.resolving_power[3, 50].item() == pytest.approx(card[50], rel=1e-6)


def test_fibres_on_sky_and_holes_without_a_fibre_are_left_out_on_request(plate):
    (batch,) = boss_plate_batches(plate, targets_only=True)
    assert len(batch) == 18
    assert not {"4055-55359-0006", "4055-55359-0007"} & set(batch.object_id)


def test_a_fibre_without_a_valid_pixel_is_left_out_with_a_warning(tmp_path, caplog):
    def break_fibre(hdus):
        complete(hdus)
        hdus[1].data[4] = 0

    path = changed(PLATE, tmp_path, break_fibre)
    with caplog.at_level(logging.WARNING):
        assert len(read_boss_plate(path)) == 19
    assert "4055-55359-0009" in caplog.text
    with pytest.raises(ObservationError, match=r"no valid pixel in fibres \['4055-55359-0009'\]"):
        list(boss_plate_batches(path, empty="raise"))


def test_a_fibre_listed_twice_is_an_error(tmp_path):
    def double(hdus):
        complete(hdus)
        hdus[5].data["FIBERID"][9] = 5

    with pytest.raises(ObservationError, match=r"boss-spPlate.*object 4055-55359-0005 comes twice, in rows \[0, 9\]"):
        read_boss_plate(changed(PLATE, tmp_path, double))


@pytest.mark.parametrize("folder", [".", "v5_7_0"])
def test_redshifts_of_a_plate_are_joined_by_fibre(plate, tmp_path, folder):
    copy = tmp_path / "spPlate-4055-55359.fits"
    shutil.copy(plate, copy)
    fibres = np.array([9, 5, 6])
    values = {"PLATE": 4055, "MJD": 55359, "FIBERID": fibres, "Z": fibres / 100, "Z_ERR": 1e-4, "ZWARNING": fibres == 9}
    table = Table({name: np.broadcast_to(value, 3) for name, value in values.items()})
    table["PLUG_RA"], table["PLUG_DEC"] = 1.0, 2.0
    (tmp_path / folder).mkdir(exist_ok=True)
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(table)])
    hdus.writeto(tmp_path / folder / "spZbest-4055-55359.fits")
    spectra, redshifts = read_plate(copy, PlateSettings(targets_only=False))
    assert redshifts.object_id == ("4055-55359-0005", "4055-55359-0006", "4055-55359-0009")
    assert redshifts.mask.tolist() == [True, True, False]
    assert redshifts.values[:2].tolist() == pytest.approx([0.05, 0.06])
    assert redshifts.ra[0] == spectra.ra[0]


def test_the_estimated_noise_is_that_of_known_noise_on_a_smooth_spectrum():
    random = np.random.default_rng(0)
    noise = np.repeat([[1.0], [3.0]], 4000, axis=1)
    flux = random.normal(size=(2, 4000)) * noise + np.sin(np.arange(4000) / 300) * 50
    assert np.median(estimated_noise(flux), axis=1) == pytest.approx([1, 3], rel=0.05)


def test_the_estimated_noise_agrees_with_the_inverse_variance_of_a_real_spectrum():
    read = read_sdss_spec(STAR)
    ratio = estimated_noise(read.flux.double().numpy()) * np.sqrt(read.inverse_variance.numpy())
    assert np.median(ratio[read.mask.numpy()]) == pytest.approx(1, abs=0.15)


# ---- MaNGA -----------------------------------------------------------------------------------------------------------


def test_manga_spectra_are_read_and_the_empty_one_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        read = read_manga(MANGA)
    assert "rows [5] of 8" in caplog.text
    assert read.object_id == tuple(f"manga-{row}" for row in (0, 1, 2, 3, 4, 6, 7))
    with fits.open(MANGA) as hdus:
        good = (hdus["MASK"].data[6] == 0) & (hdus["IVAR"].data[6] > 0)
        assert np.array_equal(read.mask[5].numpy(), good)
        assert np.array_equal(read.flux[5].numpy()[good], hdus["FLUX"].data[6][good])
        np.testing.assert_allclose(read.resolving_power[5], hdus["SRES"].data[6], rtol=1e-6)
    np.testing.assert_allclose(read.wavelength[0], read.card.wavelength(), rtol=1e-6)
    with pytest.raises(ObservationError, match=r"manga-spectra\.fits\.gz: no valid pixel in rows \[5\]"):
        read_manga(MANGA, empty="raise")


def test_manga_redshifts_are_those_of_nearby_galaxies():
    read = read_manga_redshift(MANGA)
    assert len(read) == 8
    assert read.values[0].item() == pytest.approx(0.0495282)
    assert read.error.isnan().all()


# ---- datacubes -------------------------------------------------------------------------------------------------------


def write_cube(path, unit="1E-17 erg/s/cm^2/Ang/spaxel"):
    """A small cube in the layout of a MaNGA LOGCUBE (SDSS data model mangaCube, DR17)."""
    random, shape = np.random.default_rng(0), (40, 5, 4)
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CTYPE3": "WAVE-LOG", "CUNIT3": "Angstrom"})
    header.update({"CRVAL1": 232.5447, "CRVAL2": 48.690201, "CRVAL3": 3621.596, "CRPIX1": 2.0, "CRPIX2": 3.0})
    header.update({"CRPIX3": 1, "CD1_1": -0.000138889, "CD2_2": 0.000138889, "CD3_3": 0.8339, "BUNIT": unit})
    flux, ivar, mask = random.normal(size=shape), random.uniform(1, 2, shape), np.zeros(shape, np.int32)
    mask[:, 0, 0] = 1027  # DONOTUSE, LOWCOV, NOCOV: a corner that no fibre reaches
    mask[7, 2, 3], ivar[8, 2, 3] = 1024, 0
    planes = [
        ("FLUX", flux, header),
        ("IVAR", ivar, None),
        ("MASK", mask, None),
        ("LSFPOST", np.full(shape, 1.2), None),
    ]
    hdus = fits.HDUList([fits.PrimaryHDU(header=fits.Header({"PLATEIFU": "8485-1901"}))])
    for name, values, own in planes:
        kind = np.int32 if name == "MASK" else np.float32
        hdus.append(fits.ImageHDU(values.astype(kind), own, name=name))
    hdus.append(fits.ImageHDU(3621.596 * 10 ** (1e-4 * np.arange(40)), name="WAVE"))
    hdus.writeto(path, checksum=True)
    return path


@pytest.mark.parametrize("rows_per_batch", [1, 8, 256])
def test_each_spaxel_of_a_cube_is_a_spectrum_at_its_place(tmp_path, rows_per_batch):
    path = write_cube(tmp_path / "manga-8485-1901-LOGCUBE.fits.gz")
    batches = list(manga_batches(path, rows_per_batch=rows_per_batch))
    names = [name for batch in batches for name in batch.object_id]
    assert names == [f"8485-1901-{y}-{x}" for y in range(5) for x in range(4) if (y, x) != (0, 0)]
    with fits.open(path) as hdus:
        flux, wcs = hdus["FLUX"].data, WCS(hdus["FLUX"].header).celestial
    row = names.index("8485-1901-2-3")
    mask, values = (np.concatenate([getattr(b, n) for b in batches])[row] for n in ("mask", "flux"))
    assert np.flatnonzero(~mask).tolist() == [7, 8]
    assert np.array_equal(values[mask], flux[mask, 2, 3])
    place = wcs.pixel_to_world(3, 2)
    ra, dec = (np.concatenate([getattr(b, n) for b in batches])[row] for n in ("ra", "dec"))
    assert (ra, dec) == pytest.approx((place.icrs.ra.deg, place.icrs.dec.deg), abs=1e-9)
    assert batches[0].resolving_power[0, 0].item() == pytest.approx(3621.596 / 2.35482 / 1.2, rel=1e-5)


@pytest.mark.parametrize("unit", ["Jy/spaxel", "1E-16 erg/s/cm^2/Ang/spaxel"])
def test_a_cube_in_other_units_is_an_error(tmp_path, unit):
    with pytest.raises(ObservationError, match=r"cube\.fits: BUNIT of extension FLUX, per spaxel, must be"):
        read_manga(write_cube(tmp_path / "cube.fits", unit))


# ---- any file --------------------------------------------------------------------------------------------------------


def test_a_read_file_may_be_replaced_while_the_observation_lives(tmp_path):
    copy = tmp_path / GALAXY.name
    shutil.copy(GALAXY, copy)
    read = read_desi(copy)
    before = read.flux.clone()
    copy.write_bytes(b"")
    assert (read.flux == before).all()


def test_an_unknown_real_file_names_the_nearest():
    assert len(real_file_names()) == 12
    with pytest.raises(LookupError, match="hsc-10054-g"):
        real_file("hsc-10054-h.fits")
