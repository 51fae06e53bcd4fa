"""What a FITS body claims, against the bytes that came: looked at before astropy takes memory for it.

A header of a few bytes may claim 10^12 pixels, or a compressed image may unfold to them. Only the cards that say how
much follows are read here, strictly (FITS standard 4.0, sections 4.4 and 10); everything else is astropy's.
"""

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..limits import Limits
from ..problems import ProblemError

MAX_HDUS = 256
MAX_HEADER_BYTES = 2**20
"""Of one extension: 13,000 cards."""
MAX_ALL_HEADER_BYTES = 2**22
"""Of all extensions: a card takes ten times its bytes when it is parsed."""
MAX_AXES = 8
MAX_COLUMNS = 999
MAX_TILES = 2**16
"""Of one compressed image: each costs time."""

_BLOCK, _CARD = 2880, 80
_BITS = (8, 16, 32, 64, -32, -64)
_COLUMN_BYTES = {"L": 1, "B": 1, "A": 1, "I": 2, "J": 4, "K": 8, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
_TILE_BYTES = {"B": 1, "I": 2, "J": 4, "E": 4, "D": 8}
_CODECS = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "NOCOMPRESS")
"""PLIO and HCOMPRESS are refused: their decoders trust what they read."""
_TILE_COLUMNS = ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "UNCOMPRESSED_DATA")
_SIZES = re.compile(
    r"XTENSION|BITPIX|Z?NAXIS\d*|PCOUNT|GCOUNT|GROUPS|TFIELDS|THEAP|ZIMAGE|ZTABLE|ZBITPIX|ZTILE\d+|ZCMPTYPE|ZNAME\d+|ZVAL\d+|"
    r"TFORM\d+|TTYPE\d+|TBCOL\d+"
)
_TEXT = re.compile(r"'((?:[^']|'')*)'\s*(?:/.*)?")
_NUMBER = re.compile(r"([+-]?\d{1,18})\s*(?:/.*)?")
_LOGICAL = re.compile(r"([TF])\s*(?:/.*)?")
_FORMAT = re.compile(r"(\d{0,9})([LXBAIJKEDCMPQ])(.*)")

_TEXT_FORMAT = re.compile(r"[AIFED](\d{1,6})(?:\.\d{1,6})?")

Value = int | str | bool
"""Of a card that says sizes; a number of another kind is kept as its text."""


@dataclass(frozen=True)
class _Extension:
    """One extension: its number, the cards that say its size, and where its data lie in the body."""

    number: int
    cards: Mapping[str, Value]
    start: int
    size: int

    def whole(self, key: str, default: int | None = None) -> int:
        """A card's whole number. Raises ProblemError (400)."""
        value = self.cards.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _malformed(f"{key} of extension {self.number} must be a whole number, found {value!r}")
        return value

    def counts(self, prefix: str, number: int) -> list[int]:
        """`prefix`1 and so on, none of them negative. Raises ProblemError (400)."""
        values = [self.whole(f"{prefix}{axis}") for axis in range(1, number + 1)]
        if min(values, default=0) < 0:
            raise _malformed(f"{prefix} of extension {self.number} must not be negative, found {values}")
        return values

    @property
    def is_compressed_image(self) -> bool:
        """Whether it is an image in tiles, compressed."""
        return self.cards.get("ZIMAGE") is True


def check_fits(body: bytes, limits: Limits) -> None:
    """Raises ProblemError if reading the body could take more than a few times the memory that it takes itself.

    400: no FITS file, cut short, gzipped, headers that make no sense. 413: compressed images larger, all together, than
    a body may be. 422: a compression that is not taken.
    """
    if body[:2] == b"\x1f\x8b":
        raise _malformed("the body is gzipped; send the FITS file as it is (tile-compressed images are taken)")
    if not body.startswith(b"SIMPLE  ="):
        raise _malformed("the body is not a FITS file: it does not begin with SIMPLE")
    unpacked = 0
    for extension in _extensions(body):
        cards = extension.cards
        if cards.get("ZTABLE") is True:
            raise ProblemError("invalid-request", f"extension {extension.number} is a compressed table; send it plain")
        if "TFIELDS" in cards:
            _check_columns(extension)
        if extension.is_compressed_image:
            unpacked += _check_tiles(extension, body, limits)
            if unpacked > limits.max_body_bytes:
                detail = f"the compressed images unfold to more than {limits.max_body_bytes} bytes; see /v1/limits"
                raise ProblemError("too-large", detail)


