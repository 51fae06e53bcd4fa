"""A Milvus engine by its address: what Armillary asks, in calls that milvus-lite, a server and a cluster all know.

An index is a collection `NAME_FINGERPRINT_GENERATION` behind the alias `NAME`, and a record in the small collection
`armillary_records` that says what it is. Records are JSON in one place for all engines: milvus-lite forgets the
descriptions of collections.
"""

import itertools
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..index.place import LITE_SUFFIX, is_milvus
from ..index.protocol import EmbeddingIndexError

TOKEN_VARIABLE = "ARMILLARY_MILVUS_TOKEN"
"""Environment variable with the server's token, `user:password` or an API key. It is never written anywhere."""
DEFAULT_NAME = "objects"
MAX_HITS = 16_384
"""Most hits of one search, and most rows of one query, that a server gives."""
MAX_ID_BYTES = 512
READ_BYTES = 16_000_000
"""About what one answer may hold; servers refuse far more."""

_RECORDS = "armillary_records"
_RECORD_BYTES = 60_000
FRESH_SECONDS = 6.0
"""A little above the staleness that `Bounded` allows, 5 s in Milvus's own settings."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_INDEX_BYTES = 512 * 1024**2
"""A server seals a segment at about this size, and makes one structure for each."""

_CONNECT_FAILED = 2
"""pymilvus's code where a request was not sent, for a server is away or starts again; such a one may be sent anew."""
_READ_TOO_SOON = re.compile("faiss/impl/index_read|file seems not fully written")
"""What milvus-lite stumbles over if it loads a structure or vectors whose file another of its threads still writes."""
_TRIES, _PAUSE = 5, 2.0

Record = dict[str, Any]


@dataclass(frozen=True)
class MilvusAddress:
    """Where an index is: the engine's `uri`, and the `name` of the collection."""

    uri: str
    name: str = DEFAULT_NAME

    @classmethod
    def parse(cls, place: str | Path) -> "MilvusAddress":
        """Read `http://host:19530#NAME` or `file.db#NAME`; by default `objects`. Raises EmbeddingIndexError."""
        uri, _, name = str(place).partition("#")
        if not is_milvus(uri):
            raise EmbeddingIndexError(
                f"{place}: expected the address of a Milvus server (http://HOST:19530#NAME) or a file of milvus-lite "
                f"(PATH{LITE_SUFFIX}#NAME)"
            )
        if not _NAME.fullmatch(name or DEFAULT_NAME):
            raise EmbeddingIndexError(
                f"{place}: the name of a collection has letters, digits and underscores and starts with no digit; "
                f"found {name!r}"
            )
        return cls(uri, name or DEFAULT_NAME)

    @property
    def is_lite(self) -> bool:
        """Whether it is a file of milvus-lite."""
        return "://" not in self.uri

    def __str__(self) -> str:
        # A token in the address stays out of messages.
        return f"{re.sub(r'//[^/@]*@', '//', self.uri)}#{self.name}"


def import_milvus() -> Any:
    """The module `pymilvus`. Raises ImportError that says how to install it."""
    try:
        import pymilvus
    except ImportError as error:
        raise ImportError(
            f"an index on Milvus needs pymilvus: pip install 'armillary[milvus]'; import pymilvus failed with: {error}"
        ) from error
    # It logs every error with a traceback before raising it.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return pymilvus


def quoted(text: str) -> str:
    """A string as filters write it: engines agree on few escapes, and want others as they are."""
    for letter, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(letter, escaped)
    return f'"{text}"'


