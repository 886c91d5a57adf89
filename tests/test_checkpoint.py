"""Files of tensors and models: round trips, and every way in which a file can be wrong."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import full_disk
from safetensors.torch import save_file

from ciss import checkpoint
from ciss.checkpoint import load_model, load_tensors, save_model, save_tensors
from ciss.errors import CissError
from ciss.models import NetworkConfig, SegmentationNetwork, initialise

METADATA = {"classes": ["background", "bär"], "recipe": {"lr": 0.02}, "revision": "abc"}


@pytest.fixture
def network():
    network = SegmentationNetwork(NetworkConfig("resnet18", width=4, head_channels=8), [3, 2])
    initialise(network, 0)
    return network


def test_model_round_trip(tmp_path, network):
    path = tmp_path / "folder" / "model.safetensors"
    network = network.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32)
    network.train()(x)
    save_model(path, network, METADATA)
    random_state = torch.get_rng_state()
    loaded, metadata = load_model(path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert metadata == METADATA
    assert loaded.config == network.config
    assert loaded.classes_per_step == (3, 2)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with torch.inference_mode():
        assert torch.equal(
            loaded(x).small_logits.argmax(1), network.eval()(x).small_logits.argmax(1)
        )
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_equal_models_are_equal_files(tmp_path, network):
    for name in "ab":
        save_model(tmp_path / name, network, METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.bool, torch.int64, torch.uint8]
)
def test_tensor_round_trip(tmp_path, dtype):
    tensors = {
        "matrix": torch.arange(6).reshape(2, 3).to(dtype).T,
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.empty(0, 3, dtype=dtype),
    }
    save_tensors(tmp_path / "file", tensors, {"n": 1}, kind="attribution")
    loaded, metadata = load_tensors(tmp_path / "file", kind="attribution")
    assert metadata == {"n": 1}
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], value)


def test_no_length_of_a_header_is_taken_for_a_pickle(tmp_path):
    starts = set()
    for words in range(180):
        save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(1)}, {"a": "x" * 8 * words})
        starts.add((tmp_path / "t.safetensors").read_bytes()[:2])
        load_tensors(tmp_path / "t.safetensors")
    # as the pickles of protocols 2 to 5 begin
    assert {b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"} <= starts


def test_damage_is_found_wherever_it_is(tmp_path, network):
    path = tmp_path / "model.safetensors"
    save_model(path, network, METADATA)
    whole = path.read_bytes()
    for damaged in (b"", whole[:4], whole[:1000], whole[:-1], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(CissError, match="damaged"):
            load_model(path)
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in (start, (start + len(whole)) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CissError, match=r"damaged: its checksum|not finite"):
            load_model(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CissError, match="does not exist"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(CissError, match="is a folder"):
        load_model(tmp_path)


def test_other_kind_version_and_origin(tmp_path, network, monkeypatch):
    path = tmp_path / "file"
    save_tensors(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(CissError, match="holds 'tensors', not 'model'"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CissError, match="header is missing"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"ciss": json.dumps([1])})
    with pytest.raises(CissError, match="header is missing"):
        load_model(path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 99)
        save_model(path, network, {})
    with pytest.raises(CissError, match="format version 99"):
        load_model(path)


def test_weights_that_do_not_fit_the_header(tmp_path, network):
    path = tmp_path / "file"
    shape = {"config": network.config.to_dict(), "classes_per_step": [3, 1]}
    content = {"network": shape, "metadata": {}}
    save_tensors(path, network.state_dict(), content, kind="model")
    with pytest.raises(CissError, match="does not hold the network"):
        load_model(path)
    save_tensors(path, network.state_dict(), {"metadata": {}}, kind="model")
    with pytest.raises(CissError, match="does not hold the network"):
        load_model(path)


def test_diverged_model_is_not_saved(tmp_path, network):
    path = tmp_path / "file"
    save_model(path, network, {})
    before = path.read_bytes()
    with torch.no_grad():
        network.cls[1].weight[0, 0] = float("nan")
    with pytest.raises(CissError, match=r"cls\.1\.weight has values that are not finite"):
        save_model(path, network, {})
    assert path.read_bytes() == before


def test_a_full_disk_keeps_the_old_model(tmp_path, network):
    path = tmp_path / "model.safetensors"
    save_model(path, network, METADATA)
    with full_disk(1000), pytest.raises(CissError, match=r"cannot write .*make room"):
        save_model(path, network, {"other": True})
    assert load_model(path)[1] == METADATA
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
