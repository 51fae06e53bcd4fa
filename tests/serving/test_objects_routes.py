import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from fake_model import embedding_table, images
from http_bodies import assert_problem
from PIL import Image
from starlette.testclient import TestClient

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import (
    ImageObservation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
)
from armillary.data.simulation.record import RECORD
from armillary.serving.app import create_app
from armillary.serving.formats.bodies import observation_of
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.limits import Limits
from armillary.serving.maps.colour_picture import colour_picture
from armillary.serving.schemas.common import TypedObject

SIDE = 40
BANDS = ("g", "r", "i", "z")
BLOB = (29, 8)
"""Row and column of what is bright in object-0's image."""
NOISE = 0.01


def blob(row=BLOB[0], column=BLOB[1], side=SIDE, peak=2.0):
    y, x = np.mgrid[:side, :side]
    return peak * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 8)


def image_of(flux, bands=BANDS, mask=None, **more):
    return ImageObservation(
        modality("image/legacysurvey"), [f"object-{i}" for i in range(len(flux))], flux, bands, mask=mask, **more
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three objects: all with an image, the first two with a spectrum, the first with a measured redshift."""
    rng = np.random.default_rng(0)
    flux = rng.normal(0, NOISE, (3, 4, SIDE, SIDE)).astype(np.float32)
    flux[0] += blob()
    mask = np.ones(flux.shape, bool)
    mask[1, :, 3, 4] = False
    ra, dec = np.array([10.0, 10.1, 200.0]), np.array([5.0, 5.1, -70.0])
    center = [[BLOB[0], BLOB[1]], [19.5, 19.5], [19.5, 19.5]]
    spectrum = rng.normal(1, 0.3, (2, 60)).astype(np.float32)
    spectrum_mask = rng.random((2, 60)) > 0.2
    ivar = rng.uniform(0.5, 9, (2, 60)).astype(np.float32)
    observations = [
        image_of(flux, mask=mask, center=center, ra=ra, dec=dec),
        SpectrumObservation(
            modality("spectrum/desi"),
            ["object-0", "object-1"],
            spectrum,
            np.linspace(3600, 9800, 60),
            ivar,
            spectrum_mask,
            ra=ra[:2],
            dec=dec[:2],
        ),
        ScalarObservation(
            modality("scalar/redshift"), ["object-0", "object-1"], [0.25, 0.0], [True, False], ra=ra[:2], dec=dec[:2]
        ),
    ]
    folder = tmp_path_factory.mktemp("datasets") / "sky"
    write_dataset(folder, observations)
    return ObservationDataset(folder)


@pytest.fixture
def http(model, index, dataset):
    with TestClient(create_app(model, index, dataset=dataset)) as client:
        yield client


def get(http, path, **parameters):
    answer = http.get(f"/v1/objects/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer


def brightest(shown):
    """The middle of what is about as bright as anything."""
    return np.argwhere(shown >= 0.97 * shown.max()).mean(0)


def decoded(answer):
    assert answer.headers["content-type"] == "image/jpeg"
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)


def test_a_picture_is_bright_where_the_flux_is_with_the_first_row_below(http):
    shown = decoded(get(http, "object-0/image.jpg")).sum(-1)
    assert shown.shape == (SIDE, SIDE)
    row, column = brightest(shown)
    assert abs(row - (SIDE - 1 - BLOB[0])) < 2
    assert abs(column - BLOB[1]) < 2
    far = shown[: SIDE // 3, SIDE // 2 :]
    assert far.mean() < 0.25 * shown.max()


def test_a_picture_can_be_asked_for_in_another_size(http):
    shown = decoded(get(http, "object-0/image.jpg", modality="image/legacysurvey", size=200)).sum(-1)
    assert shown.shape == (200, 200)
    row, column = brightest(shown)
    assert abs(row / 200 - (SIDE - 0.5 - BLOB[0]) / SIDE) < 0.05
    assert abs(column / 200 - (BLOB[1] + 0.5) / SIDE) < 0.05


@pytest.mark.parametrize(("bright", "channel"), [("z", 0), ("r", 1), ("g", 2)])
def test_the_reddest_band_is_red_and_the_bluest_blue(bright, channel):
    flux = np.zeros((1, 4, SIDE, SIDE))
    flux[0, BANDS.index(bright)] = blob()
    shown = colour_picture(image_of(flux))[SIDE - 1 - BLOB[0], BLOB[1]].astype(int)
    assert shown.argmax() == channel
    assert shown[channel] > 3 * np.delete(shown, channel).max()


def test_a_bright_core_keeps_its_colour():
    flux = np.stack([0.5 * blob(peak=1000), blob(peak=1000), blob(peak=1000), 4 * blob(peak=1000)])[None]
    shown = colour_picture(image_of(flux)).astype(int)
    core = shown[SIDE - 1 - BLOB[0], BLOB[1]]
    assert core[0] == 255
    assert core[0] > core[1] > core[2]
    assert core[2] < 128


@pytest.mark.parametrize("bands", [("r",), ("g", "z"), ("g", "r", "z")])
def test_any_number_of_bands_makes_a_picture(bands):
    flux = np.stack([blob()] * len(bands))[None]
    shown = colour_picture(image_of(flux, bands)).astype(int)
    np.testing.assert_allclose(brightest(shown.sum(-1)), (SIDE - 1 - BLOB[0], BLOB[1]), atol=1)
    if len(bands) == 1:
        assert (shown == shown[..., :1]).all()


def test_a_pixel_that_one_band_lacks_has_no_colour_of_its_own():
    flux = np.stack([blob()] * 4)[None]
    mask = np.ones(flux.shape, bool)
    mask[0, 0, BLOB[0], BLOB[1]] = False
    whole, lacking = (colour_picture(image_of(flux, mask=m)).astype(int) for m in (None, mask))
    at = (SIDE - 1 - BLOB[0], BLOB[1])
    assert abs(whole[at] - lacking[at]).max() < 90
    assert lacking[at].min() > 100


def test_a_pixel_without_any_band_is_black():
    flux = np.stack([blob()] * 4)[None]
    mask = np.ones(flux.shape, bool)
    mask[0, :, BLOB[0], BLOB[1]] = False
    assert (colour_picture(image_of(flux, mask=mask))[SIDE - 1 - BLOB[0], BLOB[1]] == 0).all()


def test_the_fits_file_of_an_image_holds_what_the_dataset_holds(http, dataset):
    answer = get(http, "object-1/image.fits", modality="image/legacysurvey")
    assert answer.headers["content-type"] == "application/fits"
    stored = dataset.read("image/legacysurvey", ["object-1"])
    with fits.open(io.BytesIO(answer.content)) as file:
        file.verify("exception")
        np.testing.assert_array_equal(file[0].data, stored.flux[0].numpy())
        np.testing.assert_array_equal(file["IVAR"].data, stored.inverse_variance[0].numpy())
        np.testing.assert_array_equal(file["MASK"].data == 0, stored.mask[0].numpy())
        assert file["MASK"].data[:, 3, 4].all()
        assert file[0].header["BANDS"] == "g,r,i,z"
        assert file[0].header["OBJECT"] == "object-1"
        assert file["BANDS"].data["BAND"].tolist() == list(BANDS)
        np.testing.assert_array_equal(file["BANDS"].data["PSF_FWHM"], stored.psf_fwhm[0].numpy())
        np.testing.assert_array_equal(file["BANDS"].data["DEPTH"], stored.depth[0].numpy())


def test_the_wcs_of_an_image_puts_the_object_where_it_is(http, dataset):
    with fits.open(io.BytesIO(get(http, "object-0/image.fits").content)) as file:
        wcs = WCS(file[0].header).celestial
    at = wcs.pixel_to_world(BLOB[1], BLOB[0])
    assert at.separation(SkyCoord(10.0, 5.0, unit="deg")).arcsec < 1e-3
    step = wcs.pixel_to_world(BLOB[1] + 1, BLOB[0])
    scale = dataset.read("image/legacysurvey", ["object-0"]).card.pixel_scale
    assert at.separation(step).arcsec == pytest.approx(scale, rel=1e-4)
    assert step.ra < at.ra  # east is left


def test_the_spectrum_equals_the_dataset(http, dataset):
    answer = get(http, "object-1/spectrum", modality="spectrum/desi").json()
    stored = dataset.read("spectrum/desi", ["object-1"])
    mask = stored.mask[0].numpy()
    assert answer["mask"] == mask.tolist()
    assert 0 < mask.sum() < len(mask)
    flux = np.array([np.nan if v is None else v for v in answer["flux"]])
    error = np.array([np.nan if v is None else v for v in answer["error"]])
    np.testing.assert_array_equal(np.isnan(flux), ~mask)
    np.testing.assert_array_equal(flux[mask].astype(np.float32), stored.flux[0].numpy()[mask])
    np.testing.assert_allclose(error[mask], stored.inverse_variance[0].numpy()[mask] ** -0.5, rtol=1e-6)
    np.testing.assert_allclose(answer["wavelength"], stored.wavelength[0].numpy(), rtol=1e-11)
    assert (answer["unit"], answer["wavelength_unit"]) == ("1e-17 erg / s / cm2 / angstrom", "angstrom")


def test_the_fits_file_of_a_spectrum_has_units_and_values(http, dataset):
    content = get(http, "object-0/spectrum.fits").content
    with fits.open(io.BytesIO(content)) as file:
        file.verify("exception")
    table = Table.read(io.BytesIO(content), hdu="SPECTRUM")
    stored = dataset.read("spectrum/desi", ["object-0"])
    for name, values in (
        ("WAVELENGTH", stored.wavelength),
        ("FLUX", stored.flux),
        ("IVAR", stored.inverse_variance),
        ("MASK", ~stored.mask),
        ("RESOLVING_POWER", stored.resolving_power),
    ):
        np.testing.assert_array_equal(np.asarray(table[name], float), values[0].double().numpy())
    assert table["WAVELENGTH"].unit == units.angstrom
    flux_unit = 1e-17 * units.erg / (units.s * units.cm**2 * units.angstrom)
    assert (1 * table["FLUX"].unit).to_value(flux_unit) == pytest.approx(1)
    assert (1 * table["IVAR"].unit).to_value(flux_unit**-2) == pytest.approx(1)


@pytest.mark.parametrize("name", ["image/legacysurvey", "spectrum/desi", "scalar/redshift"])
def test_an_observation_can_be_sent_back_as_it_came(http, dataset, name):
    body = get(http, "object-0/observation", modality=name).json()
    again = observation_of(TypedObject.model_validate(body), (), {name: modality(name)}, Limits())
    stored = dataset.read(name, ["object-0"])
    for field in dataclasses.fields(stored):
        was, now = getattr(stored, field.name), getattr(again, field.name)
        if isinstance(was, torch.Tensor):
            np.testing.assert_array_equal(now.numpy(), was.numpy(), err_msg=field.name)
        elif field.name != "modality":
            assert tuple(now) == tuple(was)


@pytest.mark.parametrize("file", ["image.fits", "spectrum.fits"])
def test_a_file_that_was_downloaded_can_be_embedded(http, dataset, model, file):
    name = "image/legacysurvey" if file == "image.fits" else "spectrum/desi"
    content = get(http, f"object-1/{file}", modality=name).content
    answer = http.post(
        "/v1/embeddings", params={"modality": name}, content=content, headers={"Content-Type": "application/fits"}
    )
    assert answer.status_code == 200, answer.text
    expected = model.embed([dataset.read(name, ["object-1"])]).vectors[0]
    np.testing.assert_allclose(answer.json()["data"][0]["embedding"], expected, atol=1e-5)


def test_what_was_measured_is_listed(http):
    found = get(http, "object-0/observations").json()["observations"]
    assert {one["modality"]: one["kind"] for one in found} == {
        "image/legacysurvey": "image",
        "spectrum/desi": "spectrum",
        "scalar/redshift": "scalar",
    }
    redshift = next(one for one in found if one["kind"] == "scalar")
    assert (redshift["value"], redshift["error"]) == (0.25, None)
    for one in found:
        for file in one.get("files", ()):
            get(http, f"object-0/{file}", modality=one["modality"])


def test_a_scalar_that_is_missing_is_null(http):
    found = get(http, "object-1/observations").json()["observations"]
    assert next(one["value"] for one in found if one["kind"] == "scalar") is None


@pytest.mark.parametrize(
    ("path", "parameters", "said"),
    [
        ("object-2/spectrum", {}, "it has no spectrum at all"),
        ("object-2/spectrum.fits", {"modality": "spectrum/desi"}, "object-2"),
        ("object-0/image.jpg", {"modality": "image/legacysurvay"}, "nearest known is 'image/legacysurvey'"),
        ("object-0/image.fits", {"modality": "spectrum/desi"}, "no image modality"),
        ("nobody/image.jpg", {}, "nobody"),
        ("nobody/observations", {}, "nobody"),
        ("..%2F..%2Fetc%2Fpasswd/observations", {}, ""),
    ],
)
def test_what_is_not_there_is_a_problem_that_says_so(http, path, parameters, said):
    answer = http.get(f"/v1/objects/{path}", params=parameters)
    assert_problem(answer, 404, "not-found")
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("file", ["observations", "image.jpg", "image.fits", "spectrum", "spectrum.fits"])
def test_a_server_without_a_dataset_says_that_it_has_none(model, index, file):
    with TestClient(create_app(model, index)) as client:
        answer = client.get(f"/v1/objects/object-0/{file}")
    assert_problem(answer, 404, "not-found")
    assert "without a dataset" in answer.json()["detail"]


@pytest.mark.parametrize("size", ["0", "100000", "many"])
def test_a_picture_of_an_unreasonable_size_is_refused(http, size):
    assert_problem(http.get("/v1/objects/object-0/image.jpg", params={"size": size}), 422, "invalid-request")


@pytest.mark.parametrize("file", ["image.jpg", "image.fits", "spectrum.fits"])
def test_a_file_that_the_caller_has_is_not_sent_again(http, file):
    first = get(http, f"object-0/{file}")
    again = http.get(f"/v1/objects/object-0/{file}", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    other = http.get(f"/v1/objects/object-1/{file}", headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200


def test_an_error_is_null_where_nothing_is_known_of_it(model, tmp_path):
    ivar = np.array([[4.0, 0.0, 1.0]])
    observation = SpectrumObservation(
        modality("spectrum/desi"), ["a"], [[1.0, 2.0, 3.0]], [4000.0, 4001.0, 4002.0], ivar, ra=[1.0], dec=[2.0]
    )
    write_dataset(tmp_path / "sky", [observation])
    with TestClient(create_app(model, dataset=ObservationDataset(tmp_path / "sky"))) as client:
        answer = client.get("/v1/objects/a/spectrum").json()
    assert answer["error"] == [0.5, None, 1.0]
    assert math.isclose(answer["flux"][2], 3.0)


def test_simulated_objects_are_known_by_the_record_of_the_dataset_and_have_no_links(model, tmp_path):
    observed = images(6).renamed(["sim-3-0", "sim-3-1", "sim-30-2", "other-sim-3-3", "object-4", "object-5"])
    write_dataset(tmp_path / "sky", [observed])
    index = EmbeddingIndex.build(embedding_table(model, [observed]))
    told = {}
    for name in ("unknown", "known"):
        with TestClient(create_app(model, index, dataset=ObservationDataset(tmp_path / "sky"))) as client:
            told[name] = {one: client.get(f"/v1/objects/{one}").json() for one in observed.object_id}
            prefix = client.get("/v1/collections").json()["collections"][0]["simulated_prefix"]
            assert prefix == {"unknown": None, "known": "sim-3-"}[name]
        (tmp_path / "sky" / RECORD).write_text(json.dumps({"settings": {"seed": 3}}))
    assert {one["is_simulated"] for one in told["unknown"].values()} == {None}
    assert {name: one["is_simulated"] for name, one in told["known"].items()} == {
        name: name.startswith("sim-3-") for name in observed.object_id
    }
    assert {name: one["links"] == {} for name, one in told["known"].items()} == {
        name: one["is_simulated"] for name, one in told["known"].items()
    }
    (tmp_path / "sky" / RECORD).write_text("{")
    with pytest.raises(ObservationError, match="expected the record of a simulated sky"):
        create_app(model, index, dataset=ObservationDataset(tmp_path / "sky"))
