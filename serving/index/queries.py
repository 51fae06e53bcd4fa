"""What both kinds of index ask of a query before they search, with one wording of what is wrong."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from .protocol import EmbeddingIndexError


def unit_queries(vectors: Float[np.ndarray, "Q D"], dimension: int) -> Float32[np.ndarray, "Q D"]:
    """Queries of unit length. Raises EmbeddingIndexError on another width, and on what has no direction."""
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise EmbeddingIndexError(f"query vectors must have shape [queries, {dimension}], found {list(vectors.shape)}")
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    wrong = ~(np.isfinite(length) & (length > 0))
    if wrong.any():
        raise EmbeddingIndexError(f"query {int(wrong.argmax())} has no direction: its length is {length[wrong][0]}")
    return np.ascontiguousarray(vectors / length, np.float32)


def chosen_modalities(names: Sequence[str], target_modality: str | None, survey: str | None) -> list[str]:
    """Which modalities of an index a query asks for. Raises LookupError on one, or a survey, that it does not have."""
    if target_modality is not None and target_modality not in names:
        raise LookupError(f"no modality {target_modality!r} in the index; it has {list(names)}")
    surveys = {name: {one.partition("/")[2] for one in name.split("+")} for name in names}
    known = sorted(set().union(*surveys.values()))
    if survey is not None and survey not in known:
        raise LookupError(f"no survey {survey!r} in the index; it has {known}")
    return [name for name in names if target_modality in (None, name) and survey in (None, *surveys[name])]


def check_model(of_index: str, model_id: str) -> None:
    """Raises EmbeddingIndexError unless the vectors of an index come from this model."""
    if of_index != model_id:
        raise EmbeddingIndexError(
            f"the index holds embeddings of model {of_index!r}, but the model to serve is {model_id!r}; "
            "embed the objects with this model and build the index anew"
        )
