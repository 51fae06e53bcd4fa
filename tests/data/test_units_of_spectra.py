"""Units, checked on the sky: real spectra through filter curves against the fluxes of their own catalogues.

The DESI galaxy fills more than its fibre, so its spectrum must lie between the flux in a fibre and the total one, which
are a factor of 1.7 apart: a unit wrong by 2 shows in every band, and one that depends on wavelength in g or in z.
"""

import numpy as np
import pytest

from armillary.data.filters import SPEED_OF_LIGHT, filter_curve, photometry_weights
from armillary.data.readers.desi import read_desi
from armillary.data.readers.fits_files import open_fits
from armillary.data.readers.sdss import read_sdss_spec
from armillary.data.readers.table_files import numbers, object_ids, table_batches
from armillary.data.real_files import real_file

CATALOGUE = real_file("legacysurvey-tractor-1054p567.fits")
STAR = real_file("sdss-spec-0266-51602-0031.fits")
PIVOT = 6400.0
"""Angstrom: where a confusion of f_nu with f_lambda is given the benefit of the doubt."""


@pytest.fixture(scope="module")
def galaxy():
    """Wavelength (angstrom) and flux (1e-17 erg/s/cm2/A); beyond its end in the z filter it has its median."""
    spectrum = read_desi(real_file("desi-coadd-4-80613.fits"))
    wavelength, flux = spectrum.wavelength[0].numpy(), spectrum.flux[0].double().numpy()
    beyond = np.arange(wavelength[-1] + 1, 10600)
    return np.append(wavelength, beyond), np.append(flux, np.full(len(beyond), np.median(flux)))


@pytest.fixture(scope="module")
def catalogue():
    """Fluxes of the galaxy in g, r, z, nanomaggies: in a fibre of 1.5 arcsec, and in all."""
    names = [f"{kind}_{band}" for kind in ("FIBERFLUX", "FLUX") for band in "GRZ"]
    (table,) = table_batches(CATALOGUE, ["OBJID", "BRICKNAME", *names])
    assert object_ids(CATALOGUE, table, ["BRICKNAME", "OBJID"]) == ["1054p567-2657"]
    values = np.array([numbers(CATALOGUE, table, name)[0] for name in names])
    return values[:3], values[3:]


def photometry(wavelength, flux):
    """Nanomaggies through the filters of BASS and MzLS, which observed this part of the sky."""
    curves = [filter_curve(name) for name in ("BASS-g", "BASS-r", "MzLS-z")]
    return photometry_weights(curves, wavelength) @ flux


def lies_between(measured, catalogue):
    in_fibre, total = catalogue
    return bool(((measured > in_fibre) & (measured < total)).all())


def test_the_galaxy_is_as_bright_as_its_catalogue_says(galaxy, catalogue):
    measured = photometry(*galaxy)
    assert lies_between(measured, catalogue)
    np.testing.assert_allclose(measured, [2.81, 4.68, 6.46], rtol=0.005)


def test_the_galaxy_has_the_colours_that_its_catalogue_says(galaxy, catalogue):
    """Of the part in the fibre, to 0.1 mag: calibration and the light that a fibre misses are grey to that."""
    measured, (in_fibre, _) = photometry(*galaxy), catalogue
    colours, expected = (-2.5 * np.log10(flux[:-1] / flux[1:]) for flux in (measured, in_fibre))
    np.testing.assert_allclose(colours, expected, atol=0.12)


MISTAKES = {
    "flux twice as large": lambda wavelength, flux: (wavelength, 2 * flux),
    "flux half as large": lambda wavelength, flux: (wavelength, flux / 2),
    "flux in 1e-16": lambda wavelength, flux: (wavelength, flux / 10),
    "flux in W / m2 / micron": lambda wavelength, flux: (wavelength, flux * 10),
    "f_nu taken for f_lambda": lambda wavelength, flux: (wavelength, flux * (wavelength / PIVOT) ** 2),
    "f_lambda taken for f_nu": lambda wavelength, flux: (wavelength, flux * (PIVOT / wavelength) ** 2),
    "f_nu in erg / s / cm2 / Hz": lambda wavelength, flux: (wavelength, flux * wavelength**2 / SPEED_OF_LIGHT),
    "nu f_nu": lambda wavelength, flux: (wavelength, flux * wavelength),
    "wavelength at rest": lambda wavelength, flux: (wavelength / 1.36874, flux),
    "nanomaggies taken for microjansky": lambda wavelength, flux: (wavelength, flux * 3.631),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_unit_would_be_seen(galaxy, catalogue, mistake):
    """The check above, made to fail: what a reader might get wrong takes some band out of its range."""
    wavelength, flux = MISTAKES[mistake](*galaxy)
    grid = galaxy[0]
    assert not lies_between(photometry(grid, np.interp(grid, wavelength, flux)), catalogue)


def test_the_coadd_and_the_catalogue_are_of_the_same_galaxy(catalogue):
    with open_fits(real_file("desi-coadd-4-80613.fits")) as file:
        fluxes = file.columns("FIBERMAP", [f"FLUX_{band}" for band in "GRZ"])
        place = file.columns("FIBERMAP", ["TARGET_RA", "TARGET_DEC"])
    (table,) = table_batches(CATALOGUE, ["RA", "DEC"])
    np.testing.assert_allclose(np.ravel(fluxes), catalogue[1], rtol=1e-5)
    np.testing.assert_allclose(np.ravel(place), [table["RA"][0], table["DEC"][0]], atol=1e-6)


def test_the_sdss_star_is_as_bright_as_its_own_file_says():
    """SPECTROFLUX (nanomaggies, u g r i z) is the pipeline's own integral of this spectrum, over g, r and i in full."""
    spectrum = read_sdss_spec(STAR)
    wavelength, mask = spectrum.wavelength[0].numpy(), spectrum.mask[0].numpy()
    flux = np.interp(wavelength, wavelength[mask], spectrum.flux[0].double().numpy()[mask])
    curves = [filter_curve(f"sdss2010-{band}") for band in "gri"]
    with open_fits(STAR) as file:
        (expected,) = file.columns(2, ["SPECTROFLUX"])
    np.testing.assert_allclose(photometry_weights(curves, wavelength) @ flux, expected[0, 1:4], rtol=0.04)
