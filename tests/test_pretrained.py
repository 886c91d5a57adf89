"""ImageNet weights in the published formats, made here from random numbers."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from ciss.checkpoint import save_model
from ciss.errors import CissError
from ciss.models import NetworkConfig, SegmentationNetwork, initialise
from ciss.models.pretrained import load_imagenet


def network_of(backbone="resnet50", norm="abn", width=4, seed=0):
    network = SegmentationNetwork(NetworkConfig(backbone, 16, norm, width, 8), [3])
    initialise(network, seed)
    return network.eval()


def source_body(backbone="resnet50", negative=True):
    """Encoder weights under our names, scales of both signs."""
    generator = torch.Generator().manual_seed(5)
    state = network_of(backbone, seed=9).body.state_dict()
    for name, value in state.items():
        if re.search(r"bn\d?\.", name) and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            if negative and name.endswith("weight"):
                value[::3] *= -1
    return state


def torchvision_names(state):
    """The same weights as torchvision names them."""
    renamed = {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}
    for name, value in state.items():
        match = re.fullmatch(r"mod(\d)\.block(\d+)\.(?:convs\.)?(.+)", name)
        if match is None:
            renamed[name.removeprefix("mod1.")] = value
        else:
            rest = match[3].replace("proj_conv", "downsample.0").replace("proj_bn", "downsample.1")
            renamed[f"layer{int(match[1]) - 1}.{int(match[2]) - 1}.{rest}"] = value
    return renamed


def write_iabn(path, state):
    """As resnet101_iabn_sync.pth.tar: wrapped, prefixed, no counters, a classifier."""
    content = {
        f"module.{name}": value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    content["module.classifier.fc.weight"] = torch.zeros(1000, 8)
    torch.save({"epoch": 3, "arch": "x", "best_prec1": 0.5, "state_dict": content}, path)


def scaled(state, convert):
    return {
        name: convert(value) if re.search(r"bn\d?\.weight", name) else value
        for name, value in state.items()
    }


def body_output(network, state):
    network.body.load_state_dict(state)
    return network.body(images())[0]


def images():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_inplace_abn_file(tmp_path):
    state = source_body()
    write_iabn(tmp_path / "weights.pth.tar", state)
    network = network_of()
    head = {name: value.clone() for name, value in network.head.state_dict().items()}
    found = load_imagenet(network, tmp_path / "weights.pth.tar")
    assert found.names == "inplace-abn"
    assert found.unexpected == ("classifier.fc.weight",)
    assert all(name.endswith("num_batches_tracked") for name in found.missing)
    for name, value in network.body.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name]), name
    assert all(torch.equal(value, head[name]) for name, value in network.head.state_dict().items())


def test_inplace_abn_file_into_plain_batch_norm_keeps_the_values(tmp_path):
    state = source_body()
    write_iabn(tmp_path / "weights.pth.tar", state)
    plain = network_of(norm="bn")
    load_imagenet(plain, tmp_path / "weights.pth.tar")
    weight = plain.body.state_dict()["mod2.block1.convs.bn1.weight"]
    assert torch.equal(weight, state["mod2.block1.convs.bn1.weight"].abs() + 1e-5)
    expected = body_output(network_of(), state)
    assert torch.allclose(plain.body(images())[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_file(tmp_path, backbone, suffix):
    state = source_body(backbone)
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_file)(torchvision_names(state), path)
    network = network_of(backbone, "bn")
    found = load_imagenet(network, path)
    assert found.names == "torchvision"
    assert set(found.unexpected) == {"fc.weight", "fc.bias"}
    assert found.missing == ()
    assert all(torch.equal(value, state[name]) for name, value in network.body.state_dict().items())


def test_torchvision_file_into_abn(tmp_path):
    """Possible for positive scales alone, and then exact."""
    path = tmp_path / "weights.pth"
    torch.save(torchvision_names(source_body()), path)
    network = network_of()
    before = network.body.mod1.conv1.weight.clone()
    with pytest.raises(CissError, match=r"negative or vanishing scales.*set norm to 'bn'"):
        load_imagenet(network, path)
    assert torch.equal(network.body.mod1.conv1.weight, before)

    state = source_body(negative=False)
    torch.save(torchvision_names(state), path)
    load_imagenet(network, path)
    expected = body_output(network_of(norm="bn"), state)
    assert torch.allclose(network.body(images())[0], expected, rtol=1e-4, atol=1e-4)


def test_torchvision_names_are_those_of_torchvision(tmp_path):
    """Those made here are the names of a real torchvision state dict."""
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    with torch.device("meta"):
        real = models.resnet50().state_dict()
    ours = torchvision_names(network_of().body.state_dict())
    assert set(real) == set(ours)


def test_own_checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    source = network_of(norm="bn", seed=3)
    with torch.no_grad():
        source.body.mod1.bn1.weight[0] = -0.5
    save_model(path, source, {})
    network = network_of(norm="bn")
    load_imagenet(network, path)
    assert torch.equal(network.body(images())[0], source.body(images())[0])


def test_another_backbone(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(torchvision_names(source_body("resnet18")), path)
    with pytest.raises(CissError, match=r"does not cover the encoder \(backbone resnet34"):
        load_imagenet(network_of("resnet34", "bn"), path)
    # Every tensor of the shallower encoder is there, and more.
    torch.save(torchvision_names(source_body("resnet34")), path)
    with pytest.raises(CissError, match="another backbone"):
        load_imagenet(network_of("resnet18", "bn"), path)
    with pytest.raises(CissError, match=r"of shape \(4, 3, 7, 7\), the encoder .* \(8, 3, 7, 7\)"):
        load_imagenet(network_of("resnet34", "bn", width=8), path)


def test_unreadable_files(tmp_path):
    with pytest.raises(CissError, match="do not exist"):
        load_imagenet(network_of(), tmp_path / "none.pth")
    for name in ("empty.pth", "bad.pth", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"not weights")
        with pytest.raises(CissError, match="cannot be read"):
            load_imagenet(network_of(), tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CissError, match="hold a list"):
        load_imagenet(network_of(), tmp_path / "list.pth")
    torch.save({"state_dict": {}}, tmp_path / "nothing.pth")
    with pytest.raises(CissError, match="does not cover"):
        load_imagenet(network_of(), tmp_path / "nothing.pth")


def test_pickled_code_is_not_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"state_dict": Attack()}, tmp_path / "attack.pth")
    with pytest.raises(CissError, match="cannot be read"):
        load_imagenet(network_of(), tmp_path / "attack.pth")
