"""The command line: settings, overrides, and mistakes in one line."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from armillary import cli
from armillary.data.dataset import ObservationDataset
from armillary.data.modalities import modality
from armillary.data.real_files import real_file
from armillary.data.simulation.sky import SkySettings
from armillary.data.token_manifest import finish_store
from armillary.data.token_shards import write_object_shard, write_token_shard
from armillary.evaluation.settings import EvaluateSettings
from armillary.settings import CONFIGS_FOLDER, SettingsError, load_settings
from armillary.training.align import AlignSettings
from armillary.training.embed import EmbedSettings
from armillary.training.pretrain import PretrainSettings
from armillary.training.signals import Interrupted
from armillary.training.tokenize import TokenizeSettings
from armillary.training.tokenizer_report.settings import TokenizerReportSettings
from armillary.training.tokenizers import TrainTokenizerSettings

VERBS = {
    "train-tokenizer": (TrainTokenizerSettings, "tokenizers"),
    "pretrain": (PretrainSettings, "pretrain"),
    "align": (AlignSettings, "align"),
    "embed": (EmbedSettings, "embed"),
    "evaluate": (EvaluateSettings, "evaluate"),
    "tokenize": (TokenizeSettings, "tokenize.yaml"),
    "tokenizer-report": (TokenizerReportSettings, "tokenizer_report.yaml"),
    "data simulate": (SkySettings, "data"),
}
SHIPPED = [
    (verb, str(path.relative_to(CONFIGS_FOLDER)))
    for verb, (_, place) in VERBS.items()
    for path in sorted([CONFIGS_FOLDER / place] if place.endswith(".yaml") else (CONFIGS_FOLDER / place).glob("*.yaml"))
]


def words(verb, config, *rest):
    return [*verb.split(), config, *(["out"] if verb == "data simulate" else []), *rest]


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
        (["pretrain", "pretrain/nano.yaml", "tokenizers=/no/such/folder"], "/no/such/folder: expected tokenizers in"),
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


DATA_VERBS = [f"data {verb}" for verb in ("import", "sources", "crossmatch", "validate", "push")]


@pytest.mark.parametrize(
    "verb", [*VERBS, *DATA_VERBS, "data", "index", "serve", "submit", "status", "runs", "demo", "modalities"]
)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*verb.split(), "--help"])
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


def test_simulating_writes_a_dataset_that_is_valid(tmp_path, capsys):
    modalities = "modalities=[scalar/redshift]"
    sky = str(tmp_path / "sky")
    assert cli.main(["data", "simulate", "data/sky.yaml", sky, "num_objects=3", modalities]) == 0
    assert ObservationDataset(sky).num_objects("scalar/redshift") == 3
    assert cli.main(["data", "validate", sky]) == 0
    assert capsys.readouterr().out == f"{sky}: nothing wrong\n"
    next(Path(sky).rglob("Npix=*.parquet")).unlink()
    assert cli.main(["data", "validate", sky]) == 1
    assert "is listed in partition_info.csv, and missing" in capsys.readouterr().out


def test_every_byte_of_a_token_store_is_checked(tmp_path, capsys):
    objects = write_object_shard(tmp_path, 0, 1, ["a", "b"], np.zeros((2, 2)))
    arrays = {
        "codes": np.array([[3], [4]], np.int16),
        "mask": np.ones((2, 1), bool),
        "positions": np.zeros((2, 1, 3), np.float32),
        "instrument": np.zeros((2, 11), np.float32),
    }
    names = {"tokenizer_hash": "h", "objects": objects}
    write_token_shard(tmp_path, modality("scalar/redshift"), 0, np.arange(2), arrays, **names)
    assert finish_store(tmp_path, "test", {})
    assert cli.main(["data", "validate", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 2 shards of tokens, nothing wrong\n"
    path = tmp_path / "scalar" / "redshift" / "shard-00000" / "codes.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cli.main(["data", "validate", str(tmp_path)]) == 2
    assert f"{path}: the content does not match its checksum" in capsys.readouterr().err


def test_two_surveys_are_imported_matched_and_joined(tmp_path, capsys):
    """As a user would: a real DESI spectrum with its redshift, and a table of places, one of them its own."""
    (tmp_path / "places.csv").write_text("name,RA,DEC\nhere,105.4807,56.6720\nelsewhere,10.0,0.0\n")
    desi, joined = str(tmp_path / "desi"), str(tmp_path / "joined")
    coadd = str(real_file("desi-coadd-4-80613.fits"))
    assert cli.main(["data", "import", "desi-coadd", coadd, desi]) == 0
    sky = ObservationDataset(desi).sky_index("spectrum/desi")
    (tmp_path / "places.csv").write_text(f"name,RA,DEC\nhere,{sky.ra[0]},{sky.dec[0] + 1e-4}\nelsewhere,10.0,0.0\n")
    columns = ["--set", "places.object_id=name", "--set", "places.ra=RA", "--set", "places.dec=DEC"]
    assert cli.main(["data", "crossmatch", desi, str(tmp_path / "places.csv"), joined, *columns]) == 0
    assert ObservationDataset(joined).object_ids("spectrum/desi") == [f"desi:{sky.object_id[0]}"]
    table = pq.read_table(Path(joined) / "associations.parquet")
    assert table["places_object_id"].to_pylist() == ["here"]
    assert cli.main(["data", "validate", joined]) == 0
    wrong = ["--set", "places.rra=RA"]
    assert cli.main(["data", "crossmatch", desi, str(tmp_path / "places.csv"), str(tmp_path / "x"), *wrong]) == 2
    assert "rra: unknown key; did you mean 'ra'" in capsys.readouterr().err


def test_survey_formats_are_listed(capsys):
    assert cli.main(["data", "sources"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("mmu-v1-hsc", "desi-coadd", "sdss-spec"))
