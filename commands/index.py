"""`armillary index`, `index-add`, `index-remove`, `index-info`."""

import argparse
from pathlib import Path
from typing import Any

from ..serving.index.place import index_place


def index_verbs(verbs: Any) -> None:
    """What builds and changes an index: in a folder, or on Milvus."""
    index = verbs.add_parser("index", help="build a search index from embeddings")
    index.add_argument("embeddings", type=Path, help="folder of embedding shards")
    index.add_argument("index", type=index_place, help="index folder to write, or http://HOST:19530#NAME of Milvus")
    index.add_argument("--data", type=Path, help="dataset whose scalars become labels for prediction")
    index.add_argument("--held-out", type=Path, help="file of object ids, one in a line, whose labels stay out")
    index.add_argument("--validation", type=Path, help="file of held-out object ids by which predictors are calibrated")
    index.add_argument("--calibrate", action="append", metavar="PROPERTY", help="default: scalar/redshift; repeatable")
    index.add_argument(
        "--query-modality", action="append", metavar="MODALITY", help="ask with these; default: every image modality"
    )
    index.add_argument("--target-modality", metavar="MODALITY", help="neighbours of this modality; default: of any")
    index.add_argument("--metadata", action="append", metavar="NAME", help="scalar to filter by, no label; repeatable")
    index.add_argument("--index-type", metavar="TYPE", help="flat, ivf, ivf_sq8, ivf_rabitq or hnsw; default: by size")
    index.add_argument("--max-memory-gb", type=float, metavar="GB", help="for search structures; default: half of all")
    index.set_defaults(run=_index)

    adding = verbs.add_parser("index-add", help="add embeddings to an index; those that are there are replaced")
    adding.add_argument("index", type=index_place, help="index folder, or Milvus's address")
    adding.add_argument("embeddings", type=Path, help="folder of embedding shards")
    adding.add_argument("--data", type=Path, help="dataset whose scalars become labels and metadata")
    adding.add_argument("--held-out", type=Path, help="file of object ids, one in a line, whose labels stay out")
    adding.set_defaults(run=_index_add)

    removing = verbs.add_parser("index-remove", help="remove objects from an index")
    removing.add_argument("index", type=index_place, help="index folder, or Milvus's address")
    removing.add_argument("objects", type=Path, help="file of object ids, one in a line")
    removing.set_defaults(run=_index_remove)

    information = verbs.add_parser(
        "index-info", help="print what an index is: counts, types and why, recall, checksums"
    )
    information.add_argument("index", type=index_place, help="index folder, or Milvus's address")
    information.set_defaults(run=_index_info)


def _index(options: argparse.Namespace) -> int:
    from ..serving.index.build_index import CALIBRATED_PROPERTIES, build_index

    manifest = build_index(
        options.embeddings,
        options.index,
        options.data,
        options.held_out,
        tuple(options.calibrate or CALIBRATED_PROPERTIES),
        validation=options.validation,
        query_modalities=tuple(options.query_modality or ()),
        target_modality=options.target_modality,
        metadata=tuple(options.metadata or ()),
        index_type=options.index_type,
        max_memory_gb=options.max_memory_gb,
    )
    print(f"{options.index}: {manifest.index_id}, {manifest.num_rows} rows of {manifest.num_objects} objects")  # noqa: T201
    return 0


def _index_add(options: argparse.Namespace) -> int:
    from ..serving.index.build_index import add_to_index

    manifest = add_to_index(options.index, options.embeddings, options.data, options.held_out)
    print(f"{options.index}: {manifest.index_id}, {manifest.num_rows} rows of {manifest.num_objects} objects")  # noqa: T201
    return 0


def _index_remove(options: argparse.Namespace) -> int:
    from ..serving.index.build_index import remove_from_index

    manifest = remove_from_index(options.index, options.objects)
    print(f"{options.index}: {manifest.index_id}, {manifest.num_rows} rows of {manifest.num_objects} objects")  # noqa: T201
    return 0


def _index_info(options: argparse.Namespace) -> int:
    from ..serving.index.opening import manifest_text

    print(manifest_text(options.index), end="")  # noqa: T201
    return 0
