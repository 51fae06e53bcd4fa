"""Multimodal Universe v1.5, on small collections of the published layout: columns, types and names of its cards."""

import logging

import hats
import hpgeom
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armillary.data.observations import ObservationError
from armillary.data.readers import multimodal_universe_hats
from armillary.data.readers.multimodal_universe_hats import (
    MultimodalUniverseHatsSettings,
    catalogue_files,
    read_multimodal_universe_hats,
)
from armillary.data.readers.survey_sources import SOURCES
from armillary.settings import load_settings

SIZE = 6
FLAG_IS_WARNING = MultimodalUniverseHatsSettings(flag_true_means="warning")

PROPERTIES = """#HATS catalog
obs_collection={name}
dataproduct_type={kind}
hats_nrows={rows}
hats_col_ra=ra
hats_col_dec=dec
hats_col_healpix=_healpix_29
hats_col_healpix_order=29
hats_npix_suffix=.parquet
hats_order=4
moc_sky_fraction=0.00033
hats_builder=hats-import v0.7.3, hats v0.7.3
"""


def write_catalogue(folder, table, name, kind="object"):
    """A HATS catalogue of order 4, as hats-import lays it out."""
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    healpix = hpgeom.angle_to_pixel(2**29, ra, dec, nest=True, lonlat=True, degrees=True).astype(np.int64)
    table = table.add_column(0, "_healpix_29", pa.array(healpix)).take(np.argsort(healpix))
    pixels = np.sort(healpix) >> (2 * 25)
    for pixel in np.unique(pixels):
        path = folder / f"dataset/Norder=4/Dir=0/Npix={pixel}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pa.array(pixels == pixel)), path, compression="zstd")
    lines = ["Norder,Npix", *(f"4,{pixel}" for pixel in np.unique(pixels))]
    (folder / "partition_info.csv").write_text("\n".join(lines) + "\n")
    (folder / "hats.properties").write_text(PROPERTIES.format(name=name, kind=kind, rows=len(table)))
    if kind == "margin":
        with (folder / "hats.properties").open("a") as stream:
            stream.write(f"hats_primary_table_url={name.removesuffix('_10arcs')}\nhats_margin_threshold=10.0\n")
    pq.write_metadata(table.schema, folder / "dataset/_common_metadata")
    pq.write_metadata(table.schema, folder / "dataset/_metadata")
    return folder


def write_collection(folder, table, name):
    """The catalogue, and a margin with some of the same objects."""
    folder.mkdir()
    write_catalogue(folder / name, table, name)
    write_catalogue(folder / f"{name}_10arcs", table.slice(0, 1), f"{name}_10arcs", kind="margin")
    (folder / "collection.properties").write_text(
        f"#HATS Collection\nobs_collection={name}\nhats_primary_table_url={name}\nall_margins={name}_10arcs\n"
        f"default_margin={name}_10arcs\n"
    )
    return folder


def read(path, settings=None):
    """All observations below a path, by modality and file."""
    found = {}
    for file in catalogue_files(path):
        for observation in read_multimodal_universe_hats(file, settings):
            found.setdefault(observation.modality.name, []).append(observation)
    return found


def images(values, kind):
    return pa.array(values.tolist(), pa.list_(pa.list_(pa.list_(kind))))


def hsc_table(num_objects=2):
    rng = np.random.default_rng(3)
    flux = rng.normal(0, 0.02, (num_objects, 5, SIZE, SIZE)).astype(np.float32)
    mask = np.ones(flux.shape, dtype=bool)
    mask[0, 1, 2] = False
    image = pa.StructArray.from_arrays(
        [
            pa.array([["hsc-g", "hsc-r", "hsc-i", "hsc-z", "hsc-y"]] * num_objects),
            images(flux, pa.float32()),
            images(np.full(flux.shape, 6186.0), pa.float32()),
            images(mask, pa.bool_()),
            pa.array([[0.655, 0.786, 0.584, 0.687, 0.7]] * num_objects, pa.list_(pa.float32())),
            pa.array([[0.168] * 5] * num_objects, pa.list_(pa.float32())),
        ],
        names=["band", "flux", "ivar", "mask", "psf_fwhm", "scale"],
    )
    table = pa.table(
        {
            "image": image,
            "g_cmodel_mag": pa.array(rng.uniform(20, 22, num_objects), pa.float32()),
            "g_cmodel_magerr": pa.array(np.full(num_objects, 0.01), pa.float32()),
            "ra": 242.2 + 5.0 * np.arange(num_objects),
            "dec": np.full(num_objects, 54.85),
            "object_id": [str(75339253994786944 + number) for number in range(num_objects)],
        }
    )
    return table, flux, mask


