"""Pictures and numbers of docs/simulation.md: the simulated sky beside real observations.

Real are the 5,000 galaxies of the SDSS, the field of 3D-HST (GOODS-South) in `data/tables/galaxy_shapes.npz`, an HSC
field, and spectra of DESI, SDSS and MaNGA, all shipped in `data/real`. Published curves are named where they are drawn.

    python docs/make_simulation_figures.py [FOLDER]
"""

import functools
import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from astropy.io import fits
from matplotlib.figure import Figure
from PIL import Image

from armillary.data.filters import TABLES_FOLDER, filter_curve, flux_to_magnitude, photometry_weights
from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, SpectrumObservation
from armillary.data.readers.desi import read_desi, read_redrock
from armillary.data.readers.images import cut_out, find_sources, read_image
from armillary.data.readers.manga import read_manga, read_manga_redshift
from armillary.data.readers.mosaics import HSC_ZERO_POINT
from armillary.data.readers.sdss import read_sdss_spec
from armillary.data.real_files import real_file
from armillary.data.simulation.gaia_spectra import coefficient_matrix, sampled_basis
from armillary.data.simulation.galaxies import (
    Galaxies,
    draw_galaxies,
    galaxies_per_square_degree,
    galaxy_spectra,
)
from armillary.data.simulation.galaxy_shapes import sersic_growth
from armillary.data.simulation.observe_images import band_flux
from armillary.data.simulation.observe_spectra import noiseless_spectra, observe_spectra
from armillary.data.simulation.quasars import draw_quasars, quasar_spectra
from armillary.data.simulation.sky import SimulatedSky, SkySettings
from armillary.data.simulation.sky_objects import CLASSES, positions
from armillary.data.simulation.stars import draw_stars, star_spectra
from armillary.data.simulation.wavelength_grid import observed_wavelength
from armillary.data.tables.make_tables import SDSS_TO_AB

BRIGHT = 16.0
"""r magnitude to which the 5,000 galaxies, which 2MASS had to see as extended, are nearly a fair sample."""
GOODS_SOUTH = 171 / 3600
"""Square degrees of the 3D-HST field."""
REAL, SIMULATED = "tab:orange", "tab:blue"
LOCUS = {
    "u-g": (1.0636113, -1.6267818, 4.9389572, -3.2809081, 0.8725109, -0.0828035),
    "g-r": (0.4290263, -0.8852323, 2.0740616, -1.1091553, 0.2397461, -0.0183195),
    "r-i": (-0.4113500, 1.8229991, -1.9989772, 1.0662075, -0.2284455, 0.0172212),
    "i-z": (-0.2270331, 0.7794558, -0.7350749, 0.3727802, -0.0735412, 0.0049808),
}
"""Colours of stars as polynomials in g - i (Covey et al. 2007, AJ 134, 2398, Table 4)."""
QUASAR_TRACKS = {
    0.3: (0.208, 0.385, 0.154, 0.486), 0.5: (0.278, -0.059, 0.214, 0.097), 0.7: (0.329, 0.015, 0.019, 0.129),
    0.9: (0.250, 0.119, -0.069, 0.127), 1.1: (0.114, 0.214, -0.042, -0.065), 1.3: (0.065, 0.259, 0.025, -0.059),
    1.5: (0.169, 0.150, 0.182, -0.028), 1.7: (0.106, 0.035, 0.251, 0.024), 1.9: (-0.009, 0.046, 0.251, 0.057),
    2.1: (0.184, 0.100, 0.112, 0.217), 2.4: (0.570, 0.062, 0.077, 0.250), 2.6: (0.795, 0.172, 0.083, 0.252),
    3.0: (1.475, 0.245, 0.088, 0.112),
}  # fmt: skip
"""Median u-g, g-r, r-i, i-z of quasars at each redshift (Richards et al. 2001, AJ 121, 2308, Table 3)."""
COLORS = ("u-g", "g-r", "r-i", "i-z")


@functools.cache
def _weights(names: tuple[str, ...]) -> np.ndarray:
    return photometry_weights([filter_curve(name) for name in names], observed_wavelength())


def sdss_magnitudes(spectra: np.ndarray) -> np.ndarray:
    """ugriz, AB, of spectra on the simulated grid."""
    return flux_to_magnitude(spectra @ _weights(tuple(f"sdss2010-{band}" for band in "ugriz")).T)


