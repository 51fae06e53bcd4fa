"""Neighbours: as many as the sky has, the same in every view, and as much of their light as the images show."""

import dataclasses

import numpy as np
import pytest
import torch

from armillary.data.simulation.light_profiles import POINT
from armillary.data.simulation.render_images import Sources, render_images
from armillary.data.simulation.scene import (
    CLOSE_CONTRAST,
    CLOSE_SEPARATIONS,
    Neighbours,
    Pool,
    blended_fraction,
    draw_neighbours,
    neighbour_sources,
    num_uniforms,
    share_within,
)

INDICES = (4.0, 1.0, POINT)


@pytest.fixture(scope="module")
def pool() -> Pool:
    rng = np.random.default_rng(0)
    count = 200
    radius = np.column_stack([rng.uniform(0.1, 0.6, count), rng.uniform(0.2, 1.2, count), np.zeros(count)])
    return Pool(
        INDICES,
        magnitude=np.linspace(17, 24, count),
        density=np.linspace(0.2, 1.8, count) * 0.01 / count,
        radius=radius,
        axis_ratio=np.column_stack([rng.uniform(0.5, 1, (count, 2)), np.ones(count)]),
        position_angle=rng.uniform(0, 180, count),
        is_companion=np.arange(count) % 4 > 0,
    )


@pytest.fixture(scope="module")
def pool_flux(pool) -> torch.Tensor:
    share = np.random.default_rng(1).dirichlet((1, 1, 1), len(pool))
    total = 10 ** (0.4 * (22.5 - pool.magnitude))
    return torch.from_numpy((total[:, None] * share)[..., None] * np.array([0.5, 1.0, 2.0])).float()


def neighbours(pool, count, field=10.0, seed=0, **options) -> Neighbours:
    uniform = np.random.default_rng(seed).random((count, num_uniforms(pool, field)))
    return draw_neighbours(uniform, pool, np.full(count, 19.0), field, **options)


def test_chance_neighbours_have_the_density_of_the_pool(pool):
    drawn = neighbours(pool, 4000, close_probability=0.0)
    expected = 0.01 * np.pi * 10**2
    assert drawn.number.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / 4000))
    assert drawn.number.var() == pytest.approx(expected, rel=0.1)  # Poisson
    inside = drawn.is_present
    assert (drawn.distance[inside] <= 10).all()
    assert (drawn.distance[inside] < 10 / np.sqrt(2)).mean() == pytest.approx(0.5, abs=0.02)  # even over the area
    assert drawn.offset[inside].mean(0) == pytest.approx([0, 0], abs=0.2)
    counts = np.bincount(drawn.row[inside], minlength=len(pool))
    assert counts[100:].sum() / counts[:100].sum() == pytest.approx(1.4 / 0.6, rel=0.1)


def test_wider_view_shows_the_same_neighbours_and_more(pool):
    uniform = np.random.default_rng(3).random((50, num_uniforms(pool, 25.0)))
    narrow, wide = (draw_neighbours(uniform, pool, np.full(50, 19.0), field) for field in (10.0, 25.0))
    assert wide.number.sum() > 4 * narrow.number.sum()
    for name in ("row", "offset", "turn"):
        first, second = getattr(narrow, name), getattr(wide, name)
        np.testing.assert_array_equal(first[narrow.is_present], second[:, : first.shape[1]][narrow.is_present])
    beyond = wide.is_present.copy()
    beyond[:, : narrow.row.shape[1]] &= ~narrow.is_present
    assert (wide.distance[beyond] > 10).all()


def test_close_companions_are_close_and_alike_in_magnitude(pool):
    drawn = neighbours(pool, 3000, close_probability=0.3)
    has_close = drawn.is_present[:, 0]
    assert has_close.mean() == pytest.approx(0.3, abs=0.03)
    separation = drawn.distance[has_close, 0]
    assert (separation >= CLOSE_SEPARATIONS[0]).all()
    assert (separation <= CLOSE_SEPARATIONS[1]).all()
    contrast = pool.magnitude[drawn.row[has_close, 0]] - 19.0
    spacing = 2 * 7 / 199
    assert pool.is_companion[drawn.row[has_close, 0]].all()
    assert not pool.is_companion[drawn.row[:, 1:][drawn.is_present[:, 1:]]].all()
    assert contrast.min() == pytest.approx(CLOSE_CONTRAST[0], abs=0.05 + spacing)
    assert contrast.max() == pytest.approx(CLOSE_CONTRAST[1], abs=0.05 + spacing)
    assert not neighbours(pool, 500, close_probability=0.0).is_present[:, 0].any()


def test_object_without_magnitude_has_no_close_companion(pool):
    uniform = np.random.default_rng(0).random((20, num_uniforms(pool, 5.0)))
    drawn = draw_neighbours(uniform, pool, np.full(20, np.nan), 5.0, close_probability=1.0)
    assert not drawn.is_present[:, 0].any()