def _extensions(body: bytes) -> Iterator[_Extension]:
    place, number, in_headers = 0, 0, 0
    while place < len(body):
        # What follows the last extension is special records by the standard, and zeros in files from tape.
        if number and not body.startswith(b"XTENSION", place):
            if body[place:].strip(b"\0 "):
                raise _malformed(f"expected an extension at byte {place}, found {body[place : place + 8]!r}")
            return
        if number == MAX_HDUS:
            raise _malformed(f"at most {MAX_HDUS} extensions are read")
        cards, start = _header(body, place, number)
        in_headers += start - place
        if in_headers > MAX_ALL_HEADER_BYTES:
            raise _malformed(f"at most {MAX_ALL_HEADER_BYTES} bytes of headers are read")
        extension = _Extension(number, cards, start, 0)
        axes = extension.whole("NAXIS")
        if not 0 <= axes <= MAX_AXES or extension.whole("BITPIX") not in _BITS:
            raise _malformed(
                f"extension {number}: expected NAXIS from 0 to {MAX_AXES} and BITPIX among {list(_BITS)}, found "
                f"{axes} and {cards['BITPIX']}"
            )
        if cards.get("GROUPS") is True:
            raise _malformed("random groups are not read")
        shape = extension.counts("NAXIS", axes)
        extra = extension.whole("PCOUNT", 0)
        if extra < 0 or extension.whole("GCOUNT", 1) != 1:
            raise _malformed(f"extension {number}: expected GCOUNT 1 and PCOUNT from 0, found {extra}")
        items = (math.prod(shape) if shape else 0) + extra
        size = items * (abs(extension.whole("BITPIX")) // 8)
        if start + size > len(body):
            raise _malformed(
                f"extension {number} says that it has {size} bytes of data; {len(body) - start} bytes follow"
            )
        yield _Extension(number, cards, start, size)
        place = start + -(-size // _BLOCK) * _BLOCK
        number += 1


def _header(body: bytes, place: int, number: int) -> tuple[dict[str, Value], int]:
    """The cards of one header that say sizes, and where its data begin."""
    cards: dict[str, Value] = {}
    stop = min(len(body), place + MAX_HEADER_BYTES)
    for at in range(place, stop - _CARD + 1, _CARD):
        raw = body[at : at + _CARD]
        key = raw[:8].rstrip().decode("latin-1")
        if key == "END":
            return cards, place + -(-(at + _CARD - place) // _BLOCK) * _BLOCK
        if key == "HIERARCH":
            key = raw[8:].partition(b"=")[0].strip().decode("latin-1")
        name = key.upper()
        if not _SIZES.fullmatch(name):
            continue
        # astropy takes the first of two cards of one name, or the last: no file has two that say sizes.
        if name in cards or key != raw[:8].rstrip().decode("latin-1") or raw[8:10] != b"= ":
            raise _malformed(f"the header of extension {number} must hold {name} once, as `{name:<8}= value`")
        cards[name] = _value(raw[10:].decode("latin-1").strip())
    raise _malformed(f"the header of extension {number} does not end within {stop - place} bytes")


def _value(text: str) -> Value:
    if match := _TEXT.fullmatch(text):
        return match[1].rstrip()
    if match := _NUMBER.fullmatch(text):
        return int(match[1])
    if match := _LOGICAL.fullmatch(text):
        return match[1] == "T"
    return text


def _check_columns(extension: _Extension) -> None:
    """A table's columns must be as wide as its rows: astropy goes by the one here, and by the other there."""
    number = extension.whole("TFIELDS")
    if not 0 <= number <= MAX_COLUMNS:
        raise _malformed(f"extension {extension.number}: expected TFIELDS from 0 to {MAX_COLUMNS}, found {number}")
    if extension.whole("NAXIS") != 2:
        raise _malformed(f"extension {extension.number} is a table, and must have 2 axes")
    if extension.whole("NAXIS1") == 0 and extension.whole("NAXIS2") > 0:
        raise _malformed(f"extension {extension.number}: rows of no bytes")
    if extension.cards.get("XTENSION") == "TABLE":
        _check_text_columns(extension, number)
        return
    widths = []
    for field in range(1, number + 1):
        form = str(extension.cards.get(f"TFORM{field}", "")).strip()
        match = _FORMAT.fullmatch(form)
        if match is None:
            raise _malformed(f"extension {extension.number}: TFORM{field} = {form!r} makes no sense")
        repeat = int(match[1]) if match[1] else 1
        if match[2] in "PQ" and repeat > 1:
            raise _malformed(f"extension {extension.number}: TFORM{field} = {form!r} makes no sense")
        widths.append(-(-repeat // 8) if match[2] == "X" else repeat * _COLUMN_BYTES[match[2]])
    if sum(widths) != extension.whole("NAXIS1"):
        raise _malformed(
            f"extension {extension.number}: its columns take {sum(widths)} bytes of a row, its rows have "
            f"{extension.whole('NAXIS1')}"
        )


def _check_text_columns(extension: _Extension, number: int) -> None:
    """Columns of an ASCII table must lie within its rows."""
    for field in range(1, number + 1):
        form = str(extension.cards.get(f"TFORM{field}", "")).strip()
        match = _TEXT_FORMAT.fullmatch(form)
        first = extension.whole(f"TBCOL{field}")
        if match is None or first < 1 or first - 1 + int(match[1]) > extension.whole("NAXIS1"):
            raise _malformed(
                f"extension {extension.number}: column {field}, {form!r} at {first}, does not lie within its rows"
            )


def _check_tiles(extension: _Extension, body: bytes, limits: Limits) -> int:
    """Bytes of the image that a compressed one unfolds to, once it is known that its tiles hold no more than that."""
    where = f"extension {extension.number}"
    codec = extension.cards.get("ZCMPTYPE")
    if codec not in _CODECS:
        raise ProblemError("invalid-request", f"{where}: expected compression {list(_CODECS)}, found {codec!r}")
    axes = extension.whole("ZNAXIS")
    if not 1 <= axes <= MAX_AXES or extension.whole("ZBITPIX") not in _BITS:
        raise _malformed(f"{where}: ZNAXIS or ZBITPIX makes no sense")
    shape = extension.counts("ZNAXIS", axes)
    tile = [extension.whole(f"ZTILE{n + 1}", shape[0] if n == 0 else 1) for n in range(axes)]
    if min(shape) < 1 or any(not 1 <= part <= whole for part, whole in zip(tile, shape, strict=True)):
        raise _malformed(f"{where}: tiles of {tile} pixels do not fit an image of {shape}")
    size = math.prod(shape) * abs(extension.whole("ZBITPIX")) // 8
    if size > limits.max_body_bytes:
        raise ProblemError(
            "too-large", f"{where} unfolds to {size} bytes, at most {limits.max_body_bytes}; see /v1/limits"
        )
    rows = extension.whole("NAXIS2")
    expected = math.prod(-(-whole // part) for part, whole in zip(tile, shape, strict=True))
    if rows != expected or rows > MAX_TILES:
        raise _malformed(f"{where}: expected {expected} tiles, and at most {MAX_TILES}; found {rows}")
    options = {str(extension.cards.get(f"ZNAME{n}", "")).upper(): extension.cards.get(f"ZVAL{n}") for n in range(1, 21)}
    if options.get("BLOCKSIZE", 32) not in (16, 32) or options.get("BYTEPIX", 4) not in (1, 2, 4):
        raise _malformed(f"{where}: BLOCKSIZE must be 16 or 32, BYTEPIX 1, 2 or 4")
    heap_start = extension.start + extension.whole("THEAP", extension.whole("NAXIS1") * rows)
    heap = memoryview(body)[heap_start : extension.start + extension.size]
    stored = 0
    for column, parts in _tiles(extension, body, rows):
        is_gzip = column == "GZIP_COMPRESSED_DATA" or (column == "COMPRESSED_DATA" and str(codec).startswith("GZIP"))
        for offset, length in parts.tolist():
            if offset < 0 or length < 0 or offset + length > len(heap):
                raise _malformed(f"{where}: a tile of {length} bytes at {offset} lies beyond the {len(heap)} that came")
            stored += length
            if is_gzip and length:
                _check_gzip(heap[offset : offset + length], math.prod(tile) * 8, where)
    if stored > len(heap):
        raise _malformed(f"{where}: its tiles overlap: {stored} bytes of {len(heap)}")
    return size


def _tiles(extension: _Extension, body: bytes, rows: int) -> Iterator[tuple[str, np.ndarray]]:
    """For each column of tiles the offset and length in bytes of each tile [rows, 2]."""
    width, place = extension.whole("NAXIS1"), 0
    table = np.frombuffer(body, np.uint8, rows * width, extension.start).reshape(rows, width)
    found = 0
    for field in range(1, extension.whole("TFIELDS") + 1):
        match = _FORMAT.fullmatch(str(extension.cards.get(f"TFORM{field}", "")).strip())
        if match is None:
            raise _malformed(f"extension {extension.number}: TFORM{field} makes no sense")
        repeat = int(match[1]) if match[1] else 1
        size = -(-repeat // 8) if match[2] == "X" else repeat * _COLUMN_BYTES[match[2]]
        name = str(extension.cards.get(f"TTYPE{field}", "")).upper()
        if name in _TILE_COLUMNS:
            item = _TILE_BYTES.get(match[3][:1])
            if match[2] not in "PQ" or repeat != 1 or item is None:
                raise _malformed(f"extension {extension.number}: {name} must be an array of bytes or numbers")
            kind = ">i4" if match[2] == "P" else ">i8"
            pairs = np.ascontiguousarray(table[:, place : place + size]).view(kind).astype(np.int64)
            # Lengths count items; a product that wraps around is negative, or refused as beyond the end.
            lengths = np.clip(pairs[:, 0], -1, 2**40) * item
            found += 1
            yield name, np.stack([np.clip(pairs[:, 1], -1, 2**40), lengths], axis=1)
        place += size
    if not found:
        raise _malformed(f"extension {extension.number} has no column of tiles")


def _check_gzip(content: memoryview, limit: int, where: str) -> None:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(content, limit + 1)
    except zlib.error as error:
        raise _malformed(f"{where}: a tile cannot be unpacked: {error}") from None
    if len(found) > limit or unpacker.unconsumed_tail:
        raise _malformed(f"{where}: a tile unfolds to more than the {limit} bytes of its pixels")
    if not unpacker.eof or unpacker.unused_data.strip(b"\0"):
        raise _malformed(f"{where}: a tile is cut short, or followed by what is none")


def _malformed(detail: str) -> ProblemError:
    return ProblemError("malformed-body", detail)
