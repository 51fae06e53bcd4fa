"""The training loop on a regression small enough to follow, and the states it saves."""

import csv
import itertools
import json
import math
import signal
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from armillary.data.shuffle_order import ShuffleOrder
from armillary.models.width_transfer import WeightScaling
from armillary.tokenizers.pretrained import PretrainedError
from armillary.training.checkpoints import StateWriter, TrainingState, load_latest_state
from armillary.training.loop import Batch, LoopSettings, learning_rate, make_fabric, make_optimizer, train
from armillary.training.metrics_log import SPEED, MetricsLog
from armillary.training.run_record import RunError, read_metrics, saved_steps
from armillary.training.signals import Interrupted, Signals
from armillary.training.step_watch import BadStepError

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.3


def examples(step):
    rows = ShuffleOrder(np.array([len(X)]), 1, 0).take(8 * step, 8 * step + 8)
    return X[rows], Y[rows]


class Regression(nn.Module):
    """Least squares; `at_step` is called before each step."""

    fingerprint = "forty points"

    def __init__(self, at_step=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 1)
        self.at_step = at_step
        self.seen = []

    def batches(self, first_step):
        for step in itertools.count(first_step):
            if self.at_step:
                self.at_step(step)
            self.seen.append(step)
            yield examples(step)

    def forward(self, batch):
        x, y = batch.content
        errors = (self.layer(x)[:, 0] - y) ** 2
        count = torch.tensor(float(len(x)))
        return errors.sum(), count, {"worst": torch.stack([errors.detach().max(), torch.ones(())])}


def settings(**changes):
    return LoopSettings(
        **{
            "steps": 20,
            "batch_size": 8,
            "learning_rate": 0.1,
            "warmup_steps": 2,
            "log_every": 4,
            "checkpoint_every": 5,
            "precision": "32-true",
            **changes,
        }
    )


def run(folder, objective=None, **changes):
    objective = objective or Regression()
    chosen = settings(**changes)
    return objective, train(make_fabric(chosen), objective, chosen, folder, "test")


def interrupt(number, at):
    def at_step(step):
        if step == at:
            signal.raise_signal(number)

    return at_step


