"""Objects per second of the image and spectrum tokenizers, against convolutional codecs of AION-1's published shape.

The reference is built here, with random weights, from what is published of it (Parker et al. 2025, arXiv 2510.17960,
and the public inference code): an image codec of residual convolutions, 96 x 96 pixels -> 24 x 24 codes of 4375; a
spectrum codec of one-dimensional ConvNeXt-V2 blocks, 8704 pixels -> 272 codes of 1024 and one of normalisation. Its
numbers of parameters are printed beside the published ones. Weights do not change the arithmetic.

Both sides get the same objects (images of 4 bands, spectra of flux and inverse variance with some bad pixels) in
batches of one size, the same dtype (autocast) and threads, run eagerly, and are measured from float32 arrays in the
host's memory to codes in the host's memory. Ours makes positions, masks and instrument numbers on the way; the
reference makes codes alone, is spared its crop and its interpolation (spectra come on its own grid), and computes in
the memory format that is the faster on this device. Decoding goes from codes to flux; ours also evaluates the wanted
instrument's grid. How much work an image is for ours depends on the camera: images of 5 bands on finer pixels
(`image_hsc`) are timed on our side too; the reference pads all bands to nine. Making the observation, with all its
checks, happens once where data enter; the reference has nothing like it, so that it is timed apart, and ratios that
include it are stated too.

All take turns after a first turn that does not count; a rate is the median of the turns, a ratio the median of the
ratios within one turn, with the least and the greatest. `ratio_to_reference` is the smallest one of encoding.

    python benchmarks/tokenizer_speed.py [--quick] [--device cuda] [--tokenizers FOLDER]
"""

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from armillary.data.instruments import instrument
from armillary.data.modalities import Modality, modality
from armillary.data.observations import ImageObservation, SpectrumObservation
from armillary.settings import find_config, load_settings
from armillary.tokenizers.image import ImageTokenizer
from armillary.tokenizers.quantizers import FiniteScalarQuantizer
from armillary.tokenizers.spectrum import SpectrumTokenizer
from armillary.training.tokenizers import TrainTokenizerSettings, load_tokenizers

PUBLISHED_PARAMETERS = {"image": 70e6, "spectrum": 24e6}
IMAGE_SIZE, NUM_PIXELS = 96, 8704
"""Pixels along a side of an image; of a spectrum."""
KINDS = tuple(PUBLISHED_PARAMETERS)
INPUTS = ("image", "image_hsc", "spectrum")
BANDS = torch.arange(4)
"""Places of an image's bands among the nine of the reference."""


