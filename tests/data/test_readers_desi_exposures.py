"""Uncoadded DESI spectra, in files made here in the survey's layout from a real coadd, and redshifts joined to them."""

import logging

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from armillary.data.observations import ObservationError, ScalarObservation
from armillary.data.readers.desi import (
    desi_batches,
    desi_exposure_batches,
    read_desi,
    read_desi_exposures,
    read_redrock,
    redrock_file,
    redshifts_of_targets,
)
from armillary.data.readers.fits_sources import DesiSettings, ExposureSettings, read_desi_coadd, read_desi_spectra
from armillary.data.real_files import real_file

FIBRES = real_file("desi-coadd-sv3-dark-26065.fits")
FIRST, SECOND, SKY = "39627866878511337", "39627866878514741", "616088619186127404"
ROWS = (2, 2, 4, 2, 4, 4, 3)
"""Rows of the coadd that the exposures are made from."""
BAD_POSITION, BAD_AMPLIFIER_R, POOR_POSITION = 1 << 9, 1 << 23, 1 << 10
STATUS = (0, BAD_POSITION, 0, BAD_AMPLIFIER_R, POOR_POSITION, 0, 0)


def write_exposures(path, *, compressed_masks=True, without=()):
    """Seven exposures of two targets and a sky fibre: own noise, masks and weights, and 20 pixels good in none."""
    random = np.random.default_rng(0)
    rows = np.array(ROWS)
    with fits.open(FIBRES) as hdus:
        fibermap = Table(hdus["FIBERMAP"].data)["TARGETID", "OBJTYPE", "TARGET_RA", "TARGET_DEC"][rows]
        fibermap["FIBERSTATUS"] = np.array(STATUS, np.int32)
        fibermap["EXPID"] = np.arange(70000, 70007, dtype=np.int32)
        made = fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(fibermap, name="FIBERMAP")])
        for arm in "BRZ":
            wave, flux, _, _, resolution = (
                hdus[f"{arm}_{name}"] for name in ("WAVELENGTH", "FLUX", "IVAR", "MASK", "RESOLUTION")
            )
            shape = (len(rows), wave.shape[0])
            mask = 4 * (random.uniform(size=shape) < 0.1) + 8 * (random.uniform(size=shape) < 0.1)
            mask[:, 100:120] |= 16
            planes = {
                "WAVELENGTH": wave.data,
                "FLUX": (flux.data[rows] + random.normal(size=shape)).astype(np.float32),
                "IVAR": (random.uniform(0.2, 3, shape) * (random.uniform(size=shape) > 0.02)).astype(np.float32),
                "MASK": mask.astype(np.int32),
                "RESOLUTION": resolution.data[rows],
            }
            for name, values in planes.items():
                if f"{arm}_{name}" not in without:
                    kind = fits.CompImageHDU if name == "MASK" and compressed_masks else fits.ImageHDU
                    made.append(kind(values, name=f"{arm}_{name}"))
                    made[-1].header.update({"BUNIT": hdus[f"{arm}_{name}"].header.get("BUNIT", "")})
    made.writeto(path, checksum=True)
    return path


@pytest.fixture(scope="module")
def exposures(tmp_path_factory):
    return write_exposures(tmp_path_factory.mktemp("desi") / "spectra-main-dark-100.fits")


def combined_by_loops(path, target):
    """Weight and weighted flux of each pixel, added exposure by exposure in Python floats."""
    weight, weighted = {}, {}
    fatal = {"B": 1 << 22, "R": 1 << 23, "Z": 1 << 24}
    with fits.open(path) as hdus:
        fibermap = hdus["FIBERMAP"].data
        for row in np.flatnonzero(fibermap["TARGETID"].astype(str) == target):
            for arm in "BRZ":
                if fibermap["FIBERSTATUS"][row] & (fatal[arm] | BAD_POSITION):
                    continue
                columns = [hdus[f"{arm}_{name}"].data for name in ("WAVELENGTH", "FLUX", "IVAR", "MASK")]
                for wavelength, flux, ivar, mask in zip(columns[0], *(c[row] for c in columns[1:]), strict=True):
                    pixel = round((float(wavelength) - 3600) / 0.8)
                    if mask == 0 and ivar > 0:
                        weight[pixel] = weight.get(pixel, 0.0) + float(ivar)
                        weighted[pixel] = weighted.get(pixel, 0.0) + float(ivar) * float(flux)
    pixels = sorted(weight)
    return pixels, [weighted[pixel] / weight[pixel] for pixel in pixels], [weight[pixel] for pixel in pixels]


