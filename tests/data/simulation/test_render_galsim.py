"""The renderer against GalSim (Rowe et al. 2015, arXiv 1407.7676), the reference of the field: equal profiles and PSF.

Largest difference of a pixel, relative to the brightest, found over three cameras: points 4e-4 (1.3e-3 where they lie
between pixels of the sharpest), discs 5e-4, bulges 1.2e-3, several sources together 9e-4, knots 4e-4. Fluxes within the
image differ by 3e-4 of the total at most, those of bulges by 2.2e-3. What remains is the fit of Gaussians to a bulge
with a sharp end, and light beyond the band limit of pixels that sample the PSF 3 times in its width.
"""

import galsim
import numpy as np
import pytest
import torch

from armillary.data.simulation.light_profiles import MOFFAT_BETA, POINT, TRUNCATION
from armillary.data.simulation.render_images import Knots, Sources, render_images

CAMERAS = {"decam": (48, 0.262, 1.2), "hsc": (64, 0.168, 0.5), "undersampled": (40, 0.4, 0.6)}
"""Pixels, arcsec of a pixel, FWHM of the PSF in arcsec; HSC in its best seeing."""


def sources(*rows):
    """One image of sources, each (index, flux, radius, axis ratio, position angle, (up, left))."""
    index, flux, radius, ratio, angle, offset = zip(*rows, strict=True)
    return Sources(
        tuple(index),
        torch.tensor([flux])[..., None],
        torch.tensor([radius]),
        torch.tensor([ratio]),
        torch.tensor([angle]),
        torch.tensor([offset]),
    )


def render(camera, *rows, knots=None):
    size, scale, fwhm = CAMERAS[camera]
    return render_images(sources(*rows), torch.tensor([[fwhm]]), size=size, pixel_scale=scale, knots=knots)[0, 0]


def on_the_sky(profile, ratio, angle, offset):
    """Squeezed across, turned from up through left, moved (up, left)."""
    turned = profile.transform(ratio, 0, 0, 1).rotate(angle * galsim.degrees)
    return turned.withFlux(profile.flux).shift(-offset[1], offset[0])


def as_galsim(index, flux, radius, ratio, angle, offset):
    if index == POINT:
        return galsim.DeltaFunction(flux=flux).shift(-offset[1], offset[0])
    reach = TRUNCATION[index] * radius
    profile = galsim.Sersic(n=index, half_light_radius=radius, trunc=reach, flux_untruncated=True).withFlux(flux)
    return on_the_sky(profile, ratio, angle, offset)


def by_galsim(camera, profile):
    size, scale, fwhm = CAMERAS[camera]
    precise = galsim.GSParams(maximum_fft_size=16384, folding_threshold=1e-3, maxk_threshold=1e-4)
    seen = galsim.Convolve(profile, galsim.Moffat(beta=MOFFAT_BETA, fwhm=fwhm)).withGSParams(precise)
    return seen.drawImage(nx=size, ny=size, scale=scale).array.astype(np.float64)


def assert_agree(found, expected, tolerance, flux_tolerance=5e-4):
    found = found.double().numpy()
    assert np.abs(found - expected).max() < tolerance * expected.max()
    assert found.sum() == pytest.approx(expected.sum(), abs=flux_tolerance)


MIDDLE = (0.0, 0.0)
POINTS = [(POINT, 1.0, 0.0, 1.0, 0.0, offset) for offset in (MIDDLE, (0.1, 0.21), (-3.2, 2.9))]
DISCS = [
    (1.0, 1.0, 0.3, 0.5, 20.0, MIDDLE),
    (1.0, 1.0, 1.5, 0.3, 35.0, MIDDLE),
    (1.0, 1.0, 1.5, 1.0, 0.0, (2.5, -1.7)),
    (1.0, 1.0, 4.0, 0.6, 100.0, MIDDLE),
    (1.0, 1.0, 10.0, 0.2, 155.0, MIDDLE),
]
BULGES = [
    (4.0, 1.0, 0.4, 0.8, 10.0, MIDDLE),
    (4.0, 1.0, 1.2, 0.6, 60.0, (0.3, 4.1)),
    (4.0, 1.0, 3.0, 0.9, 130.0, MIDDLE),
]


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("point", POINTS)
def test_points(camera, point):
    assert_agree(render(camera, point), by_galsim(camera, as_galsim(*point)), 1.5e-3)


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("disc", DISCS)
def test_discs(camera, disc):
    assert_agree(render(camera, disc), by_galsim(camera, as_galsim(*disc)), 6e-4)


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("bulge", BULGES)
def test_bulges(camera, bulge):
    assert_agree(render(camera, bulge), by_galsim(camera, as_galsim(*bulge)), 1.2e-3, flux_tolerance=2.5e-3)


@pytest.mark.parametrize("camera", CAMERAS)
def test_bulge_and_disc_with_a_neighbour_and_a_star(camera):
    rows = (
        (4.0, 3.0, 0.7, 0.9, 40.0, MIDDLE),
        (1.0, 7.0, 1.8, 0.5, 40.0, MIDDLE),
        (1.0, 2.0, 0.5, 0.7, 170.0, (2.2, 1.9)),
        (POINT, 1.5, 0.0, 1.0, 0.0, (-1.0, -3.3)),
    )
    expected = by_galsim(camera, galsim.Sum([as_galsim(*row) for row in rows]))
    assert_agree(render(camera, *rows), expected, 1e-3, flux_tolerance=0.02)


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize(("ratio", "angle"), [(1.0, 0.0), (0.5, 35.0), (0.2, 110.0)])
def test_knots(camera, ratio, angle):
    """Knots are Gaussians with the ellipse of their disc, about its middle, which here holds no light itself."""
    rng = np.random.default_rng(5)
    radius, middle, sigmas, fluxes = 2.0, (0.4, -0.3), (0.2, 0.05), (3.0, 2.0)
    place = rng.normal(size=(12, 2)) * 0.5
    weight = rng.uniform(0.2, 1, 12)
    weight[:8] /= weight[:8].sum()
    weight[8:] /= weight[8:].sum()
    knots = Knots(
        0,
        (8, 4),
        torch.from_numpy(place)[None].float(),
        torch.from_numpy(weight)[None].float(),
        torch.tensor([sigmas]),
        torch.tensor([fluxes])[..., None],
    )
    turn = np.radians(angle)
    parts = []
    for number, ((along, across), share) in enumerate(zip(radius * place, weight, strict=True)):
        up = along * np.cos(turn) + across * np.sin(turn)
        right = across * np.cos(turn) - along * np.sin(turn)
        group = int(number >= 8)
        gaussian = galsim.Gaussian(sigma=radius * sigmas[group], flux=float(share * fluxes[group]))
        parts.append(on_the_sky(gaussian, ratio, angle, (middle[0] + up, middle[1] - right)))
    found = render(camera, (1.0, 0.0, radius, ratio, angle, middle), knots=knots)
    assert_agree(found, by_galsim(camera, galsim.Sum(parts)), 6e-4)
