"""Saving and loading: a folder with `config.json` and `model.safetensors`, or the same on the Hugging Face Hub.

Nothing is pickled. A folder is written beside its name and renamed, so that it is there whole or not at all.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class PretrainedError(ValueError):
    """A saved model cannot be loaded; the message names the folder, what was expected and what was found."""


def resolve_folder(name_or_path: str | Path) -> Path:
    """A local folder as it is, else the Hub repository of that id (fetched, or from the cache when offline).

    Raises PretrainedError if it is neither.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if str(name_or_path).count("/") != 1 or path.is_absolute() or str(name_or_path).startswith("."):
        raise PretrainedError(f"{name_or_path}: expected a folder or a Hub id `owner/name`, found neither")
    try:
        return Path(snapshot_download(str(name_or_path)))
    except Exception as error:
        raise PretrainedError(f"{name_or_path}: no such folder, and not loadable from the Hub: {error}") from error


def save_module(folder: str | Path, module: nn.Module, config: Mapping[str, Any]) -> None:
    """Write a module's weights and its config to `folder`, whole or not at all; an older one is replaced."""

    def write(place: Path) -> None:
        (place / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()}
        save_file(weights, place / WEIGHTS_NAME)

    write_folder(folder, write)


def read_config(folder: str | Path, model_type: str) -> dict[str, Any]:
    """The config of a saved model of `model_type`. Raises PretrainedError."""
    path = Path(folder) / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PretrainedError(f"{path}: cannot be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        raise PretrainedError(f"{path}: not valid JSON: {error}") from None
    found = config.pop("model_type", None) if isinstance(config, dict) else None
    if found != model_type:
        raise PretrainedError(f"{path}: expected model_type {model_type!r}, found {found!r}")
    return config


def load_weights(folder: str | Path, module: nn.Module) -> None:
    """Fill `module` with the weights of `folder`. Raises PretrainedError if file, names or shapes are wrong."""
    path = Path(folder) / WEIGHTS_NAME
    weights = read_tensors(path)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise PretrainedError(f"{path}: the weights do not fit the config: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises PretrainedError if it is missing, torn or not safetensors."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise PretrainedError(f"{path}: expected a whole safetensors file, found: {error}") from None


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Make `folder` by `write(temporary folder)`, flush it to disk and rename; an older folder is replaced."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        temporary.chmod(0o755)
        if folder.exists():
            old = temporary.with_name(temporary.name + "-old")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def device_of(module: nn.Module) -> torch.device:
    """The device a module's weights are on."""
    return next(module.parameters()).device
