"""Every engine behind the one surface, made and opened in the same way by the tests."""

import itertools
from dataclasses import dataclass, field

import numpy as np

from armillary.models.embeddings import EmbeddingTable
from armillary.serving.index.opening import build_for, open_index, save_index


@dataclass
class Engine:
    """`where` is a folder, or the address of a Milvus engine; `index_type` overrules the choice by size."""

    name: str
    where: str
    index_type: str | None = None
    numbers: itertools.count = field(default_factory=itertools.count)

    @property
    def is_exact(self):
        return self.index_type in (None, "flat")

    def new_place(self):
        number = next(self.numbers)
        if self.name == "faiss":
            return f"{self.where}/index-{self.index_type}-{number}"
        return f"{self.where}#index_{self.index_type}_{number}"

    def make(self, embeddings, labels=None, metadata=None, predictors=None, place=None):
        """A saved index, opened; and where it is."""
        place = place or self.new_place()
        built = build_for(place, embeddings, labels, metadata=metadata, index_type=self.index_type)
        save_index(built, place, predictors)
        return open_index(place)[0], place


MODALITIES = ("image/hsc", "image/legacysurvey", "spectrum/desi", "image/hsc+spectrum/desi")
NUM_OBJECTS = 160
DIMENSION = 12


def sky_table(num_objects=NUM_OBJECTS, seed=0, prefix="object-", dimension=DIMENSION, model_id="armillary-1"):
    """Objects with some of four modalities, over the whole sky, some at its poles and its meridian, one nowhere."""
    rng = np.random.default_rng(seed)
    steps = (1, 2, 3, 5)
    rows = [(i, name) for name, step in zip(MODALITIES, steps, strict=True) for i in range(0, num_objects, step)]
    ra, dec = rng.uniform(0, 360, num_objects), np.degrees(np.arcsin(rng.uniform(-1, 1, num_objects)))
    if num_objects >= 30:
        ra[10:20], dec[10:20] = np.linspace(0, 330, 10), np.repeat([89.9, -89.9], 5)
        ra[20:29], dec[20:29] = (np.linspace(-0.4, 0.4, 9)) % 360, np.linspace(-0.2, 0.2, 9)
        ra[3] = dec[3] = np.nan
    place = np.array([i for i, _ in rows])
    return EmbeddingTable(
        object_id=tuple(f"{prefix}{i}" for i in place),
        modality=tuple(name for _, name in rows),
        ra=ra[place],
        dec=dec[place],
        vectors=rng.normal(size=(len(rows), dimension)).astype(np.float16),
        space="aligned",
        model_id=model_id,
    )


def numbers_of(table):
    """Labels of all objects but every seventh, and magnitudes, of which every ninth is not known."""
    ids = sorted(set(table.object_id))
    count = np.arange(len(ids))
    labels = {
        "object_id": ids,
        "scalar/redshift": np.where(count % 7 == 0, np.nan, count / len(ids)),
        "scalar/stellar_mass": np.full(len(ids), np.nan),
    }
    metadata = {
        "object_id": ids,
        "scalar/legacysurvey_r": np.where(count % 9 == 0, np.nan, 16 + 8 * count / len(ids)),
        "depth": -20.0 + count % 40,
    }
    return labels, metadata


def unit_rows(table):
    vectors = table.vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def slow_search(table, query, k, allowed):
    """The (object, modality) of the nearest rows among those allowed, and their cosines: in float64, one by one."""
    cosine = unit_rows(table) @ (query / np.linalg.norm(query))
    rows = sorted(np.flatnonzero(allowed), key=lambda row: -cosine[row])[:k]
    return [(table.object_id[row], table.modality[row]) for row in rows], cosine[rows]


def pairs_of(found, query):
    """The (object, modality) of what was found, without the places that hold nothing."""
    there = found.row[query] >= 0
    return list(zip(found.object_id[query][there].tolist(), found.modality[query][there].tolist(), strict=True))


def queries(count=5, dimension=DIMENSION):
    return np.random.default_rng(5).normal(size=(count, dimension)).astype(np.float32) * 3
