"""Hugging Face datasets, local ones only and with the network off: Parquet folders, files, and `save_to_disk`."""

import logging
import textwrap

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armillary.data.observations import ObservationError
from armillary.data.readers import hugging_face_columns
from armillary.data.readers.desi import read_desi
from armillary.data.readers.hugging_face import hugging_face_files, read_hugging_face
from armillary.data.readers.hugging_face_columns import HuggingFaceSettings
from armillary.data.readers.survey_sources import SOURCES
from armillary.data.real_files import real_file
from armillary.settings import SettingsError, load_settings, parse_yaml, validate_settings

SIZE = 5
SPECTRUM = {
    "modality": "spectrum/desi",
    "flux": "spectrum.flux",
    "wavelength": "spectrum.lambda",
    "ivar": "spectrum.ivar",
    "mask": {"column": "spectrum.mask", "true_means": "bad"},
    "unit": 1e-17,
    "is_vacuum": True,
}
IMAGE = {
    "modality": "image/legacysurvey",
    "flux": "image",
    "bands": ["g", "r"],
    "ivar": "ivar",
    "zero_point": 22.5,
    "mask": {"column": "mask", "true_means": "valid"},
}


def settings(**changes):
    content = {"object_id": "name", "ra": "ra", "dec": "dec"} | changes
    return validate_settings(HuggingFaceSettings, content, "test")


def read(path, mapping):
    """All observations of a dataset, by modality."""
    found = {}
    for observation in read_hugging_face(path, mapping):
        found.setdefault(observation.modality.name, []).append(observation)
    return found


def spectra_dataset(num_objects=5):
    """A real spectrum of DESI, cut to other lengths, in a struct of lists."""
    real = read_desi(real_file("desi-coadd-4-80613.fits"))
    rows = []
    for number in range(num_objects):
        length = 300 - 20 * number
        flux = real.flux[0, :length].numpy()
        rows.append(
            {
                "name": 39633345008634465 + number,
                "ra": 105.4 + number,
                "dec": 56.7,
                "spectrum": {
                    "flux": flux.tolist(),
                    "lambda": real.wavelength[0, :length].tolist(),
                    "ivar": real.inverse_variance[0, :length].tolist(),
                    "mask": (np.arange(length) % 7 == 0).tolist(),
                },
                "Z": [0.36, -99.0, 0.5, None, 0.2][number % 5],
                "ZERR": 1e-5,
            }
        )
    return datasets.Dataset.from_list(rows), real


def images_dataset(num_objects=3):
    rng = np.random.default_rng(0)
    flux = rng.normal(0, 1, (num_objects, 2, SIZE, SIZE)).astype(np.float32)
    mask = rng.random(flux.shape) < 0.8
    shape = (2, SIZE, SIZE)
    features = datasets.Features(
        {
            "name": datasets.Value("string"),
            "ra": datasets.Value("float64"),
            "dec": datasets.Value("float64"),
            "image": datasets.Array3D(shape, "float32"),
            "ivar": datasets.Array3D(shape, "float32"),
            "mask": datasets.Array3D(shape, "bool"),
            "image_g": datasets.Array2D((SIZE, SIZE), "float32"),
            "image_r": datasets.Array2D((SIZE, SIZE), "float32"),
        }
    )
    content = {
        "name": [f"galaxy-{number}" for number in range(num_objects)],
        "ra": np.arange(num_objects) * 10.0,
        "dec": np.arange(num_objects) * 1.0,
        "image": flux,
        "ivar": np.full(flux.shape, 4.0, dtype=np.float32),
        "mask": mask,
        "image_g": flux[:, 0],
        "image_r": flux[:, 1],
    }
    return datasets.Dataset.from_dict(content, features=features), flux, mask