class GlobalGate(nn.Module):
    """Squeeze and excitation, where the squeeze is a mean weighted by a softmax over all pixels."""

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Conv2d(width, 1, 1)
        self.gate = nn.Sequential(
            nn.Linear(width, width // 2), nn.LeakyReLU(0.1), nn.Linear(width // 2, width), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x` [B, D, H, W]."""
        weight = self.score(x).flatten(2).softmax(-1)
        mean = torch.einsum("bdn,bin->bd", x.flatten(2), weight)
        return x * self.gate(mean)[..., None, None]


class ResidualUnit(nn.Module):
    """A 3 x 3 and a 1 x 1 convolution and a gate, added to what comes in."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ELU(), nn.Conv2d(width, width, 1), nn.ELU(), GlobalGate(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`x` is [B, D, H, W]."""
        return x + self.layers(x)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, D, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm over dimension 1."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ReferenceImageCodec(nn.Module):
    """The image codec: 9 bands of all surveys -> 54 channels -> widths 128, 256, 512 -> FSQ of 7 x 5 x 5 x 5 x 5."""

    def __init__(self, num_bands: int = 9, width: int = 512, num_units: int = 4):
        super().__init__()
        low, middle = width // 4, width // 2
        self.quantizer = FiniteScalarQuantizer((7, 5, 5, 5, 5))
        self.num_bands = num_bands

        def units(size: int, count: int = num_units) -> list[nn.Module]:
            return [ResidualUnit(size) for _ in range(count)]

        def twice(wide: int, narrow: int) -> list[nn.Module]:
            return [nn.Conv2d(wide, 4 * narrow, 1), nn.SiLU(), nn.PixelShuffle(2)]

        self.encoder = nn.Sequential(
            nn.Conv2d(num_bands, 54, 1),
            nn.Conv2d(54, low, 7, padding=3),
            *units(low, 1),
            nn.Conv2d(low, middle, 3, stride=2, padding=1),
            *units(middle),
            nn.Conv2d(middle, width, 3, stride=2, padding=1),
            *units(width),
            nn.Conv2d(width, width, 7, padding=3),
            *units(width),
            ChannelNorm(width),
            nn.Conv2d(width, 5, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(5, width, 1),
            *units(width),
            nn.Conv2d(width, width, 3, padding=1),
            *units(width),
            *twice(width, middle),
            *units(middle),
            *twice(middle, low),
            *units(low, 1),
            nn.Conv2d(low, 54, 3, padding=1),
            nn.Conv2d(54, num_bands, 1),
        )

    def encode(self, flux: Tensor, places: Tensor) -> Tensor:
        """Codes [B, 576] of images [B, C, 96, 96], nanomaggies, of which band c stands at `places[c]` of the nine."""
        compressed = 0.1 * torch.asinh(flux.clamp(-1e3, 1e3) / 0.01)
        padded = compressed.new_zeros(len(flux), self.num_bands, *flux.shape[2:])
        padded[:, places] = compressed * math.sqrt(self.num_bands / len(places))
        latents = self.encoder(padded).flatten(2).transpose(1, 2)
        return self.quantizer(latents.float())[1]

    def decode(self, codes: Tensor, places: Tensor) -> Tensor:
        """Images [B, C, 96, 96] in the bands at `places`."""
        latents = self.quantizer.from_codes(codes).transpose(1, 2).unflatten(2, (IMAGE_SIZE // 4, -1))
        return 0.01 * torch.sinh(self.decoder(latents).float()[:, places] / 0.1)


class ConvNeXtBlock(nn.Module):
    """A one-dimensional ConvNeXt-V2 block (Woo et al. 2023, arXiv 2301.00808) on [B, L, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.response_scale = nn.Parameter(torch.zeros(4 * width))
        self.response_shift = nn.Parameter(torch.zeros(4 * width))
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` [B, D, L]."""
        y = F.gelu(self.up(self.norm(self.depthwise(x).transpose(1, 2))))
        response = y.norm(dim=1, keepdim=True)
        y = y + self.response_scale * y * response / (response.mean(-1, keepdim=True) + 1e-6) + self.response_shift
        return x + self.down(y).transpose(1, 2)


class ReferenceSpectrumCodec(nn.Module):
    """The spectrum codec: flux and error on 8704 pixels -> widths 96, 192, 384, 512 -> the signs of ten numbers."""

    def __init__(self) -> None:
        super().__init__()

        def blocks(width: int, depth: int) -> list[nn.Module]:
            return [ConvNeXtBlock(width) for _ in range(depth)]

        encoder = [nn.Conv1d(2, 96, 4, stride=4), ChannelNorm(96), *blocks(96, 3)]
        for before, width, depth in ((96, 192, 3), (192, 384, 9), (384, 512, 3)):
            encoder += [ChannelNorm(before), nn.Conv1d(before, width, 2, stride=2), *blocks(width, depth)]
        self.encoder = nn.Sequential(*encoder, ChannelNorm(512), ChannelNorm(512), nn.Conv1d(512, 10, 1))
        decoder = [nn.Conv1d(10, 512, 1), nn.ConvTranspose1d(512, 384, 2, stride=2), ChannelNorm(384), *blocks(384, 3)]
        for before, width, depth, stride in ((384, 192, 3, 2), (192, 96, 9, 2), (96, 2, 3, 4)):
            upsample = nn.ConvTranspose1d(before, width, stride, stride=stride)
            decoder += [ChannelNorm(before), upsample, *blocks(width, depth)]
        self.decoder = nn.Sequential(*decoder)
        self.register_buffer("bits", 2 ** torch.arange(10))

    def encode(self, flux: Tensor, inverse_variance: Tensor, mask: Tensor) -> Tensor:
        """Codes [B, 273] of spectra [B, 8704] on the codec's own grid; the first is the normalisation."""
        mean = (flux * mask).sum(1) / (mask.sum(1) + 1.0)
        code = ((mean.clamp(min=0.1) + 1).log10() + 1).div(6).mul(1023).round().clamp(0, 1023)
        scale = self._scale(code)[:, None]
        error = inverse_variance.clamp(0, 100).sqrt()
        x = torch.asinh(0.2 * torch.stack([flux / scale - 1, error / scale], 1))
        latents = self.encoder(x).transpose(1, 2)
        return torch.cat([code[:, None].long(), ((latents > 0) * self.bits).sum(-1)], 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Spectra [B, 8704]."""
        latents = ((codes[:, 1:, None] & self.bits) > 0).float() * 2 - 1
        flux, _ = self.decoder(latents.transpose(1, 2)).float().unbind(1)
        return (flux + 1) * self._scale(codes[:, 0].float())[:, None]

    @staticmethod
    def _scale(code: Tensor) -> Tensor:
        return (10 ** (code / 1023 * 6 - 1) - 1).clamp(min=0.1)


def make_image(batch: int, name: str) -> Callable[[], ImageObservation]:
    """What makes an observation of `batch` images in all bands of a camera: a blob on noise, 1 % of pixels bad."""
    random = np.random.default_rng(0)
    bands = [band.name for band in modality(name).card.bands]
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] - IMAGE_SIZE / 2
    blob = np.exp(-np.hypot(x, y) / 6) * random.lognormal(0, 1, (batch, len(bands), 1, 1))
    flux = (blob + random.normal(0, 0.02, (*blob.shape[:2], IMAGE_SIZE, IMAGE_SIZE))).astype(np.float32)
    ivar, mask = np.full_like(flux, 0.02**-2), random.random(flux.shape) > 0.01
    return lambda: ImageObservation(modality(name), range(batch), flux, bands, ivar, mask)


def make_spectrum(batch: int) -> Callable[[], SpectrumObservation]:
    """What makes an observation of `batch` spectra on the reference's own grid, 1 % of pixels bad."""
    random = np.random.default_rng(1)
    grid = {"wavelength_min": 3500.0, "wavelength_max": 10462.4, "sampling": "linear", "step": 0.8}
    card = instrument("desi").model_copy(update={"name": "reference_grid", **grid})
    wavelength = card.wavelength()
    noise = random.normal(0, 1, (batch, NUM_PIXELS))
    flux = (random.lognormal(1, 1, (batch, 1)) * (wavelength / 6000) ** 0.5 + noise).astype(np.float32)
    ivar, mask = np.ones_like(flux), random.random(flux.shape) > 0.01
    spectra = Modality("spectrum/reference_grid", card)
    return lambda: SpectrumObservation(spectra, range(batch), flux, wavelength, ivar, mask)


def our_tokenizers(folder: Path | None) -> dict[str, nn.Module]:
    """The trained tokenizers in `folder`, or new ones of the sizes that configs/tokenizers gives."""
    if folder:
        found: dict[str, Any] = dict(load_tokenizers(folder))
        return {kind: found[kind] for kind in KINDS}
    read = {kind: load_settings(TrainTokenizerSettings, find_config(f"tokenizers/{kind}.yaml")) for kind in KINDS}
    return {"image": ImageTokenizer(read["image"].image), "spectrum": SpectrumTokenizer(read["spectrum"].spectrum)}


def make_runs(
    builders: dict[str, Callable[[], Any]], ours: dict[str, Any], codecs: dict[str, Any], device: torch.device
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name: building, encoding and decoding a batch of each kind, ours and the reference's."""
    runs: dict[str, Callable[[], Any]] = {}
    for name, build in builders.items():
        observation, kind = build(), name.partition("_")[0]
        tokenizer, codec = ours[kind], codecs[kind]
        tokens = tokenizer.encode(observation)
        runs[f"{name}_encode"] = partial(tokenizer.encode, observation)
        runs[f"{name}_decode"] = partial(tokenizer.decode, tokens, observation)
        runs[f"{name}_observation"] = build
        if name in codecs:
            if kind == "image":
                inputs, bands = [observation.flux], [BANDS]
            else:
                inputs, bands = [observation.flux, observation.inverse_variance, observation.mask], []
            codes = on_device(codec.encode, device, *inputs, *bands)
            runs[f"reference_{name}_encode"] = partial(on_device, codec.encode, device, *inputs, *bands)
            runs[f"reference_{name}_decode"] = partial(on_device, codec.decode, device, codes, *bands)
    return runs


def on_device(method: Callable[..., Tensor], device: torch.device, *arrays: Tensor) -> Tensor:
    """What the method makes of the arrays on the device, on the host again."""
    return method(*(array.to(device) for array in arrays)).cpu()


def seconds(run: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds that `run` takes by the clock, waiting for the device, and CPU seconds of all threads."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def multiply_accumulates(run: Callable[[], Any]) -> float:
    """Multiply-accumulates of convolutions and matrix products, those of attention included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


def faster_format(codec: nn.Module, flux: Tensor, device: torch.device) -> str:
    """Leave the image codec in the memory format in which it encodes `flux` faster, and say which that is."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    run = partial(on_device, codec.encode, device, flux, BANDS)
    taken = {}
    for name, memory_format in formats.items():
        codec.to(memory_format=memory_format)
        run()
        taken[name] = seconds(run, device)[0]
    best = min(taken, key=lambda name: taken[name])
    codec.to(memory_format=formats[best])
    return best


def summary(taken: dict[str, list[tuple[float, float]]], batch: int) -> dict[str, Any]:
    """Rates (objects per second, median of the turns with least and greatest) and ratios to the reference."""
    record: dict[str, Any] = {}
    arrays = {name: np.array(turns) for name, turns in taken.items()}  # [turns, (clock, CPU)]
    names = [*INPUTS, *(f"reference_{kind}" for kind in KINDS)]
    arrays |= {f"{name}_encode_decode": arrays[f"{name}_encode"] + arrays[f"{name}_decode"] for name in names}
    for name, array in arrays.items():
        rates = batch / array[:, 0]
        record[f"{name}_per_s"] = rounded(np.median(rates))
        record[f"{name}_per_s_range"] = [rounded(rates.min()), rounded(rates.max())]
    for name in INPUTS:
        for task in ("encode", "encode_decode"):
            reference, ours = arrays[f"reference_{name.partition('_')[0]}_{task}"], arrays[f"{name}_{task}"]
            ratios, ratio = reference / ours, f"{name}_{task}_ratio"
            record[ratio] = rounded(np.median(ratios[:, 0]))
            record[f"{ratio}_range"] = [rounded(ratios[:, 0].min()), rounded(ratios[:, 0].max())]
            record[f"{ratio}_by_cpu_seconds"] = rounded(np.median(ratios[:, 1]))
            with_building = reference / (ours + arrays[f"{name}_observation"])
            record[f"{ratio}_with_observation"] = rounded(np.median(with_building[:, 0]))
    return {"ratio_to_reference": min(record[f"{name}_encode_ratio"] for name in INPUTS)} | record


def rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def main() -> None:
    """Run, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller batches and fewer turns")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="by default bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, help="by default torch's own choice")
    parser.add_argument("--batch", type=int, help="objects in a batch, on both sides")
    parser.add_argument("--tokenizers", type=Path, help="trained ones; by default the sizes of configs/tokenizers")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    dtype = getattr(torch, options.dtype or ("bfloat16" if on_gpu else "float32"))
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    batch = options.batch or (256 if on_gpu else 4 if options.quick else 16)
    turns = 3 if options.quick else 9 if on_gpu else 5
    ours = our_tokenizers(options.tokenizers)
    codecs: dict[str, nn.Module] = {"image": ReferenceImageCodec(), "spectrum": ReferenceSpectrumCodec()}
    settings: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "turns": turns,
        "parameters": {},
        "gmac_per_object": {},
    }
    for kind in KINDS:
        sizes = [sum(p.numel() for p in model.parameters()) for model in (ours[kind], codecs[kind])]
        settings["parameters"] |= {kind: sizes[0], f"reference_{kind}": sizes[1]}
        print(f"{kind}: {sizes[0] / 1e6:.2f} M parameters; reference {sizes[1] / 1e6:.1f} M, ", end="")
        print(f"published {PUBLISHED_PARAMETERS[kind] / 1e6:.0f} M")
        for model in (ours[kind], codecs[kind]):
            model.to(device).eval().requires_grad_(False)

    autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    with torch.no_grad(), autocast:
        images = make_image(batch, "image/legacysurvey")
        builders = {"image": images, "image_hsc": make_image(batch, "image/hsc"), "spectrum": make_spectrum(batch)}
        runs = make_runs(builders, ours, codecs, device)
        settings["reference_image_format"] = faster_format(codecs["image"], images().flux[: -(-batch // 8)], device)
        for name, run in runs.items():
            count = multiply_accumulates(run) / batch / 1e9
            if count:
                settings["gmac_per_object"][name] = rounded(count)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(turns):
            for name, run in runs.items():
                taken[name].append(seconds(run, device))
    record = summary(taken, batch)
    for name in runs:
        low, high = record[f"{name}_per_s_range"]
        print(f"{name:26} {record[f'{name}_per_s']:10.4g} objects/s ({low:.4g} to {high:.4g})")
    print(json.dumps(record | settings))


if __name__ == "__main__":
    main()
