"""Images per second by our renderer and by GalSim in the same run, and pairs with spectra by the whole simulated sky.

Both render the same smooth galaxies (bulge and disc) in the four bands of DECam and the five of Hyper Suprime-Cam, each
band with its own PSF; GalSim with its default accuracy. Then come structure, neighbours, noise and two spectra, and how
the time divides. A pair is one object in both cameras. Times are CPU seconds on one thread, the best of some runs; on a
GPU, where there is one, they are seconds.

    python benchmarks/rendering.py [--quick]
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import galsim
import numpy as np
import torch

from armillary.data.modalities import modality
from armillary.data.simulation.light_profiles import MOFFAT_BETA, TRUNCATION
from armillary.data.simulation.neighbour_pool import neighbour_pool
from armillary.data.simulation.observe_images import band_flux, noiseless_images
from armillary.data.simulation.render_images import Sources, render_images
from armillary.data.simulation.sky import SimulatedSky, SkySettings
from armillary.data.simulation.sky_objects import SkyObjects

CAMERAS = {"image/legacysurvey": 48, "image/hsc": 64}
SPECTROGRAPHS = ("spectrum/desi", "spectrum/sdss")


def seconds(run: Callable[[], Any], repeats: int, device: str = "cpu") -> float:
    """The least time that a run takes, after one that does not count."""
    best = np.inf
    for attempt in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter() if device == "cuda" else time.process_time()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken = (time.perf_counter() if device == "cuda" else time.process_time()) - start
        best = min(best, taken) if attempt else best
    return best


def smooth_scene(objects: SkyObjects, name: str) -> tuple[Sources, torch.Tensor]:
    """Bulges and discs alone, and the PSF of the camera's card in each band, the same for all."""
    card = modality(name).card
    flux = band_flux(objects, tuple(band.filter_curve for band in card.bands))[:, :2]
    radius, ratio, angle = (
        torch.from_numpy(a).to(flux) for a in (objects.radius[:, :2], objects.axis_ratio[:, :2], objects.position_angle)
    )
    middle = flux.new_zeros(*radius.shape, 2)
    psf_fwhm = flux.new_tensor([band.psf_fwhm for band in card.bands]).expand(len(objects), -1)
    return Sources((4.0, 1.0), flux, radius, ratio, angle[:, None].expand(radius.shape), middle), psf_fwhm


def by_galsim(sources: Sources, psf_fwhm: torch.Tensor, size: int, pixel_scale: float) -> np.ndarray:
    """The same images, one after the other."""
    images = np.empty((*psf_fwhm.shape, size, size), np.float32)
    psfs = [galsim.Moffat(beta=MOFFAT_BETA, fwhm=fwhm) for fwhm in psf_fwhm[0].tolist()]
    for row, flux in enumerate(sources.flux.tolist()):
        profiles = []
        for column, index in enumerate(sources.sersic_indices):
            radius, ratio = sources.radius[row, column].item(), sources.axis_ratio[row, column].item()
            round_one = galsim.Sersic(
                n=index, half_light_radius=radius, trunc=TRUNCATION[index] * radius, flux_untruncated=True
            )
            angle = sources.position_angle[row, column].item() * galsim.degrees
            profiles.append(round_one.transform(ratio, 0, 0, 1).rotate(angle))
        for band, psf in enumerate(psfs):
            parts = [p.withFlux(flux[column][band]) for column, p in enumerate(profiles)]
            drawn = galsim.Convolve(galsim.Sum(parts), psf).drawImage(nx=size, ny=size, scale=pixel_scale)
            images[row, band] = drawn.array
    return images


