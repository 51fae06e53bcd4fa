"""Bad files, for every reader of FITS and tables: an error that names the file, and the object where there is one.

Each case says how a good file is spoilt, and what the message must say was expected and found. Nothing may pass as a
shorter result, as NaN, or as an error of another kind.
"""

import gzip
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from armillary.data.import_survey import import_survey
from armillary.data.observations import Observation, ObservationError
from armillary.data.readers.catalogues import ScalarTableSettings, scalar_table_batches, sdss_galaxy_batches
from armillary.data.readers.desi import desi_batches, desi_exposure_batches, read_redrock
from armillary.data.readers.image_cutouts import ImageCutoutSettings, image_cutout_batches
from armillary.data.readers.images import read_image
from armillary.data.readers.manga import manga_batches
from armillary.data.readers.sdss import boss_plate_batches, read_boss_redshifts, read_sdss_redshift, read_sdss_spec
from armillary.data.real_files import real_file

# The real redrock file has TNULL where the standard has none.
pytestmark = pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")

GALAXY, FIBRES = real_file("desi-coadd-4-80613.fits"), real_file("desi-coadd-sv3-dark-26065.fits")
TABLE = ScalarTableSettings(columns={"scalar/redshift": "z"}, object_id="id", ra="ra", dec="dec")


@dataclass(frozen=True)
class Case:
    """One reader, a good file for it, and the extensions and columns that it cannot do without."""

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    extensions: tuple[str, ...] = ()
    columns: tuple[tuple[int | str, str], ...] = ()


def copy_of(name: str) -> Callable[[Path], None]:
    return lambda path: shutil.copy(real_file(name), path)


def make_exposures(path: Path) -> None:
    """Two exposures of one target and one of another, cut down from a real coadd."""
    rows = np.array([2, 2, 4])
    with fits.open(FIBRES) as hdus:
        fibermap = Table(hdus["FIBERMAP"].data)["TARGETID", "OBJTYPE", "TARGET_RA", "TARGET_DEC"][rows]
        fibermap["FIBERSTATUS"], fibermap["EXPID"] = np.zeros(3, np.int32), np.array([7, 8, 7], np.int32)
        made = [fits.PrimaryHDU(), fits.BinTableHDU(fibermap, name="FIBERMAP")]
        for arm in "BRZ":
            made.append(hdus[f"{arm}_WAVELENGTH"].copy())
            for name in ("FLUX", "IVAR", "MASK"):
                made.append(fits.ImageHDU(hdus[f"{arm}_{name}"].data[rows], name=f"{arm}_{name}"))
                made[-1].header["BUNIT"] = hdus[f"{arm}_{name}"].header.get("BUNIT", "")
        fits.HDUList(made).writeto(path, checksum=True)


def make_plate(path: Path) -> None:
    """The real flux of a plate with the rest of the data model."""
    with fits.open(real_file("boss-spPlate-4055-55359.fits")) as hdus:
        shape = hdus[0].shape
        planes = [np.full(shape, 3.0, np.float32), *np.zeros((2, *shape), np.int32), np.full(shape, 1.1, np.float32)]
        hdus.extend([fits.ImageHDU(plane) for plane in planes])
        plug_map = Table({"FIBERID": np.arange(1, 21), "RA": np.linspace(1, 2, 20), "DEC": np.linspace(1, 2, 20)})
        hdus.append(fits.BinTableHDU(plug_map, name="PLUGMAP"))
        hdus.writeto(path, checksum=True)


def make_plate_redshifts(path: Path) -> None:
    table = Table({"PLATE": [1, 1], "MJD": [2, 2], "FIBERID": [3, 4], "PLUG_RA": [1.0, 2.0], "PLUG_DEC": [0.0, 0.0]})
    table["Z"], table["Z_ERR"], table["ZWARNING"] = [0.1, 0.2], [1e-4, 1e-4], [0, 0]
    table.write(path)


