"""A corpus of bodies that were damaged, or made to hurt: cut short, lying about sizes, bombs, and random bytes changed.

Each is (name, media type, query, body), made in code and the same on every run.
"""

import functools
import gzip
import io
import json
import random
import struct

import numpy as np
import pyarrow as pa
import safetensors.numpy
from arrow_uploads import image_table, stream
from astropy.io import fits
from fake_model import images
from fits_uploads import HSC_SCALE, fits_bytes, image_hdu

JSON, FITS, NPY = "application/json", "application/fits", "application/x-npy"
SAFETENSORS, ARROW = "application/vnd.safetensors", "application/vnd.apache.arrow.stream"
HSC = "modality=image/hsc&bands=g,r&unit=nanomaggies per pixel"
FLUX = images(1).flux[0].numpy()
CUTS = 12
"""Places at which each whole body is cut."""
CHANGES = 60
"""Times that bytes of each whole body are changed at random."""
BOMB = 400 * 2**20
"""Bytes that a bomb would unfold to."""


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(text, content=b"", version=b"\x01\x00"):
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text.encode("latin-1") + content


def tensors(header, content=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + content


def cards(*lines, data=b""):
    """A FITS file of these cards, written as they are."""
    text = b"".join(line.ljust(80).encode("latin-1") for line in (*lines, "END"))
    return text.ljust(-(-len(text) // 2880) * 2880) + data.ljust(-(-len(data) // 2880) * 2880, b"\0")


def card(key, value):
    return f"{key:<8}= {value!s:>20}"


def primary(*axes, bitpix=-32, data=b"", more=()):
    sizes = [card(f"NAXIS{number + 1}", size) for number, size in enumerate(axes)]
    return cards(card("SIMPLE", "T"), card("BITPIX", bitpix), card("NAXIS", len(axes)), *sizes, *more, data=data)


def changed_card(body, key, value):
    """The body with another value in the first card of this name."""
    at = body.index(f"{key:<8}= ".encode())
    return body[:at] + card(key, value).ljust(80).encode() + body[at + 80 :]


def tiles(codec, pixels=FLUX[0], **options):
    hdu = fits.CompImageHDU(np.asarray(pixels), compression_type=codec, **options)
    hdu.header["BUNIT"] = "nanomaggy"
    return fits_bytes(hdu)


@functools.cache
def gzip_bomb():
    return gzip.compress(bytes(BOMB), 1)


def overlapping_tiles(length):
    """A tile-compressed image of 2048 rows, each of which says that it is `length` bytes from the start of the heap."""
    pixels = np.random.default_rng(0).integers(0, 9000, (2048, 64), np.int16)
    body = bytearray(tiles("RICE_1", pixels, tile_shape=(1, 64)))
    with fits.open(io.BytesIO(body), disable_image_compression=True) as hdus:
        start = hdus[1].fileinfo()["datLoc"]
    body[start : start + 2048 * 8] = struct.pack(">ii", length, 0) * 2048
    return bytes(body)


@functools.cache
def arrow_bomb(codec):
    """A stream of one column of BOMB bytes, all of them zero, in lists of any size."""
    size = BOMB // 4
    values = pa.ListArray.from_arrays(pa.array([0, size], pa.int32()), pa.array(np.zeros(size, np.float32)))
    return stream(pa.table({"flux": values}, metadata={"modality": "image/hsc", "bands": "g"}), compression=codec)


def gzip_tile_bomb():
    """An image of 8 x 8 whose one tile is gzip of BOMB zeros."""
    body = tiles("GZIP_1", np.zeros((8, 8), np.int16), tile_shape=(8, 8))
    bomb = gzip_bomb()
    start = len(body) - 2880
    body = changed_card(body, "PCOUNT", len(bomb))
    return (body[:start] + struct.pack(">ii", len(bomb), 0) + bomb).ljust(
        -(-(start + 8 + len(bomb)) // 2880) * 2880, b"\0"
    )


def whole():
    """Bodies that are as they should be, one of each kind."""
    cube = image_hdu(FLUX, scale=HSC_SCALE, BUNIT="nanomaggy", BANDS="g,r")
    spectra = [
        fits.Column(name, "40D", array=np.ones((2, 40)) * 5000 + np.arange(40)) for name in ("WAVE", "FLUX", "IVAR")
    ]
    metadata, item = {"modality": "image/hsc", "bands": "g,r"}, {"modality": "image/hsc", "bands": ["g", "r"]}
    return {
        "fits image": (FITS, HSC, fits_bytes(cube, image_hdu(np.ones_like(FLUX), "IVAR"))),
        "fits rice": (FITS, "modality=image/hsc&bands=g", tiles("RICE_1")),
        "fits gzip": (FITS, "modality=image/hsc&bands=g", tiles("GZIP_2", tile_shape=(3, 8))),
        "fits table": (FITS, "modality=spectrum/desi", fits_bytes(fits.BinTableHDU.from_columns(spectra))),
        "npy": (NPY, HSC, npy(FLUX)),
        "safetensors": (SAFETENSORS, "", safetensors.numpy.save({"flux": images().flux.numpy()}, metadata)),
        "arrow": (ARROW, "", stream(image_table(images(), fixed=False, object_id=["a", "b", "c", "d"]))),
        "json": (JSON, "", json.dumps({"input": {**item, "data": FLUX.tolist()}}).encode()),
    }


def made_to_hurt():
    image = fits_bytes(image_hdu(FLUX, scale=HSC_SCALE, BUNIT="nanomaggy", BANDS="g,r"))
    small = primary(4, 4, data=np.ones(16, ">f4").tobytes())
    yield "10^12 pixels", FITS, HSC, primary(10**6, 10**6, data=bytes(2880))
    yield "10^12 pixels in an extension", FITS, HSC, changed_card(image, "NAXIS3", 10**12)
    yield "10^36 pixels", FITS, HSC, primary(*[10**6] * 6)
    yield "negative axis", FITS, HSC, primary(-4, -4, data=bytes(64))
    yield "999 axes", FITS, HSC, changed_card(small, "NAXIS", 999)
    yield "an axis of 0", FITS, HSC, primary(0, 10**15)
    yield "axis not a number", FITS, HSC, changed_card(small, "NAXIS1", "'four'")
    yield "axis in floating point", FITS, HSC, changed_card(small, "NAXIS1", "4.0E0")
    yield "an axis twice", FITS, HSC, primary(4, 4, more=[card("NAXIS1", 10**9)], data=bytes(64))
    yield "an axis by HIERARCH", FITS, HSC, primary(4, 4, more=["HIERARCH NAXIS1 = 1000000000"], data=bytes(64))
    yield "10^18 parameters", FITS, HSC, primary(4, 4, more=[card("PCOUNT", 10**18)], data=bytes(64))
    yield (
        "a header without end",
        FITS,
        HSC,
        b"SIMPLE  =                    T".ljust(80) + b"COMMENT x".ljust(80) * 60_000,
    )
    yield "too many extensions", FITS, HSC, fits_bytes(fits.PrimaryHDU(), *[fits.ImageHDU()] * 300)
    yield "gzipped", FITS, HSC, gzip_bomb()
    yield "little-endian pixels", FITS, HSC, image.replace(FLUX.astype(">f4").tobytes(), FLUX.astype("<f4").tobytes())
    for value in (np.nan, np.inf, -np.inf, 3e38):
        yield f"pixels of {value}", FITS, HSC, fits_bytes(image_hdu(np.full_like(FLUX, value), BUNIT="nanomaggy"))
    for unit in ("10**999999999", "'" * 50, "((" * 30, "m" * 68, "10**99999999 nJy", "nJy**99999999"):
        yield f"unit {unit[:12]}", FITS, "modality=image/hsc&bands=g,r", fits_bytes(image_hdu(FLUX, BUNIT=unit))
    for key, value in (("A_ORDER", 30_000), ("CRVAL1", "'x'"), ("CD1_1", 0), ("CRPIX1", 1e300), ("PV1_1", 1e308)):
        yield (
            f"{key} = {value}",
            FITS,
            HSC,
            fits_bytes(image_hdu(FLUX, scale=HSC_SCALE, BUNIT="nanomaggy", **{key: value})),
        )
    yield "gzip bomb in a tile", FITS, "modality=image/hsc&bands=g", gzip_tile_bomb()
    rice = tiles("RICE_1", np.zeros((8, 8), np.int16), tile_shape=(8, 8))
    for axis in (10**4, 2**31 - 1, 10**12):
        claims = rice
        for key in ("ZNAXIS1", "ZNAXIS2", "ZTILE1", "ZTILE2"):
            claims = changed_card(claims, key, axis)
        yield f"rice bomb of {axis}", FITS, "modality=image/hsc&bands=g", claims
    yield "tiles beyond the end", FITS, "modality=image/hsc&bands=g&size=64", overlapping_tiles(2**30)
    yield "tiles that overlap", FITS, "modality=image/hsc&bands=g&size=64", overlapping_tiles(200_000)
    yield (
        "a table of wide columns",
        FITS,
        "modality=spectrum/desi",
        changed_card(whole()["fits table"][2], "TFORM1", "'999999999D'"),
    )
    yield (
        "rows of nothing",
        FITS,
        "modality=spectrum/desi",
        changed_card(changed_card(whole()["fits table"][2], "NAXIS1", 0), "NAXIS2", 10**15),
    )
    head = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}\n"
    for shape in (
        "(0, 1000000000000)",
        "(2, 0, 99999999999999999999)",
        "(-1,)",
        "(1000000, 1000000)",
        "(1,) * 99",
        "()",
    ):
        yield f"npy {shape}", NPY, HSC, npy_header(head.format("'<f4'", shape))
    for kind in ("'|O'", "'<c8'", "[('a', '<f4')]", "'|V8'", "'<U99999999'", "'>f4'", "'<f16'", "None"):
        yield f"npy {kind}", NPY, HSC, npy_header(head.format(kind, "(2, 8, 8)"), bytes(512))
    yield "npy nested", NPY, HSC, npy_header("(" * 9000)
    yield "npy nested, long", NPY, HSC, npy_header("[" * 60_000, version=b"\x02\x00")
    yield "npy cut within a name", NPY, HSC, npy_header("{'descr': '<f4', 'fort\x00")
    for value in (np.nan, np.inf, 3e38):
        yield f"npy of {value}", NPY, HSC, npy(np.full_like(FLUX, value))
    yield "npy without objects", NPY, HSC, npy(np.zeros((0, 2, 8, 8), np.float32))
    meta = {"__metadata__": {"modality": "image/hsc", "bands": "g,r"}}
    for shape in ([0, 10**12], [2**62, 0, 4], [1] * 100, [10**6, 10**6], [0, 2, 2**63]):
        flux = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 if shape == [1] * 100 else 0]}
        yield f"tensors {shape[:3]}", SAFETENSORS, "", tensors({**meta, "flux": flux}, bytes(flux["data_offsets"][1]))
    yield "tensors of 2^63 bytes of header", SAFETENSORS, "", tensors(b"{}", length=2**63)
    yield "tensors nested", SAFETENSORS, "", tensors(b'{"a":' * 20_000)
    flux = {"dtype": "F32", "shape": list(FLUX.shape), "data_offsets": [0, FLUX.nbytes]}
    ids = {"__metadata__": {"modality": "image/hsc", "bands": "g,r", "object_id": "[" * 50_000}}
    yield "tensors with nested ids", SAFETENSORS, "", tensors({**ids, "flux": flux}, FLUX.tobytes())
    table = image_table(images())
    for codec in ("lz4", "zstd"):
        yield f"arrow {codec} bomb", ARROW, "", arrow_bomb(codec)
    yield "arrow dictionary", ARROW, "", stream(pa.table({"flux": pa.array(["a"] * 9).dictionary_encode()}))
    yield "arrow of nothing", ARROW, "", stream(pa.table({"flux": pa.nulls(10**9)}, metadata=table.schema.metadata))
    wide = pa.schema([pa.field("flux", pa.list_(pa.list_(pa.float32(), 2**30), 2**30))], metadata=table.schema.metadata)
    yield "arrow of 2^60 a row", ARROW, "", stream(pa.Table.from_batches([], wide))
    deep = pa.float32()
    for _ in range(60):
        deep = pa.list_(deep)
    yield "arrow nested", ARROW, "", stream(pa.Table.from_batches([], pa.schema([pa.field("flux", deep)])))
    yield "arrow without end", ARROW, "", b"\xff\xff\xff\xff\xff\xff\xff\x7f"
    yield "arrow of empty batches", ARROW, "", b"".join(_empty_batches(20_000))
    for depth in (60, 150, 1000, 200_000):
        deep = "[" * depth + "1" + "]" * depth
        for field in ("data", "mask", "bands", "object_id"):
            body = {"modality": "image/hsc", "bands": ["g"], "data": [[[1.0]]], field: "DEEP"}
            text = json.dumps({"input": body}).replace('"DEEP"', deep)
            yield f"json {field} nested {depth}", JSON, "", text.encode()
        yield f"json nested {depth}", JSON, "", deep.encode()
    for data in (
        '{"data":"","shape":[0,99999999999999999999]}',
        "1e999",
        "9" * 5000,
        '"\\ud800"',
        "[[[null]]]",
        "[NaN]",
    ):
        yield (
            f"json {data[:12]}",
            JSON,
            "",
            f'{{"input":{{"modality":"image/hsc","bands":["g"],"data":{data}}}}}'.encode(),
        )
    yield "two forms in one", "multipart/form-data; boundary=b", "", b"--b\r\n" * 200_000
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + image + b"\r\n--b--"
    yield (
        "a form of hostile fields",
        "multipart/form-data; boundary=b",
        "modality=image/hsc",
        form.replace(b"--b--", b"--b\r\n" * 30),
    )


def _empty_batches(count):
    one = stream(pa.table({"flux": pa.array([], pa.list_(pa.float32()))}))
    table = pa.Table.from_batches([pa.record_batch({"flux": pa.array([], pa.list_(pa.float32()))})])
    with_batch = stream(table)
    batch = with_batch[len(one) - 8 : -8]
    yield with_batch[:-8]
    for _ in range(count):
        yield batch


def damaged():
    dice = random.Random(8)
    for name, (media_type, query, body) in whole().items():
        for number in range(CUTS):
            yield f"{name} cut {number}", media_type, query, body[: len(body) * number // CUTS]
        yield f"{name} and more", media_type, query, body + b"more"
        for number in range(CHANGES):
            changed = bytearray(body)
            # Half of the changes are to what says how much follows.
            stop = len(body) if number % 2 else min(len(body), 6000 if media_type == FITS else 300)
            for _ in range(dice.choice((1, 2, 8))):
                changed[dice.randrange(stop)] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
            yield f"{name} changed {number}", media_type, query, bytes(changed)


def corpus():
    yield from made_to_hurt()
    yield from damaged()