def write(dataset, folder, how):
    """The dataset as a Parquet folder of two files, one Parquet file, a `save_to_disk` folder, or one with splits."""
    if how == "disk":
        dataset.save_to_disk(folder)
    elif how == "splits":
        datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(folder)
    else:
        folder.mkdir(parents=True)
        half = max(1, len(dataset) // 2)
        dataset.select(range(half)).to_parquet(folder / "train-00000-of-00002.parquet")
        dataset.select(range(half, len(dataset))).to_parquet(folder / "train-00001-of-00002.parquet")
    return folder / "train-00000-of-00002.parquet" if how == "file" else folder


@pytest.mark.parametrize("how", ["folder", "disk", "splits"])
def test_spectra_of_any_length_are_read_from_every_local_form(tmp_path, how):
    dataset, real = spectra_dataset()
    mapping = settings(spectra=[SPECTRUM], batch_size=2)
    groups = read(write(dataset, tmp_path / "data", how), mapping)["spectrum/desi"]
    assert [name for group in groups for name in group.object_id] == [str(39633345008634465 + n) for n in range(5)]
    assert all(len(group) <= 2 for group in groups)
    number = 0
    for group in groups:
        for flux, mask, wavelength in zip(group.flux, group.mask, group.wavelength, strict=True):
            length = 300 - 20 * number
            good = np.arange(length) % 7 != 0
            np.testing.assert_array_equal(mask, np.pad(good, (0, len(mask) - length)))
            np.testing.assert_array_equal(flux[:length][good], real.flux[0, :length][good])
            np.testing.assert_array_equal(wavelength[:length][good], real.wavelength[0, :length][good])
            number += 1


def test_one_parquet_file_is_a_dataset_of_its_own(tmp_path):
    path = write(spectra_dataset()[0], tmp_path / "data", "file")
    assert hugging_face_files(path) == [path]
    assert sum(map(len, read(path, settings(spectra=[SPECTRUM]))["spectrum/desi"])) == 2


def test_the_split_that_is_named_is_read(tmp_path):
    folder = write(spectra_dataset()[0], tmp_path / "data", "splits")
    assert sum(map(len, read(folder, settings(spectra=[SPECTRUM], split="test"))["spectrum/desi"])) == 1
    with pytest.raises(ObservationError, match=r"data: no split 'dev'; it has \['train', 'test'\]"):
        read(folder, settings(spectra=[SPECTRUM], split="dev"))


@pytest.mark.parametrize("how", ["folder", "disk"])
def test_images_are_read_bit_for_bit(tmp_path, how):
    dataset, flux, mask = images_dataset()
    folder = write(dataset, tmp_path / "data", how)
    found = read(folder, settings(images=[IMAGE]))["image/legacysurvey"]
    assert [name for image in found for name in image.object_id] == ["galaxy-0", "galaxy-1", "galaxy-2"]
    np.testing.assert_array_equal(np.concatenate([image.flux for image in found]), np.where(mask, flux, 0))
    np.testing.assert_array_equal(np.concatenate([image.mask for image in found]), mask)
    assert found[0].bands == ("g", "r")


def test_a_mask_means_what_the_mapping_says(tmp_path):
    dataset, _, mask = images_dataset()
    folder = write(dataset, tmp_path / "data", "disk")
    image = IMAGE | {"mask": {"column": "mask", "true_means": "bad"}}
    (found,) = read(folder, settings(images=[image]))["image/legacysurvey"]
    np.testing.assert_array_equal(found.mask, ~mask)
    with pytest.raises(SettingsError, match=r"images\.0\.mask\.true_means: required, but absent"):
        settings(images=[IMAGE | {"mask": {"column": "mask"}}])


def test_one_column_for_each_band_serves_as_well(tmp_path):
    dataset, flux, _ = images_dataset()
    folder = write(dataset, tmp_path / "data", "disk")
    image = {"modality": "image/hsc", "flux": ["image_r", "image_g"], "bands": ["r", "g"], "zero_point": 27.0}
    (found,) = read(folder, settings(images=[image]))["image/hsc"]
    assert found.bands == ("r", "g")
    np.testing.assert_allclose(found.flux, flux[:, ::-1] * 10 ** (-0.4 * 4.5), rtol=1e-6)
    np.testing.assert_allclose(found.inverse_variance[0, 0], found.noise()[0, 0] ** -2, rtol=1e-5)


def test_errors_become_inverse_variances_in_our_unit(tmp_path):
    length = 50
    rows = {
        "name": ["a"],
        "f": [np.linspace(1, 2, length).tolist()],
        "e": [[0.0] + [0.5] * (length - 1)],
    }
    folder = write(datasets.Dataset.from_dict(rows), tmp_path / "data", "disk")
    grid = {"first": 3800.0, "step": 1e-4, "sampling": "log10"}
    spectrum = {"modality": "spectrum/sdss", "flux": "f", "error": "e", "wavelength": grid, "unit": 1e-16}
    mapping = settings(ra=None, dec=None, spectra=[spectrum | {"is_vacuum": True}])
    (found,) = read(folder, mapping)["spectrum/sdss"]
    np.testing.assert_allclose(found.flux[0, 1:], 10 * np.linspace(1, 2, length)[1:], rtol=1e-6)
    np.testing.assert_allclose(found.inverse_variance[0, 1:], 1 / 25, rtol=1e-6)
    assert not found.mask[0, 0]
    np.testing.assert_allclose(found.wavelength[0], 3800 * 10 ** (1e-4 * np.arange(length)))
    assert np.isnan(found.ra.item())


def test_inverse_variances_come_in_the_inverse_square_of_the_flux_unit(tmp_path):
    dataset, flux, mask = images_dataset()
    folder = write(dataset, tmp_path / "data", "disk")
    (image,) = read(folder, settings(images=[IMAGE | {"zero_point": 31.4}]))["image/legacysurvey"]
    nanomaggies_per_nanojansky = 10 ** (0.4 * (22.5 - 31.4))
    np.testing.assert_allclose(image.flux[image.mask], flux[mask] * nanomaggies_per_nanojansky, rtol=1e-5)
    np.testing.assert_allclose(image.inverse_variance[image.mask], 4 / nanomaggies_per_nanojansky**2, rtol=1e-5)


def test_pixels_without_a_wavelength_are_padding(tmp_path):
    (tmp_path / "data").mkdir()
    padded = [[4000.0, 4001.0], [4000.0, 0.0], [4000.0, -1.0]]
    pq.write_table(table(w=padded), tmp_path / "data/train.parquet")
    (spectrum,) = read(tmp_path / "data", settings(spectra=[FLAT]))["spectrum/desi"]
    assert spectrum.mask.tolist() == [[True, True], [True, False], [True, False]]


def test_objects_without_a_valid_pixel_are_left_out_with_a_warning_that_names_them(tmp_path, caplog):
    (tmp_path / "data").mkdir()
    pq.write_table(table(i=[[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]), tmp_path / "data/train.parquet")
    with caplog.at_level(logging.WARNING):
        (spectrum,) = read(tmp_path / "data", settings(spectra=[FLAT]))["spectrum/desi"]
    assert spectrum.object_id == ("1", "3")
    assert "no valid pixel in spectrum/desi of objects ['2']" in caplog.text


def test_wavelengths_in_air_are_refused():
    with pytest.raises(SettingsError, match="is_vacuum"):
        settings(spectra=[SPECTRUM | {"is_vacuum": False}])


def test_sentinels_and_nulls_are_missing_scalars(tmp_path):
    folder = write(spectra_dataset()[0], tmp_path / "data", "disk")
    scalar = {"modality": "scalar/redshift", "column": "Z", "error": "ZERR", "missing_values": [-99.0]}
    (found,) = read(folder, settings(scalars=[scalar]))["scalar/redshift"]
    assert found.mask.tolist() == [True, False, True, False, True]
    np.testing.assert_allclose(found.error[[0, 2, 4]], 1e-5, rtol=1e-6)
    with pytest.raises(ObservationError, match=r"object 39633345008634466: value must lie in .* found -99"):
        read(folder, settings(scalars=[scalar | {"missing_values": []}]))


def test_coefficients_of_two_arms_are_joined(tmp_path):
    rng = np.random.default_rng(1)
    bp, rp = rng.normal(0, 1, (2, 3, 55))
    rows = {"name": ["1", "2", "3"], "bp": bp.tolist(), "rp": rp.tolist(), "ra": [1.0] * 3, "dec": [2.0] * 3}
    folder = write(datasets.Dataset.from_dict(rows), tmp_path / "data", "disk")
    mapping = settings(coefficients=[{"modality": "coefficients/gaia_bp_rp", "values": ["bp", "rp"]}])
    (found,) = read(folder, mapping)["coefficients/gaia_bp_rp"]
    np.testing.assert_allclose(found.values, np.concatenate([bp, rp], axis=1), rtol=1e-6)


def test_settings_come_from_yaml(tmp_path):
    source = SOURCES["hugging-face"]
    (tmp_path / "mapping.yaml").write_text(
        "object_id: name\nra: ra\ndec: dec\nscalars:\n"
        "- {modality: scalar/redshift, column: Z, missing_values: [-99]}\n"
        "spectra:\n- {modality: spectrum/desi, flux: spectrum.flux, wavelength: spectrum.lambda, ivar: spectrum.ivar,\n"
        "   unit: 1e-17, is_vacuum: true, mask: {column: spectrum.mask, true_means: bad}}\n"
    )
    folder = write(spectra_dataset()[0], tmp_path / "data", "folder")
    mapping = load_settings(source.settings, tmp_path / "mapping.yaml")
    (piece,) = source.files(folder)
    assert {o.modality.name for o in source.read(piece, mapping)} == {"spectrum/desi", "scalar/redshift"}
    with pytest.raises(SettingsError, match="needs settings"):
        source.read(piece, None)


def test_the_example_in_the_documentation_is_a_mapping():
    example = textwrap.dedent("".join(hugging_face_columns.__doc__.partition("    object_id")[1:]))
    mapping = validate_settings(HuggingFaceSettings, parse_yaml(example), "example")
    assert mapping.columns()[:3] == ["targetid", "ra", "dec"]
    assert mapping.spectra[0].unit == 1e-17


def test_a_stream_reads_no_further_than_it_is_asked(tmp_path):
    """The second file is no Parquet; what lies before it is delivered."""
    folder = write(spectra_dataset(4)[0], tmp_path / "data", "folder")
    (folder / "train-00001-of-00002.parquet").write_bytes(b"PAR1 no PAR1")
    stream = read_hugging_face(folder, settings(spectra=[SPECTRUM], batch_size=1))
    assert next(stream).object_id == ("39633345008634465",)
    assert next(stream).object_id == ("39633345008634466",)
    with pytest.raises(ObservationError, match=r"data: cannot be read as a dataset"):
        next(stream)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"spectra": []}, "no modality is mapped"),
        ({"spectra": [SPECTRUM, SPECTRUM]}, r"found twice: \['spectrum/desi'\]; a later one would overwrite the first"),
        ({"spectra": [SPECTRUM | {"modality": "spectrum/dasi"}]}, "no modality 'spectrum/dasi'; the nearest known is"),
        ({"spectra": [SPECTRUM | {"modality": "image/hsc"}]}, "image/hsc is of kind image, found among those of kind"),
        ({"spectra": [SPECTRUM | {"ivar": None}]}, "spectra need ivar or error"),
        ({"spectra": [SPECTRUM | {"error": "e"}]}, "ivar and error say the same"),
        ({"images": [IMAGE | {"bands": ["g", "q"]}]}, r"image/legacysurvey has no band 'q'; its bands are \['g', 'r'"),
        ({"images": [IMAGE | {"flux": ["a", "b", "c"]}]}, "flux names 3 columns, bands 2"),
        ({"images": [{k: v for k, v in IMAGE.items() if k != "zero_point"}]}, "images.0.zero_point: required"),
        ({"spectra": [SPECTRUM], "dec": None}, "ra and dec are given both or not at all"),
        ({"spectra": [SPECTRUM | {"maks": 1}]}, r"maks: unknown key; did you mean 'mask'"),
    ],
)
def test_a_wrong_mapping_is_refused_before_anything_is_read(changes, message):
    with pytest.raises(SettingsError, match=message):
        settings(**changes)