def half_light_radius(galaxies: Galaxies) -> np.ndarray:
    """Arcsec, of bulge and disc together along the major axis."""
    low, high = np.full(len(galaxies), 1e-3), np.full(len(galaxies), 60.0)
    bulge = galaxies.bulge_fraction
    for _ in range(40):
        middle = np.sqrt(low * high)
        inner, outer = (sersic_growth(middle / galaxies.radius[:, k], index) for k, index in ((0, 4.0), (1, 1.0)))
        is_beyond = bulge * inner + (1 - bulge) * outer > 0.5
        low, high = np.where(is_beyond, low, middle), np.where(is_beyond, middle, high)
    return high


def galaxy_colors(folder: Path) -> dict[str, Any]:
    """Colours of bright galaxies: the SDSS's and simulated ones to the same magnitude."""
    table = fits.getdata(real_file("sdss-galaxies-5000.fits"), 1)
    shift = SDSS_TO_AB - np.asarray(table["EXTINCTION"], np.float64)
    petrosian = flux_to_magnitude(np.maximum(table["PETROFLUX"][:, 2], 1e-3)) + shift[:, 2]
    chosen = (petrosian < BRIGHT) & (np.asarray(table["MODELFLUX"]) > 0).all(1)
    real = -np.diff(flux_to_magnitude(table["MODELFLUX"][chosen]) + shift[chosen])
    galaxies = draw_galaxies(np.arange(2000), 0, BRIGHT)
    simulated = -np.diff(sdss_magnitudes(galaxy_spectra(galaxies).sum(1).double().numpy()))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (x, y) in zip(axes, ((1, 0), (1, 2)), strict=True):
        for values, color, name in ((simulated, SIMULATED, "simulated"), (real, REAL, "SDSS")):
            axis.plot(
                values[:900, x], values[:900, y], ".", ms=3, alpha=0.5, color=color, label=f"{name}, r < {BRIGHT}"
            )
        axis.set(xlabel=COLORS[x], ylabel=COLORS[y], xlim=(0.1, 1.2), ylim=((0.4, 2.4), (0.0, 0.6))[y == 2])
    axes[0].legend(fontsize=8)
    _save(figure, folder / "galaxy-colours.png")
    return {
        color: {
            "real": _quantiles(real[:, place]),
            "simulated": _quantiles(simulated[:, place]),
        }
        for place, color in enumerate(COLORS)
    } | {
        "redshift": {
            "real": _quantiles(np.asarray(table["Z"], np.float64)[chosen]),
            "simulated": _quantiles(galaxies.redshift),
        }
    }


def counts_and_redshifts(folder: Path) -> dict[str, Any]:
    """Numbers on the sky and redshifts, beside surveys."""
    with np.load(TABLES_FOLDER / "galaxy_shapes.npz", allow_pickle=False) as table:
        deep_z, deep_r = table["deep_redshift"], table["deep_r_magnitude"]
    limits = np.arange(16.0, 24.01, 0.5)
    simulated = np.array([galaxies_per_square_degree(limit) for limit in limits])
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].semilogy(limits, simulated, color=SIMULATED, label="simulated")
    field = [(limit, (deep_r < limit).sum() / GOODS_SOUTH) for limit in np.arange(20.5, 24.01, 0.5)]
    axes[0].semilogy(*np.array(field).T, "o", color=REAL, label="GOODS-South")
    axes[0].semilogy([17.77, 19.8], [90, 1000], "s", color=REAL, label="SDSS, GAMA")
    axes[0].set(xlabel="limit in r", ylabel="galaxies in a square degree")
    axes[0].legend(fontsize=8)
    found: dict[str, Any] = {
        "slope_per_magnitude_16_to_18": round(float(np.log10(simulated[4] / simulated[0]) / 2), 3),
        "per_square_degree": {
            str(limit): {"real": real, "simulated": round(galaxies_per_square_degree(limit))}
            for limit, real in ((17.77, 90), (19.8, 1000))
        },
    }
    for limit in (22.0, 23.0, 24.0):
        found["per_square_degree"][str(limit)] = {
            "real": round(float((deep_r < limit).sum() / GOODS_SOUTH)),
            "simulated": round(galaxies_per_square_degree(limit)),
        }
    found["redshift"] = {}
    for axis, limit in ((axes[1], 22.0), (axes[2], 23.5)):
        real = deep_z[deep_r < limit]
        drawn = draw_galaxies(np.arange(4000), 0, limit).redshift
        bins = np.arange(0, 3.01, 0.1)
        axis.hist(real, bins, density=True, color=REAL, alpha=0.5, label=f"GOODS-South ({len(real)})")
        axis.hist(drawn, bins, density=True, histtype="step", color=SIMULATED, lw=1.5, label="simulated")
        axis.set(xlabel="redshift", title=f"r < {limit}")
        axis.legend(fontsize=8)
        found["redshift"][f"r < {limit}"] = {"real": _quantiles(real), "simulated": _quantiles(drawn)}
    _save(figure, folder / "counts-and-redshifts.png")
    return found


