"""Observations on disk: what is written reads back bit for bit, whole or not at all."""

import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from armillary.data import parquet_files
from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import DatasetWriter, write_dataset
from armillary.data.instruments import parse_card
from armillary.data.modalities import Modality, modality
from armillary.data.observations import (
    CoefficientsObservation,
    ImageObservation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
)
from armillary.data.stacking import stack

HSC, DESI, REDSHIFT = modality("image/hsc"), modality("spectrum/desi"), modality("scalar/redshift")


def images(names, bands=("g", "i"), size=(6, 5), seed=0):
    random = np.random.default_rng(seed)
    shape = (len(names), len(bands), *size)
    return ImageObservation(
        HSC,
        names,
        random.normal(size=shape).astype(np.float32),
        bands,
        random.uniform(0.1, 9, size=shape).astype(np.float32),
        random.uniform(size=shape) > 0.1,
        psf_fwhm=random.uniform(0.5, 1, size=shape[:2]),
        center=random.uniform(2, 3, size=(len(names), 2)),
        **positions(names),
    )


def positions(names):
    """The same place on the sky for the same name; NAMES are in the order of the sky."""
    return {"ra": np.full(len(names), 45.0), "dec": np.array([10.0 + ord(name[0]) - ord("a") for name in names])}


def spectra(names, length=40, seed=0, own_grids=False, own_resolution=False):
    random = np.random.default_rng(seed)
    shape = (len(names), length)
    wavelength = 3600 + 0.8 * np.arange(length) + (random.uniform(size=(len(names), 1)) if own_grids else 0)
    return SpectrumObservation(
        DESI,
        names,
        random.normal(size=shape).astype(np.float32),
        wavelength,
        random.uniform(0.1, 9, size=shape).astype(np.float32),
        random.uniform(size=shape) > 0.1,
        resolving_power=random.uniform(1000, 4000, shape) if own_resolution else None,
        **positions(names),
    )


def coefficients(names, seed=0):
    values = np.random.default_rng(seed).normal(size=(2, len(names), 110))
    return CoefficientsObservation(
        modality("coefficients/gaia_bp_rp"), names, values[0], values[0] > -1, abs(values[1]), **positions(names)
    )


def redshifts(names, seed=0):
    random = np.random.default_rng(seed)
    error = np.where(random.uniform(size=len(names)) > 0.5, 0.01, np.nan)
    valid = np.arange(len(names)) != 1
    return ScalarObservation(REDSHIFT, names, random.uniform(0, 3, len(names)), valid, error, **positions(names))


def the_file(folder, name):
    """The first Parquet file of a modality."""
    return ObservationDataset(folder).files(name)[0].path


def assert_same(first, second):
    assert type(first) is type(second)
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype, field.name
            assert one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes(), field.name
        else:
            assert one == other, field.name


NAMES = ["a", "b", "c", "d", "e"]
KINDS = {
    "image": images(NAMES),
    "image of one band and row": images(NAMES, ("y",), (1, 4)),
    "spectrum": spectra(NAMES),
    "spectrum on own grids": spectra(NAMES, own_grids=True),
    "spectrum with own resolution": spectra(NAMES, own_resolution=True),
    "coefficients": coefficients(NAMES),
    "scalar": redshifts(NAMES),
}


@pytest.fixture(params=KINDS)
def observation(request):
    return KINDS[request.param]


def test_a_round_trip_keeps_every_bit(tmp_path, observation):
    write_dataset(tmp_path, [observation])
    opened = ObservationDataset(tmp_path)
    assert opened.modalities == (observation.modality,)
    assert opened.object_ids(observation.modality.name) == NAMES
    assert_same(opened.read(observation.modality.name), observation)


def in_small_files(folder, observation, monkeypatch):
    """A dataset with one object in each row group, and files of two or three."""
    monkeypatch.setattr(parquet_files, "ROW_GROUP_BYTES", 1)
    ra = torch.tensor([45.0 if name in "ab" else 135.0 for name in observation.object_id]).double()
    observation = replace(observation, ra=ra)
    with DatasetWriter(folder) as writer:
        writer.write(observation.select([0, 3, 4]))
        writer.write(observation.select([2, 1]))
    assert len(ObservationDataset(folder).files(observation.modality.name)) == 2
    return observation


