"""The HATS side of a modality's folder: which files it has, and the metadata by which LSDB and others read it.

HATS (Hierarchical Adaptive Tiling Scheme, IVOA note, https://hats.readthedocs.io) keeps a catalogue as one Parquet file
for each HEALPix pixel, with `hats.properties`, `partition_info.csv`, and the footers of all files in
`dataset/_metadata`.
"""

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .observation_tables import INDEX_COLUMN
from .observations import ObservationError
from .parquet_files import ObservationFile, replacing
from .sky_partition import ORDER, Pixel, overlapping

HATS_VERSION = "v1.0"
DATASET_FOLDER, UNPLACED_FOLDER = "dataset", "unplaced"
PARTITIONS, PROPERTIES = "partition_info.csv", "hats.properties"


def catalogue_files(catalogue: Path) -> list[tuple[Path, Pixel | None]]:
    """Paths and pixels of a finished catalogue's files, in the order of the sky; those of unplaced objects come last.

    Raises ObservationError if the catalogue was not finished, or if a file that it lists is missing, or one is there
    that it does not list.
    """
    listed = read_partitions(catalogue)
    present = pixel_files(catalogue)
    for pixel in sorted(set(listed) ^ set(present)):
        path = catalogue / DATASET_FOLDER / pixel.path
        problem = "is missing" if pixel in listed else "is not listed"
        raise ObservationError(f"{path}: {problem}; {catalogue / PARTITIONS} lists {len(listed)} files")
    shared = overlapping(listed)
    if shared is not None:
        raise ObservationError(f"{catalogue / PARTITIONS}: {shared[0].path} and {shared[1].path} cover the same sky")
    ordered = sorted(listed, key=lambda pixel: pixel.first)
    unplaced = sorted((catalogue / UNPLACED_FOLDER).glob("part-*.parquet"))
    return [
        *((catalogue / DATASET_FOLDER / pixel.path, pixel) for pixel in ordered),
        *((path, None) for path in unplaced),
    ]


def pixel_files(catalogue: Path) -> dict[Pixel, Path]:
    """The files of pixels that are there, listed or not. Raises ObservationError on a file with another name."""
    folder = catalogue / DATASET_FOLDER
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        if path.name.startswith("."):
            continue
        pixel = Pixel.from_path(path.relative_to(folder).as_posix())
        if pixel is None:
            raise ObservationError(f"{path}: expected files Norder=K/Dir=D/Npix=N.parquet")
        found[pixel] = path
    return found


def read_partitions(catalogue: Path) -> list[Pixel]:
    """The pixels that partition_info.csv lists. Raises ObservationError if there is none, or it is damaged."""
    path = catalogue / PARTITIONS
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return [Pixel(int(row["Norder"]), int(row["Npix"])) for row in rows]
    except FileNotFoundError:
        raise ObservationError(f"{catalogue}: {PARTITIONS} is missing: was the dataset's writing finished?") from None
    except (KeyError, ValueError, TypeError) as error:
        raise ObservationError(f"{path}: expected columns Norder and Npix of whole numbers ({error!r})") from None


def write_catalogue_metadata(catalogue: Path) -> None:
    """Write what makes a folder of files a finished HATS catalogue; `partition_info.csv` comes last, and says it is.

    Raises ObservationError if the files' layouts differ.
    """
    files = [ObservationFile.open(path, pixel) for pixel, path in pixel_files(catalogue).items()]
    files.sort(key=lambda file: file.pixel.first if file.pixel is not None else 0)
    for file in files[1:]:
        if file.layout != files[0].layout:
            raise ObservationError(f"{file.path}: its metadata differs from that of {files[0].path}")
    folder = catalogue / DATASET_FOLDER
    folder.mkdir(exist_ok=True)
    if files:
        _write_footers(folder, files)
    num_rows = sum(file.num_rows for file in files)
    properties = {
        "obs_collection": files[0].layout.modality.name.replace("/", "-") if files else "empty",
        "dataproduct_type": "object",
        "hats_nrows": num_rows,
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": INDEX_COLUMN,
        "hats_col_healpix_order": ORDER,
        "hats_npix_suffix": ".parquet",
        "hats_order": max((file.pixel.order for file in files if file.pixel is not None), default=0),
        "hats_max_rows": max((file.num_rows for file in files), default=0),
        "hats_builder": "armillary",
        "hats_version": HATS_VERSION,
        "moc_sky_fraction": f"{sum(1 / (12 * 4**file.pixel.order) for file in files if file.pixel is not None):.6f}",
    }
    with replacing(catalogue / PROPERTIES) as stream:
        stream.write("".join(f"{name}={value}\n" for name, value in properties.items()).encode())
    with replacing(catalogue / PARTITIONS) as stream:
        lines = [f"{file.pixel.order},{file.pixel.number}\n" for file in files if file.pixel is not None]
        stream.write(("Norder,Npix\n" + "".join(lines)).encode())


def read_properties(catalogue: Path, name: str = PROPERTIES) -> dict[str, str]:
    """The keys and values of hats.properties, or of a file like it. Raises ObservationError if it is missing."""
    path = catalogue / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise ObservationError(f"{path}: is missing") from None
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


def _write_footers(folder: Path, files: list[ObservationFile]) -> None:
    """`_metadata` with every row group of every file, and `_common_metadata` with the schema."""
    joined: Any = None
    for file in files:
        footer = pq.read_metadata(file.path)
        footer.set_file_path(file.path.relative_to(folder).as_posix())
        if joined is None:
            joined = footer
        else:
            joined.append_row_groups(footer)
    with replacing(folder / "_metadata") as stream:
        joined.write_metadata_file(stream)
    with replacing(folder / "_common_metadata") as stream:
        pq.write_metadata(files[0].layout.schema(), pa.PythonFile(stream))