def spectra(lengths, step=0.8):
    """Lists of different length, `lambda` their tenth: what the tests compare."""
    wavelength = [3600 + step * np.arange(length) for length in lengths]
    flux = [np.sin(w / 50) for w in wavelength]
    mask = [np.arange(length) < 3 for length in lengths]
    kinds = {"flux": pa.float32(), "ivar": pa.float32(), "lsf_sigma": pa.float32(), "lambda": pa.float32()}
    values = {
        "flux": flux,
        "ivar": [np.full(length, 4.0) for length in lengths],
        "lsf_sigma": [np.full(length, 0.86) for length in lengths],
        "lambda": wavelength,
        "mask": mask,
    }
    arrays = [
        pa.array([v.tolist() for v in lists], pa.list_(kinds.get(name, pa.bool_()))) for name, lists in values.items()
    ]
    return pa.StructArray.from_arrays(arrays, names=list(values)), flux, mask


def sdss_table():
    spectrum, flux, mask = spectra((40, 31, 40))
    return (
        pa.table(
            {
                "spectrum": spectrum,
                "Z": pa.array([0.1305, 0.2, 0.3], pa.float32()),
                "Z_ERR": pa.array([3e-5, 3e-5, -6.0], pa.float32()),
                "ra": [136.5, 136.51, 136.52],
                "dec": [23.81, 23.81, 23.81],
                "ZWARNING": [False, True, False],
                "object_id": ["b'   2575025233207519232'", "b'    299489677444933632'", "b'   3381253423394562048'"],
            }
        ),
        flux,
        mask,
    )


def desi_table():
    spectrum, *_ = spectra((30, 30))
    return pa.table(
        {
            "spectrum": spectrum,
            "Z": pa.array([0.1858, 0.2], pa.float32()),
            "ZERR": pa.array([5e-5, 5e-5], pa.float32()),
            "FLUX_G": pa.array([17.86, -99.0], pa.float32()),
            "ra": [246.7, 246.71],
            "dec": [42.85, 42.85],
            "ZWARN": [False, True],
            "object_id": ["39633127718519967", "1000347531214848"],
        }
    )


def gaia_table():
    ra, dec = hpgeom.pixel_to_angle(2**29, 833383574405302936, nest=True, lonlat=True, degrees=True)
    rng = np.random.default_rng(4)

    def struct(**fields):
        return pa.StructArray.from_arrays(
            [pa.array([value], pa.float32()) for value in fields.values()], names=list(fields)
        )

    coefficients = rng.normal(0, 100, 110).astype(np.float32)
    return pa.table(
        {
            "spectral_coefficients": pa.StructArray.from_arrays(
                [pa.array([c.tolist()], pa.list_(pa.float32())) for c in (coefficients, np.abs(coefficients) / 10)],
                names=["coeff", "coeff_error"],
            ),
            "photometry": struct(phot_g_mean_mag=16.0724, phot_g_mean_flux=7014.22, phot_g_mean_flux_error=7.0),
            "astrometry": struct(ra=float(ra), ra_error=0.0299, dec=float(dec), dec_error=0.03, parallax=1.25),
            "radial_velocity": struct(radial_velocity=float("nan"), radial_velocity_error=float("nan")),
            "ra": [float(ra)],
            "dec": [float(dec)],
            "object_id": pa.array([1666767135588491904], pa.int64()),
        }
    ), coefficients


@pytest.fixture
def sdss(tmp_path):
    return write_collection(tmp_path / "sdss", sdss_table()[0], "mmu_sdss_sdss")


@pytest.fixture
def desi(tmp_path):
    return write_collection(tmp_path / "desi", desi_table(), "mmu_desi_edr_sv3")