def test_objects_are_read_in_the_order_asked_across_files_and_row_groups(tmp_path, observation, monkeypatch):
    observation = in_small_files(tmp_path, observation, monkeypatch)
    opened, name = ObservationDataset(tmp_path), observation.modality.name
    assert opened.object_ids(name) == NAMES
    assert_same(opened.read(name, ["e", "a", "c", "a"]), observation.select([4, 0, 2, 0]))
    assert_same(opened.read(name, np.array([4, 0, 2, 0])), observation.select([4, 0, 2, 0]))
    assert_same(opened.read(name, slice(1, 4)), observation.select([1, 2, 3]))
    assert_same(opened.read(name, slice(None, None, -2)), observation.select([4, 2, 0]))
    assert opened.num_objects(name) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_batches_stream_every_object_once_and_in_order(tmp_path, observation, monkeypatch, batch_size):
    observation = in_small_files(tmp_path, observation, monkeypatch)
    batches = list(ObservationDataset(tmp_path).batches(observation.modality.name, batch_size))
    full, rest = divmod(5, batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * full + [rest] * (rest > 0)
    assert_same(stack(batches), observation)


def test_the_sky_index_is_in_the_order_of_rows(tmp_path):
    observed = images(["d", "a", "c"])
    write_dataset(tmp_path, [observed])
    sky = ObservationDataset(tmp_path).sky_index("image/hsc")
    assert sky.object_id.tolist() == ["a", "c", "d"]
    assert sky.dec.tolist() == [10.0, 12.0, 13.0]
    assert (np.diff(sky.healpix) > 0).all()


def test_images_of_other_sizes_and_bands_are_padded_with_masked_pixels_when_read_together(tmp_path):
    small, large = images(["a"], ("g",), (3, 3)), images(["b"], ("g", "r"), (5, 4), seed=1)
    write_dataset(tmp_path, [large, small])
    opened = ObservationDataset(tmp_path)
    assert_same(opened.read("image/hsc"), stack([small, large]))
    alone = opened.read("image/hsc", ["a"])
    assert alone.flux.shape == (1, 2, 3, 3)
    assert torch.equal(alone.flux[:, :1], small.flux)
    assert not alone.mask[:, 1].any()


def test_spectra_of_other_lengths_and_grids_keep_their_own_pixels(tmp_path):
    short, long = spectra(["b"], length=10), spectra(["a"], length=30, own_resolution=True)
    write_dataset(tmp_path, [short, long])
    opened = ObservationDataset(tmp_path)
    assert_same(opened.read("spectrum/desi", ["b"]), short)
    assert_same(opened.read("spectrum/desi", ["a"]), long)
    assert_same(opened.read("spectrum/desi"), stack([long, short]))


def test_a_common_grid_is_stored_once(tmp_path):
    write_dataset(tmp_path / "shared", [spectra(["a", "b"]), spectra(["c"])])
    write_dataset(tmp_path / "own", [spectra(["a"]), spectra(["b"], own_grids=True)])
    assert "wavelength" not in pq.read_schema(the_file(tmp_path / "shared", "spectrum/desi")).names
    assert "wavelength" in pq.read_schema(the_file(tmp_path / "own", "spectrum/desi")).names


def test_a_dataset_of_an_instrument_that_is_not_shipped_still_opens(tmp_path):
    card = parse_card({**DESI.card.model_dump(mode="json"), "name": "toy", "step": 1.6}, "toy")
    toy = Modality("spectrum/toy", card)
    written = SpectrumObservation(toy, ["a"], np.ones((1, 9)), 4000 + np.arange(9), np.ones((1, 9)))
    write_dataset(tmp_path, [written], allow_unplaced=True)
    assert_same(ObservationDataset(tmp_path).read("spectrum/toy"), written)


def test_positions_are_the_union_over_modalities(tmp_path):
    nowhere = ScalarObservation(REDSHIFT, ["c"], [0.5])
    write_dataset(tmp_path, [images(["a", "b"]), nowhere], allow_unplaced=True)
    positions = ObservationDataset(tmp_path).positions()
    assert list(positions) == ["a", "b", "c"]
    assert positions["b"] == (45.0, 11.0)
    assert np.isnan(positions["c"]).all()


def test_scalars_hold_the_valid_values_alone(tmp_path):
    observed = redshifts(NAMES)
    write_dataset(tmp_path, [observed, images(NAMES)])
    opened = ObservationDataset(tmp_path)
    table = opened.scalars()
    assert list(table) == ["scalar/redshift"]
    assert list(table["scalar/redshift"]) == ["a", "c", "d", "e"]
    assert table["scalar/redshift"]["c"] == observed.values[2].item()
    with pytest.raises(ObservationError, match="expected a scalar modality, found image/hsc"):
        opened.scalars(["image/hsc"])


def test_hugging_face_datasets_reads_a_file(tmp_path):
    from datasets import load_dataset

    written = spectra(NAMES)
    write_dataset(tmp_path / "data", [written])
    path = the_file(tmp_path / "data", "spectrum/desi")
    table = load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train")
    assert table["object_id"][:] == NAMES
    np.testing.assert_array_equal(np.array(table["flux"][:], dtype=np.float32), written.flux.numpy())


def test_lsdb_reads_a_catalogue_and_finds_objects_by_place(tmp_path):
    import lsdb

    written = images(NAMES)
    write_dataset(tmp_path, [written])
    catalogue = lsdb.open_catalog(tmp_path / "image" / "hsc", columns=["object_id", "ra", "dec", "flux"])
    assert sorted(catalogue.compute()["object_id"]) == NAMES
    found = catalogue.cone_search(ra=45.0, dec=12.0, radius_arcsec=60.0).compute()
    assert found["object_id"].tolist() == ["c"]
    np.testing.assert_array_equal(np.array(found["flux"].iloc[0]), written.flux[2].flatten().numpy())


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, share):
    write_dataset(tmp_path, [images(NAMES)])
    path = the_file(tmp_path, "image/hsc")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ObservationError, match=r"Npix=\d+\.parquet: expected a whole Parquet file"):
        ObservationDataset(tmp_path)


