"""Point sources of images, found by rule: each one's place and its flux in every band, as tokens of their own.

Patches describe what a camera resolves; a bright star is sharper than their functions, and would need all of them. So
peaks that are no wider than the PSF are fitted first, brightest first, by a Moffat profile in all bands at once
(variable projection: Kaufman 1975, doi 10.1007/BF01932995), and taken off the image before its patches are cut. What a
wrong PSF leaves is for the patches to describe. Numbers are coded to fixed steps, so that nothing here is learned.
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from ..data.observations import ImageObservation
from .light_basis import MOFFAT_BETA, MOFFAT_SCALE
from .quantizers import rank_features
from .token_grid import DETAIL, LOG_WAVELENGTH, empty_positions

BASE = 64
"""Digits of places and of fluxes."""
PLACE_DIGITS, FLUX_DIGITS = 3, 2
REACH = 64.0
"""Arcsec from the object, along each axis, to which sources have tokens; steps are 0.0005 arcsec."""
FAINTEST, BRIGHTEST = 0.01, 1e6
"""Nanomaggies: where steps of flux go from even to logarithmic (0.5 per cent), and the largest.

What is brighter is left to the patches.
"""
LARGEST = math.asinh(BRIGHTEST / FAINTEST)
LEAST_SIGNAL = 40.0
"""Signal-to-noise ratio of a source's brightest pixel."""
MOST_EXCESS = 0.01
"""Share of a point source's chi2 that its profile may leave unexplained. Galaxies leave more."""
CORE = 1.25
"""PSF FWHM out to which profiles are fitted."""
ITERATIONS = 6
NUM_ROLES = 2 * PLACE_DIGITS + FLUX_DIGITS


@dataclass(frozen=True, eq=False)
class PointSources:
    """At most S point sources of each of B images, in all C bands of a camera, in the order of its card.

    `place` is (x, y) from the object, arcsec; `flux` in nanomaggies; `measured` says in which bands, in none where
    there is no source.
    """

    place: Float64[Tensor, "B S 2"]
    flux: Float64[Tensor, "B S C"]
    measured: Bool[Tensor, "B S C"]


def num_source_tokens(num_sources: int, num_bands: int) -> int:
    """Tokens of `num_sources` point sources."""
    return num_sources * (2 * PLACE_DIGITS + FLUX_DIGITS * num_bands)


def num_source_codes() -> int:
    """Codes of point sources' tokens: those of each digit of a place, then of each digit of a flux."""
    return (PLACE_DIGITS + FLUX_DIGITS) * BASE


def source_features() -> Float[Tensor, "V S"]:
    """What the codes have in common: cosines of the rank of a digit, for each digit its own."""
    return torch.block_diag(*[rank_features(BASE)] * (PLACE_DIGITS + FLUX_DIGITS))


def num_details_and_sources(positions: Float[Tensor, "B N P"]) -> tuple[int, int]:
    """How many details a patch has, and how many point sources there may be, by the positions of an image's tokens."""
    details = positions[..., DETAIL]
    return int(details.max()), int(-details.min()) // NUM_ROLES


