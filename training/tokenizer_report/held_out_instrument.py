"""An instrument that was never trained on: its error beside that of a control that was, and with metadata that lie.

A tokenizer that reads an instrument's numbers does nearly as well as the control, and much worse when the numbers are
another's. It is lied to in three ways: when it encodes alone, when it decodes alone, and throughout.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

from ...data.instruments import Spectrograph
from ...data.observations import ImageObservation, ObservationError
from ...tokenizers.token_grid import Tokenizer
from .pixel_measures import Pixels
from .pixel_scores import PixelSums, sum_pixels
from .simulated_truth import SimulatedTruth
from .source_pixels import signal_to_noise
from .wrong_metadata import on_grid_of, with_bands_shifted

WRONG = ("wrong when encoding", "wrong when decoding", "wrong throughout")
VARIANTS = ("never seen", "trained on", *WRONG)


def measure_held_out(
    tokenizer: Tokenizer,
    control: Tokenizer,
    batches: Iterable[Pixels],
    truth: SimulatedTruth | None,
    other: Spectrograph | None,
    source_sigma: float,
) -> dict[str, Any]:
    """For each of VARIANTS the chi2 per valid pixel and the RMS error in units of the noise, on all and source pixels.

    The error is against the truth, or what was observed where none is known. `ratio` is that of `tokenizer`'s error,
    never having seen the instrument, to `control`'s. Spectra lie with the grid of `other`, images with each other's
    bands. Only pixels that all variants cover count. A variant that the tokenizer refuses is named in `refused`.
    """
    sums: dict[tuple[str, str, str], PixelSums] = {}
    refused: dict[str, str] = {}
    num_objects = 0
    for observation in batches:
        num_objects += len(observation)
        made = {"trained on": control.decode(control.encode(observation), observation)}
        made |= _variants(tokenizer, observation, other, refused)
        true = None if truth is None else truth.pixels(observation)
        seen = observation.mask & torch.stack([m.mask for m in made.values()]).all(0)
        source = seen & (signal_to_noise(observation, true) > source_sigma)
        ivar = observation.inverse_variance
        for name, reconstruction in made.items():
            for place, chosen in (("all", seen), ("source", source)):
                for against, reference in (("observed", observation.flux), ("reference", true)):
                    wanted = observation.flux if reference is None else reference
                    key = (name, against, place)
                    sums[key] = sums.get(key, PixelSums()) + sum_pixels(wanted, reconstruction.flux, ivar, chosen)
    variants = {
        name: {
            place: {
                "chi2": sums[name, "observed", place].mean_chi2,
                "rms_error": math.sqrt(sums[name, "reference", place].mean_chi2),
                "r2": sums[name, "reference", place].r2,
            }
            for place in ("all", "source")
        }
        for name in VARIANTS
        if (name, "observed", "all") in sums and name not in refused
    }
    return {
        "num_objects": num_objects,
        "is_simulated": truth is not None,
        "variants": variants,
        "refused": refused,
        "ratio": {
            place: variants["never seen"][place]["rms_error"] / variants["trained on"][place]["rms_error"]
            for place in ("all", "source")
            if variants["trained on"][place]["rms_error"] > 0
        },
    }


def _variants(
    tokenizer: Tokenizer, observation: Pixels, other: Spectrograph | None, refused: dict[str, str]
) -> dict[str, Any]:
    """What the tokenizer makes of a batch, told the truth about the instrument and not."""
    right = tokenizer.encode(observation)
    found = {"never seen": tokenizer.decode(right, observation)}
    try:
        wrong = _lie(observation, other)
        if wrong is not None:
            found["wrong when decoding"] = tokenizer.decode(right, wrong)
            tokens = tokenizer.encode(wrong)
            found["wrong when encoding"] = tokenizer.decode(tokens, observation)
            found["wrong throughout"] = tokenizer.decode(tokens, wrong)
    except ObservationError as error:
        refused |= dict.fromkeys(WRONG, str(error))
    return found


def _lie(observation: Pixels, other: Spectrograph | None) -> Pixels | None:
    """The observation with another instrument's numbers; None where there are none to take."""
    if isinstance(observation, ImageObservation):
        return with_bands_shifted(observation) if len(observation.card.bands) > 1 else None
    return None if other is None else on_grid_of(observation, other)


def most_different(card: Spectrograph, others: Iterable[Spectrograph]) -> Spectrograph | None:
    """Of other spectrographs, the one whose range of wavelengths differs most from the card's; None without others.

    Ranges differ by the sum of the distances of their ends, in the logarithm.
    """

    def distance(other: Spectrograph) -> float:
        ends = ((card.wavelength_min, other.wavelength_min), (card.wavelength_max, other.wavelength_max))
        return sum(abs(math.log(a / b)) for a, b in ends)

    return max((other for other in others if other.name != card.name), key=distance, default=None)