@pytest.fixture
def hsc(tmp_path):
    return write_collection(tmp_path / "hsc", hsc_table()[0], "mmu_hsc_pdr3_dud_22.5")


def the_file(collection):
    (found,) = catalogue_files(collection)
    return found


def rewrite(path, change):
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)
    return path


def test_the_collections_of_these_tests_are_hats(hsc):
    """The public library opens them, and finds the rows that are there."""
    catalogue = hats.read_hats(hsc)
    assert catalogue.main_catalog.catalog_name == "mmu_hsc_pdr3_dud_22.5"
    assert [str(pixel) for pixel in catalogue.get_healpix_pixels()] == [
        f"Order: 4, Pixel: {file.stem.removeprefix('Npix=')}" for file in catalogue_files(hsc)
    ]


def test_images_are_read_bit_for_bit_and_the_margin_is_not(hsc):
    found, (_, flux, mask) = read(hsc)["image/hsc"], hsc_table()
    assert sorted(i for image in found for i in image.object_id) == ["75339253994786944", "75339253994786945"]
    scale = np.float32(10 ** (-0.4 * 4.5))
    for image in found:
        row = int(image.object_id[0]) - 75339253994786944
        assert image.bands == ("g", "r", "i", "z", "y")
        np.testing.assert_array_equal(image.mask[0], mask[row])
        np.testing.assert_array_equal(image.flux[0], np.where(mask[row], flux[row] * scale, 0))
        assert image.ra.item() == 242.2 + 5.0 * row


def test_the_published_noise_of_hsc_gives_the_depth_of_its_deep_layers(hsc):
    """The card prints ivar 6186 and a PSF of 0.655 arcsec in g: 28 mag with zero point 27.0, 23.6 with 22.5."""
    image = read(hsc)["image/hsc"][0]
    assert 27.4 < image.depth[0, 0].item() < 28.4


def test_spectra_of_different_length_share_a_group_and_padding_is_masked(sdss):
    (spectrum,), (_, flux, bad) = read(sdss)["spectrum/sdss"], sdss_table()
    assert sorted(spectrum.object_id) == ["2575025233207519232", "299489677444933632", "3381253423394562048"]
    row = spectrum.object_id.index("299489677444933632")
    assert spectrum.flux.shape == (3, 40)
    np.testing.assert_array_equal(spectrum.mask[row], np.pad(~bad[1], (0, 9)))
    np.testing.assert_allclose(spectrum.flux[row, 3:31], flux[1][3:], rtol=1e-6)


def test_warnings_of_sdss_are_true_where_redshifts_are_bad(sdss):
    (redshift,) = read(sdss)["scalar/redshift"]
    good = [name for name, is_good in zip(redshift.object_id, redshift.mask.tolist(), strict=True) if is_good]
    assert good == ["2575025233207519232"]


@pytest.mark.parametrize("meaning, good", [("warning", "39633127718519967"), ("good", "1000347531214848")])
def test_the_warning_of_desi_means_what_the_settings_say(desi, meaning, good):
    (redshift,) = read(desi, MultimodalUniverseHatsSettings(flag_true_means=meaning))["scalar/redshift"]
    assert [name for name, is_good in zip(redshift.object_id, redshift.mask.tolist(), strict=True) if is_good] == [good]


def test_the_warning_of_desi_is_never_guessed(desi):
    with pytest.raises(ObservationError, match=r"Npix=\d+\.parquet: flag ZWARN is a boolean.*50% of 2 are True"):
        read(desi)


def test_a_meaning_by_which_most_redshifts_are_bad_is_questioned(desi, caplog):
    rewrite(the_file(desi), lambda table: table.set_column(table.schema.names.index("ZWARN"), "ZWARN", [[True, True]]))
    with caplog.at_level(logging.WARNING):
        read(desi, FLAG_IS_WARNING)
    assert "100 % of 2 redshifts are bad; is that meaning right?" in caplog.text