def test_a_flipped_bit_is_an_error_that_names_the_file(tmp_path):
    write_dataset(tmp_path, [images(NAMES, size=(40, 40))])
    path = the_file(tmp_path, "image/hsc")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    opened = ObservationDataset(tmp_path)
    with pytest.raises(ObservationError, match=r"Npix=\d+\.parquet: the file is damaged"):
        opened.read("image/hsc")
    with pytest.raises(ObservationError, match=r"Npix=\d+\.parquet: the file is damaged"):
        list(opened.batches("image/hsc", 2))


def test_a_file_that_is_missing_or_too_many_is_an_error_that_names_it(tmp_path, monkeypatch):
    in_small_files(tmp_path, redshifts(NAMES), monkeypatch)
    first, second = sorted((tmp_path / "scalar" / "redshift").rglob("*.parquet"))
    hidden = first.with_name("hidden")
    first.rename(hidden)
    with pytest.raises(ObservationError, match=rf"{first.name}: is missing; .*partition_info.csv lists 2 files"):
        ObservationDataset(tmp_path)
    hidden.rename(first)
    shutil.copy(second, second.with_name("Npix=11.parquet"))
    with pytest.raises(ObservationError, match=r"Npix=11\.parquet: is not listed"):
        ObservationDataset(tmp_path)


def test_a_file_in_the_folder_of_another_modality_is_an_error(tmp_path):
    write_dataset(tmp_path, [redshifts(NAMES)])
    (tmp_path / "scalar" / "redshift").rename(tmp_path / "scalar" / "stellar_mass")
    with pytest.raises(ObservationError, match=r"stellar_mass.*expected a file of scalar/stellar_mass, found one of"):
        ObservationDataset(tmp_path)


def test_a_value_spoilt_on_disk_names_file_and_object(tmp_path):
    write_dataset(tmp_path, [redshifts(["a", "b", "c"])])
    path = the_file(tmp_path, "scalar/redshift")
    table = pq.ParquetFile(path).read()
    place = table.column_names.index("values")
    spoilt = table.set_column(place, table.schema.field("values"), pa.array([0.1, 0.2, 77.0], pa.float32()))
    pq.write_table(spoilt, path)
    with pytest.raises(ObservationError, match=r"Npix=\d+\.parquet: scalar/redshift, object c: .*77"):
        ObservationDataset(tmp_path).read("scalar/redshift")


def test_files_of_another_kind_or_version_are_errors(tmp_path):
    write_dataset(tmp_path, [redshifts(NAMES)])
    path = the_file(tmp_path, "scalar/redshift")
    table = pq.ParquetFile(path).read()
    header = json.loads(table.schema.metadata[b"armillary"])
    pq.write_table(table.replace_schema_metadata({b"armillary": json.dumps({**header, "version": 99})}), path)
    with pytest.raises(ObservationError, match="expected format version 2, found 99"):
        ObservationDataset(tmp_path)
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(ObservationError, match="expected a file of an Armillary dataset"):
        ObservationDataset(tmp_path)
    pq.write_table(table.drop_columns(["error"]), path)
    with pytest.raises(ObservationError, match=r"expected columns .*'error'.*, found "):
        ObservationDataset(tmp_path)


def test_what_is_not_there_is_an_error_that_says_what_is(tmp_path):
    with pytest.raises(ObservationError, match="no such dataset folder"):
        ObservationDataset(tmp_path / "nowhere")
    with pytest.raises(ObservationError, match="found none"):
        ObservationDataset(tmp_path)
    write_dataset(tmp_path, [redshifts(NAMES)])
    opened = ObservationDataset(tmp_path)
    with pytest.raises(ObservationError, match=r"no modality 'image/hsc'; it holds \['scalar/redshift'\]"):
        opened.read("image/hsc")
    with pytest.raises(ObservationError, match="scalar/redshift has no object 'x'"):
        opened.read("scalar/redshift", ["a", "x"])
    with pytest.raises(ObservationError, match="scalar/redshift has 5 rows, and no row 5"):
        opened.read("scalar/redshift", np.array([1, 5]))
    with pytest.raises(ObservationError, match="no row"):
        opened.read("scalar/redshift", [])
    with pytest.raises(ObservationError, match="batch_size"):
        next(opened.batches("scalar/redshift", 0))
