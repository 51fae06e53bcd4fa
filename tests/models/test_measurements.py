"""The local model takes what the client takes, and code that takes either gets the same from both."""

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.nddata import CCDData, InverseVariance
from astropy.table import QTable
from live_server import running

import armillary
from armillary.data.observations import ObservationError
from armillary.serving.app import create_app
from armillary.serving.client.client import Client

HSC, DESI, REDSHIFT = "image/hsc", "spectrum/desi", "scalar/redshift"


def in_astropys_words(image):
    """One image as CCDData of each band, in another unit."""
    return {
        band: CCDData(
            image.flux[0, place].numpy() * 3.631,
            unit="uJy",
            uncertainty=InverseVariance(image.inverse_variance[0, place].numpy() / 3.631**2),
            mask=~image.mask[0, place].numpy(),
        )
        for place, band in enumerate(image.bands)
    }


def vectors_and_redshifts(either, given):
    """Code of a user that takes a model or a client."""
    return either.embed(given, "encoder").vectors, either.predict_scalar(given, REDSHIFT).median()


def test_astropys_objects_and_numbers_are_embedded_as_observations_are(model, sky):
    image, spectrum = sky[HSC].select([0]).renamed(["0"]), sky[DESI].select([0]).renamed(["0"])
    expected = model.embed([image, spectrum])
    words = {HSC: in_astropys_words(image), DESI: spectrum}
    torch.testing.assert_close(model.embed(words).vectors, expected.vectors, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(model.embed(image).vectors, model.embed([image]).vectors)
    table = QTable({"object_id": ["a", "b"], REDSHIFT: [0.1, 0.3], "scalar/stellar_mass": [1e10, 1e11] * u.solMass})
    found = model.embed(table, "encoder")
    assert found.object_id == ("a", "b")
    numbers = {REDSHIFT: [0.1, 0.3], "scalar/stellar_mass": [10.0, 11.0]}
    torch.testing.assert_close(model.embed(numbers, "encoder").vectors, found.vectors)
    with pytest.raises(ObservationError, match="expected bands"):
        model.embed({HSC: np.ones((2, 8, 8))})


def test_a_model_and_a_client_of_it_are_interchangeable(model, sky, tmp_path):
    model.save(tmp_path / "checkpoint")
    local = armillary.load(tmp_path / "checkpoint")
    with running(create_app(local)) as url, Client(url) as client:
        assert client.model_id == local.model_id
        assert client.embedding_size("aligned") == local.embedding_size("aligned")
        given = [sky[HSC].select([0, 1, 2]), sky[DESI].select([0, 1])]
        words = {HSC: in_astropys_words(sky[HSC].select([0])), REDSHIFT: 0.2}
        for observations in (given, given[0], words):
            here, there = (vectors_and_redshifts(either, observations) for either in (local, client))
            for one, other in zip(here, there, strict=True):
                torch.testing.assert_close(other.double(), one.double(), atol=1e-4, rtol=1e-4)
        options = {"num_samples": 2, "seed": 3, "num_stages": 2, "image_size": 24}
        for target in (DESI, "image/legacysurvey"):
            here, there = (either.generate(given[0], [target], **options)[target] for either in (local, client))
            assert there.object_id == here.object_id
            assert there.values().shape == here.values().shape
            assert torch.isfinite(there.mean()).all()
            torch.testing.assert_close(there.mask, here.mask)
