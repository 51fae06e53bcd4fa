"""A token store of made-up objects, such as a real pretraining reads: made in seconds, without data.

Untrained tokenizers of default settings say how many tokens an object has in each modality, where they lie and of which
sort they are; what follows here is made up: which objects have which modality, how many details patches have, and the
codes. An object has three hidden numbers in [0, 1), its brightness, colour and redshift, and most codes follow from
these and from the token's place. So there is something to learn, within modalities and from one to another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from armillary.data.instruments import ImagingInstrument, Spectrograph
from armillary.data.modalities import Modality, modality
from armillary.data.observations import ImageObservation, SpectrumObservation
from armillary.data.token_manifest import finish_store
from armillary.data.token_shards import write_object_shard, write_token_shard
from armillary.data.token_store import TokenStore
from armillary.tokenizers.image import ImageTokenizer, ImageTokenizerSettings
from armillary.tokenizers.point_sources import BASE, NUM_ROLES, PLACE_DIGITS
from armillary.tokenizers.quantizers import rank_features
from armillary.tokenizers.spectrum import SpectrumTokenizer
from armillary.tokenizers.token_grid import TokenGrid

SHARES = {"image/legacysurvey": 0.9, "image/hsc": 0.3, "spectrum/desi": 0.4, "spectrum/sdss": 0.15}
"""Share of the objects that have each of these modalities, and SCALAR_SHARE each scalar, independently."""
SCALARS = (
    *("redshift", "stellar_mass", "specific_star_formation_rate"),
    *("legacysurvey_g", "legacysurvey_r", "legacysurvey_z", "sdss_u", "sdss_g", "sdss_r", "sdss_i", "sdss_z"),
    *("hsc_g", "hsc_r", "hsc_i", "hsc_z", "hsc_y", "gaia_g", "gaia_bp", "gaia_rp"),
    *("gaia_parallax", "gaia_pm_ra", "gaia_pm_dec"),
)
SCALAR_SHARE = 0.95
NUM_SCALAR_CODES = 1024
"""As configs/tokenizers/scalar.yaml."""
LIKELY = 0.6
"""Probability that a detail or a window has the code that follows from the hidden numbers, and not a random one."""
DETAILS_WITHIN = {"image/legacysurvey": 45.0, "image/hsc": 95.0}
"""Mean number of details of the patch in the middle: images then have about as many as docs/tokenizers.md measured."""
DETAILS_SIGMA = 2.0
"""Arcsec from the middle by which patches have fewer details."""
NUM_SOURCES = 0.3
"""Mean number of point sources of an image."""
SHARD_SIZE = 4096


@dataclass(frozen=True, eq=False)
class Layout:
    """One modality of the store: what one object's tokens look like, and what gives the codes of some objects.

    `draw` takes the hidden numbers [R, 3] and returns codes [R, N] (int16) and mask [R, N].
    """

    modality: Modality
    share: float
    positions: np.ndarray
    instrument: np.ndarray
    draw: Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def made_up_store(
    folder: str | Path, num_objects: int, seed: int = 0, quick: bool = False, num_details: int | None = None
) -> tuple[TokenStore, dict[str, Tensor]]:
    """Write a store of so many objects; returns it, and the features [V, S] of the codes of each vocabulary.

    Images are of 96 x 96 pixels with the default tokenizer's 128 details of a patch, of which nearly all are masked; if
    `quick`, of 48 x 48 with 4 details. `num_details` is another number.
    """
    size, most = (48, 4) if quick else (96, ImageTokenizerSettings().num_details)
    images = ImageTokenizer(ImageTokenizerSettings(num_details=num_details or most))
    spectra = SpectrumTokenizer()
    layouts = [
        image_layout(images, modality(name), size, seed)
        if name.startswith("image")
        else spectrum_layout(spectra, modality(name), seed)
        for name in SHARES
    ]
    mixtures = np.random.default_rng(seed).dirichlet([0.5, 0.5, 0.5], len(SCALARS))
    layouts += [scalar_layout(modality(f"scalar/{name}"), m) for name, m in zip(SCALARS, mixtures, strict=True)]
    num_shards = -(-num_objects // SHARD_SIZE)
    for index in range(num_shards):
        count = min(SHARD_SIZE, num_objects - index * SHARD_SIZE)
        random = np.random.default_rng([seed, index])
        ids = [f"made-up-{index * SHARD_SIZE + row}" for row in range(count)]
        objects = write_object_shard(folder, index, num_shards, ids, random.random((count, 2)))
        hidden = random.random((count, 3))
        for layout in layouts:
            has = random.random(count) < layout.share
            codes, mask = layout.draw(hidden[has], random)
            arrays = {"codes": codes, "mask": mask, "positions": layout.positions, "instrument": layout.instrument}
            rows = np.where(has, np.cumsum(has) - 1, -1)
            write_token_shard(folder, layout.modality, index, rows, arrays, tokenizer_hash="made up", objects=objects)
    if not finish_store(folder, "made up", {}):
        raise RuntimeError(f"{folder}: shards are missing from a store that was just written")
    of_kind = {
        "image": lambda known: images.code_features(known),
        "spectrum": lambda known: spectra.code_features(known),
        "scalar": lambda known: rank_features(NUM_SCALAR_CODES),
    }
    features = {layout.modality.vocabulary: of_kind[layout.modality.kind](layout.modality) for layout in layouts}
    return TokenStore(folder, verify=False), features


def image_layout(tokenizer: ImageTokenizer, known: Modality, size: int, seed: int) -> Layout:
    """Images of size x size pixels. A detail's code follows from its number and the object's colour, brightness of
    bands and patches from the object's; how many details a patch has falls from the middle outward."""
    card = known.card
    assert isinstance(card, ImagingInstrument)
    flat = np.zeros((1, len(card.bands), size, size), np.float32)
    observation = ImageObservation(known, ["flat"], flat, [band.name for band in card.bands], np.ones_like(flat))
    grid = tokenizer.encode(observation)
    x, y, log_wavelength, detail = grid.positions[0].numpy().T
    first = dict(zip(tokenizer.codebook_sizes(), np.cumsum([0, *tokenizer.codebook_sizes().values()]), strict=False))
    num_bands, num_details = len(card.bands), int(detail.max())
    num_patches = int((detail == 0).sum()) - num_bands
    radius = np.hypot(x, y)[num_bands : num_bands + num_patches]
    likely = np.random.default_rng(seed).integers(0, first["patch brightness"], (num_details, 8), dtype=np.int16)
    # Of point sources: which one it is, and the first code of the digit that its token is.
    source, role = np.divmod((-detail[detail < 0] - 1).astype(int), NUM_ROLES)
    digit = np.where(role < 2 * PLACE_DIGITS, role % PLACE_DIGITS, role - PLACE_DIGITS)

    def draw(hidden: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        brightness, colour = hidden[:, :1], hidden[:, 1:2]
        bands = 300 + 300 * brightness + 150 * (colour - 0.5) * (log_wavelength[:num_bands] - 8.8)
        bands = first["object brightness"] + bands + random.normal(0, 4, bands.shape)
        patches = 250 + 400 * brightness * np.exp(-radius / 3)
        patches = first["patch brightness"] + patches + random.normal(0, 4, patches.shape)
        mean = DETAILS_WITHIN[known.name] * 4 ** (brightness - 0.5) * np.exp(-0.5 * (radius / DETAILS_SIGMA) ** 2)
        there = np.arange(num_details)[:, None] < random.poisson(mean)[:, None]
        row, number, patch = there.nonzero()
        chosen = likely[number, (8 * colour[row, 0]).astype(int)]
        other = random.integers(0, first["patch brightness"], len(row), dtype=np.int16)
        details = np.zeros(there.shape, np.int16)
        details[row, number, patch] = np.where(random.random(len(row)) < LIKELY, chosen, other)
        sources = random.integers(0, BASE, (len(hidden), len(digit))) + first["point source"] + digit * BASE
        has_source = source < random.poisson(NUM_SOURCES, (len(hidden), 1))
        parts = bands, patches, details.reshape(len(hidden), -1), sources
        always = np.ones((len(hidden), num_bands + num_patches), bool)
        mask = np.concatenate([always, there.reshape(len(hidden), -1), has_source], 1)
        return np.concatenate([part.astype(np.int16) for part in parts], 1), mask

    return _layout(grid, SHARES[known.name], draw)


def spectrum_layout(tokenizer: SpectrumTokenizer, known: Modality, seed: int) -> Layout:
    """Spectra on the instrument's own grid: one pattern of windows and of lines, which the redshift moves."""
    assert isinstance(known.card, Spectrograph)
    wavelength = known.card.wavelength()
    flat = np.ones((1, len(wavelength)), np.float32)
    grid = tokenizer.encode(SpectrumObservation(known, ["flat"], flat, wavelength, np.ones_like(flat)))
    num_windows, num_cells = tokenizer.settings.num_windows, tokenizer.settings.num_cells
    is_valid = grid.mask[0, 1 : 1 + num_windows].numpy()
    sizes = tokenizer.codebook_sizes()
    first_line = sizes["window"] + sizes["amplitude"]
    # The same for all spectrographs, as galaxies are.
    of_galaxies = np.random.default_rng(seed)
    likely = of_galaxies.integers(0, tokenizer.num_learned_codes, 2 * num_windows, dtype=np.int16)
    lines = of_galaxies.choice(num_windows * num_cells, 8, replace=False)
    strengths = of_galaxies.integers(0, sizes["line"] - 64, 8)

    def draw(hidden: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        brightness, redshift = hidden[:, 0], hidden[:, 2]
        shift = (64 * redshift).astype(int)[:, None]
        ratio = (8 * brightness).astype(int)
        amplitude = (80 + 100 * brightness).astype(int) * 8 + ratio + sizes["window"]
        windows = likely[np.arange(num_windows) + num_windows - shift]
        other = random.integers(0, tokenizer.num_learned_codes, windows.shape, dtype=np.int16)
        windows = np.where(random.random(windows.shape) < LIKELY, windows, other)
        of_lines = np.zeros((len(hidden), num_windows * num_cells), np.int16)
        has_line = np.zeros(of_lines.shape, bool)
        cell = lines + num_cells * shift
        row, line = ((cell < of_lines.shape[1]) & (random.random(cell.shape) < 0.7)).nonzero()
        of_lines[row, cell[row, line]] = first_line + strengths[line] + random.integers(0, 64, len(row))
        has_line[row, cell[row, line]] = True
        has_line &= np.repeat(is_valid, num_cells)
        codes = np.concatenate([amplitude[:, None].astype(np.int16), windows, of_lines], 1)
        always = np.ones((len(hidden), 1), bool)
        return codes, np.concatenate([always, np.broadcast_to(is_valid, windows.shape), has_line], 1)

    return _layout(grid, SHARES[known.name], draw)


def scalar_layout(known: Modality, weights: np.ndarray) -> Layout:
    """One number: the weighted mean of the hidden ones, with some noise."""

    def draw(hidden: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        value = hidden @ weights + random.normal(0, 0.01, len(hidden))
        codes = np.clip(NUM_SCALAR_CODES * value, 0, NUM_SCALAR_CODES - 1).astype(np.int16)
        return codes[:, None], np.ones((len(hidden), 1), bool)

    positions, instrument = np.zeros((1, 1, 4), np.float32), known.quantity.features()[None]
    return Layout(known, SCALAR_SHARE, positions, instrument, draw)


def _layout(grid: TokenGrid, share: float, draw: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Layout:
    return Layout(grid.modality, share, grid.positions.numpy(), grid.instrument.numpy(), draw)
