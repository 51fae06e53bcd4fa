"""Settings from YAML and the command line, checked by pydantic models.

Every command reads one YAML file into a frozen model; `section.key=value` words override it. A key that no model
knows is an error that names the nearest known one, and all errors of a file are reported at once. This module stands
below every folder of the package and imports none of them.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

PACKAGE_FOLDER = Path(__file__).resolve().parent
CONFIGS_FOLDER = PACKAGE_FOLDER / "configs"


class SettingsError(ValueError):
    """A settings file or an override is wrong; the message names the file, every key, what was expected and came."""


class Settings(BaseModel):
    """Base of every settings model: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


SettingsType = TypeVar("SettingsType", bound=Settings)


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where `1e-3` is text; YAML 1.2 reads it as a number, as people expect."""


_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """Parse YAML by version 1.2's rule for numbers. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Yaml12Loader)


def load_settings(
    model_type: type[SettingsType], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> SettingsType:
    """Read `path` (YAML; none: all defaults), apply `section.key=value` overrides, and validate.

    Raises SettingsError that lists every unknown key with its nearest neighbour and every wrong value.
    """
    source = "command line" if path is None else str(path)
    content: Any = {} if path is None else _read_mapping(Path(path))
    for override in overrides:
        _apply_override(content, override)
    return validate_settings(model_type, content, source)


def validate_settings(model_type: type[SettingsType], content: Mapping[str, Any], source: str) -> SettingsType:
    """Validate parsed `content` as `model_type`; `source` stands in the error message."""
    try:
        return model_type.model_validate(content)
    except ValidationError as error:
        known = sorted(set(_key_names(model_type)))
        lines = [_describe(problem, known) for problem in error.errors()]
        raise SettingsError(f"{source}: {len(lines)} problem(s)\n  " + "\n  ".join(lines)) from None


def to_yaml(settings: Settings) -> str:
    """The settings as YAML text, defaults included; `load_settings` reads it back to an equal object."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def find_config(name: str | Path) -> Path:
    """A config by path, or by its path below the package's `configs/` folder. Raises SettingsError."""
    for candidate in (Path(name), CONFIGS_FOLDER / name, PACKAGE_FOLDER / name):
        if candidate.is_file():
            return candidate
    known = sorted(str(p.relative_to(CONFIGS_FOLDER)) for p in CONFIGS_FOLDER.rglob("*.yaml"))
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
    raise SettingsError(f"no such settings file: {name}; the nearest one shipped is configs/{nearest[0]}")


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise SettingsError(f"override {override!r}: expected section.key=value")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"override {override!r}: the value is not valid YAML: {error}") from None
    *sections, last = key.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise SettingsError(f"override {override!r}: {section} holds a value, not a section")
    place[last] = value


def _key_names(model_type: Any, seen: frozenset[Any] = frozenset()) -> Iterator[str]:
    if model_type in seen:
        return
    if isinstance(model_type, type) and issubclass(model_type, BaseModel):
        for name, field in model_type.model_fields.items():
            yield name
            yield from _key_names(field.annotation, seen | {model_type})
    for argument in get_args(model_type):
        yield from _key_names(argument, seen)


def _describe(problem: Any, known: Sequence[str]) -> str:
    place = ".".join(str(part) for part in problem["loc"]) or "(top)"
    if problem["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
        return f"{place}: unknown key" + (f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {known}")
    if problem["type"] == "missing":
        return f"{place}: required, but absent"
    return f"{place}: {problem['msg']}; found {problem['input']!r}"