def table(**columns):
    rows = {
        "name": ["1", "2", "3"],
        "ra": [1.0, 2.0, 3.0],
        "dec": [0.0, 0.0, 0.0],
        "f": [[1.0, 2.0]] * 3,
        "i": [[1.0, 1.0]] * 3,
        "w": [[4000.0, 4001.0]] * 3,
        "m": [[True, True]] * 3,
    }
    return pa.table(rows | columns)


FLAT = {"modality": "spectrum/desi", "flux": "f", "ivar": "i", "wavelength": "w", "unit": 1e-17, "is_vacuum": True}


@pytest.mark.parametrize(
    "content, message",
    [
        (table(ra=[1.0, float("nan"), 2.0]), r"object 2: ra must lie in \[0, 360\] degrees, found nan"),
        (table(name=["1", "2", "2"]), r"object 2 comes twice"),
        (table(name=["1", None, "2"]), r"row 1 has no object id"),
        (table(i=[[1.0, 1.0], [1.0], [1.0, 1.0]]), r"object 2: i must hold 2 pixels as f does, found 1"),
        (table(f=[[1.0, 2.0], None, [1.0, 2.0]]), r"object 2: f is null"),
        (table(f=[["a", "b"]] * 3), r"column f must hold numbers, found string"),
        (table(f=[1.0, 2.0, 3.0]), r"column f must hold lists nested 1 deep, found double"),
        (table(w=[[4000.0, 4001.0], [4000.0, 3999.0], [1.0, 2.0]]), r"object 2: wavelength must increase strictly"),
        (table(m=[[1, 0]] * 3), r"mask m must hold booleans, found int64"),
        (table().drop_columns(["w"]), r"columns \['w'\] are missing; found \['name', 'ra', 'dec', 'f', 'i', 'm'\]"),
    ],
)
def test_bad_columns_are_errors_that_name_the_dataset_and_the_object(tmp_path, content, message):
    (tmp_path / "data").mkdir()
    pq.write_table(content, tmp_path / "data/train.parquet")
    spectrum = FLAT | {"mask": {"column": "m", "true_means": "bad" if "booleans" in message else "valid"}}
    with pytest.raises(ObservationError, match=r"/data.*" + message):
        read(tmp_path / "data", settings(spectra=[spectrum]))