def sizes(folder: Path) -> dict[str, Any]:
    """Half-light radii and axis ratios against magnitude, beside 3D-HST."""
    with np.load(TABLES_FOLDER / "galaxy_shapes.npz", allow_pickle=False) as table:
        real_r, real_size, real_ratio = (np.float64(table[n]) for n in ("r_magnitude", "radius", "axis_ratio"))
    galaxies = draw_galaxies(np.arange(12000), 0, 24.0)
    size, ratio = half_light_radius(galaxies), galaxies.axis_ratio[:, 1]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    axes[0].semilogy(real_r, real_size, ".", ms=2, alpha=0.4, color=REAL, label="3D-HST")
    axes[0].semilogy(galaxies.r_magnitude[:2000], size[:2000], ".", ms=2, alpha=0.4, color=SIMULATED, label="simulated")
    axes[0].set(xlim=(19.5, 24), ylim=(0.05, 5), xlabel="r", ylabel="half-light radius, arcsec")
    axes[0].legend(fontsize=8)
    found = {}
    edges = np.arange(20.0, 24.01, 1.0)
    for low, high in itertools.pairwise(edges):
        ours = (galaxies.r_magnitude > low) & (galaxies.r_magnitude < high)
        theirs = (real_r > low) & (real_r < high)
        found[f"{low:.0f} < r < {high:.0f}"] = {
            "real": _quantiles(real_size[theirs]),
            "simulated": _quantiles(size[ours]),
            "num_real": int(theirs.sum()),
        }
        axes[0].plot([low, high], [np.median(real_size[theirs])] * 2, color=REAL, lw=3)
        axes[0].plot([low, high], [np.median(size[ours])] * 2, color=SIMULATED, lw=3)
    bins = np.linspace(0, 1, 21)
    faint = real_r < 24
    axes[1].hist(real_ratio[faint], bins, density=True, color=REAL, alpha=0.5, label="3D-HST")
    axes[1].hist(ratio, bins, density=True, histtype="step", color=SIMULATED, lw=1.5, label="simulated (disc)")
    axes[1].set(xlabel="axis ratio")
    axes[1].legend(fontsize=8)
    _save(figure, folder / "sizes.png")
    return found


def stars_and_quasars(folder: Path) -> dict[str, Any]:
    """Colours of stars on the stellar locus, and of quasars along redshift."""
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 1500), np.degrees(np.arcsin(rng.uniform(-1, 1, 1500)))
    stars = draw_stars(np.arange(1500), 0, ra, dec, 19.8)
    magnitudes = sdss_magnitudes(star_spectra(stars).double().numpy())
    color = magnitudes[:, 1] - magnitudes[:, 3]
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 4)
    inside = (color > 0.3) & (color < 3.2)
    grid = np.linspace(0.3, 3.8, 100)
    found: dict[str, Any] = {"stars": {}, "quasars": {}}
    quasars = draw_quasars(np.arange(1500), 0, 20.0)
    tracks = -np.diff(sdss_magnitudes(quasar_spectra(quasars).sum(1).double().numpy()))
    known = np.array([(redshift, *values) for redshift, values in QUASAR_TRACKS.items()])
    for column, name in enumerate(COLORS):
        measured = magnitudes[:, column] - magnitudes[:, column + 1]
        locus = np.polynomial.polynomial.polyval(grid, LOCUS[name])
        axes[0, column].plot(color, measured, ".", ms=2, color=SIMULATED, label="simulated stars")
        axes[0, column].plot(grid, locus, color=REAL, lw=2, label="Covey et al. 2007")
        axes[0, column].set(xlabel="g-i", ylabel=name, xlim=(-0.7, 3.8))
        offset = measured[inside] - np.polynomial.polynomial.polyval(color[inside], LOCUS[name])
        found["stars"][name] = _quantiles(offset)
        axes[1, column].plot(quasars.redshift, tracks[:, column], ".", ms=2, color=SIMULATED, label="simulated quasars")
        axes[1, column].plot(known[:, 0], known[:, column + 1], "o-", color=REAL, ms=4, label="Richards et al. 2001")
        axes[1, column].set(xlabel="redshift", ylabel=name, xlim=(0, 3.5), ylim=((-0.6, 2.0), (-0.6, 1.2))[column > 0])
        medians = [np.median(tracks[np.abs(quasars.redshift - z) < 0.12, column]) for z in known[:, 0]]
        difference = np.array(medians) - known[:, column + 1]
        found["quasars"][name] = {
            "rms": round(float(np.sqrt((difference[:-1] ** 2).mean())), 3),
            "largest": round(float(np.abs(difference[:-1]).max()), 3),
        }
    for row in axes:
        row[0].legend(fontsize=8)
    _save(figure, folder / "stars-and-quasars.png")
    return found


