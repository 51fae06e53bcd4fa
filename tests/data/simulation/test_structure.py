"""Structure of discs: it changes no flux, is the same through every camera, and follows the galaxy's properties."""

import dataclasses

import numpy as np
import pytest
import torch

from armillary.data.simulation.render_images import Sources, render_images
from armillary.data.simulation.structure import (
    GROUP_SIZES,
    NUM_UNIFORMS,
    Structure,
    draw_structure,
    group_shares,
    with_structure,
)

NUM_BANDS = 3
WAVELENGTHS = np.array([4000.0, 5500.0, 8000.0])


def structures(count=64, seed=0, mass=10.5, rate=-9.9, redshift=0.1, bulge=0.1, inclination=30.0) -> Structure:
    uniform = np.random.default_rng(seed).random((count, NUM_UNIFORMS))
    full = lambda value: np.broadcast_to(np.float64(value), (count,)).copy()  # noqa: E731
    return draw_structure(
        uniform,
        log_stellar_mass=full(mass),
        log_specific_star_formation_rate=full(rate),
        redshift=full(redshift),
        bulge_fraction=full(bulge),
        inclination=full(inclination),
    )


def disc_image(structure, *, radius=2.0, axis_ratio=0.9, angle=0.0, size=64, pixel_scale=0.3, fwhm=0.6):
    """Images of discs of flux 10, 20 and 30, with their structure."""
    count = len(structure)
    sources = Sources(
        (1.0,),
        torch.tensor([10.0, 20.0, 30.0]).expand(count, 1, -1),
        torch.full((count, 1), radius),
        torch.full((count, 1), axis_ratio),
        torch.full((count, 1), angle),
        torch.zeros(count, 1, 2),
    )
    sources, knots = with_structure(sources, 0, structure, np.tile(WAVELENGTHS, (count, 1)))
    psf_fwhm = torch.full((count, NUM_BANDS), fwhm)
    return render_images(sources, psf_fwhm, size=size, pixel_scale=pixel_scale, knots=knots)


def contrast(images):
    """Scatter of the light along a circle through the disc, relative to its mean, in the bluest band."""
    rows, columns = np.mgrid[: images.shape[-2], : images.shape[-1]] - (images.shape[-1] - 1) / 2
    ring = np.abs(np.hypot(rows, columns) * 0.3 - 2.0) < 0.3
    light = images[:, 0, torch.from_numpy(ring)]
    return (light.std(1) / light.mean(1)).numpy()


@pytest.mark.parametrize("kind", [{}, {"mass": 8.5}, {"redshift": 2.5}, {"rate": -12.0}, {"inclination": 88.0}])
def test_flux_in_each_band_stays_what_it_was(kind):
    edge_on = "inclination" in kind
    images = disc_image(structures(12, **kind), axis_ratio=0.2 if edge_on else 0.9, radius=1.0, size=96)
    np.testing.assert_allclose(images.sum((2, 3)), np.tile([10.0, 20.0, 30.0], (12, 1)), rtol=1e-3)


@pytest.mark.parametrize("kind", [{}, {"mass": 8.5}, {"redshift": 2.5}, {"inclination": 88.0}])
def test_light_is_nowhere_negative(kind):
    images = disc_image(structures(32, **kind), axis_ratio=0.2 if "inclination" in kind else 0.9)
    assert images.amin() > -1e-4 * images.amax()


def test_structure_of_a_galaxy_does_not_depend_on_the_others():
    uniform = np.random.default_rng(1).random((9, NUM_UNIFORMS))
    properties = {
        "log_stellar_mass": np.linspace(8.5, 11, 9),
        "log_specific_star_formation_rate": np.linspace(-9.5, -11.5, 9),
        "redshift": np.linspace(0.05, 2, 9),
        "bulge_fraction": np.linspace(0, 0.8, 9),
        "inclination": np.linspace(0, 90, 9),
    }
    whole = draw_structure(uniform, **properties)
    part = draw_structure(uniform[3:5], **{name: values[3:5] for name, values in properties.items()})
    for field in dataclasses.fields(Structure):
        np.testing.assert_array_equal(getattr(part, field.name), getattr(whole.select(slice(3, 5)), field.name))


def test_cameras_see_the_same_structure():
    """An image in small pixels, binned, is the image in large ones."""
    structure = structures(4)
    large = disc_image(structure, size=48, pixel_scale=0.3)
    small = disc_image(structure, size=144, pixel_scale=0.1)
    binned = small.reshape(4, NUM_BANDS, 48, 3, 48, 3).sum((3, 5))
    torch.testing.assert_close(binned, large, rtol=0, atol=2e-3 * large.max().item())


def test_late_types_have_more_structure_than_early_types():
    late, spiral, early = (contrast(disc_image(structures(48, rate=rate))) for rate in (-9.3, -10.3, -12.0))
    assert np.median(late) > 1.2 * np.median(spiral)
    assert np.median(spiral) > 3 * np.median(early)