def source_codes(sources: PointSources) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Tokens of each source: digits of x, of y, then of its flux, band by band."""
    place = _digits((sources.place / (2 * REACH) + 0.5).clamp(0, 1), PLACE_DIGITS)
    flux = _digits((torch.asinh(sources.flux / FAINTEST) / LARGEST).clamp(0, 1), FLUX_DIGITS)
    codes = torch.cat([place.flatten(2), flux.flatten(2) + PLACE_DIGITS * BASE], 2)
    there = sources.measured.any(2, keepdim=True).expand(-1, -1, 2 * PLACE_DIGITS)
    mask = torch.cat([there, sources.measured.repeat_interleave(FLUX_DIGITS, 2)], 2)
    return codes.flatten(1), mask.flatten(1)


def sources_of(codes: Int[Tensor, "B N"], mask: Bool[Tensor, "B N"], num_bands: int) -> PointSources:
    """The sources that tokens describe; one with any token missing of its place or of a flux lacks that flux."""
    size = num_source_tokens(1, num_bands)
    codes, mask = (t.unflatten(1, (t.shape[1] // size, size)) for t in (codes, mask))
    digits = codes[..., : 2 * PLACE_DIGITS].unflatten(2, (2, PLACE_DIGITS))
    place = (_numbers(digits) - 0.5) * 2 * REACH
    digits = codes[..., 2 * PLACE_DIGITS :].unflatten(2, (num_bands, FLUX_DIGITS)) - PLACE_DIGITS * BASE
    flux = FAINTEST * torch.sinh(LARGEST * _numbers(digits))
    measured = mask[..., 2 * PLACE_DIGITS :].unflatten(2, (num_bands, FLUX_DIGITS)).all(3)
    measured = measured & mask[..., : 2 * PLACE_DIGITS].all(2, keepdim=True)
    return PointSources(place, flux, measured)


def source_positions(num_objects: int, num_sources: int, wavelengths: list[float]) -> Float[Tensor, "B N P"]:
    """Positions of the tokens: nowhere on the sky, fluxes at their bands; details count down from -1.

    Where a source lies is for its tokens to say: a position would tell it to who is asked for them.
    """
    positions = empty_positions(num_objects, num_source_tokens(num_sources, len(wavelengths)))
    of_sources = positions.view(num_objects, num_sources, -1, positions.shape[-1])
    first = -1 - NUM_ROLES * torch.arange(num_sources)[:, None]
    places, fluxes = torch.arange(2 * PLACE_DIGITS), 2 * PLACE_DIGITS + torch.arange(FLUX_DIGITS)
    of_sources[:, :, : len(places), DETAIL] = (first - places).float()
    of_sources[:, :, len(places) :, DETAIL] = (first - fluxes.repeat(len(wavelengths))).float()
    logarithms = torch.tensor(wavelengths).log().repeat_interleave(FLUX_DIGITS)
    of_sources[:, :, len(places) :, LOG_WAVELENGTH] = logarithms
    return positions


def render_sources(
    sources: PointSources, wavelengths: list[float], target: ImageObservation
) -> Float64[Tensor, "B C H W"]:
    """Flux of the target's pixels. `wavelengths` are those of the sources' bands, angstrom.

    In bands that the sources' camera lacks, magnitudes are interpolated along log wavelength.
    """
    device = sources.place.device
    flux = _in_bands(sources, wavelengths, [target.card.band(name).wavelength for name in target.bands])
    light = torch.zeros(target.flux.shape, dtype=torch.float64, device=device)
    objects, slots = sources.measured.any(2).nonzero(as_tuple=True)
    if not len(objects):
        return light
    scale = target.card.pixel_scale
    center = target.center.to(device).double()[objects]
    fwhm = target.psf_fwhm.to(device).double()[objects]
    place = sources.place[objects, slots]
    y, x = (
        (torch.arange(size, device=device) - center[:, axis, None]) * scale - place[:, 1 - axis, None]
        for axis, size in enumerate(target.flux.shape[2:])
    )
    square = (y[:, :, None] ** 2 + x[:, None, :] ** 2)[:, None]
    profile = _moffat(square, fwhm[..., None, None]) * scale**2
    return light.index_add_(0, objects, profile * flux[objects, slots][..., None, None])


def find_sources(observation: ImageObservation, num_sources: int, device: torch.device) -> PointSources:
    """The point sources of images that are far brighter than the noise, the brightest pixels first."""
    card, names = observation.card, [band.name for band in observation.card.bands]
    num_objects = len(observation)
    shape = (num_objects, num_sources, len(names))
    place = torch.zeros(*shape[:2], 2, dtype=torch.float64, device=device)
    flux = torch.zeros(shape, dtype=torch.float64, device=device)
    measured = torch.zeros(shape, dtype=torch.bool, device=device)
    if not num_sources:
        return PointSources(place, flux, measured)
    broadest = max(band.psf_fwhm for band in card.bands)
    peaks = _peaks(observation, max(1, round(0.5 * broadest / card.pixel_scale)), 2 * num_sources, device)
    if not (peaks >= 0).any():
        return PointSources(place, flux, measured)
    in_card = [names.index(name) for name in observation.bands]
    reach = math.ceil(CORE * broadest / card.pixel_scale) + 1
    rest = F.pad(torch.where(observation.mask, observation.flux, 0.0).to(device).double(), 4 * (reach,))
    weight = torch.where(observation.mask, observation.inverse_variance, 0.0).to(device).double()
    weight = F.pad(weight, 4 * (reach,))
    width = observation.flux.shape[3]
    steps = torch.arange(-reach, reach + 1, device=device)
    found = torch.zeros(num_objects, dtype=torch.long, device=device)
    for turn in range(peaks.shape[1]):
        rows = ((peaks[:, turn] >= 0) & (found < num_sources)).nonzero()[:, 0]
        if not len(rows):
            continue
        y, x = peaks[rows, turn] // width, peaks[rows, turn] % width
        at_y, at_x = (v[:, None] + reach + steps for v in (y, x))
        light, of_light = (
            t[rows[:, None, None], :, at_y[:, :, None], at_x[:, None, :]].movedim(3, 1).flatten(2)
            for t in (rest, weight)
        )
        grid = torch.cartesian_prod(steps, steps).double() * card.pixel_scale
        fwhm = observation.psf_fwhm.to(device).double()[rows]
        near = grid.square().sum(1) <= (CORE * fwhm[..., None]) ** 2
        at, amplitude, seen, is_point = _fit(light, of_light * near, grid, fwhm, card.pixel_scale**2)
        rows, y, x, at, amplitude, seen = (t[is_point] for t in (rows, y, x, at, amplitude, seen))
        if not len(rows):
            continue
        center = observation.center.to(device).double()[rows]
        middle = torch.stack([x - center[:, 1], y - center[:, 0]], 1) * card.pixel_scale
        slots = found[rows]
        place[rows, slots] = middle + at.flip(1)
        flux[rows[:, None], slots[:, None], in_card] = amplitude
        measured[rows[:, None], slots[:, None], in_card] = seen
        found[rows] += 1
        # The next peak is that of what is left.
        one = PointSources(place[rows, slots][:, None], amplitude[:, None], seen[:, None])
        chosen = observation.select(rows.cpu())
        wavelengths = [card.band(name).wavelength for name in observation.bands]
        inner = slice(reach, -reach)
        rest[rows, :, inner, inner] -= render_sources(one, wavelengths, chosen)
    inside = (place.abs() < REACH).all(2, keepdim=True)
    return PointSources(place, flux, measured & inside)


def _peaks(observation: ImageObservation, radius: int, count: int, device: torch.device) -> Int[Tensor, "B count"]:
    """Pixels (row times width plus column) that outshine all within `radius`, the brightest first; -1 for none."""
    mask = observation.mask.to(device)
    weight = torch.where(mask, observation.inverse_variance.to(device), 0.0).double()
    total = (torch.where(mask, observation.flux.to(device), 0.0).double() * weight).sum(1)
    signal = total / weight.sum(1).clamp(min=1e-300).sqrt()
    highest = F.max_pool2d(signal[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0]
    signal = torch.where((signal == highest) & (signal > LEAST_SIGNAL), signal, -1.0).flatten(1)
    value, place = signal.topk(min(count, signal.shape[1]), dim=1)
    return torch.where(value > 0, place, -1)


def _fit(
    light: Float64[Tensor, "Q C L"],
    weight: Float64[Tensor, "Q C L"],
    grid: Float64[Tensor, "L 2"],
    fwhm: Float64[Tensor, "Q C"],
    area: float,
) -> tuple[Float64[Tensor, "Q 2"], Float64[Tensor, "Q C"], Bool[Tensor, "Q C"], Bool[Tensor, " Q"]]:
    """Profile plus even background in each band: offset (y, x) from the peak, flux, if it is seen; and if it fits."""
    at = torch.zeros(len(light), 2, dtype=light.dtype, device=light.device)
    limit = 0.5 * fwhm.amax(1, keepdim=True)
    for step in itertools.count():
        away = grid - at[:, None]
        square = away.square().sum(2)[:, None]
        profile = _moffat(square, fwhm[..., None]) * area
        even = weight.sum(2, keepdim=True).clamp(min=1e-300)

        def without_mean(values: Tensor, even: Tensor = even) -> Tensor:
            return values - (weight * values).sum(-1, keepdim=True) / even

        shape, data = without_mean(profile), without_mean(light)
        power = (weight * shape**2).sum(2)
        amplitude = (weight * shape * data).sum(2) / power.clamp(min=1e-300)
        left = data - amplitude[..., None] * shape
        if step == ITERATIONS:
            break
        radius = (MOFFAT_SCALE * fwhm[..., None]) ** 2
        slope = amplitude[..., None] * profile * 2 * MOFFAT_BETA / (radius + square)
        slopes = [without_mean(slope * away[:, None, :, axis]) for axis in (0, 1)]
        unit = shape / power.clamp(min=1e-300)[..., None]
        slopes = [s - (weight * s * shape).sum(2, keepdim=True) * unit for s in slopes]
        right = torch.stack([(weight * s * left).sum((1, 2)) for s in slopes], 1)
        normal = torch.stack([torch.stack([(weight * s * t).sum((1, 2)) for t in slopes], 1) for s in slopes], 1)
        normal.diagonal(dim1=1, dim2=2).add_(1e-9 * normal.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) + 1e-300)
        at = (at + torch.linalg.solve(normal, right[..., None])[..., 0]).clamp(-limit, limit)
    seen = amplitude * power.sqrt() > 5
    chi2 = (weight * left**2).sum((1, 2)) - (weight > 0).sum((1, 2))
    is_point = (chi2 < MOST_EXCESS * (power * amplitude**2).sum(1)) & (at.abs() < limit).all(1) & seen.any(1)
    return at, amplitude, seen, is_point


def _moffat(square: Float64[Tensor, "*A"], fwhm: Float64[Tensor, "*B"]) -> Float64[Tensor, "*C"]:
    """Share of a point's light per square arcsec, at squared distances from it (arcsec^2)."""
    radius = (MOFFAT_SCALE * fwhm) ** 2
    return (MOFFAT_BETA - 1) / (math.pi * radius) * (1 + square / radius) ** -MOFFAT_BETA


