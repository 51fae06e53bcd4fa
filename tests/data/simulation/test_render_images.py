"""The renderer against oversampled profiles, summed and blurred by brute force."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve
from scipy.special import gammaincinv
from torch import Tensor

from armillary.data.simulation.light_profiles import (
    MOFFAT_BETA,
    POINT,
    TRUNCATION,
    flux_within,
    moffat_mixture,
    sersic_mixture,
)
from armillary.data.simulation.render_images import Knots, Sources, render_images

SIZE, SCALE = 48, 0.25


def one_source(index, radius=0.0, ratio=1.0, angle=0.0, flux=1.0, offset=(0.0, 0.0)):
    return Sources(
        (index,),
        torch.full((1, 1, 1), flux),
        torch.full((1, 1), radius),
        torch.full((1, 1), ratio),
        torch.full((1, 1), angle),
        torch.tensor([[offset]]),
    )


def render(index, radius, ratio=1.0, angle=0.0, fwhm=1.1, size=SIZE, flux=1.0, scale=SCALE, offset=(0.0, 0.0)):
    source = one_source(index, radius, ratio, angle, flux, offset)
    image = render_images(source, torch.full((1, 1), fwhm), size=size, pixel_scale=scale)
    return image[0, 0].double().numpy()


def brute_force(index, radius, ratio, angle, fwhm, size=SIZE, oversampling=9):
    """A truncated Sersic profile, convolved with a Moffat PSF on a fine grid of twice the image, then binned."""
    side = 2 * size * oversampling + 1
    axis = (np.arange(side) - side // 2) * SCALE / oversampling
    x, y = np.meshgrid(axis, axis)
    turn = math.radians(angle)
    major = y * math.cos(turn) - x * math.sin(turn)
    minor = x * math.cos(turn) + y * math.sin(turn)
    reach = np.hypot(major, minor / ratio) / radius
    soft = np.hypot(reach, 0.15 * SCALE / oversampling / radius)  # the pixel at the cusp holds its mean, not its peak
    profile = np.where(reach < TRUNCATION[index], np.exp(-gammaincinv(2 * index, 0.5) * soft ** (1 / index)), 0)
    width = fwhm / 2 / math.sqrt(2 ** (1 / MOFFAT_BETA) - 1)
    psf = (1 + (x**2 + y**2) / width**2) ** -MOFFAT_BETA
    blurred = fftconvolve(profile / profile.sum(), psf / psf.sum(), mode="same")
    # The image's outer edges: its middle lies between the two central pixels, on the central fine point.
    cumulative = np.pad(blurred.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    half = size * oversampling // 2
    middle = side // 2
    edges = middle - half + oversampling * np.arange(size + 1)
    corner = lambda shift: cumulative[np.ix_(edges + shift, edges + shift)]  # noqa: E731
    binned = (corner(0) + corner(1)) / 2
    return np.diff(np.diff(binned, axis=0), axis=1)


@pytest.mark.parametrize(
    ("index", "radius", "ratio", "angle"),
    [(1.0, 1.5, 1.0, 0.0), (1.0, 1.2, 0.3, 35.0), (4.0, 0.8, 0.8, 120.0), (4.0, 1.2, 0.6, 60.0), (1.0, 0.3, 0.5, 0.0)],
)
def test_image_is_that_of_direct_integration(index, radius, ratio, angle):
    expected = brute_force(index, radius, ratio, angle, 1.1)
    rendered = render(index, radius, ratio, angle)
    assert np.abs(rendered - expected).max() < 0.015 * expected.max()
    assert rendered.sum() == pytest.approx(expected.sum(), abs=0.005)


@pytest.mark.parametrize("index", [1.0, 4.0])
def test_flux_is_conserved_in_a_wide_image(index):
    assert render(index, 0.6, 0.7, 20.0, size=160, flux=12.5).sum() == pytest.approx(12.5, rel=0.005)


def test_wide_gaussians_in_real_space_agree_with_a_larger_grid():
    # In the larger image no Gaussian is wide; its middle is the small image.
    small, large = render(1.0, 4.5, 0.4, 70.0), render(1.0, 4.5, 0.4, 70.0, size=4 * SIZE)
    cut = slice(3 * SIZE // 2, 5 * SIZE // 2)
    np.testing.assert_allclose(small, large[cut, cut], atol=3e-3 * small.max())


def test_position_angle_turns_from_up_through_left():
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    for angle, sign in ((45.0, -1), (135.0, 1)):
        image = render(1.0, 1.5, 0.3, angle)
        assert np.sign((image * rows * columns).sum()) == sign
    upright = render(1.0, 1.5, 0.3, 0.0)
    assert (upright * rows**2).sum() > 2 * (upright * columns**2).sum()


def test_center_is_the_middle_of_the_image():
    image = render(4.0, 0.7, 0.6, 25.0, size=31)
    rows, columns = np.mgrid[:31, :31]
    assert (image * rows).sum() / image.sum() == pytest.approx(15, abs=0.01)
    assert (image * columns).sum() / image.sum() == pytest.approx(15, abs=0.01)


def two_sources(num_images=1, num_bands=2):
    """A bulge and a disc elsewhere, seen through another PSF in each band and image."""
    repeat = lambda values: torch.tensor([values]).expand(num_images, -1)  # noqa: E731
    sources = Sources(
        (4.0, 1.0),
        torch.arange(1.0, 1.0 + num_images * 2 * num_bands).reshape(num_images, 2, num_bands),
        repeat([0.5, 1.5]),
        repeat([0.9, 0.4]),
        repeat([30.0, 75.0]),
        torch.tensor([[[0.0, 0.0], [2.1, -1.3]]]).expand(num_images, -1, -1),
    )
    return sources, torch.linspace(0.8, 1.3, num_images * num_bands).reshape(num_images, num_bands)


def test_bands_and_sources_add():
    sources, psf_fwhm = two_sources()
    image = render_images(sources, psf_fwhm, size=SIZE, pixel_scale=SCALE)[0].double().numpy()
    for band, fwhm in enumerate(psf_fwhm[0].tolist()):
        bulge, disc = sources.flux[0, :, band].tolist()
        expected = bulge * render(4.0, 0.5, 0.9, 30.0, fwhm)
        expected += disc * render(1.0, 1.5, 0.4, 75.0, fwhm, offset=(2.1, -1.3))
        np.testing.assert_allclose(image[band], expected, atol=1e-6 * expected.max())


def test_chunks_do_not_change_images():
    sources, psf_fwhm = two_sources(num_images=7)
    whole = render_images(sources, psf_fwhm, size=SIZE, pixel_scale=SCALE)
    parts = render_images(sources, psf_fwhm, size=SIZE, pixel_scale=SCALE, max_bytes=1)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_sharp_and_blurred_images_may_share_a_batch():
    """A PSF that the pixels do not sample is rendered in finer ones; each image comes out as if alone."""
    sources, _ = two_sources(num_images=3)
    psf_fwhm = torch.tensor([[1.2, 0.9], [0.3, 0.9], [1.0, 0.8]])
    together = render_images(sources, psf_fwhm, size=SIZE, pixel_scale=SCALE)
    for row in range(3):
        alone = render_images(
            sources.select(slice(row, row + 1)), psf_fwhm[row : row + 1], size=SIZE, pixel_scale=SCALE
        )
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)
    assert together[1, 0].amin() > -1e-3 * together[1, 0].amax()  # no ringing


def test_no_images_and_no_light_are_rendered_as_such():
    sources, psf_fwhm = two_sources(num_images=2)
    none = render_images(sources.select(slice(0, 0)), psf_fwhm[:0], size=SIZE, pixel_scale=SCALE)
    assert none.shape == (0, 2, SIZE, SIZE)
    dark = dataclasses.replace(sources, flux=torch.zeros_like(sources.flux))
    assert not render_images(dark, psf_fwhm, size=SIZE, pixel_scale=SCALE).any()


def test_offset_moves_up_and_left():
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    image = render(POINT, 0.0, offset=(2.0, 1.5))
    assert (image * rows).sum() / image.sum() == pytest.approx(2.0 / SCALE, abs=0.02)
    assert (image * columns).sum() / image.sum() == pytest.approx(-1.5 / SCALE, abs=0.02)


@pytest.mark.parametrize(
    ("up", "radius", "index"), [(0.99, 0.6, 1.0), (0.99, 0.0, POINT), (2.0, 3.0, 1.0), (2.02, 0.0, POINT)]
)
def test_light_far_outside_does_not_come_round_the_edge(up, radius, index):
    """`up` is in image sizes; in the middle of the image there is no light of a source beyond its edge."""
    image = render(index, radius, offset=(up * SIZE * SCALE, 0.0))
    assert np.abs(image[: 3 * SIZE // 4]).max() < 1e-5


def some_knots(num_images=1, num_bands=1):
    rng = np.random.default_rng(3)
    weight = torch.from_numpy(rng.uniform(size=(num_images, 9))).float()
    weight[:, :4] /= weight[:, :4].sum(1, keepdim=True)
    weight[:, 4:] /= weight[:, 4:].sum(1, keepdim=True)
    return Knots(
        0,
        (4, 5),
        torch.from_numpy(rng.normal(size=(num_images, 9, 2)) * 0.8).float(),
        weight,
        torch.tensor([[0.3, 0.1]]).expand(num_images, -1),
        torch.tensor([0.7, 0.4]).expand(num_images, num_bands, -1).transpose(1, 2),
    )


def test_fine_pixels_add_up_to_coarse_ones():
    """Nothing is lost between the pixels: an image on half the pixel scale, binned, is the image."""
    source = one_source(1.0, 1.7, 0.5, 40.0)
    for knots in (None, some_knots()):
        coarse, fine = (
            render_images(source, torch.full((1, 1), 0.8), size=s, pixel_scale=p, knots=knots)[0, 0]
            for s, p in ((SIZE, SCALE), (2 * SIZE, SCALE / 2))
        )
        binned = fine.reshape(SIZE, 2, SIZE, 2).sum((1, 3))
        torch.testing.assert_close(binned, coarse, rtol=0, atol=5e-4 * coarse.max().item())


def moved(value, there):
    return dataclasses.replace(value, **{k: there(v) for k, v in vars(value).items() if isinstance(v, torch.Tensor)})


def test_single_precision_is_enough():
    sources, psf_fwhm = two_sources(num_images=3)
    sources = dataclasses.replace(sources, radius=sources.radius * torch.tensor([[0.3], [1.0], [6.0]]))
    knots = some_knots(num_images=3, num_bands=2)
    single = render_images(sources, psf_fwhm, size=SIZE, pixel_scale=SCALE, knots=knots)
    precise = render_images(
        moved(sources, Tensor.double),
        psf_fwhm.double(),
        size=SIZE,
        pixel_scale=SCALE,
        knots=moved(knots, Tensor.double),
    )
    assert precise.dtype == torch.float64
    error = (single - precise).abs().amax((1, 2, 3)) / precise.amax((1, 2, 3))
    assert error.max() < 2e-6


def test_every_constant_follows_the_device_of_the_sources(elsewhere):
    context, there, back = elsewhere
    sources, psf_fwhm = two_sources(num_images=3)
    sources = dataclasses.replace(sources, radius=sources.radius * torch.tensor([[1.0], [1.0], [4.0]]))  # a wide one
    knots = some_knots(num_images=3, num_bands=2)
    expected = render_images(sources, psf_fwhm, size=SIZE, pixel_scale=SCALE, knots=knots)
    with context:
        found = render_images(
            moved(sources, there), there(psf_fwhm), size=SIZE, pixel_scale=SCALE, knots=moved(knots, there)
        )
        assert found.device != psf_fwhm.device
        with pytest.raises(RuntimeError, match="same device"):
            render_images(moved(sources, there), psf_fwhm, size=SIZE, pixel_scale=SCALE)
    torch.testing.assert_close(back(found), expected)


def test_psf_has_the_stated_width():
    weights, sigmas = moffat_mixture()
    profile = lambda r: (weights / sigmas**2 * np.exp(-0.5 * (r / sigmas) ** 2)).sum()  # noqa: E731
    assert profile(0.5) / profile(0.0) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("index", [1.0, 4.0])
def test_mixture_holds_half_its_light_within_the_half_light_radius(index):
    weights, sigmas = sersic_mixture(index)
    inside = (weights * -np.expm1(-0.5 / sigmas**2)).sum()
    # The truncated profile has a little less light outside, so more than half within.
    assert 0.5 <= inside + 1e-3 < 0.54


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.2])
def test_flux_within_an_aperture_is_that_of_the_image(ratio):
    share = flux_within(0.75, np.array([[0.9, 1.4, 0.0]]), np.array([[ratio, ratio, 1.0]]), 1.1, (4.0, 1.0, POINT))[0]
    for index, radius, expected in ((4.0, 0.9, share[0]), (1.0, 1.4, share[1]), (POINT, 0.0, share[2])):
        fine = render(index, radius, ratio, 40.0, size=241, scale=0.02)
        rows, columns = (np.mgrid[:241, :241] - 120) * 0.02
        assert fine[np.hypot(rows, columns) < 0.75].sum() == pytest.approx(expected, abs=2e-3)
