"""The simulated sky against real galaxies: colours, redshifts and sizes at the same magnitudes, and a real spectrum."""

import numpy as np
import pytest
from astropy.io import fits
from scipy.optimize import brentq
from scipy.special import gammainc, gammaincinv

from armillary.data.filters import TABLES_FOLDER, filter_curve, flux_to_magnitude, photometry_weights
from armillary.data.modalities import modality
from armillary.data.readers.manga import read_manga, read_manga_redshift
from armillary.data.real_files import real_file
from armillary.data.simulation.galaxies import Galaxies, draw_galaxies, galaxy_spectra
from armillary.data.simulation.observe_spectra import noiseless_spectra
from armillary.data.simulation.sky_objects import Population, draw_objects
from armillary.data.simulation.wavelength_grid import observed_wavelength

SDSS_TO_AB = np.array([-0.036, 0.012, 0.010, 0.028, 0.040])
BRIGHT = 16.0
"""To this r magnitude the 5,000 galaxies, which 2MASS had to see as extended, are nearly a fair sample."""


@pytest.fixture(scope="module")
def bright() -> Galaxies:
    return draw_galaxies(np.arange(1000), 2, BRIGHT)


@pytest.fixture(scope="module")
def sdss():
    table = fits.getdata(real_file("sdss-galaxies-5000.fits"), 1)
    shift = SDSS_TO_AB - np.asarray(table["EXTINCTION"], np.float64)
    magnitude = flux_to_magnitude(np.maximum(table["PETROFLUX"][:, 2], 1e-3)) + shift[:, 2]
    chosen = (magnitude < BRIGHT) & (np.asarray(table["MODELFLUX"]) > 0).all(1)
    colors = -np.diff(flux_to_magnitude(table["MODELFLUX"][chosen]) + shift[chosen])
    return colors, np.asarray(table["Z"], np.float64)[chosen]


def test_colors_are_those_of_real_galaxies_of_the_same_magnitudes(bright, sdss):
    """Red galaxies are 0.15 too blue in u - g: a limit of the templates, which docs/simulation.md states."""
    weights = photometry_weights([filter_curve(f"sdss2010-{band}") for band in "ugriz"], observed_wavelength())
    simulated = -np.diff(flux_to_magnitude(galaxy_spectra(bright).sum(1).double().numpy() @ weights.T))
    real, _ = sdss
    for column, (median, widths) in enumerate(((0.12, 0.22), (0.05, 0.08), (0.03, 0.06), (0.03, 0.05))):
        ours, theirs = (np.percentile(colors[:, column], [16, 50, 84]) for colors in (simulated, real))
        assert ours[1] == pytest.approx(theirs[1], abs=median), column
        np.testing.assert_allclose(ours[[0, 2]], theirs[[0, 2]], atol=widths)


def test_redshifts_are_those_of_real_galaxies_of_the_same_magnitudes(bright, sdss):
    _, real = sdss
    assert np.median(bright.redshift) == pytest.approx(np.median(real), abs=0.008)


@pytest.mark.parametrize(("low", "high"), [(21.0, 22.0), (22.0, 23.0), (23.0, 24.0)])
def test_sizes_are_those_that_hubble_saw(low, high):
    """Half-light radii of bulge and disc together against Sersic fits of 3D-HST."""
    with np.load(TABLES_FOLDER / "galaxy_shapes.npz", allow_pickle=False) as table:
        magnitude, radius = np.float64(table["r_magnitude"]), np.float64(table["radius"])
    real = radius[(magnitude > low) & (magnitude < high)]
    galaxies = draw_galaxies(np.arange(2000), 3, high)
    galaxies = galaxies.select(np.flatnonzero(galaxies.r_magnitude > low))
    simulated = [
        half_light_radius(share, *radii) for share, radii in zip(galaxies.bulge_fraction, galaxies.radius, strict=True)
    ]
    ours, theirs = (np.percentile(sizes, [16, 50, 84]) for sizes in (simulated, real))
    assert ours[1] == pytest.approx(theirs[1], rel=0.12)
    np.testing.assert_allclose(ours, theirs, rtol=0.25)


def half_light_radius(bulge_share, bulge, disc):
    """Where half of the light of both profiles lies within."""

    def excess(radius):
        within = [
            gammainc(2 * index, gammaincinv(2 * index, 0.5) * (radius / size) ** (1 / index))
            for index, size in ((4.0, bulge), (1.0, disc))
        ]
        return bulge_share * within[0] + (1 - bulge_share) * within[1] - 0.5

    return brentq(excess, 1e-4, 100.0)


def test_some_simulated_galaxy_has_the_spectrum_of_a_real_one():
    """A MaNGA galaxy: of two hundred simulated galaxies at its redshift, the most like has its continuum to 4 %."""
    real = read_manga(real_file("manga-spectra.fits.gz"))
    truth = read_manga_redshift(real_file("manga-spectra.fits.gz"))
    redshift = dict(zip(truth.object_id, truth.values.tolist(), strict=True))
    row = int(real.flux.median(1).values.argmax())
    rows = np.arange(6000)
    near = rows[np.abs(draw_galaxies(rows, 0, 18.0).redshift - redshift[real.object_id[row]]) < 0.006][:200]
    objects = draw_objects(Population(0, 18.0, 0.0, 0.0, 10000, 1), near)
    grid = np.arange(4000.0, 9000.0, 4.0)

    def continuum(wavelength, flux):
        flux = np.convolve(np.interp(grid, wavelength, flux), np.ones(15) / 15, "same")
        return (flux / np.median(flux))[10:-10]

    valid = real.mask[row].numpy()
    target = continuum(real.wavelength[row].numpy()[valid], real.flux[row].numpy()[valid])
    sdss = modality("spectrum/sdss")
    simulated = [continuum(sdss.card.wavelength(), flux) for flux in noiseless_spectra(objects, sdss)]
    assert len(near) > 100
    assert min(np.sqrt(np.mean((one - target) ** 2)) for one in simulated) < 0.04