def test_gaias_64_bit_position_is_taken_not_the_32_bit_one_of_equal_name(tmp_path):
    table, coefficients = gaia_table()
    found = read(write_collection(tmp_path / "gaia", table, "mmu_gaia_gaia"))
    (spectrum,) = found["coefficients/gaia_bp_rp"]
    assert spectrum.ra.item() == table["ra"][0].as_py()
    assert spectrum.ra.item() != table["astrometry"].combine_chunks().field("ra")[0].as_py()
    np.testing.assert_array_equal(spectrum.values[0], coefficients)
    assert spectrum.object_id == ("1666767135588491904",)
    assert found["scalar/gaia_g"][0].values.item() == pytest.approx(16.0724)
    assert found["scalar/gaia_parallax"][0].values.item() == pytest.approx(1.25)
    assert "scalar/gaia_radial_velocity" not in found


def test_lists_of_structs_read_as_structs_of_lists(desi):
    expected = read(desi, FLAG_IS_WARNING)["spectrum/desi"][0]

    def turn(table):
        spectrum = table["spectrum"].combine_chunks()
        names = [field.name for field in spectrum.type]
        rows = [
            [dict(zip(names, v, strict=True)) for v in zip(*row.values(), strict=True)] for row in spectrum.to_pylist()
        ]
        kind = pa.list_(pa.struct([(field.name, field.type.value_type) for field in spectrum.type]))
        return table.set_column(table.schema.names.index("spectrum"), "spectrum", pa.array(rows, kind))

    rewrite(the_file(desi), turn)
    found = read(desi, FLAG_IS_WARNING)["spectrum/desi"][0]
    np.testing.assert_array_equal(found.flux, expected.flux)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_a_file_is_read_in_bounded_groups(tmp_path, monkeypatch):
    table, flux, _ = hsc_table(40)
    table = table.set_column(table.schema.names.index("ra"), "ra", pa.array(242.2 + 0.001 * np.arange(40)))
    collection = write_collection(tmp_path / "hsc", table, "mmu_hsc_pdr3_dud_22.5")
    monkeypatch.setattr(multimodal_universe_hats, "CHUNK_BYTES", 5 * flux[0].nbytes * 2)
    groups = read(collection)["image/hsc"]
    assert max(len(group) for group in groups) <= 5
    assert sorted(i for group in groups for i in group.object_id) == sorted(table["object_id"].to_pylist())
    by_id = {name: image for group in groups for name, image in zip(group.object_id, group.flux.numpy(), strict=True)}
    scale = np.float32(10 ** (-0.4 * 4.5))
    for name, pixels in zip(table["object_id"].to_pylist(), flux, strict=True):
        np.testing.assert_array_equal(by_id[name][0], pixels[0] * scale)


def test_a_row_group_larger_than_memory_should_hold_is_read_in_parts(tmp_path, monkeypatch):
    """One row group, as large as the file: what Arrow holds at once stays far below it."""
    table = gaia_table()[0]
    table = pa.concat_tables([table] * 20_000)
    ids = pa.array((np.int64(1666767135588491904) >> 35 << 35) + np.arange(20_000))
    table = table.set_column(table.schema.names.index("object_id"), "object_id", ids)
    path = tmp_path / "Npix=1.parquet"
    pq.write_table(table, path, row_group_size=len(table), use_dictionary=False)
    size = pq.ParquetFile(path).metadata.row_group(0).total_byte_size
    del table
    monkeypatch.setattr(multimodal_universe_hats, "CHUNK_BYTES", size // 50)
    pool, count, most = pa.default_memory_pool(), 0, 0
    before = pool.bytes_allocated()
    for observation in read_multimodal_universe_hats(path, MultimodalUniverseHatsSettings(survey="gaia")):
        most = max(most, pool.bytes_allocated() - before)
        count += len(observation) if observation.modality.kind == "coefficients" else 0
    assert count == 20_000
    assert most < size / 4


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_margin_is_no_catalogue(sdss):
    with pytest.raises(
        ObservationError, match=r"mmu_sdss_sdss_10arcs: expected a HATS catalogue of objects, found .*margin"
    ):
        catalogue_files(sdss / "mmu_sdss_sdss_10arcs")


def test_absent_pixels_of_a_partial_download_are_reported(hsc, caplog):
    files = catalogue_files(hsc)
    assert len(files) == 2
    files[0].unlink()
    with caplog.at_level(logging.WARNING):
        assert catalogue_files(hsc / "mmu_hsc_pdr3_dud_22.5") == files[1:]
    assert "1 of its 2 pixels are not here" in caplog.text


def test_folders_that_are_no_catalogue_are_errors(tmp_path, sdss):
    with pytest.raises(ObservationError, match=r"expected collection\.properties or hats\.properties"):
        catalogue_files(tmp_path)
    the_file(sdss).unlink()
    with pytest.raises(ObservationError, match=r"mmu_sdss_sdss: expected files dataset/Norder"):
        catalogue_files(sdss)


def test_a_catalogue_of_another_name_needs_the_survey_stated(tmp_path):
    collection = write_collection(tmp_path / "mine", sdss_table()[0], "my_spectra")
    with pytest.raises(ObservationError, match="the catalogue's name, 'my_spectra', tells no survey"):
        read(collection)
    assert "spectrum/sdss" in read(collection, MultimodalUniverseHatsSettings(survey="sdss"))


def test_settings_come_from_yaml(tmp_path, desi):
    (tmp_path / "desi.yaml").write_text("flag_true_means: good\n")
    source = SOURCES["mmu-hats"]
    settings = load_settings(source.settings, tmp_path / "desi.yaml")
    (piece,) = source.files(desi)
    assert {o.modality.name for o in source.read(piece, settings)} >= {"spectrum/desi", "scalar/redshift"}


# ---- bad files -------------------------------------------------------------------------------------------------------


def test_a_truncated_file_is_an_error_that_names_it(sdss):
    path = the_file(sdss)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ObservationError, match=r"Npix=\d+\.parquet: cannot be read as Parquet, cut short or damaged"):
        read(sdss)


