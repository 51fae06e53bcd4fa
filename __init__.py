"""Armillary: train and serve multimodal foundation models on scientific observations.

    import armillary
    model = armillary.load("checkpoint folder or Hub id")
    embeddings = model.embed([observation])

The public names are imported when they are first used, so that `import armillary` is quick and loads no torch.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.dataset import ObservationDataset
    from .data.modalities import modality
    from .data.observations import ImageObservation, ObservationError, ScalarObservation, SpectrumObservation
    from .data.observe import observe
    from .models.attentive_probe import AttentiveProbe
    from .models.embeddings import Embeddings
    from .models.foundation import FoundationModel, ScalarPrediction
    from .models.generated import GeneratedObservations
    from .models.kernel_probe import KernelProbe
    from .models.probe_loading import load_probe
    from .models.probes import LinearProbe
    from .models.token_embeddings import TokenEmbeddings
    from .serving.client.async_client import AsyncClient
    from .serving.client.client import Client
    from .serving.index.embedding_index import EmbeddingIndex

    load = FoundationModel.load

_MODULES = {
    "AsyncClient": "serving.client.async_client",
    "AttentiveProbe": "models.attentive_probe",
    "Client": "serving.client.client",
    "EmbeddingIndex": "serving.index.embedding_index",
    "Embeddings": "models.embeddings",
    "FoundationModel": "models.foundation",
    "GeneratedObservations": "models.generated",
    "ImageObservation": "data.observations",
    "KernelProbe": "models.kernel_probe",
    "LinearProbe": "models.probes",
    "ObservationDataset": "data.dataset",
    "ObservationError": "data.observations",
    "ScalarObservation": "data.observations",
    "ScalarPrediction": "models.foundation",
    "SpectrumObservation": "data.observations",
    "TokenEmbeddings": "models.token_embeddings",
    "load_probe": "models.probe_loading",
    "modality": "data.modalities",
    "observe": "data.observe",
}

__all__ = [
    "AsyncClient",
    "AttentiveProbe",
    "Client",
    "EmbeddingIndex",
    "Embeddings",
    "FoundationModel",
    "GeneratedObservations",
    "ImageObservation",
    "KernelProbe",
    "LinearProbe",
    "ObservationDataset",
    "ObservationError",
    "ScalarObservation",
    "ScalarPrediction",
    "SpectrumObservation",
    "TokenEmbeddings",
    "load",
    "load_probe",
    "modality",
    "observe",
]

try:
    __version__ = version("armillary")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use (PEP 562)."""
    if name == "load":
        value = __getattr__("FoundationModel").load
    elif name in _MODULES:
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its public names are {__all__}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
