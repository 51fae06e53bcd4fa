"""Pages of a search by cursors: the place after the last neighbour that was seen, never a count of them.

A cursor is opaque to callers, and belongs to one request and one content of the index. Every page is cut from a search
for as many neighbours as one call may have (`limits.max_neighbours`), so that pages of a cursor fit each other, and
nobody pages beyond that.
"""

import base64
import hashlib
import json
from dataclasses import astuple, dataclass, field

from ..index.protocol import Neighbours, SearchIndex
from ..limits import Limits
from ..problems import ProblemError, at
from ..schemas.common import SearchRequest

NOT_OF_THE_QUERY = {"cursor", "k", "include"}
"""What may change from page to page."""


@dataclass(frozen=True)
class Cursor:
    """The last neighbour of a page, and what it was found by and in (hashes)."""

    query: str
    index_id: str
    similarity: float
    object_id: str
    modality: str

    def written(self) -> str:
        """As text for an address."""
        return base64.urlsafe_b64encode(json.dumps(astuple(self)).encode()).decode().rstrip("=")

    @classmethod
    def read(cls, text: str) -> "Cursor":
        """Raises ProblemError (422) for what `written` did not write."""
        try:
            parts = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
            query, index_id, similarity, object_id, modality = parts
            cursor = cls(str(query), str(index_id), float(similarity), str(object_id), str(modality))
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise _wrong(
                "invalid-request", "expected the next_cursor of an answer, or nothing for the first page"
            ) from None
        return cursor


@dataclass(frozen=True)
class Page:
    """A page of a search: `depth` neighbours are to be sought, of which `cut` takes those that belong to it."""

    k: int
    depth: int
    query: str
    index_id: str
    after: Cursor | None = field(default=None)

    @classmethod
    def of(cls, asked: SearchRequest, index: SearchIndex, limits: Limits, body: bytes = b"") -> "Page":
        """The page that is asked for; `body` is what was sent beside the request. Raises ProblemError (409, 422)."""
        content = asked.model_dump_json(exclude=NOT_OF_THE_QUERY).encode()
        query = hashlib.sha256(hashlib.sha256(content).digest() + body).hexdigest()[:32]
        index_id = index.manifest.index_id
        # One more than wanted tells whether there are more.
        depth = min(asked.k + 1, limits.max_neighbours) if asked.cursor is None else limits.max_neighbours
        if not asked.cursor:
            return cls(asked.k, depth, query, index_id)
        after = Cursor.read(asked.cursor)
        if after.index_id != index_id:
            raise _wrong("conflict", "the index has changed since; begin again without a cursor")
        if after.query != query:
            raise _wrong(
                "invalid-request", "it belongs to another request: only k and include may change between pages"
            )
        return cls(asked.k, depth, query, index_id, after)

    def cut(self, found: Neighbours) -> tuple[Neighbours, str | None]:
        """The neighbours of this page among those of one query, and the cursor of the next, None on the last."""
        start = 0 if self.after is None else _place_after(found, self.after)
        stop = min(start + self.k, found.row.shape[1])
        page = found.select(range(start, stop))
        if stop == start or stop == found.row.shape[1]:
            return page, None
        last = (float(page.similarity[0, -1]), str(page.object_id[0, -1]), str(page.modality[0, -1]))
        return page, Cursor(self.query, self.index_id, *last).written()


def _place_after(found: Neighbours, last: Cursor) -> int:
    """The first place behind the last neighbour seen; where that is not found again, behind its similarity and name."""
    is_last = (found.object_id[0] == last.object_id) & (found.modality[0] == last.modality)
    if is_last.any():
        return int(is_last.argmax()) + 1
    keys = zip((-found.similarity[0]).tolist(), found.object_id[0], found.modality[0], strict=True)
    return sum(key <= (-last.similarity, last.object_id, last.modality) for key in keys)


def _wrong(kind: str, detail: str) -> ProblemError:
    return ProblemError(kind, f"/cursor: {detail}", [at("/cursor", detail)])
