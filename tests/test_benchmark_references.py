"""What the benchmark of pretraining compares with and reads: both work, and the made-up tokens can be learned."""

import sys
from pathlib import Path

import numpy as np
import pytest

from armillary.data.token_loader import TokenLoader, TokenSource

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        from references.made_up_store import made_up_store
    return made_up_store(tmp_path_factory.mktemp("tokens"), 256, seed=1, quick=True)


def test_codes_lie_in_their_vocabularies(made_up):
    store, features = made_up
    for modality in store.modalities:
        rows = store.read(modality.name, np.arange(len(store)))
        assert rows.mask.any(1).all()
        assert rows.codes.max() < len(features[modality.vocabulary])


def test_positions_and_instruments_are_shared_by_all_objects(made_up):
    store, _ = made_up
    for modality in store.modalities:
        shard = store.token_shard(modality.name, 0)
        assert (len(shard.positions), len(shard.instrument)) == (1, 1)


def test_plain_pretraining_fills_its_budgets_and_learns(made_up, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from references.plain_pretraining import INPUT, TARGET, PlainPretraining, mask_samples

    store, features = made_up
    loader = TokenLoader([TokenSource(store)], 32, seed=0)
    sizes = {name: len(of_codes) for name, of_codes in features.items()}
    plain = PlainPretraining((1, 1, 32, 2), sizes, loader.modalities, 32, 16, "cpu", learning_rate=1e-2)
    random = np.random.default_rng(0)
    losses = []
    for samples, _ in zip(loader, range(25), strict=False):
        losses.append(plain.step(samples, random))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5

    counts = sum((codes >= 0).sum(1) for codes in samples.codes)
    masked = mask_samples(samples, 32, 16, random)
    num_inputs, num_targets = (sum((part.role == role).sum(1) for part in masked) for role in (INPUT, TARGET))
    assert (num_inputs == (counts - 1).clamp(max=32)).all()
    assert (num_targets == (counts - num_inputs).clamp(max=16)).all()