def edited(table, name, values):
    return table.set_column(table.schema.names.index(name), name, pa.array(values, table.schema.field(name).type))


def without_field(table, name):
    spectrum = table["spectrum"].combine_chunks()
    names = [field.name for field in spectrum.type if field.name != name]
    kept = pa.StructArray.from_arrays([spectrum.field(field) for field in names], names=names)
    return table.set_column(table.schema.names.index("spectrum"), "spectrum", kept)


def cut_list(table):
    rows = table["spectrum"].to_pylist()
    rows[1]["ivar"] = rows[1]["ivar"][:-1]
    return edited(table, "spectrum", rows)


def null_spectrum(table):
    return edited(table, "spectrum", [table["spectrum"][0].as_py(), None, table["spectrum"][2].as_py()])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop_columns(["dec"]), r"columns \['dec'\] are missing; found"),
        (lambda t: without_field(t, "ivar"), r"columns \['spectrum\.ivar'\] of sdss are missing"),
        (
            lambda t: edited(t, "ra", [136.5, np.nan, 136.5]),
            r"object \d+: ra must lie in \[0, 360\] degrees, found nan",
        ),
        (lambda t: edited(t, "ra", [136.5, None, 136.5]), r"object \d+: ra must lie in \[0, 360\] degrees, found nan"),
        (lambda t: edited(t, "object_id", ["b'1'", "2", "b'  1'"]), r"object 1 comes twice, in rows 0 and 2"),
        (lambda t: edited(t, "object_id", ["1", None, "2"]), r"row 1 has no object id"),
        (cut_list, r"object \d+: spectrum\.ivar must hold \d+ pixels as spectrum\.flux does, found \d+"),
        (null_spectrum, r"object \d+: spectrum\.flux is null"),
        (lambda t: edited(t, "ZWARNING", [None, True, False]), r"object \d+: ZWARNING is null"),
        (lambda t: t.append_column("Z", t["Z"]), r"column Z comes twice: a join has put two tables side by side"),
    ],
)
def test_bad_columns_are_errors_that_name_file_and_object(sdss, change, message):
    rewrite(the_file(sdss), change)
    with pytest.raises(ObservationError, match=r"Npix=\d+\.parquet.*" + message):
        read(sdss)


def test_images_of_different_size_are_an_error_that_names_the_object(hsc):
    def shrink(table):
        rows = table["image"].to_pylist()
        rows[0]["flux"][2] = rows[0]["flux"][2][:-1]
        return edited(table, "image", rows)

    rewrite(catalogue_files(hsc)[0], shrink)
    with pytest.raises(
        ObservationError, match=r"object 7533925399478694\d: lists of image\.flux must be of one length"
    ):
        read(hsc)
