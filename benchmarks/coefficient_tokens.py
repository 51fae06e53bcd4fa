"""What tokens of Gaia's BP/RP coefficients keep, by number of tokens, on simulated objects that were not learned from.

A tokenizer is fitted to stars and quasars as Gaia sees them. It is judged on other stars and quasars, and on galaxies,
of which it saw none: all to r = 17.6, given coefficients and noise as if they were points. chi2 is per coefficient, of
the noisy coefficients; 110 coefficients of correlated noise fit to below one.

    python benchmarks/coefficient_tokens.py [--quick]
"""

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np
import torch

from armillary.data.modalities import modality
from armillary.data.observations import CoefficientsObservation
from armillary.data.simulation.gaia_spectra import (
    SAMPLES,
    TRANSITS,
    TRANSITS_SCATTER,
    coefficient_matrix,
    coefficient_noise,
)
from armillary.data.simulation.sky_objects import Population, draw_objects
from armillary.data.stacking import stack
from armillary.tokenizers.coefficients import CoefficientsTokenizer, CoefficientsTokenizerSettings

GAIA = modality("coefficients/gaia_bp_rp")
STARS, QUASARS = {"star_fraction": 1.0, "quasar_fraction": 0.0}, {"star_fraction": 0.0, "quasar_fraction": 1.0}
GALAXIES = {"star_fraction": 0.0, "quasar_fraction": 0.0}
NUM_TOKENS = (1, 2, 3, 5, 7, 10)
BATCH_SIZE = 250


def spectra(num_objects: int, seed: int, kinds: dict[str, float]) -> CoefficientsObservation:
    """Objects of one kind, whatever their extent."""
    population = Population(seed=seed, magnitude_limit=17.6, shard_size=500, healpix_order=5, **kinds)
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[CoefficientsObservation]:
        for rows in np.array_split(np.arange(num_objects), -(-num_objects // BATCH_SIZE)):
            objects = draw_objects(population, rows)
            clean = (objects.spectra.sum(1) @ coefficient_matrix().T).double().numpy()
            transits = TRANSITS * np.exp(TRANSITS_SCATTER * rng.normal(size=len(rows)))
            noise, error = coefficient_noise(clean, rng.normal(size=(len(rows), 2 * len(SAMPLES))), transits)
            yield CoefficientsObservation(GAIA, objects.object_id, clean + noise, error=error)

    return stack(list(batches()))


def scores(tokenizer: CoefficientsTokenizer, held_out: CoefficientsObservation) -> dict[str, float | list[int]]:
    """What is lost, and how the codes are used."""
    start = time.perf_counter()
    tokens = tokenizer.encode(held_out)
    seconds = time.perf_counter() - start
    lost = (tokenizer.decode(tokens).values - held_out.values).double()
    chi2 = (lost / held_out.error).square().mean(1)
    values = held_out.values.double()
    shares = [torch.bincount(column).double() / len(tokens) for column in tokens.codes.T]
    return {
        "chi2_mean": round(chi2.mean().item(), 3),
        "chi2_median": round(chi2.median().item(), 3),
        "r2": round(1 - (lost.square().sum() / (values - values.mean(0)).square().sum()).item(), 5),
        "perplexity": [round(torch.special.entr(share).sum().exp().item()) for share in shares],
        "objects_per_s": round(len(tokens) / seconds),
    }


def main() -> None:
    """Run, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer objects")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    num_stars, num_others = (2000, 500) if options.quick else (20_000, 2000)
    learned_from = [spectra(num_stars, 1, STARS), spectra(num_others, 2, QUASARS)]
    held_out = {
        "stars": spectra(num_stars // 5, 3, STARS),
        "quasars": spectra(num_others, 4, QUASARS),
        "galaxies": spectra(num_others, 5, GALAXIES),
    }
    curve = []
    for num_tokens in NUM_TOKENS:
        start = time.perf_counter()
        sizes = CoefficientsTokenizerSettings(num_tokens=num_tokens)
        tokenizer = CoefficientsTokenizer(sizes).fit(lambda: iter(learned_from))
        seconds = time.perf_counter() - start
        found = {name: scores(tokenizer, observation) for name, observation in held_out.items()}
        curve.append(
            {
                "tokens": 1 + num_tokens,
                "vocabulary": tokenizer.vocabulary_size(GAIA),
                "seconds_to_fit": round(seconds, 1),
                **found,
            }
        )
        line = ", ".join(f"{name} {of['chi2_mean']:.2f} (R2 {of['r2']:.4f})" for name, of in found.items())
        print(f"{1 + num_tokens:3} tokens: chi2 of {line}")
    print(json.dumps({"threads": options.threads, "num_learned_from": num_stars + num_others, "curve": curve}))


if __name__ == "__main__":
    main()