def compare(objects: SkyObjects, num_galsim: int, repeats: int) -> dict[str, float]:
    """Pairs per second of smooth galaxies by each, their ratio, and by how much the images differ at most."""
    ours, theirs, difference = 0.0, 0.0, 0.0
    for name, size in CAMERAS.items():
        sources, psf_fwhm = smooth_scene(objects, name)
        few, few_fwhm = sources.select(slice(0, num_galsim)), psf_fwhm[:num_galsim]
        expected = by_galsim(few, few_fwhm, size, scale_of(name))
        found = render_images(few, few_fwhm, size=size, pixel_scale=scale_of(name)).numpy()
        difference = max(difference, float((np.abs(found - expected).max((2, 3)) / expected.max((2, 3))).max()))
        ours += seconds(partial(rendered, sources, psf_fwhm, name), repeats) / len(objects)
        theirs += seconds(partial(by_galsim, few, few_fwhm, size, scale_of(name)), 1) / num_galsim
    return {
        "smooth_pairs_per_second": 1 / ours,
        "galsim_pairs_per_second": 1 / theirs,
        "ratio_to_galsim": theirs / ours,
        "largest_difference_of_peak": difference,
    }


def rendered(sources: Sources, psf_fwhm: torch.Tensor, name: str) -> torch.Tensor:
    """Images by our renderer, as a camera has them."""
    return render_images(sources, psf_fwhm, size=CAMERAS[name], pixel_scale=scale_of(name))


def scale_of(name: str) -> float:
    """Arcsec of a pixel."""
    return modality(name).card.pixel_scale


def stages(sky: SimulatedSky, rows: np.ndarray, repeats: int) -> dict[str, float]:
    """Milliseconds for each object in each stage of the whole sky."""
    objects = sky.objects(rows)
    neighbours = sky.neighbours(objects, 12.0)
    parts: dict[str, Callable[[], Any]] = {"objects and spectra": lambda: sky.objects(rows)}
    for name, size in CAMERAS.items():
        camera = modality(name)
        parts[f"{name}, smooth"] = partial(rendered, *smooth_scene(objects, name), name)
        parts[f"{name}, with structure"] = partial(noiseless_images, objects, camera, size)
        parts[f"{name}, with neighbours"] = partial(noiseless_images, objects, camera, size, neighbours)
        parts[f"{name}, with noise"] = partial(sky.observe, objects, name)
    for name in SPECTROGRAPHS:
        parts[name] = partial(sky.observe, objects, name)
    return {name: 1e3 * seconds(run, repeats) / len(rows) for name, run in parts.items()}


def on_gpu(objects: SkyObjects, repeats: int) -> dict[str, float]:
    """Images per second of smooth galaxies on a GPU, images left there; nothing where there is none."""
    if not torch.cuda.is_available():
        return {}
    found = {}
    for name in CAMERAS:
        sources, psf_fwhm = smooth_scene(objects, name)
        tensors = (sources.flux, sources.radius, sources.axis_ratio, sources.position_angle, sources.offset)
        moved = Sources(sources.sersic_indices, *(tensor.cuda() for tensor in tensors))
        taken = seconds(partial(rendered, moved, psf_fwhm.cuda(), name), repeats, "cuda")
        found[f"gpu_{name}_per_second"] = len(objects) / taken
    return found


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer objects: under a minute")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, num_galsim, repeats = (256, 16, 1) if options.quick else (2048, 200, 3)
    names = (*CAMERAS, *SPECTROGRAPHS)
    settings = SkySettings(num_objects=10**6, modalities=names, image_sizes=CAMERAS)
    galaxies = SimulatedSky(settings.model_copy(update={"star_fraction": 0.0, "quasar_fraction": 0.0}))
    sky, rows = SimulatedSky(settings), np.arange(count)
    neighbour_pool()
    objects = galaxies.objects(rows)
    result = compare(objects, num_galsim, repeats)
    batch = min(count, 256)
    for name, taken in stages(sky, rows[:batch], repeats).items():
        print(f"{name:36s} {taken:6.2f} ms an object")
        result[f"ms_{name}"] = taken
    taken = seconds(lambda: sky.batch(rows[:batch]), repeats)
    result["pairs_with_spectra_per_core_minute"] = 60 * batch / taken
    result |= on_gpu(objects, repeats)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