def _in_bands(sources: PointSources, known: list[float], wanted: list[float]) -> Float64[Tensor, "B S W"]:
    """Fluxes at the wanted wavelengths: magnitudes interpolated between measured bands, the outer ones beyond."""
    x = torch.tensor(known, dtype=torch.float64, device=sources.flux.device).log()
    order = x.argsort()
    x, measured = x[order], sources.measured[..., order]
    logarithm = sources.flux[..., order].clamp(min=1e-3 * FAINTEST).log()
    found = []
    for wavelength in wanted:
        goal = math.log(wavelength)
        below = torch.where(measured & (x <= goal + 1e-9), x, -torch.inf)
        above = torch.where(measured & (x >= goal - 1e-9), x, torch.inf)
        low, high = below.argmax(-1), above.argmin(-1)
        has_low, has_high = below.isfinite().any(-1), above.isfinite().any(-1)
        low, high = torch.where(has_low, low, high), torch.where(has_high, high, low)
        share = ((goal - x[low]) / (x[high] - x[low]).clamp(min=1e-9)).clamp(0, 1)
        ends = [logarithm.gather(-1, place[..., None])[..., 0] for place in (low, high)]
        value = (ends[0] + (ends[1] - ends[0]) * share).exp()
        found.append(torch.where(has_low | has_high, value, 0.0))
    return torch.stack(found, -1)


def _digits(share: Float64[Tensor, "*A"], count: int) -> Int[Tensor, "*A count"]:
    """A number in [0, 1] as digits, the most significant first."""
    steps = (share * BASE**count).long().clamp(max=BASE**count - 1)
    return torch.stack([steps // BASE ** (count - 1 - place) % BASE + place * BASE for place in range(count)], -1)


def _numbers(digits: Int[Tensor, "*A count"]) -> Float64[Tensor, "*A"]:
    """The middles of the steps that digits say."""
    count = digits.shape[-1]
    places = torch.arange(count, device=digits.device)
    steps = ((digits - places * BASE) * BASE ** (count - 1 - places)).sum(-1)
    return (steps.double() + 0.5) / BASE**count
