"""A model for tests: a fixed projection of simple features, with the contract of the real one."""

import numpy as np
import torch

from armillary.data.modalities import modality
from armillary.data.observations import (
    ImageObservation,
    ObservationError,
    ScalarObservation,
    SpectrumObservation,
)
from armillary.models.embeddings import Embeddings, EmbeddingTable
from armillary.models.foundation import ScalarPrediction

WIDTHS = {"encoder": 12, "aligned": 8}
NUM_FEATURES = 6
NUM_BINS = 12


def features(observation, row):
    if isinstance(observation, ScalarObservation):
        return torch.tensor([1.0, observation.values[row], 0, 0, 0, 0], dtype=torch.float64)
    flux = torch.where(observation.mask[row], observation.flux[row], 0).double()
    if isinstance(observation, ImageObservation):
        bright = torch.tensor([b.wavelength for b in observation.card.bands if b.name in observation.bands])
        per_band = flux.flatten(1).sum(1) / observation.mask[row].flatten(1).sum(1).clamp(min=1)
        total = (per_band * bright.double() / 5000).sum()
    else:
        total = (flux * torch.where(observation.mask[row], observation.wavelength[row], 0)).sum() / 1e5
    return torch.stack([torch.ones(()), total.sin(), total.cos(), (2 * total).sin(), (2 * total).cos(), total / 10])


class FakeModel:
    model_id = "armillary-0123456789ab"
    modalities = tuple(
        modality(name) for name in ("image/hsc", "image/legacysurvey", "spectrum/desi", "scalar/redshift")
    )

    def __init__(self):
        self.num_calls = 0
        self.num_rows = 0
        self.num_predict_calls = 0

    def embedding_size(self, space):
        return WIDTHS[space]

    def embed(self, observations, space="aligned"):
        self.num_calls += 1
        if space == "aligned":
            observations = [o for o in observations if o.modality.kind != "scalar"]
            if not observations:
                raise ObservationError("the aligned space has views of images and spectra only")
        vectors, names = {}, {}
        for observation in observations:
            seed = {"image": 1, "spectrum": 2, "scalar": 3}[observation.modality.kind]
            projection = torch.randn(
                NUM_FEATURES, WIDTHS[space], generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            for row, object_id in enumerate(observation.object_id):
                if isinstance(observation, SpectrumObservation) and observation.flux[row].max() > 1e6:
                    raise ObservationError(f"spectrum/desi, object {object_id}: too bright for this model")
                if isinstance(observation, ScalarObservation) and not observation.mask[row]:
                    continue
                vector = features(observation, row) @ projection
                vectors[object_id] = vectors.get(object_id, 0) + vector
                names[object_id] = (*names.get(object_id, ()), observation.modality.name)
        if not vectors:
            raise ObservationError("every value is missing, so there is nothing to embed")
        stacked = torch.stack(list(vectors.values()))
        self.num_rows += len(stacked)
        if space == "aligned":
            stacked = torch.nn.functional.normalize(stacked, dim=-1)
        return Embeddings(tuple(vectors), stacked.float(), space, self.model_id, tuple(names.values()))

    def predict_scalar(self, observations, target):
        given = [o for o in observations if o.modality.name != target]
        if not given:
            raise ObservationError(f"expected at least one observation other than {target}, found none")
        ids = tuple(dict.fromkeys(i for o in given for i in o.object_id))
        edges = torch.linspace(0, 1, NUM_BINS - 1, dtype=torch.float64)
        low, high = torch.cat([edges[:1], edges]), torch.cat([edges, edges[-1:]])
        rows = [[(o, o.object_id.index(i)) for o in given if i in o.object_id] for i in ids]
        centre = torch.stack([sum(features(o, row)[-1] for o, row in seen) for seen in rows])
        self.num_predict_calls += 1
        probabilities = torch.softmax(-(((low + high) / 2 - centre[:, None]) ** 2) * 20, 1)
        return ScalarPrediction(modality(target), ids, probabilities, low, high)


def images(count=4, seed=0, prefix="object-", side=8, bands=("g", "r"), brightness=None):
    rng = np.random.default_rng(seed)
    level = np.linspace(0, 1, count) if brightness is None else brightness
    flux = level[:, None, None, None] + 0.01 * rng.normal(size=(count, len(bands), side, side))
    return ImageObservation(
        modality("image/hsc"),
        [f"{prefix}{i}" for i in range(count)],
        flux.astype(np.float32),
        bands,
        ra=(10.0 + 0.1 * np.arange(count)) % 360,
        dec=np.full(count, 5.0),
    )


def spectra(count=4, seed=1, prefix="object-", length=50):
    rng = np.random.default_rng(seed)
    return SpectrumObservation(
        modality("spectrum/desi"),
        [f"{prefix}{i}" for i in range(count)],
        rng.normal(1, 0.3, (count, length)).astype(np.float32),
        np.linspace(4000, 9000, length),
        np.ones((count, length), np.float32),
        ra=(10.0 + 0.1 * np.arange(count)) % 360,
        dec=np.full(count, 5.0),
    )


def embedding_table(model, observations):
    parts = [(o, model.embed([o])) for o in observations]
    return EmbeddingTable(
        object_id=tuple(i for _, e in parts for i in e.object_id),
        modality=tuple(o.modality.name for o, e in parts for _ in e.object_id),
        ra=np.concatenate([o.ra.numpy() for o, _ in parts]),
        dec=np.concatenate([o.dec.numpy() for o, _ in parts]),
        vectors=np.concatenate([e.numpy() for _, e in parts]).astype(np.float16),
        space="aligned",
        model_id=model.model_id,
    )