class MilvusEngine:
    """A connection. Raises EmbeddingIndexError where the engine cannot be reached.

    Reads see at once what this process wrote and what anyone wrote before it connected; what others write later, within
    FRESH_SECONDS, and mostly within one. A server makes a strongly consistent read wait for its clock, up to 0.2 s, so
    that reads are strong only for a while after a write of this process, and of bounded staleness after it. (`Session`
    consistency would promise the same, but a server 2.3.5 still shows a row just deleted.)
    """

    def __init__(self, address: MilvusAddress) -> None:
        milvus = import_milvus()
        self.address = address
        self._types = milvus.DataType
        if address.is_lite:
            try:
                import milvus_lite  # noqa: F401
            except ImportError as error:
                raise ImportError(
                    f"{address.uri} needs milvus-lite: pip install 'armillary[milvus-lite]' (it brings faiss-cpu, "
                    f"which does not go beside faiss-gpu); import failed with: {error}"
                ) from error
            logging.getLogger("milvus_lite").setLevel(logging.CRITICAL)
            Path(address.uri).absolute().parent.mkdir(parents=True, exist_ok=True)
        self._strong_until = time.monotonic() + FRESH_SECONDS
        token = "" if address.is_lite else os.environ.get(TOKEN_VARIABLE, "")
        try:
            client = milvus.MilvusClient(address.uri, token=token, timeout=30)
        except milvus.MilvusException as error:
            why = (
                "is it open in another process? milvus-lite lets in one at a time"
                if address.is_lite
                else (f"is the server up, and does {TOKEN_VARIABLE} hold its token if it asks for one?")
            )
            raise EmbeddingIndexError(f"{address}: cannot be opened; {why} ({_short(error)})") from None
        self._client = _Client(client, milvus.MilvusException, address)

    def collection_behind(self, name: str) -> str | None:
        """The collection that an alias stands for, None if there is no such alias. Raises EmbeddingIndexError."""
        if not self._client.has_collection(name):
            return None
        found: str = self._client.describe_collection(name)["collection_name"]
        if found == name:
            raise EmbeddingIndexError(f"{self.address}: {name!r} is a collection that Armillary did not make")
        return found

    def builds_of(self, name: str) -> list[str]:
        """The collections that were made for an index of this name, finished or not."""
        pattern = re.compile(rf"{re.escape(name)}_[0-9a-f]{{12}}_\d+")
        return sorted(c for c in self._client.list_collections() if pattern.fullmatch(c))

    def point(self, name: str, collection: str) -> None:
        """Let the alias stand for this collection from now on."""
        if self._client.has_collection(name):
            self._client.alter_alias(collection, name)
        else:
            self._client.create_alias(collection, name)

    def forget(self, name: str) -> None:
        """Take the alias away."""
        if self._client.has_collection(name):
            self._client.drop_alias(name)

    def create(self, collection: str, dimension: int, numbers: Sequence[str], index_type: str, num_cells: int) -> None:
        """A new collection of rows: `id`, `object_id`, `modality`, these columns of numbers, and a `vector`."""
        types = self._types
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", types.INT64, is_primary=True)
        schema.add_field("object_id", types.VARCHAR, max_length=MAX_ID_BYTES)
        schema.add_field("modality", types.VARCHAR, max_length=MAX_ID_BYTES)
        for name in numbers:
            schema.add_field(name, types.DOUBLE)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=dimension)
        parameters = {"nlist": num_cells} if index_type.startswith("IVF") else {}
        if index_type == "HNSW":
            parameters = {"M": 32, "efConstruction": 80}
        self._create(collection, schema, index_type, parameters)

    def drop(self, collection: str) -> None:
        """Remove a collection and its record, where they are there."""
        if self._client.has_collection(collection):
            self._client.drop_collection(collection)
        if self._client.has_collection(_RECORDS):
            self._load_records()
            self._client.delete(_RECORDS, filter=f"collection == {quoted(collection)}")

    def finish(self, collection: str) -> None:
        """Bring all rows to disk, wait for the search structure, and load it."""
        self._client.flush(collection)
        names = self._client.list_indexes(collection)
        while any(int(self._client.describe_index(collection, n).get("pending_index_rows") or 0) for n in names):
            time.sleep(0.5)
            self._client.flush(collection)
        self._client.release_collection(collection)
        self._client.load_collection(collection)

    def load(self, collection: str) -> None:
        """Make a collection ready for reading; nothing is done where it is."""
        self._client.load_collection(collection)

    def to_disk(self, collection: str) -> None:
        """Bring what was written to disk. A server's log is there already, before it answers."""
        if self.address.is_lite:
            self._client.flush(collection)

    def catch_up(self, collection: str) -> int:
        """Wait until all that anyone wrote can be read; the number of rows."""
        return self._count(collection, "", "Strong")

    def count(self, collection: str, expression: str) -> int:
        """How many rows pass."""
        return self._count(collection, expression, self._level)

    def insert(self, collection: str, rows: list[dict[str, Any]]) -> None:
        """Add rows that are not there."""
        self._wrote()
        self._client.insert(collection, rows)

    def upsert(self, collection: str, rows: list[dict[str, Any]]) -> None:
        """Add rows, in the place of those with the same id."""
        if rows:
            self._wrote()
            self._client.upsert(collection, rows)

    def delete(self, collection: str, ids: Sequence[int]) -> None:
        """Remove rows by id."""
        if len(ids):
            self._wrote()
            self._client.delete(collection, ids=[int(i) for i in ids])

    def search(
        self,
        collection: str,
        queries: np.ndarray,
        limit: int,
        expression: str,
        parameters: dict[str, Any],
        columns: Sequence[str],
    ) -> list[list[dict[str, Any]]]:
        """For each query, up to `limit` hits, best first: `id`, `similarity` and the columns."""
        found: list[list[dict[str, Any]]] = []
        step = max(1, min(1000, READ_BYTES // (limit * 200), READ_BYTES // (4 * queries.shape[1])))
        for start in range(0, len(queries), step):
            answer = self._client.search(
                collection,
                data=list(queries[start : start + step]),
                filter=expression,
                limit=limit,
                output_fields=list(columns),
                search_params={"metric_type": "IP", "params": parameters},
                consistency_level=self._level,
            )
            found += [[{"id": h["id"], "similarity": h["distance"], **h["entity"]} for h in hits] for hits in answer]
        return found

    def rows_by_id(
        self, collection: str, ids: Sequence[int], columns: Sequence[str], row_bytes: int = 200
    ) -> list[Any]:
        """The rows that are there of these ids, in any order, with `id`."""
        step = max(1, min(4000, READ_BYTES // row_bytes))
        found: list[Any] = []
        for start in range(0, len(ids), step):
            part = [int(i) for i in ids[start : start + step]]
            expression = f"id in {part}"
            found += self._query(collection, expression, columns, limit=len(part))
        return found

    def some_rows(self, collection: str, expression: str, columns: Sequence[str], limit: int) -> list[Any]:
        """Up to `limit` rows that pass, whichever."""
        return self._query(collection, expression, columns, limit=limit)

    def every_row(
        self, collection: str, expression: str, columns: Sequence[str], row_bytes: int = 200
    ) -> Iterator[list[Any]]:
        """All rows that pass, in blocks. By ranges of the ids, which are hashes and lie evenly.

        (Milvus's own iterator reads as of a time of its own, and does not see what was just written.)
        """
        size = max(1, min(MAX_HITS // 2, READ_BYTES // row_bytes))
        num_ranges = math.ceil(self.count(collection, expression) / size)
        bounds = [2**63 * place // max(1, num_ranges) for place in range(num_ranges + 1)]
        ranges = list(itertools.pairwise(bounds))
        also = f" and {expression}" if expression else ""
        while ranges:
            low, high = ranges.pop()
            block = self._query(collection, f"id >= {low} and id <= {high - 1}{also}", columns, limit=2 * size)
            if len(block) == 2 * size and high - low > 1:
                middle = (low + high) // 2
                ranges += [(low, middle), (middle, high)]
            elif block:
                yield block

    def read_record(self, collection: str) -> Record | None:
        """What is written of a collection, None if nothing is. Raises EmbeddingIndexError on half a record."""
        if not self._client.has_collection(_RECORDS):
            return None
        self._load_records()
        rows = self._query(
            _RECORDS, f"collection == {quoted(collection)}", ["part", "num_parts", "text"], limit=1000, level="Strong"
        )
        if not rows:
            return None
        parts = {row["part"]: row for row in rows}
        wanted = range(parts[0]["num_parts"] if 0 in parts else 0)
        if not wanted or any(number not in parts for number in wanted):
            raise EmbeddingIndexError(f"{self.address}: the record of {collection!r} is not whole; build anew")
        record: Record = json.loads("".join(parts[number]["text"] for number in wanted))
        return record

    def write_record(self, collection: str, record: Record) -> None:
        """Write a record in the place of an earlier one, in one request."""
        if not self._client.has_collection(_RECORDS):
            self._create_records()
        self._load_records()
        text = json.dumps(record)
        parts = [text[start : start + _RECORD_BYTES] for start in range(0, len(text), _RECORD_BYTES)]
        rows = [
            {
                "id": f"{collection}/{number}",
                "collection": collection,
                "part": number,
                "num_parts": len(parts),
                "text": part,
                "vector": [1.0, 0.0],
            }
            for number, part in enumerate(parts)
        ]
        self.upsert(_RECORDS, rows)
        self.to_disk(_RECORDS)

    def close(self) -> None:
        """End the connection; a file of milvus-lite may be opened by others then."""
        self._client.close()
        if self.address.is_lite:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self.address.uri)

    @property
    def _level(self) -> str:
        return "Strong" if time.monotonic() < self._strong_until else "Bounded"

    def _wrote(self) -> None:
        # Before the write, which may take effect and then fail; and again after it is not needed: writes are quick.
        self._strong_until = time.monotonic() + FRESH_SECONDS

    def _create_records(self) -> None:
        types = self._types
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", types.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
        schema.add_field("collection", types.VARCHAR, max_length=MAX_ID_BYTES)
        schema.add_field("part", types.INT64)
        schema.add_field("num_parts", types.INT64)
        schema.add_field("text", types.VARCHAR, max_length=65_535)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=2)
        self._create(_RECORDS, schema, "FLAT", {})

    def _create(self, collection: str, schema: Any, index_type: str, parameters: dict[str, Any]) -> None:
        self._client.create_collection(collection, schema=schema, consistency_level="Bounded")
        wanted = self._client.prepare_index_params()
        wanted.add_index("vector", index_type=index_type, metric_type="IP", params=parameters)
        self._client.create_index(collection, wanted)

    def _load_records(self) -> None:
        self._client.load_collection(_RECORDS)

    def _count(self, collection: str, expression: str, level: str) -> int:
        rows = self._client.query(collection, filter=expression, output_fields=["count(*)"], consistency_level=level)
        return int(rows[0]["count(*)"])

    def _query(
        self, collection: str, expression: str, columns: Sequence[str], *, limit: int, level: str | None = None
    ) -> list[Any]:
        return list(
            self._client.query(
                collection,
                filter=expression,
                output_fields=["id", *columns],
                limit=limit,
                consistency_level=level or self._level,
            )
        )


class _Client:
    """A `MilvusClient` whose failures are ConnectionErrors that name the engine and the call."""

    def __init__(self, client: Any, failure: type[Exception], address: MilvusAddress) -> None:
        self._client, self._failure, self._address = client, failure, address

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def called(*arguments: Any, **options: Any) -> Any:
            for tries_left in reversed(range(_TRIES)):
                try:
                    return call(*arguments, **options)
                except self._failure as error:
                    may_pass = (
                        getattr(error, "code", None) == _CONNECT_FAILED or _READ_TOO_SOON.search(str(error)) is not None
                    )
                    if tries_left and may_pass:
                        time.sleep(_PAUSE)
                        continue
                    raise ConnectionError(f"{self._address}: Milvus refused {name} ({_short(error)})") from error
            raise AssertionError("unreachable")

        return called


def num_cells(num_rows: int, dimension: int) -> int:
    """Cells of an IVF structure: four times the square root of the rows that share one, which a segment bounds."""
    rows = min(num_rows, _INDEX_BYTES // (4 * dimension))
    return max(1, min(65_536, round(4 * math.sqrt(rows))))


def _short(error: Exception) -> str:
    return str(getattr(error, "message", error)).splitlines()[0][:200]