def test_an_id_that_comes_again_in_a_later_batch_is_an_error(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(table(name=["1", "2", "1"]), tmp_path / "data/train.parquet")
    with pytest.raises(ObservationError, match=r"data, object 1: comes twice"):
        read(tmp_path / "data", settings(spectra=[FLAT], batch_size=1))


def test_images_of_different_size_need_batches_of_one(tmp_path):
    flux = [np.ones((2, size, size)).tolist() for size in (4, 6)]
    rows = {"name": ["1", "2"], "ra": [1.0, 2.0], "dec": [0.0, 0.0], "image": flux}
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "data/train.parquet")
    image = {"modality": "image/legacysurvey", "flux": "image", "bands": ["g", "r"], "zero_point": 22.5}
    with pytest.raises(ObservationError, match=r"object 2: lists of image must be of one length, found 6 and 4"):
        read(tmp_path / "data", settings(images=[image]))
    found = read(tmp_path / "data", settings(images=[image], batch_size=1))["image/legacysurvey"]
    assert [tuple(one.flux.shape) for one in found] == [(1, 2, 4, 4), (1, 2, 6, 6)]


def test_paths_that_are_no_dataset_are_errors(tmp_path):
    with pytest.raises(ObservationError, match=r"no such file or folder \(on the Hub: hf://datasets/<owner>/<name>\)"):
        hugging_face_files(tmp_path / "none")
    with pytest.raises(ObservationError, match="a dataset on the Hub is hf://datasets/<owner>/<name>"):
        hugging_face_files("hf://UniverseTBD/mmu_gz10")
    (tmp_path / "table.csv").write_text("a\n1\n")
    with pytest.raises(ObservationError, match=r"table\.csv: expected a folder, or a file \.parquet or \.arrow"):
        read(tmp_path / "table.csv", settings(spectra=[FLAT]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ObservationError, match=r"empty: cannot be read as a dataset"):
        read(tmp_path / "empty", settings(spectra=[FLAT]))


def test_the_hub_is_asked_only_when_read_and_says_no_when_offline():
    (piece,) = hugging_face_files("hf://datasets/armillary-tests/nothing")
    with pytest.raises(ObservationError, match=r"hf:/datasets/armillary-tests/nothing: cannot be read as a dataset"):
        next(read_hugging_face(piece, settings(spectra=[FLAT])))
