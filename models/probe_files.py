"""Probes as files: safetensors for numbers, JSON for what they mean, and a card for people; in a folder or on the Hub.

A probe's file says which label in which unit it tells, of how many objects it learned, how well it did on those it left
out, and for which model's embeddings it is. Nothing is pickled, so that a probe from a stranger can be opened.
"""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors.numpy import load_file, save_file
from sklearn.utils.validation import check_is_fitted

from ..data.modalities import MODALITIES
from .probe_card import probe_card

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""1: linear probes without novelty, label and scores."""
WEIGHTS, DESCRIPTION, CARD = "probe.safetensors", "probe.json", "README.md"
_UNITS = {modality.name: modality.unit for modality in MODALITIES}

Probe = TypeVar("Probe", bound="SavedProbe")


class ProbeError(ValueError):
    """A probe cannot be used here: other model, other space, other width, or a damaged file."""


class SavedProbe(ABC):
    """What linear and attentive probes share: saving, loading, the Hub, and the refusal of other models' embeddings.

    A subclass has `kind`, `_arrays` and `_description` (what makes it) and `_restore` (the reverse).
    """

    kind: str
    task: Any
    label: Any
    unit: Any
    model_id_: str | None
    space_: str | None
    num_train_: int | None
    scores_: dict[str, float]
    modalities_: list[str]

    @abstractmethod
    def _arrays(self) -> dict[str, np.ndarray]:
        """Numbers, by name."""

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """What JSON says beside `describe`."""

    @abstractmethod
    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what a file holds."""

    @property
    def unit_(self) -> str | None:
        """The label's unit: as given, or of the modality whose name the label is."""
        return self.unit if self.unit is not None else _UNITS.get(self.label)

    def describe(self) -> dict[str, Any]:
        """What a fitted probe's JSON says of it."""
        check_is_fitted(self)
        parameters = self.get_params()  # type: ignore[attr-defined]
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "parameters": {name: _plain(value) for name, value in parameters.items()},
            "label": self.label,
            "unit": self.unit_,
            "num_train": self.num_train_,
            "scores": self.scores_,
            "model_id": self.model_id_,
            "space": self.space_,
            "modalities": self.modalities_,
            **self._description(),
        }

    def save(self, folder: str | Path) -> None:
        """Write weights, description and card into a new folder; it appears whole or not at all."""
        description = self.describe()
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"{folder}: there is something already; a probe is saved into a new folder")
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in self._arrays().items()}, partial / WEIGHTS)
            (partial / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            (partial / CARD).write_text(probe_card(description), encoding="utf-8")
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def load(cls: type[Probe], folder: str | Path, model_id: str | None = None) -> Probe:
        """Read a saved probe. Raises ProbeError if it is damaged, or was fitted on a model other than `model_id`."""
        description, arrays = read_probe(folder)
        if description["kind"] != cls.kind:
            raise ProbeError(f"{folder}: expected a {cls.kind} probe, found a {description['kind']} one")
        return restore(cls, folder, description, arrays, model_id)

    @classmethod
    def from_pretrained(cls: type[Probe], folder_or_hub_id: str | Path, model_id: str | None = None) -> Probe:
        """`load` from a folder or a repository of the Hugging Face Hub."""
        return cls.load(probe_folder(folder_or_hub_id), model_id)

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, token: str | None = None, api: HfApi | None = None
    ) -> str:
        """Publish the probe as the model repository `owner/name`, made if there is none; returns its address.

        `token` defaults to the one `hf auth login` has saved; `api` replaces the Hub's client. Raises ProbeError if
        the Hub refuses, or if the repository is public already and `private` was not set to False.
        """
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "probe"
            self.save(folder)
            api = api or HfApi(token=token)
            try:
                address = api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
                if private and not api.repo_info(repo_id, repo_type="model").private:
                    raise ProbeError(f"{repo_id}: exists already and is public; to push there, set private=False")
                api.upload_folder(
                    repo_id=repo_id,
                    repo_type="model",
                    folder_path=folder,
                    commit_message=f"{self.kind.capitalize()} probe of Armillary",
                )
            except (HTTPError, OSError) as error:
                raise ProbeError(f"{repo_id}: the Hub answered: {type(error).__name__}: {error}") from error
        return str(address)

    def _check_origin(self, model_id: str, space: str) -> None:
        for name, fitted, given in (("model_id", self.model_id_, model_id), ("space", self.space_, space)):
            if fitted is not None and given != fitted:
                raise ProbeError(f"this probe was fitted on embeddings of {name} {fitted!r}, not of {given!r}")


def read_probe(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays of a probe's folder. Raises ProbeError if it holds none, or a damaged one."""
    folder = Path(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        arrays = load_file(folder / WEIGHTS)
        version = description["format_version"]
        if version not in READABLE_VERSIONS:
            raise ValueError(f"format_version is {version}, this Armillary reads {list(READABLE_VERSIONS)}")
        if version == 1:
            description = _of_version_1(description)
        description["kind"]
    except Exception as error:
        # safetensors raises its own type, JSON and missing keys theirs: all mean that this is no whole probe.
        raise ProbeError(f"{folder}: not a saved probe ({type(error).__name__}: {error})") from None
    return description, arrays


def restore(
    probe_type: type[Probe],
    folder: str | Path,
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    model_id: str | None,
) -> Probe:
    """The probe of what `read_probe` found. Raises ProbeError."""
    try:
        parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in description["parameters"].items()}
        probe = probe_type(**parameters)
        for name in ("model_id", "space", "num_train", "scores", "modalities"):
            setattr(probe, f"{name}_", description[name])
        probe._restore(description, arrays)
    except Exception as error:
        raise ProbeError(f"{folder}: not a saved probe ({type(error).__name__}: {error})") from None
    if model_id is not None and probe.model_id_ != model_id:
        raise ProbeError(f"{folder}: fitted on embeddings of model {probe.model_id_!r}, not of {model_id!r}")
    return probe


def probe_folder(folder_or_hub_id: str | Path) -> Path:
    """A local folder as it is, else the Hub repository of that id (fetched, or from the cache when offline)."""
    path = Path(folder_or_hub_id)
    if path.is_dir():
        return path
    if str(folder_or_hub_id).count("/") != 1 or str(folder_or_hub_id).startswith((".", "/")):
        raise ProbeError(f"{folder_or_hub_id}: expected a folder or a Hub id `owner/name`, found neither")
    try:
        return Path(snapshot_download(str(folder_or_hub_id), allow_patterns=[WEIGHTS, DESCRIPTION, CARD]))
    except (HTTPError, OSError, ValueError) as error:
        raise ProbeError(f"{folder_or_hub_id}: no such folder, and not loadable from the Hub: {error}") from error


def _of_version_1(description: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {name: description[name] for name in ("task", "penalties", "folds")}
    unknown: dict[str, Any] = {"label": None, "unit": None, "num_train": None, "scores": {}, "modalities": []}
    return {"kind": "linear", "parameters": parameters, **unknown, **description}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | list | tuple | range):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value