def spectra(folder: Path) -> dict[str, Any]:
    """Real spectra, each beside the simulated object most like it."""
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    axes = figure.subplots(3, 1)
    found = {}

    real = read_desi(real_file("desi-coadd-4-80613.fits"))
    redshift = float(read_redrock(real_file("desi-redrock-4-80613.fits")).values[0])
    rows = np.arange(20000)
    galaxies = draw_galaxies(rows, 0, 21.5)
    near = rows[np.abs(galaxies.redshift - redshift) < 0.01]
    sky = SimulatedSky(SkySettings(magnitude_limit=21.5, star_fraction=0.0, quasar_fraction=0.0, neighbours=False))
    found["DESI galaxy"] = _beside(axes[0], real, sky, near, f"DESI, z = {redshift:.3f}")

    real = read_manga(real_file("manga-spectra.fits.gz"))
    truth = dict(zip(*_scalars(read_manga_redshift(real_file("manga-spectra.fits.gz"))), strict=True))
    brightest = int(real.flux.median(1).values.argmax())
    redshift = truth[real.object_id[brightest]]
    galaxies = draw_galaxies(rows, 0, 18.0)
    near = rows[np.abs(galaxies.redshift - redshift) < 0.006]
    sky = SimulatedSky(SkySettings(magnitude_limit=18.0, star_fraction=0.0, quasar_fraction=0.0, neighbours=False))
    found["MaNGA galaxy"] = _beside(axes[1], real.select([brightest]), sky, near, f"MaNGA, z = {redshift:.3f}")

    real = read_sdss_spec(real_file("sdss-spec-0266-51602-0031.fits"))
    sky = SimulatedSky(SkySettings(num_objects=1, star_fraction=1.0, quasar_fraction=0.0, neighbours=False))
    stars = draw_stars(rows, 0, *positions(sky.settings.population, rows), 19.8)
    weights = photometry_weights([filter_curve("sdss2010-r")], real.wavelength[0].numpy())[0]
    wanted = flux_to_magnitude(np.array([weights @ real.flux[0].double().numpy()]))[0]
    likeness = np.where(stars.color < -0.3, np.abs(stars.r_magnitude - wanted), 99)
    chosen = np.argsort(likeness)[:3]
    found["SDSS white dwarf"] = _beside(axes[2], real, sky, rows[chosen], "SDSS, a white dwarf", noise=True)
    _save(figure, folder / "spectra.png")
    return found