def test_too_few_random_numbers_are_refused(pool):
    with pytest.raises(ValueError, match=r"the field of 30\.0 arcsec has 28\.3 neighbours on average"):
        draw_neighbours(np.zeros((2, 20)), pool, np.zeros(2), 30.0)


def render(sources, size=96, pixel_scale=0.25, fwhm=1.0):
    psf_fwhm = torch.full((len(sources), sources.flux.shape[-1]), fwhm)
    return render_images(sources, psf_fwhm, size=size, pixel_scale=pixel_scale).double().numpy()


def test_neighbours_appear_at_their_places_with_their_colours(pool, pool_flux):
    drawn = neighbours(pool, 8, seed=4, close_probability=0.5)
    images = render(neighbour_sources(drawn, pool, pool_flux))
    total = (pool_flux[drawn.row] * torch.from_numpy(drawn.is_present)[..., None, None]).sum((1, 2))
    np.testing.assert_allclose(images.sum((2, 3)), total, rtol=0.03, atol=1e-3)
    for image, place, present in zip(images, drawn.offset, drawn.is_present, strict=True):
        for up, left in place[present]:
            row, column = round(47.5 + up / 0.25), round(47.5 - left / 0.25)
            around = image[1, row - 2 : row + 3, column - 2 : column + 3]
            assert image[1, row, column] > 0.5 * around.max()
        assert present.any() or not image.any()


def test_sources_of_no_neighbours_are_none(pool, pool_flux):
    drawn = neighbours(pool, 3, close_probability=0.0)
    empty = dataclasses.replace(drawn, is_present=np.zeros_like(drawn.is_present))
    sources = neighbour_sources(empty, pool, pool_flux)
    assert sources.flux.shape == (3, 0, 3)
    assert not render(sources).any()


def test_share_within_an_aperture_is_that_of_the_image(pool, pool_flux):
    drawn = neighbours(pool, 5, field=4.0, seed=6, close_probability=1.0)
    rows, columns = (np.mgrid[:480, :480] - 239.5) * 0.05
    inside = np.hypot(rows, columns) < 1.5
    share = share_within(drawn, pool, 1.5, 1.0)
    seen = render(neighbour_sources(drawn, pool, pool_flux), size=480, pixel_scale=0.05)[..., inside].sum(-1)
    light = np.einsum("bkp,bkpc->bc", share, pool_flux[drawn.row].double().numpy())
    total = (pool_flux[drawn.row] * torch.from_numpy(drawn.is_present)[..., None, None]).sum((1, 2))
    np.testing.assert_array_less(np.abs(seen - light), 1e-3 * total.numpy())


def test_blended_fraction_is_the_neighbours_part_of_the_light(pool, pool_flux):
    drawn = neighbours(pool, 6, seed=2, close_probability=0.5)
    share = share_within(drawn, pool, 1.5, 1.0)
    own = np.full((6, 3), 3.0)
    fraction = blended_fraction(share, drawn, pool_flux.double().numpy(), own)
    foreign = np.zeros((6, 3))
    for b, k in zip(*np.nonzero(drawn.is_present), strict=True):
        for p in range(3):
            foreign[b] += share[b, k, p] * pool_flux[drawn.row[b, k], p].double().numpy()
    np.testing.assert_allclose(fraction, foreign / (foreign + 3.0))
    assert 0 < fraction.max() < 1
    assert (blended_fraction(np.zeros_like(share), drawn, pool_flux.double().numpy(), np.zeros((6, 3))) == 0).all()


def test_share_falls_with_distance(pool):
    drawn = neighbours(pool, 1, field=4.0)
    shares = []
    for distance in (0.0, 1.0, 3.0, 30.0):
        offset = np.zeros_like(drawn.offset)
        offset[..., 1] = distance
        one = dataclasses.replace(drawn, offset=offset, is_present=np.arange(drawn.row.shape[1])[None] == 0)
        shares.append(share_within(one, pool, 0.75, 1.1)[0, 0])
    assert (np.diff(np.array(shares), axis=0) < 0).all()
    assert (shares[-1] == 0).all()


def test_scene_on_another_device(pool, pool_flux, elsewhere):
    context, there, back = elsewhere
    drawn = neighbours(pool, 4, close_probability=0.5)
    expected = neighbour_sources(drawn, pool, pool_flux)
    own = Sources((1.0,), *(torch.ones(4, 1, *tail) for tail in ((3,), (), (), (), (2,))))
    with context:
        found = neighbour_sources(drawn, pool, there(pool_flux))
        moved = Sources((1.0,), *(there(torch.ones(4, 1, *tail)) for tail in ((3,), (), (), (), (2,))))
        image = render_images(moved.join(found), there(torch.ones(4, 3)), size=32, pixel_scale=0.3)
    expected_image = render_images(own.join(expected), torch.ones(4, 3), size=32, pixel_scale=0.3)
    torch.testing.assert_close(back(image), expected_image)
