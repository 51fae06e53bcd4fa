"""The simulated sky on disk: the same bytes by any number of processes, whole after any number of deaths."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.observations import ObservationError
from armillary.data.simulation.record import RECORD
from armillary.data.simulation.sky import SimulatedSky, SkySettings
from armillary.data.simulation.write_sky import write_simulated_dataset
from armillary.data.validate import validate_dataset
from armillary.settings import SettingsError

SETTINGS = SkySettings(
    num_objects=28,
    seed=5,
    shard_size=8,
    modalities=("image/legacysurvey", "spectrum/sdss", "scalar/redshift"),
    image_sizes={"image/legacysurvey": 24},
)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sky") / "data"
    assert write_simulated_dataset(SETTINGS, folder) == 4
    return folder


def test_dataset_is_valid_and_holds_the_sky(written):
    assert validate_dataset(written) == []
    dataset, sky = ObservationDataset(written), SimulatedSky(SETTINGS)
    assert sorted(m.name for m in dataset.modalities) == sorted(SETTINGS.modalities)
    expected = sky.batch(range(28))
    for name in SETTINGS.modalities:
        found = dataset.read(name, list(expected[name].object_id))
        torch.testing.assert_close(found.ra, expected[name].ra)
        values = "values" if name.startswith("scalar") else "flux"
        torch.testing.assert_close(getattr(found, values), getattr(expected[name], values), rtol=1e-4, atol=1e-5)


def test_writing_again_changes_nothing(written):
    before = content(written)
    assert write_simulated_dataset(SETTINGS, written) == 0
    assert content(written) == before


def test_bytes_do_not_depend_on_the_number_of_jobs(written, tmp_path):
    assert write_simulated_dataset(SETTINGS, tmp_path / "a", part=1, num_parts=2) == 2
    assert not list((tmp_path / "a").rglob("partition_info.csv"))  # not whole yet
    assert write_simulated_dataset(SETTINGS, tmp_path / "a", part=0, num_parts=2) == 2
    assert content(tmp_path / "a") == content(written)


def test_run_killed_with_its_workers_at_work_is_continued_to_the_same_bytes(written, tmp_path):
    """The parent is killed outright: its workers must go with it, and what stands must be left alone."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import json
        from armillary.data.simulation.sky import SkySettings
        from armillary.data.simulation.write_sky import write_simulated_dataset
        if __name__ == "__main__":
            settings = SkySettings.model_validate(json.loads({json.dumps(SETTINGS.model_dump_json())}))
            write_simulated_dataset(settings, {str(tmp_path / "data")!r}, workers=2)
        """),
        encoding="utf-8",
    )
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not list((tmp_path / "data").rglob("Npix=*.parquet")):
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while time.monotonic() < deadline and living(process.pid):
        time.sleep(0.05)
    assert not living(process.pid)
    stood = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("Npix=*.parquet")}
    assert stood
    write_simulated_dataset(SETTINGS, tmp_path / "data")
    assert all(path.stat().st_mtime_ns == moment for path, moment in stood.items())
    assert content(tmp_path / "data") == content(written)


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_processes(written, tmp_path):
    assert write_simulated_dataset(SETTINGS, tmp_path / "data", workers=3) == 4
    assert content(tmp_path / "data") == content(written)


def living(session: int) -> list[int]:
    """Processes of this session that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *rest = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[2]) == session and state != "Z":
            found.append(int(entry.parent.name))
    return found


def test_other_settings_do_not_mix_into_a_sky(written):
    before = content(written)
    with pytest.raises(ObservationError, match=r"other settings: seed is 5, expected 6"):
        write_simulated_dataset(SETTINGS.model_copy(update={"seed": 6}), written)
    assert content(written) == before


def test_a_sky_is_not_written_into_another_dataset(tmp_path):
    write_dataset(tmp_path, [SimulatedSky(SETTINGS).batch([0])["scalar/redshift"]])
    with pytest.raises(ObservationError, match="no simulated sky"):
        write_simulated_dataset(SETTINGS, tmp_path)


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / RECORD).write_text('{"settings": ', encoding="utf-8")
    with pytest.raises(ObservationError, match=RECORD):
        write_simulated_dataset(SETTINGS, tmp_path)


@pytest.mark.parametrize("division", [{"workers": 0}, {"part": 2, "num_parts": 2}, {"part": -1}])
def test_impossible_divisions_of_the_work_are_refused(division, tmp_path):
    with pytest.raises(SettingsError, match="0 <= part < num_parts"):
        write_simulated_dataset(SETTINGS, tmp_path, **division)