def _beside(
    axis: Any,
    real: SpectrumObservation,
    sky: SimulatedSky,
    rows: np.ndarray,
    title: str,
    *,
    noise: bool = False,
) -> dict[str, float]:
    """Draw the real spectrum and the simulated one, of these rows, that is most like it; with its noise or without."""
    declared = modality("spectrum/desi" if "DESI" in title else "spectrum/sdss")
    wavelength, grid, smooth = declared.card.wavelength(), np.arange(4000.0, 9100.0, 2.0), np.ones(15) / 15
    clean = np.concatenate(
        [noiseless_spectra(sky.objects(rows[at : at + 200]), declared) for at in range(0, len(rows), 200)]
    )

    def on_grid(wavelength: np.ndarray, flux: np.ndarray) -> np.ndarray:
        flux = np.interp(grid, wavelength, flux)
        return flux / np.median(flux)

    valid = real.mask[0].numpy()
    target = on_grid(real.wavelength[0].numpy()[valid], real.flux[0].numpy()[valid])
    blurred = np.convolve(target, smooth, "same")
    candidates = np.array([on_grid(wavelength, one) for one in clean])
    # Lines are much brighter than the continuum: compare roots, so that both count.
    roots = [np.sqrt(np.convolve(one, smooth, "same").clip(0)) for one in candidates]
    best = int(np.argmin([((one - np.sqrt(blurred.clip(0)))[30:-30] ** 2).mean() for one in roots]))
    shown = candidates[best]
    if noise:
        observed = observe_spectra(sky.objects(rows[[best]]), declared)
        kept = observed.mask[0].numpy()
        shown = on_grid(wavelength[kept], observed.flux[0].numpy()[kept])
    narrow = np.ones(3) / 3
    offset = 0.8 * np.percentile(target, 90)
    axis.plot(grid, np.convolve(target, narrow, "same"), color=REAL, lw=0.7, label=f"{title} (real)")
    label = f"sim-0-{rows[best]}, simulated, {'with' if noise else 'without'} noise, moved up"
    axis.plot(grid, np.convolve(shown, narrow, "same") + offset, color=SIMULATED, lw=0.7, label=label)
    top = offset + 1.5 * np.percentile(shown, 99)
    axis.set(ylim=(-0.1, top), xlim=(4000, 9100), ylabel="flux / median", xlabel="wavelength, angstrom")
    axis.legend(fontsize=8, loc="upper right")
    misfit = np.convolve(candidates[best], smooth, "same") - blurred
    level = np.abs(blurred - np.median(blurred)) < 3  # without the strongest lines
    return {
        "candidates": len(rows),
        "rms_of_continuum": round(float(misfit[30:-30][level[30:-30]].std()), 3),
    }


