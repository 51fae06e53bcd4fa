"""Rows per second of cross-matching, against astropy's matcher in the same run; memory at ten million rows.

Two catalogues over the whole sky, half of whose objects are common to both with errors of 0.2 arcsec, are matched
within 1 arcsec. Astropy's time includes its SkyCoord, ours the SkyTable with all its checks of ids and positions; the
ratios named `matching` compare the matchers alone. Times are CPU seconds, the best of some runs in turns. Without
`--quick`, catalogues of 1e7 rows are matched by each in a process of its own, whose greatest memory is read.

    python benchmarks/crossmatch.py [--quick]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord, match_coordinates_sky, search_around_sky

from armillary.data.crossmatch.match import crossmatch
from armillary.data.crossmatch.sky_table import SkyTable

RADIUS = 1.0
BIG = 10_000_000


def catalogues(count: int) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """Ids and positions in degrees of two catalogues of `count` rows in no order."""
    random = np.random.default_rng(0)
    ra, dec = random.uniform(0, 360, count), np.degrees(np.arcsin(random.uniform(-1, 1, count)))
    other_ra, other_dec = random.uniform(0, 360, count), np.degrees(np.arcsin(random.uniform(-1, 1, count)))
    half = count // 2
    shift = random.normal(0, 0.2 / 3600, (2, half))
    other_ra[:half] = (ra[:half] + shift[0] / np.cos(np.radians(dec[:half]))) % 360
    other_dec[:half] = np.clip(dec[:half] + shift[1], -90, 90)
    order = random.permutation(count)
    ids = [pa.array(random.permutation(count)).cast(pa.large_string()) for _ in range(2)]
    return [(ids[0], ra, dec), (ids[1], other_ra[order], other_dec[order])]


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """What `run` returns, and the CPU seconds it took."""
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def compare(count: int, repeats: int) -> dict[str, float]:
    """CPU seconds of astropy and of ours, with and without what comes before, and their ratios."""
    left, right = catalogues(count)
    best: dict[str, float] = {}

    def take(name: str, seconds: float) -> None:
        best[name] = min(best.get(name, np.inf), seconds)

    for _ in range(repeats):
        before, sky = cpu_seconds(lambda: [SkyCoord(ra, dec, unit="deg") for _, ra, dec in (left, right)])
        nearest, (index, distance, _) = cpu_seconds(lambda sky=sky: match_coordinates_sky(*sky))
        around, (one, _, _, _) = cpu_seconds(lambda sky=sky: search_around_sky(*sky, RADIUS * u.arcsec))
        take("astropy_matching", nearest)
        take("astropy", before + nearest)
        take("astropy_all", around)
        before, tables = cpu_seconds(lambda: [SkyTable("", *columns) for columns in (left, right)])
        for mode in ("nearest", "one-to-one", "all"):
            seconds, matches = cpu_seconds(lambda t=tables, m=mode: crossmatch(*t, RADIUS, mode=m, engine="tree"))
            take(mode, seconds)
            if mode == "nearest":
                take("armillary", before + seconds)
                near = np.flatnonzero(distance.arcsec <= RADIUS)
                assert np.array_equal(matches.left_row, near), "not the pairs that astropy finds"
                assert np.array_equal(matches.right_row, index[near]), "not the pairs that astropy finds"
            elif mode == "all":
                assert len(matches) == len(one), "not as many pairs as astropy finds"
    size = f"{count:.0e}".replace("e+0", "e")
    return {
        f"rows_per_cpu_s_{size}": round(count / best["armillary"]),
        f"astropy_rows_per_cpu_s_{size}": round(count / best["astropy"]),
        f"ratio_to_astropy_{size}": round(best["astropy"] / best["armillary"], 2),
        f"ratio_to_astropy_matching_{size}": round(best["astropy_matching"] / best["nearest"], 2),
        f"ratio_to_astropy_all_{size}": round(best["astropy_all"] / best["all"], 2),
        f"cpu_s_one_to_one_{size}": round(best["one-to-one"], 3),
    }


def match_big(engine: str, count: int) -> None:
    """Match two catalogues in this process and print its seconds and its greatest memory, before and after."""
    left, right = catalogues(count)
    gib = 1024**2 / (1024 if sys.platform == "darwin" else 1)  # kB, but bytes on macOS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / gib
    start, wall = time.process_time(), time.perf_counter()
    if engine == "astropy":
        sky = [SkyCoord(ra, dec, unit="deg") for _, ra, dec in (left, right)]
        pairs = int((match_coordinates_sky(*sky)[1].arcsec <= RADIUS).sum())
    else:
        tables = [SkyTable(name, *columns) for name, columns in (("left", left), ("right", right))]
        pairs = len(crossmatch(*tables, RADIUS, mode="nearest", engine=engine))
    record = {
        "pairs": pairs,
        "cpu_s": round(time.process_time() - start, 1),
        "wall_s": round(time.perf_counter() - wall, 1),
        "inputs_gib": round(before, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / gib, 2),
    }
    print(json.dumps(record))


def big(engine: str, count: int) -> dict[str, float]:
    """The record of `match_big` in a process of its own."""
    command = [sys.executable, __file__, "--child", engine, "--rows", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1e5 and 1e6 rows alone, fewer runs")
    parser.add_argument("--child", choices=["tree", "lsdb", "astropy"], help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=BIG, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        match_big(options.child, options.rows)
        return
    record = compare(100_000, 3 if options.quick else 7) | compare(1_000_000, 2 if options.quick else 5)
    if not options.quick:
        for engine in ("tree", "astropy", "lsdb"):
            found = big(engine, BIG)
            print(f"1e7 rows, {engine}: {found}", file=sys.stderr)
            suffix = "1e7" if engine == "tree" else f"{engine}_1e7"
            record |= {f"{name}_{suffix}": found[name] for name in ("peak_gib", "inputs_gib", "cpu_s", "wall_s")}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