def test_training_equals_adamw_by_hand(tmp_path):
    objective, finished = run(tmp_path, gradient_clip=1e9)
    reference = Regression()
    chosen = settings()
    optimizer = torch.optim.AdamW(
        [{"params": [reference.layer.weight]}, {"params": [reference.layer.bias], "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.9, 0.95),
        weight_decay=0.05,
    )
    for step in range(20):
        x, y = examples(step)
        loss = ((reference.layer(x)[:, 0] - y) ** 2).mean()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(chosen, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert finished.step == 20
    assert torch.allclose(objective.layer.weight, reference.layer.weight, atol=1e-6)
    assert torch.allclose(objective.layer.bias, reference.layer.bias, atol=1e-6)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    chosen = settings(steps=100, warmup_steps=10, learning_rate=2.0, final_learning_rate=0.1)
    rates = [learning_rate(chosen, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(chosen, 100) == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_the_stable_schedule_holds_the_peak_until_its_decay():
    chosen = settings(steps=100, warmup_steps=10, learning_rate=2.0, final_learning_rate=0.1, schedule="stable")
    rates = [learning_rate(chosen, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert rates[10:81] == [2.0] * 71
    assert rates[85] == pytest.approx(2.0 * (0.1 + 0.9 * (1 - 0.25**0.5)))
    assert learning_rate(chosen, 100) == pytest.approx(0.2)
    longer = chosen.model_copy(update={"steps": 1000})
    assert [learning_rate(longer, step) for step in range(80)] == rates[:80]


def test_matrices_decay_and_vectors_do_not_and_frozen_weights_are_left_out():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[1].requires_grad_(False)
    groups = make_optimizer(module, settings(weight_decay=0.3)).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.3, 1), (0.0, 1)]
    assert groups[0]["params"][0] is module[0].weight


def test_rates_follow_what_the_module_says_of_its_weights():
    module = nn.Linear(3, 4)
    module.weight_scalings = lambda: {"weight": WeightScaling(1.0, 0.25, 4.0, 0.5, 1.0)}
    groups = make_optimizer(module, settings(weight_decay=0.3)).param_groups
    assert [(g["weight_decay"], g["scale"], g["eps"]) for g in groups] == [(1.2, 0.25, 0.5e-8), (0.0, 1.0, 1e-8)]
    assert groups[0]["params"][0] is module.weight


def test_gradients_are_clipped(tmp_path):
    _, finished = run(tmp_path, gradient_clip=1e-9, learning_rate=1e-9, steps=4)
    assert finished.metrics["gradient_norm"] > 1  # the norm before clipping is logged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("at", [0, 6, 7])
def test_a_run_that_was_asked_to_stop_saves_and_goes_on_to_the_same_end(tmp_path, number, at):
    whole, finished = run(tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"stopped at step {at + 1}; run the same command again"):
        run(tmp_path / "torn", Regression(interrupt(number, at)))
    assert saved_steps(tmp_path / "torn")[-1] == at + 1
    again, resumed = run(tmp_path / "torn", Regression(seed=99))
    assert again.seen == list(range(at + 1, 20))
    assert torch.equal(whole.layer.weight, again.layer.weight)
    assert torch.equal(whole.layer.bias, again.layer.bias)
    assert same_metrics(tmp_path / "whole", tmp_path / "torn")
    assert finished.metrics["loss"] == resumed.metrics["loss"]


def same_metrics(first, second):
    rows = [
        [{k: v for k, v in row.items() if k not in SPEED} for row in read_metrics(folder / "metrics.csv")]
        for folder in (first, second)
    ]
    return rows[0] == rows[1]


def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_is_not_trained_again_and_keeps_its_metrics(tmp_path):
    first, finished = run(tmp_path)
    again, second = run(tmp_path, Regression(seed=5))
    assert again.seen == []
    assert torch.equal(first.layer.weight, again.layer.weight)
    assert second.metrics == finished.metrics


def spoil(folder, how):
    path = folder / "state.safetensors"
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-50])
    elif how == "flipped":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])
    elif how == "missing":
        path.unlink()
    else:
        (folder / "state.json").write_text('{"step": ')


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "torn description"])
def test_a_damaged_newest_state_is_passed_over_with_a_warning(tmp_path, how):
    whole, _ = run(tmp_path)
    assert saved_steps(tmp_path) == [15, 20]
    spoil(tmp_path / "states" / "step-00000020", how)
    with pytest.warns(UserWarning, match="step-00000020: passed over, it is damaged"):
        again, _ = run(tmp_path, Regression(seed=5))
    assert again.seen == [15, 16, 17, 18, 19]
    assert torch.equal(whole.layer.weight, again.layer.weight)


def test_a_state_of_another_model_is_an_error(tmp_path):
    run(tmp_path)
    other = Regression()
    other.layer = nn.Linear(3, 2)
    with pytest.raises(PretrainedError, match="the state is of another model than the settings describe"):
        run(tmp_path, other)


