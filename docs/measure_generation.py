"""How the options of `FoundationModel.generate` change DESI spectra predicted from images, for docs/generation.md.

    python docs/measure_generation.py runs/demo

Takes the model and the held-out simulated objects of a finished demo; prints one row of a table for each setting.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from armillary.data.dataset import ObservationDataset
from armillary.data.observations import SpectrumObservation
from armillary.demo.generation import IMAGE, SPECTRUM
from armillary.demo.generation_scores import score_spectra
from armillary.demo.split import part_of
from armillary.models.foundation import FoundationModel
from armillary.models.generated import GeneratedObservations

SETTINGS: dict[str, dict[str, Any]] = {
    "1 stage": {"num_stages": 1},
    "4 stages, maskgit": {"num_stages": 4},
    "8 stages, maskgit": {"num_stages": 8},
    "4 stages, random": {"num_stages": 4, "order": "random"},
    "8 stages, random": {"num_stages": 8, "order": "random"},
    "16 stages, random": {"num_stages": 16, "order": "random"},
    "8 stages, random, top_p 0.9": {"num_stages": 8, "order": "random", "top_p": 0.9},
    "8 stages, random, guidance 1.5": {"num_stages": 8, "order": "random", "guidance": 1.5},
}
UNLIMITED = "8 stages, random, inputs without limit"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a finished demo")
    parser.add_argument("--objects", type=int, default=60)
    parser.add_argument("--samples", type=int, default=19)
    arguments = parser.parse_args()
    model = FoundationModel.load(arguments.folder / "align" / "checkpoint")
    dataset = ObservationDataset(arguments.folder / "data")
    have = [i for i in dataset.object_ids(SPECTRUM) if i.startswith("sim-")]
    ids = sorted(i for i in have if part_of(i) == "test")[: arguments.objects]
    images, spectra = dataset.read(IMAGE, ids), dataset.read(SPECTRUM, ids)
    others = dataset.read(SPECTRUM, sorted(i for i in have if part_of(i) == "train")[:300])
    assert isinstance(spectra, SpectrumObservation)
    assert isinstance(others, SpectrumObservation)
    print("| setting | flux: CRPS | R2 | in 68 % | in 95 % | colour: CRPS | R2 | in 68 % | in 95 % |")  # noqa: T201
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")  # noqa: T201
    for name, setting in {**SETTINGS, UNLIMITED: {"num_stages": 8, "order": "random"}}.items():
        asked = replace(model, record={}) if name == UNLIMITED else model
        found = asked.generate([images], [SPECTRUM], num_samples=arguments.samples, like=[spectra], **setting)[SPECTRUM]
        assert isinstance(found, GeneratedObservations)
        cells = [
            cell
            for score in score_spectra(found, spectra, others).values()
            for cell in (
                f"{score['crps']:.4f}",
                f"{score['r2']:.3f}",
                *(f"{share:.1%}" for share in score["coverage"].values()),
            )
        ]
        print("|", " | ".join([name, *cells]), "|", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
