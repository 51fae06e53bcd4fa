"""The simulated sky as a source of observations, and the settings that describe it."""

import numpy as np
import pytest
import torch

from armillary.data.simulation.sky import DEFAULT_MODALITIES, SimulatedSky, SkySettings, simulate_sky
from armillary.settings import SettingsError, find_config, load_settings


def settings(**changes):
    return SkySettings(num_objects=12, seed=4, **changes)


def values(observation):
    return observation.flux if hasattr(observation, "flux") else observation.values


def test_any_rows_in_any_order_are_parts_of_one_sky():
    sky = SimulatedSky(settings())
    whole, rows = sky.batch(range(12)), [7, 0, 11]
    few = sky.batch(rows)
    assert tuple(few) == DEFAULT_MODALITIES
    for name, observation in few.items():
        assert observation.object_id == tuple(whole[name].object_id[row] for row in rows)
        torch.testing.assert_close(values(observation), values(whole[name])[rows], rtol=1e-4, atol=1e-5)
        assert torch.equal(observation.mask, whole[name].mask[rows])
        assert torch.equal(observation.ra, whole[name].ra[rows])


def test_batches_are_the_sky_in_order():
    sky = SimulatedSky(settings())
    batches = list(simulate_sky(settings(), batch_size=5))
    assert [len(batch[0]) for batch in batches] == [5, 5, 2]
    for observation, whole in zip(batches[1], sky.batch(range(5, 10)).values(), strict=True):
        assert observation.modality == whole.modality
        assert observation.object_id == whole.object_id
        torch.testing.assert_close(values(observation), values(whole))


def test_a_larger_sky_begins_with_the_objects_of_a_smaller_one():
    small, large = (SimulatedSky(SkySettings(num_objects=count)) for count in (3, 9000))
    for name in ("scalar/redshift", "scalar/sdss_g"):
        first, second = (sky.batch([0, 1, 2])[name] for sky in (small, large))
        assert torch.equal(first.values, second.values)
        assert torch.equal(first.dec, second.dec)


def test_shipped_settings_are_the_defaults():
    assert load_settings(SkySettings, find_config("data/sky.yaml")) == SkySettings()


def test_deep_sky_shows_what_its_settings_say():
    chosen = load_settings(SkySettings, find_config("data/deep_sky.yaml"))
    batch = SimulatedSky(chosen).batch(range(6))
    assert tuple(batch) == chosen.modalities
    assert batch["image/hsc"].flux.shape == (6, 5, 96, 96)
    assert batch["coefficients/gaia_bp_rp"].values.shape == (6, 110)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modalities=[image/hcs]", "image/hsc"),
        ("modalities=[scalar/twomass_k]", "not simulated"),
        ("modalities=[scalar/gaia_radial_velocity]", "not simulated"),
        ("image_sizes={image/hsc: 64}", "image/legacysurvey"),
        ("modalities=[image/hsc,image/hsc]", "must differ"),
        ("num_object=3", "num_objects"),
        ("healpix_order=0", "at most 6000"),
        ("magnitude_limit=25", "magnitude_limit"),
        ("star_fraction=0.97", "must not exceed 1"),
    ],
)
def test_wrong_settings_are_explained(override, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(SkySettings, overrides=["num_objects=6001", override])


def test_rows_that_no_sky_has_are_refused():
    with pytest.raises(ValueError, match="rows must lie in"):
        SimulatedSky(settings()).batch([-1])
    assert np.isfinite(SimulatedSky(settings()).objects([12]).ra).all()


def test_an_accelerator_gives_the_same_sky(elsewhere):
    """On a device apart, every tensor must be where it is used; what comes back is the sky of the CPU."""
    context, _, _ = elsewhere
    chosen = settings(star_fraction=0.3, quasar_fraction=0.3, magnitude_limit=22.0)
    expected = SimulatedSky(chosen).batch(range(8))
    with context:
        found = SimulatedSky(chosen, device="meta").batch(range(8))
    for name, observation in found.items():
        torch.testing.assert_close(values(observation), values(expected[name]), rtol=1e-4, atol=1e-5)
