"""PIT, CRPS and coverage, against closed forms, numerical integration and double loops."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from armillary.data.modalities import modality
from armillary.models.calibration import coverage, crps, crps_of_samples, pit
from armillary.models.foundation import ScalarPrediction


def predicted(probabilities, edges):
    edges = torch.as_tensor(edges, dtype=torch.float64)
    probabilities = torch.as_tensor(probabilities, dtype=torch.float32)
    ids = tuple(str(i) for i in range(len(probabilities)))
    return ScalarPrediction(modality("scalar/redshift"), ids, probabilities, edges[:-1], edges[1:])


def random_prediction(num_objects=7, num_bins=12, seed=0):
    rng = np.random.default_rng(seed)
    return predicted(rng.dirichlet(np.full(num_bins, 0.5), num_objects), np.sort(rng.normal(size=num_bins + 1)))


def cumulative(prediction, row, x):
    edges = np.append(prediction.low.numpy(), prediction.high[-1].numpy())
    share = prediction.probabilities[row].double().numpy()
    return np.interp(x, edges, np.append(0.0, np.cumsum(share / share.sum())))


def test_crps_equals_numerical_integration_within_and_beyond_the_bins():
    prediction = random_prediction()
    true = torch.tensor([-4.0, -1.0, -0.3, 0.0, 0.4, 1.1, 5.0])
    found = crps(prediction, true)
    for row, value in enumerate(true.tolist()):
        points = sorted([*prediction.low.tolist(), prediction.high[-1].item(), value])
        expected = sum(
            integrate.quad(lambda x, row=row, value=value: (cumulative(prediction, row, x) - (x >= value)) ** 2, a, b)[
                0
            ]
            for a, b in zip([-6.0, *points], [*points, 6.0], strict=True)
        )
        assert found[row].item() == pytest.approx(expected, abs=1e-7)


def test_crps_of_a_normal_distribution_in_fine_bins_is_its_closed_form():
    edges = np.linspace(-8, 8, 4001)
    true = torch.linspace(-2, 2, 9)
    prediction = predicted(np.tile(np.diff(stats.norm.cdf(edges)), (9, 1)), edges)
    z = true.numpy()
    expected = z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi)
    assert np.allclose(crps(prediction, true).numpy(), expected, atol=1e-5)


def test_crps_of_a_narrow_prediction_is_the_absolute_error():
    prediction = predicted([[0.0, 1.0, 0.0]] * 3, [-9.0, 0.5, 0.5 + 1e-9, 9.0])
    true = torch.tensor([0.0, 0.5, 2.0])
    assert torch.allclose(crps(prediction, true), (true - 0.5).abs().double(), atol=1e-8)


def test_pit_is_the_cumulative_distribution_at_the_truth():
    prediction = random_prediction()
    true = torch.tensor([-9.0, -1.0, -0.3, 0.0, 0.4, 1.1, 9.0])
    expected = [cumulative(prediction, row, value) for row, value in enumerate(true.tolist())]
    assert np.allclose(pit(prediction, true).numpy(), expected, atol=1e-7)


def test_pit_is_uniform_and_intervals_hold_what_they_say_where_the_truth_follows_the_prediction():
    one = random_prediction(1)
    shares = one.probabilities[0].double().numpy()
    rng = np.random.default_rng(3)
    bins = rng.choice(len(shares), 20_000, p=shares / shares.sum())
    low, high = one.low.numpy()[bins], one.high.numpy()[bins]
    true = torch.from_numpy(rng.uniform(low, high))
    many = predicted(one.probabilities.expand(len(true), -1), torch.cat([one.low, one.high[-1:]]))
    assert stats.kstest(pit(many, true).numpy(), "uniform").pvalue > 0.001
    for level in (0.68, 0.95):
        assert coverage(many, true, level) == pytest.approx(level, abs=0.012)


def test_crps_of_samples_equals_a_double_loop_and_knows_no_number_of_samples():
    rng = np.random.default_rng(1)
    samples, true = rng.normal(size=(5, 3, 2)), rng.normal(size=(3, 2))
    found = crps_of_samples(torch.from_numpy(samples), torch.from_numpy(true)).numpy()
    for place in np.ndindex(3, 2):
        x = samples[(slice(None), *place)]
        pairs = [abs(x[i] - x[j]) for i in range(5) for j in range(5) if i != j]
        assert found[place] == pytest.approx(np.abs(x - true[place]).mean() - np.mean(pairs) / 2)
    one = crps_of_samples(torch.tensor([[1.0, 2.0]]), torch.tensor([0.0, 5.0]))
    assert one.tolist() == [1.0, 3.0]
    few, many = (
        crps_of_samples(torch.from_numpy(rng.normal(size=(count, 40_000))), torch.from_numpy(rng.normal(size=40_000)))
        for count in (2, 30)
    )
    assert few.mean().item() == pytest.approx(many.mean().item(), abs=0.02)