def test_states_hold_safetensors_and_json_and_all_that_the_run_needs(tmp_path):
    objective, _ = run(tmp_path)
    files = [p for p in (tmp_path / "states").rglob("*") if p.is_file()]
    assert {p.name for p in files} == {"state.safetensors", "state.json"}
    assert json.loads((tmp_path / "states" / "step-00000020" / "state.json").read_text())["step"] == 20
    fresh = Regression(seed=9)
    optimizer = make_optimizer(fresh, settings())
    torch.manual_seed(123)
    assert load_latest_state(make_fabric(settings()), tmp_path, TrainingState(fresh, optimizer)) == 20
    assert torch.equal(fresh.layer.weight, objective.layer.weight)
    moments = optimizer.state[fresh.layer.weight]
    assert moments["step"] == 20
    assert moments["exp_avg"].any()
    torch.manual_seed(0)
    Regression()
    expected = torch.get_rng_state()
    load_latest_state(make_fabric(settings()), tmp_path, TrainingState(fresh, optimizer))
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_save_that_fails_leaves_the_states_before_it(tmp_path, monkeypatch):
    objective, _ = run(tmp_path)
    fabric, optimizer = make_fabric(settings()), make_optimizer(objective, settings())

    def fail(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("armillary.training.checkpoints.save_file", fail)
    writer = StateWriter(fabric, tmp_path, keep=2)
    writer.save(TrainingState(objective, optimizer), 21)
    with pytest.raises(RunError, match=r"No space left on device.*GiB are free.*last whole state is that of step 20"):
        writer.finish()
    assert saved_steps(tmp_path) == [15, 20]
    assert sorted(p.name for p in (tmp_path / "states").iterdir()) == ["step-00000015", "step-00000020"]


class Spoiled(Regression):
    """The loss of step 6 is multiplied by `factor`."""

    def __init__(self, factor, at=6):
        super().__init__()
        self.factor, self.at, self.num_seen, self.kept = factor, at, 0, []

    def forward(self, batch):
        loss, count, metrics = super().forward(batch)
        factor = self.factor if self.num_seen == self.at else 1.0
        self.num_seen += 1
        return loss * factor, count, metrics

    def keep(self, content, folder):
        save_file({"x": content[0]}, folder / "batch.safetensors")
        return " (points)"


def without_step(skipped, **changes):
    """Weights after 20 steps by hand, of which one was not taken."""
    model, chosen = Regression(), settings(**changes)
    optimizer = make_optimizer(model, chosen)
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(chosen, step) * group["scale"]
        if step != skipped:
            loss, count, _ = model(Batch(examples(step)))
            optimizer.zero_grad()
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.gradient_clip)
            optimizer.step()
    return model.layer.weight


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_keeps_its_batch(tmp_path, factor):
    objective = Spoiled(factor)
    before = []
    objective.at_step = lambda step: before.append(objective.layer.weight.detach().clone())
    with pytest.raises(BadStepError, match=r"test: the loss or its gradient at step 6 is not finite.* \(points\)"):
        run(tmp_path, objective)
    assert saved_steps(tmp_path) == [5]
    assert torch.equal(objective.layer.weight, before[6])  # nothing of that step, nor of those after it, was taken
    kept = load_file(tmp_path / "bad-steps" / "step-00000006" / "process-0" / "batch.safetensors")
    assert torch.equal(kept["x"], examples(6)[0])


def test_a_run_that_skips_bad_steps_goes_on_without_them(tmp_path, capsys):
    objective, finished = run(tmp_path, Spoiled(math.nan), on_bad_step="skip")
    assert finished.step == 20
    assert torch.allclose(objective.layer.weight, without_step(6), atol=1e-6)
    assert "at step 6 is not finite" in " ".join(capsys.readouterr().err.split())
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [math.isfinite(row["loss"]) for row in rows] == [True, False, True, True, True]


def test_a_run_that_skips_too_many_steps_stops(tmp_path):
    class Hopeless(Regression):
        def forward(self, batch):
            loss, count, metrics = super().forward(batch)
            return loss * math.nan, count, metrics

    with pytest.raises(BadStepError, match=r"4 steps had to be skipped, more than loop\.max_skipped allows"):
        run(tmp_path, Hopeless(), on_bad_step="skip", max_skipped=3)


@pytest.mark.parametrize("factor, is_bad", [(30.0, True), (1.5, False)])
def test_a_loss_far_above_its_average_is_a_spike(tmp_path, factor, is_bad):
    changes = {"steps": 80, "learning_rate": 1e-3, "spike_factor": 10.0}
    objective = Spoiled(factor, at=70)
    if is_bad:
        with pytest.raises(BadStepError, match=r"step 70 is not finite, or over 10.0 times what it was"):
            run(tmp_path, objective, **changes)
    else:
        assert run(tmp_path, objective, **changes)[1].step == 80


def test_muon_skips_bad_steps_too(tmp_path):
    class Hidden(Spoiled):
        def weight_scalings(self):
            return {"layer.weight": WeightScaling(1.0, 1.0, 1.0, 1.0, 1.0, muon=1.0)}

    whole = Hidden(1.0)
    run(tmp_path / "whole", whole, optimizer="muon")
    seen = []
    skipping = Hidden(math.nan)
    skipping.at_step = lambda step: seen.append(skipping.layer.weight.detach().clone())
    run(tmp_path / "skip", skipping, optimizer="muon", on_bad_step="skip")
    assert torch.equal(seen[6], seen[7])
    assert not torch.equal(seen[7], seen[8])
    assert skipping.layer.weight.isfinite().all()


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path):
    class InParts(Regression):
        def split(self, content, count):
            return list(zip(*(values.chunk(count) for values in content), strict=True))

    whole, finished = run(tmp_path / "whole")
    parts, in_parts = run(tmp_path / "parts", InParts(), accumulate=4)
    assert torch.allclose(whole.layer.weight, parts.layer.weight, atol=1e-6)
    assert in_parts.metrics["loss"] == pytest.approx(finished.metrics["loss"], rel=1e-5)