def images(folder: Path) -> dict[str, Any]:
    """Cutouts of the real HSC field beside simulated ones of like magnitudes: same scale, stretch and bands."""
    paths = {band: real_file(f"hsc-10054-{band}.fits") for band in "gri"}
    frame = read_image(paths, "image/hsc", zero_point=HSC_ZERO_POINT, object_id="hsc-10054")
    sources = find_sources(frame, margin=32, max_sources=200)
    magnitude = sources.magnitude()[:, 1]
    chosen = np.arange(min(12, len(sources)))
    real = cut_out(frame, sources.center[chosen], 64)
    sky = SimulatedSky(
        SkySettings(magnitude_limit=23.5, star_fraction=0.25, quasar_fraction=0.02, real_background=True)
    )
    drawn = np.concatenate([_r_magnitudes(sky, np.arange(at, at + 250)) for at in range(0, 3000, 250)])
    # The sum above a threshold misses some light: a quarter of it, typically.
    rows: list[int] = []
    for wanted in magnitude[chosen] - 0.3:
        rows.append(int(np.argmin(np.where(np.isin(np.arange(len(drawn)), rows), 99, np.abs(drawn - wanted)))))
    simulated = sky.observe(sky.objects(rows), "image/hsc")
    assert isinstance(simulated, ImageObservation)
    figure = Figure(figsize=(10, 4.1))
    for block, (name, observation) in enumerate((("real (HSC)", real), ("simulated", simulated))):
        for place in range(len(observation)):
            left = block * 0.505 + (place % 4) * 0.123
            axis = figure.add_axes((left, 0.63 - (place // 4) * 0.31, 0.12, 0.30))
            axis.imshow(color_image(observation, place), origin="lower")
            axis.axis("off")
        figure.text(block * 0.505 + 0.22, 0.95, name, ha="center")
    _save(figure, folder / "images.png", is_photograph=True)
    corner = {
        name: observation.flux[:, 1, :8, :8].std((1, 2)) / observation.noise()[:, 1]
        for name, observation in (("real", real), ("simulated", simulated))
    }
    return {
        "magnitudes": _quantiles(magnitude[chosen]),
        "sources_brighter_than_23": {
            "real": int((magnitude < 23).sum()),
            "simulated": round(_expected_sources(frame.shape, 23.0), 1),
        },
        "noise_of_corners_over_stated": {name: round(float(values.median()), 2) for name, values in corner.items()},
    }


def _r_magnitudes(sky: SimulatedSky, rows: np.ndarray) -> np.ndarray:
    return flux_to_magnitude(band_flux(sky.objects(rows), ("hsc2017-r",)).sum(1)[:, 0].double().numpy())


def _expected_sources(shape: tuple[int, int], limit: float) -> float:
    """Galaxies brighter than `limit` that the simulated sky has on an HSC frame, less a margin of 32 pixels."""
    height, width = ((side - 64) * 0.168 / 3600 for side in shape)
    return galaxies_per_square_degree(limit + 0.3) * height * width


def color_image(observation: ImageObservation, row: int) -> np.ndarray:
    """i, r and g as red, green and blue, through one asinh stretch (Lupton et al. 2004, PASP 116, 133)."""
    planes = np.stack([observation.flux[row, list(observation.bands).index(band)].numpy() for band in "irg"])
    planes = planes * np.array([0.8, 1.0, 1.5])[:, None, None]
    total = planes.mean(0)
    stretched = np.arcsinh(total * 150) / 5.5 / np.where(np.abs(total) > 1e-6, total, 1e-6)
    return np.clip(planes * stretched + 0.06, 0, 1).transpose(1, 2, 0)


def gaia(folder: Path) -> dict[str, Any]:
    """BP and RP of stars, a galaxy's nucleus aside: samples that the coefficients stand for."""
    sky = SimulatedSky(SkySettings(magnitude_limit=17.0, star_fraction=0.8, quasar_fraction=0.2, neighbours=False))
    objects = sky.objects(np.arange(120))
    observed = sky.observe(objects, "coefficients/gaia_bp_rp")
    clean = (objects.spectra.sum(1) @ coefficient_matrix().T).double().numpy()
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    seen = np.flatnonzero(observed.mask.all(1).numpy())
    magnitude = flux_to_magnitude(band_flux(objects, ("decam2014-r",)).sum(1)[:, 0].double().numpy())
    color = objects.spectra.sum(1)[:, 8000:9000].mean(1) / objects.spectra.sum(1)[:, 3000:4000].mean(1)
    order = seen[np.argsort(color.numpy()[seen])]
    shown = order[np.linspace(0, len(order) - 1, 5).astype(int)]
    for place, (axis, arm) in enumerate(zip(axes, ("bp", "rp"), strict=True)):
        for number, row in enumerate(shown):
            name = f"{CLASSES[objects.object_class[row]]}, r = {magnitude[row]:.1f}"
            for values, style, label in ((clean, "-", name), (observed.values.double().numpy(), ":", None)):
                samples = values[row, 55 * place : 55 * place + 55] @ sampled_basis(arm)
                axis.plot(samples / clean[row, :55].sum(), style, color=f"C{number}", lw=1, label=label)
        axis.set(xlabel="pseudo-wavelength", title=arm.upper())
    axes[0].plot([], [], ":", color="black", lw=1, label="with noise")
    axes[0].legend(frameon=False)
    axes[0].set_ylabel("electrons / s, scaled")
    _save(figure, folder / "gaia.png")
    signal = np.abs(clean[seen][:, [0, 55]]) / observed.error.numpy()[seen][:, [0, 55]]
    return {"signal_to_noise_of_first_coefficients": _quantiles(signal.ravel())}


def main(folder: Path) -> None:
    """Make all pictures, and print their numbers as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["font.size"] = 9
    parts = (galaxy_colors, counts_and_redshifts, sizes, stars_and_quasars, spectra, images, gaia)
    sys.stdout.write(json.dumps({part.__name__: part(folder) for part in parts}, indent=1) + "\n")


def _scalars(observation: Any) -> tuple[tuple[str, ...], list[float]]:
    return tuple(observation.object_id), observation.values.tolist()


def _quantiles(values: np.ndarray) -> list[float]:
    """16th, 50th and 84th percentile."""
    return [round(float(value), 3) for value in np.percentile(values, [16, 50, 84])]


def _save(figure: Figure, path: Path, *, is_photograph: bool = False) -> None:
    """A small PNG: of 128 colours, or of fewer pixels."""
    content = io.BytesIO()
    figure.savefig(content, dpi=62 if is_photograph else 85)
    content.seek(0)
    with Image.open(content) as picture:
        shown = picture.convert("RGB")
        (shown if is_photograph else shown.quantize(128)).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
