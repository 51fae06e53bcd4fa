"""Pushing a dataset: to a Hub of these tests, by the real client over HTTP, with the network off otherwise."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import datasets
import huggingface_hub
import numpy as np
import pytest

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ObservationError, ScalarObservation
from armillary.data.publish import PublishError, dataset_card, push_to_hub
from armillary.data.validate import validate_dataset


class Hub(ThreadingHTTPServer):
    """As much of the Hub as a push needs: repositories in memory, every file a plain blob in a commit."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files = {}
        self.visibility = {}
        self.tokens = set()
        self.revisions = set()
        self.refusal = None

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self, body):
        hub, url = self.server, urlparse(self.path)
        parts = url.path.strip("/").split("/")
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refusal is not None:
            return self.answer({"error": hub.refusal}, 403)
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in hub.visibility:
                return self.answer({"error": "exists", "url": f"{hub.address}/datasets/{name}"}, 409)
            hub.visibility[name] = asked.get("private", asked.get("visibility") == "private")
            return self.answer({"url": f"{hub.address}/datasets/{name}"})
        if parts == ["api", "validate-yaml"]:
            return self.answer({"warnings": [], "errors": []})
        assert parts[:2] == ["api", "datasets"], self.path
        name, rest = "/".join(parts[2:4]), parts[4:]
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in sorted(hub.files)]
            return self.answer({"id": name, "private": hub.visibility[name], "siblings": siblings, "sha": "0" * 40})
        if rest[0] == "branch":
            hub.revisions.add(rest[1])
            return self.answer({})
        if rest[0] == "tree":
            kind = {"type": "file", "oid": "0" * 40}
            return self.answer([{**kind, "size": len(b), "path": path} for path, b in sorted(hub.files.items())])
        if rest[0] == "preupload":
            asked = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in asked]
            return self.answer({"files": modes})
        assert rest[0] == "commit", self.path
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                hub.files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
            elif operation["key"] == "deletedFile":
                del hub.files[operation["value"]["path"]]
        hub.revisions.add(rest[1])
        address = f"{hub.address}/datasets/{name}/commit/{'1' * 40}"
        return self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": address})

    def do_GET(self):
        self.handle_request(b"")

    def do_POST(self):
        self.handle_request(self.rfile.read(int(self.headers.get("Content-Length", 0))))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def sky(tmp_path):
    """A dataset of images and redshifts, one redshift of an object without a place."""
    rng = np.random.default_rng(0)
    names, ra, dec = [f"g{n}" for n in range(6)], rng.uniform(0, 360, 6), rng.uniform(-60, 60, 6)
    images = ImageObservation(modality("image/hsc"), names, rng.normal(0, 1, (6, 2, 8, 8)), ["g", "r"], ra=ra, dec=dec)
    redshifts = ScalarObservation(
        modality("scalar/redshift"), [*names, "nowhere"], rng.uniform(0, 1, 7), ra=[*ra, np.nan], dec=[*dec, np.nan]
    )
    write_dataset(tmp_path / "sky", [images, redshifts], allow_unplaced=True)
    return tmp_path / "sky"


def client(hub):
    return huggingface_hub.HfApi(endpoint=hub.address, token="hf_of_this_test")


def pushed(hub, folder):
    """What lies on the Hub, written to a folder."""
    for path, content in hub.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def test_what_is_pushed_is_the_dataset_again_byte_for_byte(hub, sky, tmp_path):
    address = push_to_hub(sky, "someone/sky", api=client(hub), token="hf_of_this_test")
    assert address == f"{hub.address}/datasets/someone/sky"
    local = {p.relative_to(sky).as_posix(): p.read_bytes() for p in sky.rglob("*") if p.is_file()}
    expected = {path: content for path, content in local.items() if not path.endswith("pieces.json")}
    assert any(path.endswith("_metadata") for path in expected)
    assert {path: content for path, content in hub.files.items() if path != "README.md"} == expected
    assert hub.tokens == {"Bearer hf_of_this_test"}
    copy = pushed(hub, tmp_path / "copy")
    assert validate_dataset(copy) == []
    assert ObservationDataset(copy).object_ids("image/hsc") == ObservationDataset(sky).object_ids("image/hsc")


