"""Tokenizers on disk and on the Hub."""

import json

import pytest
import torch

from armillary.tokenizers import pretrained
from armillary.tokenizers.image import ImageTokenizer
from armillary.tokenizers.pretrained import PretrainedError, write_folder
from armillary.tokenizers.scalar import ScalarTokenizer
from armillary.tokenizers.spectrum import SpectrumTokenizer

TYPES = {"image": ImageTokenizer, "spectrum": SpectrumTokenizer, "scalar": ScalarTokenizer}
OBSERVED = {"image": "image/hsc", "spectrum": "spectrum/desi", "scalar": "scalar/redshift"}
KINDS = pytest.mark.parametrize("kind", list(TYPES))


@KINDS
def test_a_saved_tokenizer_comes_back_bit_for_bit(tokenizers, sky, tmp_path, kind):
    tokenizers[kind].save_pretrained(tmp_path / "t")
    loaded = TYPES[kind].from_pretrained(tmp_path / "t")
    assert loaded.settings == tokenizers[kind].settings
    weights = loaded.state_dict()
    assert weights.keys() == tokenizers[kind].state_dict().keys()
    for name, tensor in tokenizers[kind].state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    observation = sky[OBSERVED[kind]]
    assert torch.equal(loaded.encode(observation).codes, tokenizers[kind].encode(observation).codes)


@KINDS
def test_a_folder_holds_safetensors_and_json_alone(tokenizers, tmp_path, kind):
    tokenizers[kind].save_pretrained(tmp_path / "t")
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_saving_again_replaces_the_folder(tokenizers, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "left.over").write_text("")
    tokenizers["scalar"].save_pretrained(tmp_path / "t")
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["config.json", "model.safetensors"]


def test_a_write_that_fails_leaves_the_old_folder_as_it_was(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "old").write_text("old")

    def fail(place):
        (place / "new").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_folder(tmp_path / "t", fail)
    assert [p.name for p in tmp_path.rglob("*")] == ["t", "old"]


def test_a_hub_id_goes_through_the_hub_library(tokenizers, tmp_path, monkeypatch):
    tokenizers["scalar"].save_pretrained(tmp_path / "snapshot")
    asked = []

    def snapshot_download(name):
        asked.append(name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(pretrained, "snapshot_download", snapshot_download)
    loaded = ScalarTokenizer.from_pretrained("somebody/scalar-tokenizer")
    assert asked == ["somebody/scalar-tokenizer"]
    assert torch.equal(loaded.value_bins.edges, tokenizers["scalar"].value_bins.edges)


def test_a_hub_id_that_is_not_in_the_cache_is_an_error_when_offline():
    with pytest.raises(PretrainedError, match="nobody/nothing: no such folder, and not loadable from the Hub"):
        ScalarTokenizer.from_pretrained("nobody/nothing")


@pytest.mark.parametrize("name", ["no-such-folder", "/no/such", "./no", "a/b/c"])
def test_a_path_that_is_no_folder_is_never_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr(pretrained, "snapshot_download", lambda name: pytest.fail(f"asked for {name}"))
    with pytest.raises(PretrainedError, match="expected a folder or a Hub id"):
        ScalarTokenizer.from_pretrained(name)


@KINDS
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_weight_file_is_an_error_that_names_it(tokenizers, tmp_path, kind, share):
    tokenizers[kind].save_pretrained(tmp_path / "t")
    path = tmp_path / "t" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(PretrainedError, match=r"model\.safetensors: expected a whole safetensors file"):
        TYPES[kind].from_pretrained(tmp_path / "t")


def test_weights_of_other_sizes_than_the_config_are_an_error(tokenizers, tmp_path):
    tokenizers["image"].save_pretrained(tmp_path / "t")
    path = tmp_path / "t" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "width": 64}))
    with pytest.raises(PretrainedError, match="do not fit the config"):
        ImageTokenizer.from_pretrained(tmp_path / "t")


def test_a_config_of_another_kind_or_damaged_is_an_error(tokenizers, tmp_path):
    tokenizers["image"].save_pretrained(tmp_path / "t")
    with pytest.raises(PretrainedError, match="expected model_type 'armillary-spectrum-tokenizer', found 'armillary-i"):
        SpectrumTokenizer.from_pretrained(tmp_path / "t")
    (tmp_path / "t" / "config.json").write_text('{"model_type": ')
    with pytest.raises(PretrainedError, match="not valid JSON"):
        ImageTokenizer.from_pretrained(tmp_path / "t")
    (tmp_path / "t" / "config.json").unlink()
    with pytest.raises(PretrainedError, match=r"config\.json: cannot be read"):
        ImageTokenizer.from_pretrained(tmp_path / "t")