def make_cube(path: Path) -> None:
    """A cube of 3 x 2 spaxels in the layout of a MaNGA LOGCUBE."""
    shape = (50, 3, 2)
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 1.0, "CRVAL2": 2.0, "CRPIX1": 1.0})
    header.update({"CRPIX2": 1.0, "CD1_1": -1.4e-4, "CD2_2": 1.4e-4, "BUNIT": "1E-17 erg/s/cm^2/Ang/spaxel"})
    hdus = fits.HDUList([fits.PrimaryHDU(header=fits.Header({"PLATEIFU": "1-2"}))])
    hdus.append(fits.ImageHDU(np.ones(shape, np.float32), header, name="FLUX"))
    hdus += [
        fits.ImageHDU(np.ones(shape, np.float32), name="IVAR"),
        fits.ImageHDU(np.zeros(shape, np.int32), name="MASK"),
    ]
    hdus.append(fits.ImageHDU(3622.0 + np.arange(50.0), name="WAVE"))
    hdus.writeto(path, checksum=True)


def make_table(path: Path) -> None:
    Table({"id": [11, 12, 13], "z": [0.1, 0.2, 0.3], "ra": [1.0, 2.0, 3.0], "dec": [0.0, 0.0, 0.0]}).write(path)


def make_image(path: Path) -> None:
    """Noise and two bright sources."""
    pixels = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    pixels[10:14, 20:24] += 100
    pixels[28:32, 34:38] += 200
    fits.PrimaryHDU(pixels, fits.Header({"BUNIT": "nanomaggy"})).writeto(path, checksum=True)


def read_cutouts(path: Path) -> list[Observation]:
    """The image as the one of its folder."""
    settings = ImageCutoutSettings(modality="image/hsc", bands={"g": path.name}, size=8)
    return list(image_cutout_batches(path.parent, settings))


def drained(stream: Callable[[Path], Iterator[Observation]]) -> Callable[[Path], list[Observation]]:
    return lambda path: list(stream(path))


