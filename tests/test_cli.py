"""The command line: settings, overrides, and mistakes in one line."""

from pathlib import Path

import pytest

from armillary import cli
from armillary.data.simulation.sky import SkySettings
from armillary.settings import CONFIGS_FOLDER, SettingsError, load_settings
from armillary.training.align import AlignSettings
from armillary.training.embed import EmbedSettings
from armillary.training.loop import Interrupted
from armillary.training.pretrain import PretrainSettings
from armillary.training.tokenize import TokenizeSettings
from armillary.training.tokenizers import TrainTokenizerSettings

VERBS = {
    "train-tokenizer": (TrainTokenizerSettings, "tokenizers"),
    "pretrain": (PretrainSettings, "pretrain"),
    "align": (AlignSettings, "align"),
    "embed": (EmbedSettings, "embed"),
    "tokenize": (TokenizeSettings, "tokenize.yaml"),
    "simulate": (SkySettings, "data"),
}
SHIPPED = [
    (verb, str(path.relative_to(CONFIGS_FOLDER)))
    for verb, (_, place) in VERBS.items()
    for path in sorted([CONFIGS_FOLDER / place] if place.endswith(".yaml") else (CONFIGS_FOLDER / place).glob("*.yaml"))
]


def words(verb, config, *rest):
    return [verb, config, *(["out"] if verb == "simulate" else []), *rest]


def test_every_verb_that_takes_settings_ships_at_least_one_file():
    assert {verb for verb, _ in SHIPPED} == set(VERBS)
    assert len(SHIPPED) >= 12


@pytest.mark.parametrize("verb, config", SHIPPED)
def test_every_shipped_config_is_valid_and_prints_settings_that_read_back_the_same(verb, config, tmp_path, capsys):
    settings_type = VERBS[verb][0]
    assert cli.main(words(verb, config, "--print-config")) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_settings(settings_type, printed) == load_settings(settings_type, CONFIGS_FOLDER / config)


def test_overrides_reach_nested_settings(tmp_path, capsys):
    arguments = ["pretrain", "pretrain/nano.yaml", "loop.learning_rate=1e-4", "size=tiny", "loop.betas=[0.8, 0.99]"]
    assert cli.main([*arguments, "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    settings = load_settings(PretrainSettings, tmp_path / "printed.yaml")
    assert (settings.loop.learning_rate, settings.size, settings.loop.betas) == (1e-4, "tiny", (0.8, 0.99))


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (
            ["pretrain", "pretrain/nano.yaml", "loop.learnin_rate=1"],
            "loop.learnin_rate: unknown key; did you mean 'learning_rate'",
        ),
        (["pretrain", "pretrain/nano.yaml", "siez=base"], "siez: unknown key; did you mean 'size'?"),
        (["pretrain", "pretrain/nano.yaml", "size=huge"], "or 'xl'; found 'huge'"),
        (["align", "align/default.yaml", "views=[image]"], "views"),
        (["embed", "embed/default.yaml", "space"], "override 'space': expected section.key=value"),
        (
            ["pretrain", "pretrain/nan.yaml"],
            "no such settings file: pretrain/nan.yaml; the nearest one shipped is configs/pretrain/na",
        ),
        (["tokenize", "tokenize.yaml", "data=/no/such/folder"], "/no/such/folder: no such dataset folder"),
        (["pretrain", "pretrain/nano.yaml", "tokens=/no/such/folder"], "/no/such/folder: expected token shards"),
        (["embed", "embed/default.yaml", "tokens=/no/such", "checkpoint=/no/such"], "/no/such"),
    ],
)
def test_a_mistake_of_the_user_is_told_on_stderr_with_status_2(arguments, problem, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    answer = capsys.readouterr()
    assert answer.err.startswith("armillary: ")
    assert problem in answer.err
    assert "Traceback" not in answer.err
    assert not answer.out


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("size: huge\nloop: {stepps: 4, seed: many}\n")
    assert cli.main(["pretrain", str(tmp_path / "x.yaml")]) == 2
    told = capsys.readouterr().err
    assert "6 problem(s)" in told
    for problem in ("tokens: required", "tokenizers: required", "run: required", "size", "stepps", "seed"):
        assert problem in told


@pytest.mark.parametrize("verb", [*VERBS, "index", "serve", "demo", "modalities"])
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([verb, "--help"])
    assert exit_.value.code == 0
    assert verb in capsys.readouterr().out


def test_an_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["pretrian"])
    assert exit_.value.code == 2
    assert "pretrain" in capsys.readouterr().err


def test_modalities_are_listed_with_their_units(capsys):
    assert cli.main(["modalities"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("spectrum/desi") and "angstrom" in line for line in lines)
    assert any(line.startswith("image/hsc") and "nanomaggies" in line for line in lines)


def raising(error):
    def run(settings):
        raise error

    return run


@pytest.mark.parametrize(
    "error, status",
    [
        (Interrupted(7), 130),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
        (SettingsError("x"), 2),
        (ValueError("x"), 2),
    ],
)
def test_the_exit_status_tells_what_happened(monkeypatch, error, status):
    monkeypatch.setattr("armillary.training.pretrain.pretrain", raising(error))
    assert cli.main(["pretrain", "pretrain/nano.yaml"]) == status


@pytest.mark.parametrize("error", [KeyError("x"), IndexError("x"), RuntimeError("x"), TypeError("x")])
def test_our_own_mistakes_are_raised_with_their_trace(monkeypatch, error):
    monkeypatch.setattr("armillary.training.pretrain.pretrain", raising(error))
    with pytest.raises(type(error)):
        cli.main(["pretrain", "pretrain/nano.yaml"])


def test_simulating_writes_a_dataset(tmp_path):
    modalities = "modalities=[scalar/redshift]"
    assert cli.main(["simulate", "data/sky.yaml", str(tmp_path / "sky"), "num_objects=3", modalities]) == 0
    assert [p.name for p in Path(tmp_path / "sky").rglob("*.parquet")] == ["part-00000.parquet"]