def test_hugging_face_datasets_reads_each_modality_by_its_configuration(hub, sky, tmp_path):
    push_to_hub(sky, "someone/sky", api=client(hub))
    copy = str(pushed(hub, tmp_path / "copy"))
    assert datasets.get_dataset_config_names(copy) == ["image--hsc", "scalar--redshift"]
    images = datasets.load_dataset(copy, "image--hsc", split="train", cache_dir=str(tmp_path / "cache"))
    own = ObservationDataset(sky).read("image/hsc")
    by_id = dict(zip(images["object_id"], images["flux"], strict=True))
    for name, flux in zip(own.object_id, own.flux.numpy(), strict=True):
        np.testing.assert_array_equal(np.array(by_id[name], dtype=np.float32), flux.ravel())
    redshifts = datasets.load_dataset(copy, "scalar--redshift", split="train", streaming=True)
    assert sorted(row["object_id"] for row in redshifts) == [*(f"g{n}" for n in range(6)), "nowhere"]


def test_a_repository_is_private_unless_told_otherwise(hub, sky):
    push_to_hub(sky, "someone/hidden", api=client(hub))
    push_to_hub(sky, "someone/open", private=False, api=client(hub))
    assert hub.visibility == {"someone/hidden": True, "someone/open": False}


def test_nothing_goes_to_a_repository_that_is_public_already(hub, sky):
    hub.visibility["someone/open"] = False
    with pytest.raises(PublishError, match=r"someone/open: exists already and is public; .* set private=False"):
        push_to_hub(sky, "someone/open", api=client(hub))
    assert hub.files == {}


def test_old_pixels_leave_and_other_files_stay(hub, sky):
    hub.visibility["someone/sky"] = True
    hub.files = {
        "image/hsc/dataset/Norder=5/Dir=0/Npix=77.parquet": b"of an older push",
        "spectrum/desi/dataset/Norder=0/Dir=0/Npix=1.parquet": b"no longer in the dataset",
        "LICENSE": b"CC BY 4.0",
        ".gitattributes": b"",
    }
    push_to_hub(sky, "someone/sky", api=client(hub))
    assert {"LICENSE", ".gitattributes", "README.md"} <= set(hub.files)
    assert not any("Npix=77" in path or path.startswith("spectrum") for path in hub.files)


def test_a_revision_is_a_branch_of_its_own(hub, sky):
    push_to_hub(sky, "someone/sky", revision="release-2", api=client(hub))
    assert hub.revisions == {"release-2"}


def test_an_invalid_dataset_is_not_pushed(hub, sky):
    path = next(sky.glob("image/hsc/dataset/*/*/*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ObservationError, match=r"sky: not a valid dataset, nothing was pushed\n.*Npix=\d+\.parquet"):
        push_to_hub(sky, "someone/sky", api=client(hub))
    assert hub.visibility == {}


def test_what_the_hub_answers_is_told(hub, sky):
    hub.refusal = "You have no right to write here"
    with pytest.raises(PublishError, match=r"(?s)someone/sky: .*You have no right to write here"):
        push_to_hub(sky, "someone/sky", api=client(hub))
    with pytest.raises(PublishError, match="some one/sky/x"):
        push_to_hub(sky, "some one/sky/x", api=client(hub))


def test_the_network_being_off_is_told(sky):
    with pytest.raises(PublishError, match=r"someone/sky: OfflineModeIsEnabled"):
        push_to_hub(sky, "someone/sky")


def test_a_card_in_the_folder_keeps_its_text_and_gets_our_configurations(sky):
    (sky / "README.md").write_text("---\nlicense: cc-by-4.0\nconfigs:\n- config_name: old\n---\n# My own words\n")
    card = huggingface_hub.DatasetCard(dataset_card(sky))
    assert card.data.license == "cc-by-4.0"
    assert [c["config_name"] for c in card.data.configs] == ["image--hsc", "scalar--redshift"]
    assert "# My own words" in card.text
    (sky / "README.md").write_text("# No metadata at all\n")
    assert "# No metadata at all" in dataset_card(sky)


def test_the_card_tells_what_there_is(sky):
    card = huggingface_hub.DatasetCard(dataset_card(sky, "someone/sky"))
    assert "| `image--hsc` | 6 | nanomaggies per pixel |" in card.text
    assert 'load_dataset("someone/sky", "image--hsc"' in card.text
    assert card.data.size_categories == ["n<1K"]
    with pytest.raises(ObservationError):
        dataset_card(sky / "image")