CASES = {
    "DESI coadd": Case(
        copy_of("desi-coadd-4-80613.fits"),
        drained(desi_batches),
        ("FIBERMAP", "B_FLUX", "R_IVAR", "Z_MASK", "Z_RESOLUTION"),
        (("FIBERMAP", "TARGETID"), ("FIBERMAP", "TARGET_RA")),
    ),
    "DESI exposures": Case(
        make_exposures,
        drained(desi_exposure_batches),
        ("FIBERMAP", "B_FLUX", "R_IVAR", "Z_MASK"),
        (("FIBERMAP", "FIBERSTATUS"), ("FIBERMAP", "TARGETID")),
    ),
    "redrock": Case(
        copy_of("desi-redrock-4-80613.fits"), read_redrock, ("REDSHIFTS",), (("REDSHIFTS", "Z"), ("REDSHIFTS", "ZWARN"))
    ),
    "SDSS spectrum": Case(
        copy_of("sdss-spec-0266-51602-0031.fits"),
        read_sdss_spec,
        ("COADD", "SPECOBJ"),
        ((1, "flux"), (1, "ivar"), (1, "and_mask"), (2, "PLUG_RA")),
    ),
    "SDSS redshift": Case(
        copy_of("sdss-spec-0266-51602-0031.fits"), read_sdss_redshift, ("SPECOBJ",), ((2, "Z"), (2, "ZWARNING"))
    ),
    "plate": Case(make_plate, drained(boss_plate_batches), ("PLUGMAP",), (("PLUGMAP", "FIBERID"), ("PLUGMAP", "DEC"))),
    "plate redshifts": Case(make_plate_redshifts, read_boss_redshifts, (), ((1, "Z"), (1, "FIBERID"))),
    "MaNGA rows": Case(
        lambda path: path.write_bytes(gzip.decompress(real_file("manga-spectra.fits.gz").read_bytes())),
        drained(manga_batches),
        ("WAVE", "FLUX", "IVAR", "MASK", "SRES"),
    ),
    "MaNGA cube": Case(make_cube, drained(manga_batches), ("WAVE", "FLUX", "IVAR", "MASK")),
    "SDSS galaxies": Case(
        copy_of("sdss-galaxies-5000.fits"), drained(sdss_galaxy_batches), (), ((1, "Z"), (1, "MODELFLUX_IVAR"))
    ),
    "table": Case(
        make_table, drained(lambda path: scalar_table_batches(path, TABLE)), (), ((1, "id"), (1, "z"), (1, "dec"))
    ),
    "image": Case(make_image, lambda path: read_image({"g": path}, "image/hsc")),
    "cutouts": Case(make_image, read_cutouts),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def good(case, tmp_path):
    path = tmp_path / "input.fits"
    case.make(path)
    return path


def spoil(path: Path, change: Callable[[Any], object]) -> None:
    """Rewrite the file after `change(hdus)`, checksums put right."""
    with fits.open(path) as hdus:
        for hdu in hdus:
            hdu.data  # noqa: B018  (read before the file is replaced)
        change(hdus)
        hdus.writeto(path, overwrite=True, checksum=True)


def assert_refused(read: Callable[[Path], object], path: Path, *problems: str) -> None:
    """The reader refuses the file with an ObservationError that begins with its path and says all of `problems`."""
    with pytest.raises(ObservationError, match=rf"^{re.escape(str(path))}") as caught:
        read(path)
    said = str(caught.value).removeprefix(str(path))
    for problem in problems:
        assert re.search(problem, said), f"{problem!r} is not in {said}"


def numbers(read: Any) -> list[bytes]:
    """Every number of what a reader gave."""
    observations = read if isinstance(read, list) else [getattr(read, "image", read)]
    found = [value for observation in observations for value in vars(observation).values()]
    return [value.contiguous().numpy().tobytes() for value in found if isinstance(value, torch.Tensor)]


def test_the_good_files_are_good(case, good):
    assert any(numbers(case.read(good)))


# ---- files that are not whole ----------------------------------------------------------------------------------------


def extents(path: Path) -> list[tuple[int, int, int]]:
    """Of each extension: where its header begins, its data begin, and its data end before the padding."""
    with fits.open(path, disable_image_compression=True) as hdus:
        places = [hdu.fileinfo() for hdu in hdus]
        return [(p["hdrLoc"], p["datLoc"], p["datLoc"] + hdu.size) for p, hdu in zip(places, hdus, strict=True)]


@pytest.mark.parametrize("where", ["first header", "last header", "data", "end of data", "padding", "one byte short"])
def test_a_file_cut_short_is_refused_wherever_it_ends(case, good, where):
    content, places = good.read_bytes(), extents(good)
    largest = max(places, key=lambda place: place[2] - place[1])
    last = max((place for place in places if place[2] > place[1]), key=lambda place: place[1])
    size = {
        "first header": 1000,
        "last header": places[-1][0] + 400,
        "data": (largest[1] + largest[2]) // 2,
        "end of data": last[2] - 1,
        "padding": (last[2] // 2880) * 2880 + 2880 - 7,
        "one byte short": len(content) - 1,
    }[where]
    good.write_bytes(content[:size])
    assert_refused(case.read, good, r"cut short|damaged|expected a FITS file", r"\d+ bytes|byte \d+")


@pytest.mark.parametrize("name", ["DESI coadd", "DESI exposures", "redrock", "SDSS spectrum", "plate", "MaNGA rows"])
def test_a_file_that_ends_between_two_extensions_is_refused(tmp_path, name):
    """Nothing in what is left says that more should follow; what is needed of it is missed by name."""
    good, short = tmp_path / "good.fits", tmp_path / "short.fits"
    CASES[name].make(good)
    content, needed = good.read_bytes(), CASES[name].extensions
    with fits.open(good) as hdus:
        last = max(map(hdus.index_of, needed))
    for start, _, _ in extents(good)[1 : last + 1]:
        short.write_bytes(content[:start])
        assert_refused(CASES[name].read, short, r"missing|holds no inverse variance|expected the arms")


def test_an_empty_file_a_missing_one_and_one_that_is_no_fits_are_refused(case, tmp_path):
    empty, text, folder = tmp_path / "empty.fits", tmp_path / "text.fits", tmp_path / "folder.fits"
    empty.touch()
    text.write_text("object,redshift\n" * 400)
    assert_refused(case.read, empty, "expected a FITS file of 0 bytes")
    assert_refused(case.read, text, "expected a FITS file of 6400 bytes")
    if case is not CASES["cutouts"]:
        assert_refused(case.read, tmp_path / "nowhere.fits", "no such file")
        folder.mkdir()
        assert_refused(case.read, folder, "cannot be read")


@pytest.mark.parametrize("share", [0.02, 0.6, 0.999])
def test_a_gzipped_file_cut_short_is_refused(case, good, share):
    packed = good.with_name("packed.fits.gz")
    content = gzip.compress(good.read_bytes())
    packed.write_bytes(content[: int(share * len(content))])
    assert_refused(case.read, packed, "expected a whole gzip file")


def test_a_gzipped_file_is_read_as_the_plain_one(case, good, tmp_path):
    packed = tmp_path / "packed" / "input.fits.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(good.read_bytes()))
    plain = numbers(case.read(good))
    assert any(plain)
    assert numbers(case.read(packed)) == plain


def test_a_flipped_bit_does_not_pass_where_there_are_checksums(case, good):
    """The largest of the extensions that the reader reads."""
    spoil(good, lambda hdus: None)
    wanted = {*case.extensions, *(extension for extension, _ in case.columns)}
    with fits.open(good) as hdus:
        read = {hdus.index_of(extension) for extension in wanted} or set(range(len(hdus)))
    places = [(begin, end) for number, (_, begin, end) in enumerate(extents(good)) if number in read]
    start, end = max(places, key=lambda place: place[1] - place[0])
    content = bytearray(good.read_bytes())
    content[(start + end) // 2] ^= 0x10
    good.write_bytes(content)
    assert_refused(case.read, good, r"do not agree with its DATASUM")


def test_a_damaged_header_is_refused_or_does_no_harm(case, good):
    """Bytes overwritten in headers, one to three at a time: what astropy then raises, of whatever kind, is not seen."""
    random, content, places = np.random.default_rng(0), good.read_bytes(), extents(good)
    messages = []
    for _ in range(12):
        spoilt = bytearray(content)
        first, stop, _ = places[random.integers(len(places))]
        for place in random.integers(first, stop, random.integers(1, 4)):
            spoilt[place] = random.integers(32, 127)
        good.write_bytes(spoilt)
        try:
            case.read(good)
        except ObservationError as problem:
            messages.append(str(problem))
    assert messages
    assert all(message.startswith(str(good)) for message in messages)


# ---- files that lack something ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, extension", [(n, e) for n, case in CASES.items() for e in case.extensions])
def test_each_extension_that_is_missing_is_named(tmp_path, name, extension):
    path = tmp_path / "without.fits"
    CASES[name].make(path)
    spoil(path, lambda hdus: hdus.pop(extension))
    # Of the SDSS's files the extensions are read by number: the one behind takes the place of the one that is missing.
    is_numbered = name.startswith(("SDSS", "plate"))
    assert_refused(CASES[name].read, path, r"extension \d" if is_numbered else extension, "missing")


@pytest.mark.parametrize("name, place", [(n, place) for n, case in CASES.items() for place in case.columns])
def test_each_column_that_is_missing_is_named(tmp_path, name, place):
    path, (extension, column) = tmp_path / "without.fits", place
    CASES[name].make(path)
    spoil(path, lambda hdus: hdus[extension].columns.del_col(column))
    assert_refused(CASES[name].read, path, rf"extension {extension} must have columns .*missing: \['{column}'\]")


# ---- files that hold something else ----------------------------------------------------------------------------------

WRONG = [
    ("DESI coadd", lambda h: h["B_FLUX"].header.set("BUNIT", "Jy"), "BUNIT of extension B_FLUX must be .*found 'Jy'"),
    ("DESI coadd", lambda h: h["Z_IVAR"].header.set("BUNIT", "10**+30 (s2 cm4 Angstrom2) / erg2"), "Z_IVAR must be"),
    ("DESI coadd", lambda h: h["B_WAVELENGTH"].header.set("BUNIT", "nm"), "B_WAVELENGTH must be Angstrom, found 'nm'"),
    ("DESI exposures", lambda h: h["R_FLUX"].header.set("BUNIT", "electron"), "BUNIT of extension R_FLUX must be"),
    ("SDSS spectrum", lambda h: h[0].header.set("BUNIT", "1E-16 erg/cm^2/s/Ang"), "primary header must be .*10 of it"),
    ("SDSS spectrum", lambda h: h[0].header.set("VACUUM", False), "wavelengths must be in vacuum, found VACUUM = F"),
    ("plate", lambda h: h[0].header.set("BUNIT", "adu"), "BUNIT of .*must be .*found 'adu'"),
    (
        "plate",
        lambda h: h[0].header.remove("COEFF1"),
        "the header of extension 0 must hold a number COEFF1, found None",
    ),
    ("MaNGA rows", lambda h: h["FLUX"].header.set("BUNIT", "Jy"), "BUNIT of extension FLUX must be"),
    (
        "MaNGA cube",
        lambda h: h["FLUX"].header.set("BUNIT", "Jy/spaxel"),
        "BUNIT of extension FLUX, per spaxel, must be",
    ),
    ("MaNGA cube", lambda h: h[0].header.remove("PLATEIFU"), "the header of a cube must hold PLATEIFU, found None"),
    ("table", lambda h: h[1].columns.change_unit("ra", "rad"), "column ra must be in deg, found the unit 'rad'"),
    ("SDSS galaxies", lambda h: h[1].columns.change_unit("RA", "rad"), "TUNIT of column RA .*must be deg, found 'rad'"),
    ("image", lambda h: h[0].header.set("BUNIT", "adu"), "states no flux unit .BUNIT = 'adu'.; give zero_point"),
    # shapes
    ("DESI coadd", lambda h: cut(h["B_FLUX"]), r"extension B_FLUX must have shape \[1, 2751\], found \[1, 2750\]"),
    ("DESI coadd", lambda h: cut(h["R_RESOLUTION"]), r"R_RESOLUTION must have shape \[1, 'any', 2326\], found"),
    ("DESI exposures", lambda h: cut(h["Z_MASK"]), r"Z_MASK must have shape \[3, 2881\], found \[3, 2880\]"),
    ("plate", lambda h: cut(h[1]), r"extension 1 must have shape \[20, 4637\], found \[20, 4636\]"),
    ("MaNGA rows", lambda h: cut(h["WAVE"]), r"FLUX must have shape \['any', 4562\], found \[8, 4563\]"),
    ("MaNGA cube", lambda h: cut(h["IVAR"]), r"extension IVAR must have shape \[50, 3, 2\], found \[50, 3, 1\]"),
    ("MaNGA cube", lambda h: set_data(h["FLUX"], np.ones(7)), r"extension FLUX must have shape .*found \[7\]"),
    ("image", lambda h: set_data(h[0], np.ones((2, 3, 4))), "expected a two-dimensional image, found none"),
    ("redrock", lambda h: drop_row(h, "FIBERMAP"), "TARGETID of FIBERMAP and REDSHIFTS must agree row by row"),
    ("plate", lambda h: drop_row(h, "PLUGMAP"), "the plug map must list the 20 fibres of the flux, found 19"),
    # coordinates, and numbers that are none
    ("DESI coadd", lambda h: put(h["FIBERMAP"], "TARGET_DEC", -95), "object 39633345008634465: dec must lie in .*-95"),
    ("DESI coadd", lambda h: put(h["FIBERMAP"], "TARGET_RA", np.inf), "object 39633345008634465: ra must lie in .*inf"),
    ("SDSS spectrum", lambda h: put(h[2], "PLUG_DEC", 120), "object 0266-51602-0031: dec must lie in .*120"),
    ("plate", lambda h: put(h["PLUGMAP"], "DEC", -91, row=3), "object 4055-55359-0004: dec must lie in .*-91"),
    ("table", lambda h: put(h[1], "ra", np.nan, row=1), "object 12: ra and dec must both be known .*nan"),
    ("table", lambda h: put(h[1], "ra", 361.0, row=2), r"object 13: ra must lie in \[0, 360\) degrees; found 361"),
    ("table", lambda h: put(h[1], "z", 12.0, row=2), r"column z: .*object 13: value must lie in .*found 12"),
    ("redrock", lambda h: put(h["REDSHIFTS"], "Z", 80.0), "object 39633345008634465: value must lie in .*found 80"),
    ("DESI coadd", lambda h: h["R_WAVELENGTH"].data.__setitem__(5, np.nan), "R_WAVELENGTH must lie on a common grid"),
    ("DESI coadd", lambda h: [h[f"{arm}_IVAR"].data.fill(0) for arm in "BRZ"], "no valid pixel in any of 1 fibres"),
    ("MaNGA cube", lambda h: h["MASK"].data.fill(1), "no spectrum has a valid pixel"),
    ("image", lambda h: h[0].data.fill(np.nan), "no valid pixel in any band"),
    # the same object twice
    ("DESI coadd", lambda h: double_rows(h), r"object 39633345008634465 comes twice, in rows \[0, 1\]"),
    ("redrock", lambda h: double_rows(h, ("REDSHIFTS",)), r"object 39633345008634465 comes twice, in rows \[0, 1\]"),
    (
        "plate",
        lambda h: put(h["PLUGMAP"], "FIBERID", 1, row=4),
        r"object 4055-55359-0001 comes twice, in rows \[0, 4\]",
    ),
    ("plate redshifts", lambda h: put(h[1], "FIBERID", 3, row=1), r"object 0001-2-0003 comes twice, in rows \[0, 1\]"),
    ("table", lambda h: put(h[1], "id", 11, row=2), "object 11 comes twice, in rows 0 and 2 of id"),
    # something else where a table or an image should be
    ("DESI coadd", lambda h: replace(h, "FIBERMAP", np.ones((3, 3))), "extension FIBERMAP must hold a table, found an"),
    ("SDSS galaxies", lambda h: replace(h, 1, np.ones((3, 3))), "extension 1 must hold a table, found an image"),
    ("table", lambda h: replace(h, 1, np.ones((3, 3))), "extension 1 must hold a table, found an image"),
    ("MaNGA rows", lambda h: h["IVAR"].__setattr__("data", None), "extension IVAR must hold an image"),
    ("SDSS galaxies", lambda h: put_bands(h), "column MODELFLUX must hold 5 bands, found shape"),
]


def cut(hdu):
    """Drop the last pixel of the last axis."""
    hdu.data = hdu.data[..., :-1].copy()


def set_data(hdu, values):
    hdu.data = values.astype(np.float32)


def put(hdu, column, value, row=0):
    hdu.data[column][row] = value


def drop_row(hdus, name):
    place = hdus.index_of(name)
    hdus[place] = fits.BinTableHDU(Table(hdus[place].data)[:-1], name=name)


def double_rows(hdus, names=None):
    """Every object once more."""
    for place, hdu in enumerate(hdus):
        if names is None and hdu.is_image and len(hdu.shape) > 1:
            hdu.data = np.concatenate([hdu.data, hdu.data])
        elif (names is None or hdu.name in names) and not hdu.is_image:
            rows = Table(hdu.data)
            hdus[place] = fits.BinTableHDU(rows[np.tile(np.arange(len(rows)), 2)], name=hdu.name)


def replace(hdus, place, values):
    number = hdus.index_of(place)
    hdus[number] = fits.ImageHDU(values, name=hdus[number].name)


def put_bands(hdus):
    table = Table(hdus[1].data)
    table["MODELFLUX"] = table["MODELFLUX"][:, :4]
    hdus[1] = fits.BinTableHDU(table)


@pytest.mark.parametrize("name, change, problem", WRONG, ids=[f"{name}: {p[:40]}" for name, _, p in WRONG])
def test_what_is_wrong_is_said(tmp_path, name, change, problem):
    path = tmp_path / "wrong.fits"
    CASES[name].make(path)
    spoil(path, change)
    assert_refused(CASES[name].read, path, problem)


# ---- tables of other kinds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("t.parquet", b"PAR1" + bytes(200), "cannot be read as .parquet"),
        ("t.parquet", b"", "cannot be read as .parquet"),
        ("t.csv", b"", "cannot be read as .csv"),
        ("t.csv", b"id,z,ra,dec\n1,0.1,2\n", "cannot be read as .csv .*Expected 4 columns, got 3"),
        ("t.csv", b"id,z,ra,dec\n1,near,2,3\n", "column z must hold one number for each object .*near"),
        ("t.csv", b"\xff\xfe\x00i\x00d\n\xd8\x00", "cannot be read as .csv"),
        ("t.ecsv", b"id z\n1 2\n", "cannot be read as .ecsv"),
        ("t.txt", b"id,z\n", "expected a table in .fits, .fits.gz, .parquet, .csv or .ecsv"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(CASES["table"].read, path, problem)


def test_a_parquet_table_cut_short_or_with_a_spoilt_page_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    rows = np.arange(5000)
    content = pa.table({"id": rows, "z": rows / 1e5, "ra": rows / 100.0, "dec": rows / 100.0})
    pq.write_table(content, path, compression="zstd", write_page_checksum=True)
    whole = path.read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        assert_refused(CASES["table"].read, path, "cannot be read as .parquet")
    spoilt = bytearray(whole)
    spoilt[len(whole) // 3] ^= 0x08
    path.write_bytes(spoilt)
    assert_refused(CASES["table"].read, path, "cannot be read as .parquet")


# ---- in an import ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, name, change, problem",
    [
        (
            "desi-coadd",
            "coadd-1.fits",
            lambda h: put(h["FIBERMAP"], "TARGET_RA", np.nan),
            r"object 39633345008634465: ra and dec must be known to join a dataset, found \(nan, 56",
        ),
        ("desi-coadd", "coadd-1.fits", lambda h: h.pop("R_FLUX"), "extension R_FLUX is missing"),
    ],
)
def test_an_import_names_the_file_of_an_object_that_it_cannot_take(tmp_path, source, name, change, problem):
    path = tmp_path / name
    shutil.copy(GALAXY, path)
    spoil(path, change)
    assert_refused(lambda path: import_survey(source, [path], tmp_path / "d"), path, problem)


def test_an_object_in_two_files_is_an_error_that_names_both(tmp_path):
    for name in ("coadd-1.fits", "coadd-2.fits"):
        shutil.copy(GALAXY, tmp_path / name)
    with pytest.raises(ObservationError, match=r"coadd-2\.fits: object 39633345008634465 .*twice.*coadd-1\.fits"):
        import_survey("desi-coadd", [tmp_path], tmp_path / "d")
