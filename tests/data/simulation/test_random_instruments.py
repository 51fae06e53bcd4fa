"""Random cameras and spectrographs: cards within their ranges, and a sky that is seen through them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from armillary.data.dataset import ObservationDataset
from armillary.data.filters import filter_curve, photometry_weights
from armillary.data.instruments import ImagingInstrument, Spectrograph, band_features, instrument, parse_card
from armillary.data.modalities import modality
from armillary.data.observation_loader import ObservationLoader
from armillary.data.observations import ObservationError
from armillary.data.simulation.observe_images import band_flux, noiseless_images
from armillary.data.simulation.random_instruments import (
    BAND_WAVELENGTHS,
    BAND_WIDTHS,
    IMAGE_DEPTHS,
    MAX_LENGTH,
    PSF_FWHMS,
    image_size,
    random_camera,
    random_spectrograph,
)
from armillary.data.simulation.record import RECORD
from armillary.data.simulation.sky import SimulatedSky, SkySettings, simulate_sky
from armillary.data.simulation.sky_objects import CLASSES
from armillary.data.simulation.spectrograph_response import response_matrix
from armillary.data.simulation.wavelength_grid import observed_wavelength
from armillary.data.simulation.write_sky import write_simulated_dataset
from armillary.data.validate import validate_dataset
from armillary.settings import SettingsError, find_config, load_settings

SETTINGS = SkySettings(
    num_objects=22,
    seed=3,
    shard_size=6,
    modalities=("spectrum/sdss", "scalar/redshift"),
    image_sizes={},
    random_cameras=2,
    random_spectrographs=3,
)
HELD_OUT_CURVES = ("sdss2010", "BASS", "MzLS")


def cameras(seed=0, count=64) -> list[ImagingInstrument]:
    return [random_camera(seed, number).card for number in range(count)]


def spectrographs(seed=0, count=64) -> list[Spectrograph]:
    return [random_spectrograph(seed, number).card for number in range(count)]


@pytest.mark.parametrize("draw", [random_camera, random_spectrograph])
def test_an_instrument_is_a_function_of_seed_and_number(draw):
    first, again = draw(5, 17), draw.__wrapped__(5, 17)
    assert first == again
    assert first.name == f"{first.kind}/random_017"
    numbers = [draw(seed, number).card.features().tobytes() for seed in (5, 6) for number in range(20)]
    assert len(set(numbers)) == 40
    assert parse_card(json.loads(json.dumps(first.record()))["card"], "test") == first.card


def test_cameras_are_within_their_ranges_and_no_band_is_of_a_held_out_instrument():
    for card in cameras():
        wavelengths = [band.wavelength for band in card.bands]
        assert wavelengths == sorted(set(wavelengths))
        assert image_size(card) % 2 == 0
        assert image_size(card) in (24, 96) or image_size(card) * card.pixel_scale == pytest.approx(
            13, abs=card.pixel_scale
        )
        for band in card.bands:
            assert BAND_WAVELENGTHS[0] - 5 < band.wavelength < BAND_WAVELENGTHS[1] + 5
            assert BAND_WIDTHS[0] - 1 < band.width < BAND_WIDTHS[1] + 1
            assert PSF_FWHMS[0] <= band.psf_fwhm <= PSF_FWHMS[1]
            assert band.psf_fwhm / card.pixel_scale > 1.79
            assert IMAGE_DEPTHS[0] <= band.depth <= IMAGE_DEPTHS[1]
            assert not band.filter_curve.startswith(HELD_OUT_CURVES)


def test_bands_have_the_numbers_of_their_curves_and_the_sky_has_light_for_all_of_them():
    for card in cameras():
        curves = [filter_curve(band.filter_curve) for band in card.bands]
        assert np.isfinite(photometry_weights(curves, observed_wavelength())).all()
        for band, curve in zip(card.bands, curves, strict=True):
            assert band.wavelength == pytest.approx(curve.effective_wavelength, abs=0.6)
            assert band.width == pytest.approx(curve.effective_width, abs=0.6)


def test_cameras_differ_in_what_surveys_differ_in():
    cards = cameras()
    assert {len(card.bands) for card in cards} == {1, 2, 3, 4, 5, 6}
    bands = [band for card in cards for band in card.bands]
    synthetic = np.mean([band.filter_curve.startswith("synthetic") for band in bands])
    assert 0.6 < synthetic < 0.9
    depths = [[band.depth for band in card.bands] for card in cards if len(card.bands) > 2]
    # Bands of a camera are deep together; and the sky, brighter in the red, makes red bands shallower.
    assert np.mean([np.std(of_one) for of_one in depths]) < 0.7 * np.std([np.mean(of_one) for of_one in depths])
    slopes = [
        np.polyfit([b.wavelength for b in c.bands], [b.depth for b in c.bands], 1)[0] for c in cards if len(c.bands) > 2
    ]
    assert np.median(slopes) < 0


def test_spectrographs_are_within_their_ranges_and_sample_their_resolution():
    for card in spectrographs():
        wavelength = card.wavelength()
        assert 3299 < wavelength[0] < wavelength[-1] < 10401
        assert 256 < len(wavelength) <= MAX_LENGTH
        power = card.resolving_power_at(wavelength)
        assert 599 < power.min() <= power.max() < 6001
        in_element = wavelength / power / np.gradient(wavelength)
        assert in_element.min() > 1.65
        assert in_element.max() < 10


def test_spectrographs_differ_in_what_surveys_differ_in():
    cards = spectrographs()
    is_blue = [card.wavelength_max < 7001 for card in cards]
    is_red = [card.wavelength_min > 5499 for card in cards]
    assert 0.02 < np.mean(is_blue) < 0.4
    assert 0.02 < np.mean(is_red) < 0.4
    assert 0.3 < np.mean([card.sampling == "linear" for card in cards]) < 0.7
    assert any(np.ptp([power for _, power in card.resolving_power]) > 500 for card in cards)


@pytest.mark.parametrize("number", range(4))
def test_a_random_spectrograph_keeps_the_flux_of_a_smooth_source(number):
    card = random_spectrograph(0, number).card
    fine, coarse = observed_wavelength(), card.wavelength()
    np.testing.assert_allclose(response_matrix(card) @ np.float32(fine / 5000), coarse / 5000, rtol=1e-4)


def test_held_out_instruments_are_between_random_ones_and_are_none_of_them():
    """What a tokenizer is asked to do with them is to interpolate."""
    known = np.stack([band_features(band, card.pixel_scale) for card in cameras() for band in card.bands])
    for name in ("sdss_imaging", "bass_mzls"):
        card = instrument(name)
        for band in card.bands:
            numbers = band_features(band, card.pixel_scale)
            assert (known.min(0) <= numbers).all()
            assert (numbers <= known.max(0)).all()
            assert np.abs(known - numbers).max(1).min() > 0.05
    known = np.stack([card.features() for card in spectrographs()])
    for name in ("lamost", "manga"):
        numbers = instrument(name).features()
        assert (known.min(0) <= numbers).all()
        assert (numbers <= known.max(0)).all()


def test_an_object_is_seen_by_one_random_camera_and_one_spectrograph_whatever_the_batch():
    sky = SimulatedSky(SETTINGS)
    whole = sky.batch(range(22))
    assert tuple(whole) == (
        *SETTINGS.modalities,
        *("image/random_000", "image/random_001"),
        *("spectrum/random_000", "spectrum/random_001", "spectrum/random_002"),
    )
    for kind, count in (("image", 2), ("spectrum", 3)):
        for row in range(22):
            seen = {name for name, found in whole.items() if "random" in name and f"sim-3-{row}" in found.object_id}
            assert {name for name in seen if name.startswith(kind)} == {f"{kind}/random_{row // 6 % count:03d}"}
    few = sky.batch([20, 7, 1])
    assert few["image/random_001"].object_id == ("sim-3-20", "sim-3-7")
    assert "spectrum/random_002" not in few
    for name, found in few.items():
        places = [whole[name].object_id.index(object_id) for object_id in found.object_id]
        assert torch.equal(found.mask, whole[name].mask[places])
        if hasattr(found, "flux"):
            torch.testing.assert_close(found.flux, whole[name].flux[places], rtol=1e-4, atol=1e-4)
    streamed = [(o.modality.name, o.object_id) for batch in simulate_sky(SETTINGS, batch_size=8) for o in batch]
    assert sum(len(ids) for name, ids in streamed if name.startswith("image/")) == 22


def test_images_of_a_random_camera_hold_the_flux_through_its_curves():
    sky = SimulatedSky(SETTINGS.model_copy(update={"neighbours": False, "star_fraction": 1.0, "quasar_fraction": 0.0}))
    objects = sky.objects(range(4))
    assert (objects.object_class == CLASSES.index("star")).all()
    camera = sky.settings.declared("image/random_001")
    found = noiseless_images(objects, camera, image_size(camera.card)).flux.sum((2, 3))
    expected = band_flux(objects, tuple(band.filter_curve for band in camera.card.bands)).sum(1)
    # A Moffat's wings: 1 to 3 % of the light lies outside.
    torch.testing.assert_close(found, expected, rtol=0.04, atol=0.0)


def test_an_instrument_that_the_sky_does_not_have_is_named():
    objects = SimulatedSky(SETTINGS).objects([0])
    for name in ("image/random_002", "spectrum/random_3", "image/randon_000"):
        with pytest.raises(LookupError, match=f"no modality '{name}'"):
            SimulatedSky(SETTINGS).observe(objects, name)


def test_impossible_numbers_of_instruments_are_refused():
    with pytest.raises(SettingsError, match="random_cameras"):
        load_settings(SkySettings, overrides=["random_cameras=-1"])
    with pytest.raises(SettingsError, match="random_spectrographs"):
        load_settings(SkySettings, overrides=["random_spectrographs=1001"])


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "sky"
    assert write_simulated_dataset(SETTINGS, folder) == 4
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_dataset_brings_the_cards_that_no_registry_knows(written):
    assert validate_dataset(written) == []
    dataset, expected = ObservationDataset(written), SimulatedSky(SETTINGS).batch(range(22))
    assert sorted(m.name for m in dataset.modalities) == sorted(expected)
    for declared in dataset.modalities:
        assert declared == SETTINGS.declared(declared.name)
        assert dataset.num_objects(declared.name) == len(expected[declared.name])
    with pytest.raises(LookupError):
        modality("image/random_000")
    found = dataset.read("image/random_001", ["sim-3-20", "sim-3-7"])
    assert found.modality.card == random_camera(3, 1).card
    assert found.flux.shape[2:] == (image_size(found.modality.card),) * 2


def test_random_instruments_have_equal_shares_of_the_batches(written):
    dataset = ObservationDataset(written)
    names = [m.name for m in dataset.modalities if m.kind in ("image", "spectrum")]
    loader = ObservationLoader(dataset, names, batch_size=5, seed=0)
    drawn = [observation for observation, _ in zip(loader, range(2 * len(names)), strict=False)]
    assert sorted(o.modality.name for o in drawn) == sorted(2 * names)
    assert all(o.modality == SETTINGS.declared(o.modality.name) for o in drawn)


def test_parts_and_lost_files_are_made_good_to_the_same_bytes(written, tmp_path):
    for part in (1, 0):
        write_simulated_dataset(SETTINGS, tmp_path / "sky", part=part, num_parts=2)
    assert content(tmp_path / "sky") == content(written)
    # As a run looks that was killed between the modalities of a shard.
    record = json.loads((tmp_path / "sky" / RECORD).read_text())
    (tmp_path / "sky" / RECORD).write_text(json.dumps(record | {"is_whole": False}))
    next((tmp_path / "sky" / "spectrum" / "random_002").rglob("Npix=*.parquet")).unlink()
    assert write_simulated_dataset(SETTINGS, tmp_path / "sky") == 1
    assert content(tmp_path / "sky") == content(written)


def test_a_sky_that_was_written_before_there_were_random_instruments_is_still_its_own(tmp_path):
    plain = SkySettings(num_objects=2, modalities=("scalar/redshift",), image_sizes={})
    write_simulated_dataset(plain, tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    del record["settings"]["random_cameras"], record["settings"]["random_spectrographs"]
    (tmp_path / RECORD).write_text(json.dumps(record))
    assert write_simulated_dataset(plain, tmp_path) == 0
    with pytest.raises(ObservationError, match="random_cameras is 0, expected 1"):
        write_simulated_dataset(plain.model_copy(update={"random_cameras": 1}), tmp_path)


def test_shipped_skies_keep_the_instruments_to_judge_by_from_training():
    train, judge = (
        load_settings(SkySettings, find_config(f"data/{name}.yaml")) for name in ("instruments", "held_out_instruments")
    )
    assert train.seed != judge.seed
    assert (train.random_cameras, train.random_spectrographs) == (64, 64)
    assert (judge.random_cameras, judge.random_spectrographs) == (0, 0)
    held_out = {"image/sdss", "image/bass_mzls", "spectrum/manga", "spectrum/lamost"}
    assert set(judge.modalities) - set(train.modalities) == held_out
    batch = SimulatedSky(judge).batch(range(3))
    for name in held_out:
        assert batch[name].flux.isfinite().all()
        assert batch[name].mask.float().mean() > 0.9
    assert batch["image/sdss"].flux.shape == (3, 5, 32, 32)
    assert batch["image/bass_mzls"].bands == ("g", "r", "z")
    assert batch["spectrum/lamost"].flux.shape == (3, 3861)