def test_metrics_go_to_tensorboard_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Interrupted):
        run(tmp_path, Regression(interrupt(signal.SIGTERM, 9)))
    run(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [event.step for event in events.Scalars("loss")] == [row["step"] for row in rows]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_logger_that_is_not_installed_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"loop\.loggers names wandb, and it is not installed"):
        run(tmp_path, loggers=("wandb",))


def test_a_profile_holds_a_trace_and_a_table_of_operators(tmp_path):
    run(tmp_path, profile=2)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"ProfilerStep#7", "ProfilerStep#8", "aten::linear"} <= names
    assert "aten::addmm" in (tmp_path / "profile" / "operators.txt").read_text()


def test_metrics_are_weighted_means_over_the_steps_of_a_row(tmp_path):
    losses = []

    class Watched(Regression):
        def forward(self, batch):
            loss, count, metrics = super().forward(batch)
            losses.append(loss.item() / 8)
            return loss, count, metrics

    run(tmp_path, Watched(), steps=10)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [4, 8, 10]
    for row, part in zip(rows, (losses[:4], losses[4:8], losses[8:]), strict=True):
        assert row["loss"] == pytest.approx(np.mean(part), rel=1e-5)
        of_machine = {"examples_per_second", "waiting_for_data", "seconds"}
        assert set(row) == {"step", "loss", "worst", "gradient_norm", "weight_norm", "learning_rate"} | of_machine
        assert set(row) & set(SPEED) == of_machine


def test_the_log_stays_a_table_when_a_metric_comes_late_and_when_a_run_resumes(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, 0)
    log.write(5, {"loss": 2.0})
    log.write(10, {"loss": 1.0, "nats/image/hsc": 0.5})
    log.write(15, {"loss": 0.7})
    with path.open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["step", "loss", "nats/image/hsc"]
    assert {len(row) for row in table} == {3}
    assert read_metrics(path)[2] == {"step": 15.0, "loss": 0.7}
    MetricsLog(path, 10).write(12, {"loss": 0.9, "nats/image/hsc": 0.4})
    assert [row["step"] for row in read_metrics(path)] == [5, 10, 12]
    MetricsLog(path, 12).write(14, {"loss": 0.8, "nats/image/hsc": 0.3})
    assert read_metrics(path)[-1] == {"step": 14.0, "loss": 0.8, "nats/image/hsc": 0.3}


def test_a_run_ends_with_the_average_of_its_weights_and_keeps_it_when_interrupted(tmp_path):
    """Against the recursion written out, on weights read at every step."""
    seen = []
    watched = Regression(at_step=lambda step: seen.append(watched.layer.weight.detach().clone()))
    final, _ = run(tmp_path / "whole", watched, average_decay=0.9)
    last = load_file(tmp_path / "whole" / "states" / "step-00000020" / "state.safetensors")["module.layer.weight"]
    expected = seen[0].clone()
    for step, weight in enumerate([*seen[1:], last], start=1):
        decay = min(0.9, step / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(final.layer.weight, expected, atol=1e-6)
    assert not torch.allclose(final.layer.weight, last, atol=1e-4)

    with pytest.raises(Interrupted):
        run(tmp_path / "cut", Regression(interrupt(signal.SIGTERM, at=11)), average_decay=0.9)
    resumed, _ = run(tmp_path / "cut", average_decay=0.9)
    assert torch.equal(resumed.layer.weight, final.layer.weight)


def test_going_on_with_an_average_that_was_never_kept_is_an_error(tmp_path):
    run(tmp_path, steps=5)
    with pytest.raises(PretrainedError, match="the state has no average of the weights"):
        run(tmp_path, average_decay=0.9)