@pytest.mark.parametrize("target", [FIRST, SECOND])
def test_exposures_of_a_target_are_combined_as_a_loop_over_exposures_and_pixels_combines_them(exposures, target):
    read = read_desi_exposures(exposures)
    row = read.object_id.index(target)
    pixels, flux, weight = combined_by_loops(exposures, target)
    assert np.flatnonzero(read.mask[row]).tolist() == pixels
    np.testing.assert_allclose(read.flux[row, pixels], flux, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read.inverse_variance[row, pixels], weight, rtol=1e-6)


def test_pixels_that_are_good_in_no_exposure_are_masked(exposures):
    assert not read_desi_exposures(exposures).mask[:, 100:120].any()


def test_each_target_comes_once_at_its_place(exposures):
    read = read_desi_exposures(exposures)
    assert sorted(read.object_id) == [FIRST, SECOND, SKY]
    coadd = read_desi(FIBRES)
    row = read.object_id.index(SECOND)
    assert (read.ra[row], read.dec[row]) == (coadd.ra[1], coadd.dec[1])


def test_exposures_kept_apart_are_objects_of_their_own(exposures, caplog):
    with caplog.at_level(logging.WARNING):
        read = read_desi_exposures(exposures, combine=False)
    places = [0, 2, 3, 4, 5, 6]
    assert read.object_id == tuple(f"{(FIRST, SECOND, SKY)[{2: 0, 4: 1, 3: 2}[ROWS[n]]]}-{70000 + n}" for n in places)
    assert f"{FIRST}-70001" in caplog.text  # its fibre was not on the target
    with fits.open(exposures) as hdus:
        seen = (hdus["B_MASK"].data[4] == 0) & (hdus["B_IVAR"].data[4] > 0)
        first = seen[:2700]  # where no other arm reaches
        assert np.array_equal(read.mask[3, :2700].numpy(), first)
        np.testing.assert_allclose(read.flux[3, :2700][first], hdus["B_FLUX"].data[4, :2700][first], rtol=1e-6)


def test_an_arm_with_a_bad_amplifier_is_left_out_and_the_others_kept(exposures):
    read = read_desi_exposures(exposures, combine=False)
    mask = read.mask[read.object_id.index(f"{FIRST}-70003")].numpy()
    wavelength = read.wavelength[0].numpy()
    assert not mask[(wavelength > 5810) & (wavelength < 7510)].any()  # R alone
    assert mask[wavelength < 5700].mean() > 0.7
    assert mask[wavelength > 7700].mean() > 0.7


def test_sky_fibres_are_left_out_on_request(exposures):
    batches = list(desi_exposure_batches(exposures, targets_only=True))
    assert [name for batch in batches for name in batch.object_id] == [FIRST, SECOND]
    assert [name for batch in desi_batches(FIBRES, targets_only=True) for name in batch.object_id] == [FIRST, SECOND]


@pytest.mark.parametrize("rows_per_batch", [1, 2, 4])
def test_batches_never_divide_a_target(exposures, rows_per_batch):
    whole = read_desi_exposures(exposures)
    batches = list(desi_exposure_batches(exposures, rows_per_batch=rows_per_batch))
    assert max(map(len, batches)) <= max(1, rows_per_batch)
    assert tuple(name for batch in batches for name in batch.object_id) == whole.object_id
    np.testing.assert_allclose(np.concatenate([batch.flux for batch in batches]), whole.flux, rtol=1e-6)
    assert np.array_equal(np.concatenate([batch.mask for batch in batches]), whole.mask)


def test_a_coadd_with_a_target_twice_says_how_to_read_it(exposures):
    with pytest.raises(ObservationError, match=rf"spectra-main.*object {FIRST} comes twice, in rows \[0, 1\]"):
        read_desi(exposures)


def test_an_exposure_with_a_target_twice_is_an_error(exposures, tmp_path):
    copy = tmp_path / "spectra-twice.fits"
    with fits.open(exposures) as hdus:
        hdus["FIBERMAP"].data["EXPID"] = 70000
        hdus.writeto(copy, checksum=True)
    with pytest.raises(ObservationError, match=rf"spectra-twice\.fits: object {FIRST}-70000 comes twice"):
        read_desi_exposures(copy, combine=False)


