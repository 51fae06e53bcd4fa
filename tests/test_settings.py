"""Settings: unknown keys, all errors at once, YAML 1.2 numbers, overrides."""

import pytest

from armillary.settings import Settings, SettingsError, find_config, load_settings, parse_yaml, to_yaml


class Optimizer(Settings):
    learning_rate: float = 2e-4
    warmup_steps: int = 100


class Run(Settings):
    name: str
    optimizer: Optimizer = Optimizer()
    bands: tuple[str, ...] = ()
    compile: bool = True


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_an_unknown_key_names_the_nearest_known_one(tmp_path):
    path = write(tmp_path, "name: a\noptimizer: {learning_rat: 0.1}\n")
    with pytest.raises(SettingsError, match=r"run\.yaml.*\n.*optimizer\.learning_rat.*did you mean 'learning_rate'"):
        load_settings(Run, path)


def test_all_errors_are_reported_at_once(tmp_path):
    path = write(tmp_path, "optimizer: {learning_rate: fast, warmup_steps: 1.5, momentum: 0.9}\n")
    with pytest.raises(SettingsError) as error:
        load_settings(Run, path)
    message = str(error.value)
    assert "4 problem(s)" in message
    for key in ("name", "optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.momentum"):
        assert f"\n  {key}: " in message
    assert "'fast'" in message


@pytest.mark.parametrize("text, value", [("1e-3", 1e-3), ("2E5", 2e5), ("1.5e+2", 150.0), (".5", 0.5), ("7", 7)])
def test_numbers_follow_yaml_1_2(text, value):
    parsed = parse_yaml(text)
    assert parsed == value
    assert not isinstance(parsed, str)


def test_words_that_look_a_little_like_numbers_stay_words():
    assert parse_yaml("[e5, 1e, part-1e3]") == ["e5", "1e", "part-1e3"]


def test_overrides_win_over_the_file_and_have_the_type_of_their_field(tmp_path):
    path = write(tmp_path, "name: a\noptimizer: {learning_rate: 0.1, warmup_steps: 5}\n")
    run = load_settings(
        Run,
        path,
        ["optimizer.learning_rate=1e-3", "bands=[g, r]", "compile=false", "name=b", "optimizer.warmup_steps=7"],
    )
    assert run == Run(
        name="b", optimizer=Optimizer(learning_rate=1e-3, warmup_steps=7), bands=("g", "r"), compile=False
    )
    assert isinstance(run.optimizer.learning_rate, float)


def test_an_override_may_open_a_section_the_file_does_not_have():
    assert load_settings(Run, None, ["name=a", "optimizer.warmup_steps=3"]).optimizer.warmup_steps == 3


@pytest.mark.parametrize("override", ["name", "=3", "name.first=3"])
def test_a_malformed_override_is_an_error_that_shows_it(override):
    with pytest.raises(SettingsError, match="override"):
        load_settings(Run, None, ["name=a", override])


def test_an_override_with_an_unknown_key_is_an_error():
    with pytest.raises(SettingsError, match=r"command line.*\n.*optimizer\.warmup.*'warmup_steps'"):
        load_settings(Run, None, ["name=a", "optimizer.warmup=3"])


def test_settings_survive_a_round_trip_through_yaml(tmp_path):
    run = Run(name="a", optimizer=Optimizer(learning_rate=3e-7), bands=("g",))
    assert load_settings(Run, write(tmp_path, to_yaml(run))) == run


def test_a_missing_file_and_broken_yaml_name_the_file(tmp_path):
    with pytest.raises(SettingsError, match="nowhere"):
        load_settings(Run, tmp_path / "nowhere.yaml")
    with pytest.raises(SettingsError, match=r"run\.yaml: not valid YAML"):
        load_settings(Run, write(tmp_path, "name: [a\n"))
    with pytest.raises(SettingsError, match="expected a mapping"):
        load_settings(Run, write(tmp_path, "- a\n"))


def test_a_config_is_found_by_its_path_below_configs_and_a_typo_names_the_nearest():
    assert find_config("instruments/desi.yaml").name == "desi.yaml"
    with pytest.raises(SettingsError, match=r"instruments/desi\.yaml"):
        find_config("instruments/dsei.yaml")