def test_clumps_grow_with_redshift_star_formation_and_at_low_mass():
    usual = structures().young_share[:, 2].mean()
    for kind in ({"redshift": 1.0}, {"rate": -9.2}, {"mass": 8.5}):
        assert structures(**kind).young_share[:, 2].mean() > usual + 0.05


def test_young_light_is_blue():
    structure = structures()
    smooth, groups, _ = group_shares(structure, np.tile(WAVELENGTHS, (len(structure), 1)))
    np.testing.assert_allclose(smooth + groups.sum(1), 1)
    clumps = groups[:, 2]
    assert (clumps[:, 0] > 1.3 * clumps[:, 1]).all()
    assert (clumps[:, 1] > 1.3 * clumps[:, 2]).all()
    np.testing.assert_allclose(clumps[:, 1], structure.young * structure.young_share[:, 2])


def test_arms_are_logarithmic_spirals_of_either_sense():
    """Two-armed: the angle of the knots, doubled, is linear in ln radius, and the slope says the pitch angle."""
    structure = structures(80, inclination=0.0, bulge=0.2)
    arms = structure.position[:, GROUP_SIZES[0] : sum(GROUP_SIZES[:2])]
    slopes = np.linspace(-8, 8, 321)
    radius, angle = np.hypot(*arms.T).T, np.arctan2(arms[..., 1], arms[..., 0])
    phases = 2 * (angle[..., None] - slopes * np.log(radius)[..., None])
    order = np.abs(np.exp(1j * phases).mean(1))
    best = order.max(1) > 0.85
    assert 0.35 < best.mean() < 0.65
    found = slopes[order.argmax(1)][best]
    assert (found > 0).mean() == pytest.approx(0.5, abs=0.25)
    pitch = np.degrees(np.arctan(1 / np.abs(found)))
    assert pitch.min() > 7
    assert np.median(pitch) == pytest.approx(24 - 22 * 0.2, abs=4)


def test_inclination_squeezes_the_pattern_to_a_thin_layer():
    for inclination, flatness in ((0.0, 1.0), (60.0, 0.5), (90.0, 0.1)):
        place = structures(inclination=inclination).position[:, GROUP_SIZES[0] :]
        assert place[..., 1].std() / place[..., 0].std() == pytest.approx(flatness, abs=0.12)


def test_dust_lane_darkens_the_middle_of_an_edge_on_disc():
    structure = structures(24, inclination=89.0, rate=-10.3)
    assert (structure.lane > 0).any()
    assert (structures(inclination=60.0).lane == 0).all()
    without = dataclasses.replace(structure, lane=np.zeros(24))
    # At position angle 0 the disc stands upright; look across it, half a radius above the middle.
    options = {"axis_ratio": 0.2, "radius": 6.0, "fwhm": 0.5, "pixel_scale": 0.15, "size": 128}
    profile, plain = (disc_image(s, **options)[:, 0, 64 + 20] for s in (structure, without))
    ratio = profile / plain
    assert (ratio[:, 64] < 1 - 0.25 * torch.from_numpy(structure.lane)).all()
    assert (ratio[:, 64 - 16] > 1).all()  # what the lane takes is given back


def test_what_is_no_galaxy_has_no_structure():
    structure = structures(4, rate=np.nan)
    smooth, groups, lane = group_shares(structure, np.tile(WAVELENGTHS, (4, 1)))
    assert (smooth == 1).all()
    assert (groups == 0).all()
    assert (lane == 0).all()
    assert torch.isfinite(disc_image(structure)).all()


def test_structure_follows_the_device_of_the_sources(elsewhere):
    context, there, back = elsewhere
    structure = structures(3, inclination=80.0)
    tensors = [torch.ones(3, 1, *tail) for tail in ((NUM_BANDS,), (), (), (), (2,))]
    wavelengths = np.tile(WAVELENGTHS, (3, 1))

    def image(tensors, psf_fwhm):
        sources, knots = with_structure(Sources((1.0,), *tensors), 0, structure, wavelengths)
        return render_images(sources, psf_fwhm, size=32, pixel_scale=0.3, knots=knots)

    expected = image(tensors, torch.ones(3, NUM_BANDS))
    with context:
        found = image([there(tensor) for tensor in tensors], there(torch.ones(3, NUM_BANDS)))
    torch.testing.assert_close(back(found), expected)


def test_wrong_number_of_random_numbers_is_refused():
    with pytest.raises(ValueError, match=f"must hold {NUM_UNIFORMS} numbers"):
        draw_structure(np.zeros((2, 10)), **{name: np.zeros(2) for name in _PROPERTIES})


_PROPERTIES = ("log_stellar_mass", "log_specific_star_formation_rate", "redshift", "bulge_fraction", "inclination")