def test_a_file_cut_off_between_two_extensions_is_an_error(tmp_path):
    """Where a file ends at the end of an extension, nothing in it says that masks should follow."""
    path = write_exposures(tmp_path / "spectra.fits", without=("Z_MASK", "Z_RESOLUTION"))
    with pytest.raises(ObservationError, match=r"spectra\.fits: .*\['Z_MASK'\] are missing. Was the file cut short"):
        read_desi_exposures(path)


# ---- redshifts -------------------------------------------------------------------------------------------------------


def write_redrock(path, targets, redshifts, warnings=None):
    names = {"TARGETID": np.array(targets, np.int64), "Z": np.array(redshifts, float)}
    table = Table({**names, "ZERR": np.full(len(targets), 1e-5), "ZWARN": np.array(warnings or [0] * len(targets))})
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(table, name="REDSHIFTS")]).writeto(path)
    return path


def test_redshifts_are_joined_by_target_whatever_their_order(tmp_path):
    spectra = read_desi(FIBRES)
    redshifts = read_redrock(write_redrock(tmp_path / "r.fits", [7, int(SECOND), int(FIRST)], [0.7, 0.2, 0.1]))
    joined = redshifts_of_targets(spectra, redshifts)
    assert joined.object_id == (FIRST, SECOND)
    assert joined.values.tolist() == pytest.approx([0.1, 0.2])
    assert joined.ra.tolist() == spectra.ra.tolist()


def test_targets_without_a_redshift_are_left_out_and_warnings_masked(tmp_path):
    redshifts = read_redrock(write_redrock(tmp_path / "r.fits", [int(SECOND)], [0.2], [4]))
    joined = redshifts_of_targets(read_desi(FIBRES), redshifts)
    assert joined.object_id == (SECOND,)
    assert not joined.mask.any()
    assert redshifts_of_targets(read_desi(FIBRES, [2]), redshifts) is None


def test_exposures_have_the_redshift_of_their_target(exposures, tmp_path):
    redshifts = read_redrock(write_redrock(tmp_path / "r.fits", [int(FIRST), int(SECOND)], [0.1, 0.2]))
    joined = redshifts_of_targets(read_desi_exposures(exposures, combine=False), redshifts)
    expected = {name: 0.1 if name.startswith(FIRST) else 0.2 for name in joined.object_id}
    assert len(expected) == 5
    assert joined.values.tolist() == pytest.approx(list(expected.values()))


@pytest.mark.parametrize("beside", ["redrock-main-dark-100.fits", "redrock-main-dark-100.fits.gz"])
def test_the_redrock_file_is_found_by_its_name(tmp_path, beside):
    assert redrock_file(tmp_path / "coadd-main-dark-100.fits") is None
    (tmp_path / beside).touch()
    for name in ("coadd-main-dark-100.fits", "spectra-main-dark-100.fits.gz"):
        assert redrock_file(tmp_path / name) == tmp_path / beside
    assert redrock_file(tmp_path / "other.fits") is None


def test_the_real_coadd_comes_with_its_redshift():
    spectrum, redshift = read_desi_coadd(real_file("desi-coadd-4-80613.fits"), None)
    assert spectrum.object_id == redshift.object_id == ("39633345008634465",)
    assert isinstance(redshift, ScalarObservation)
    assert redshift.values.item() == pytest.approx(0.36874355, abs=1e-7)
    assert (redshift.ra.item(), redshift.dec.item()) == (spectrum.ra.item(), spectrum.dec.item())


def test_exposures_come_combined_or_apart_as_the_settings_say(exposures):
    (combined,) = read_desi_spectra(exposures, None)
    (apart,) = read_desi_spectra(exposures, ExposureSettings(combine=False, targets_only=False))
    assert combined.object_id == (FIRST, SECOND)
    assert len(apart) == 6


def test_a_redrock_file_of_other_targets_is_an_error(tmp_path):
    coadd = tmp_path / "coadd-x.fits"
    coadd.write_bytes(FIBRES.read_bytes())
    write_redrock(tmp_path / "redrock-x.fits", [1, 2], [0.1, 0.2])
    with pytest.raises(
        ObservationError, match=r"redrock-x\.fits: expected redshifts of the objects in .*coadd-x\.fits"
    ):
        list(read_desi_coadd(coadd, DesiSettings()))
