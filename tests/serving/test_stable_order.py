"""Equal similarities have one order, whatever k is and however the rows lie."""

import numpy as np
import pytest
from index_engines import DIMENSION, Engine, pairs_of

from armillary.models.embeddings import EmbeddingTable

COPIES = 60
NUM_ROWS = 9000
"""Above the rows that are all compared, so that an IVF structure is asked."""


def table_with_copies(prefix="o"):
    """Rows of two modalities, in no order of their ids; COPIES of one vector lie among each modality's."""
    rng = np.random.default_rng(3)
    names = rng.permutation([f"{prefix}{i:05d}" for i in range(NUM_ROWS)]).tolist()
    vectors = rng.normal(size=(NUM_ROWS, DIMENSION)).astype(np.float16)
    same = rng.choice(NUM_ROWS // 2, COPIES, replace=False)
    vectors[np.concatenate([same, same + NUM_ROWS // 2])] = vectors[same[0]]
    modality = ["image/hsc"] * (NUM_ROWS // 2) + ["spectrum/desi"] * (NUM_ROWS // 2)
    copied = sorted((names[i], modality[i]) for i in [*same, *(same + NUM_ROWS // 2)])
    nowhere = np.full(NUM_ROWS, np.nan)
    table = EmbeddingTable(tuple(names), tuple(modality), nowhere, nowhere, vectors, "aligned", "armillary-1")
    return table, vectors[same[0]].astype(np.float32), copied


@pytest.fixture(scope="module", params=["flat", "ivf_sq8", "ivf_rabitq", "hnsw"])
def copies(request, tmp_path_factory):
    table, query, copied = table_with_copies()
    engine = Engine("faiss", str(tmp_path_factory.mktemp("order")), request.param)
    return engine.make(table)[0], query, copied


@pytest.mark.parametrize("exact", [False, True])
def test_copies_come_in_order_of_object_and_modality_for_every_k(copies, exact):
    index, query, copied = copies
    # As the one query of a search, and as one of many, which is computed in another way.
    others = np.random.default_rng(4).normal(size=(40, DIMENSION)).astype(np.float32)
    for k in (1, 3, 17, 100, 2 * COPIES):
        alone = index.search(query[None], k, exact=exact)
        among = index.search(np.vstack([others, query]), k, exact=exact)
        assert pairs_of(alone, 0) == pairs_of(among, 40) == copied[:k]
        np.testing.assert_array_equal(alone.similarity[0], among.similarity[40])


def test_the_order_holds_for_rows_that_were_added(tmp_path):
    table, query, copied = table_with_copies()
    index, _ = Engine("faiss", str(tmp_path)).make(table)
    more = EmbeddingTable(
        ("a", "z"),
        ("image/hsc",) * 2,
        *np.full((2, 2), np.nan),
        np.stack([query.astype(np.float16)] * 2),
        "aligned",
        "armillary-1",
    )
    index.add(more)
    index.remove([copied[0][0]])
    left = sorted([*(pair for pair in copied if pair[0] != copied[0][0]), ("a", "image/hsc"), ("z", "image/hsc")])
    assert pairs_of(index.search(query[None], 130), 0)[: len(left)] == left
    assert pairs_of(index.search(query[None], 5), 0) == left[:5]
    assert pairs_of(index.search(query[None], 5, exclude=["a"]), 0) == left[1:6]


def test_the_order_holds_on_milvus(tmp_path):
    pytest.importorskip("milvus_lite")
    rng = np.random.default_rng(6)
    names = rng.permutation([f"m{i:02d}" for i in range(30)]).tolist()
    vectors = rng.normal(size=(30, DIMENSION)).astype(np.float16)
    vectors[:6] = vectors[0]
    nowhere = np.full(30, np.nan)
    table = EmbeddingTable(tuple(names), ("image/hsc",) * 30, nowhere, nowhere, vectors, "aligned", "armillary-1")
    index, _ = Engine("milvus", str(tmp_path / "milvus.db")).make(table)
    with index:
        for k in (2, 4, 6):
            found = index.search(vectors[:1].astype(np.float32), k)
            assert found.object_id[0].tolist() == sorted(names[:6])[:k]
