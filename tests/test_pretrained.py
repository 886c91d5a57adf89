"""ImageNet weights in the published formats, made here from random numbers."""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import sys
from collections import OrderedDict
from importlib import import_module
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY
from safetensors.torch import save_file
from web import serving

from ciss.checkpoint import save_model
from ciss.errors import CissError
from ciss.models import NetworkConfig, SegmentationNetwork, initialise
from ciss.models.pretrained import load_imagenet, remote_weights


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


def write_iabn(path, state, *, beside=None, **how):
    """As resnet101_iabn_sync.pth.tar: wrapped, prefixed, no counters, a classifier."""
    content = OrderedDict(
        (f"module.{name}", value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    )
    content["module.classifier.fc.weight"] = torch.zeros(1000, 8)
    content["module.classifier.fc.bias"] = torch.zeros(1000)
    whole = {"epoch": 3, "arch": "x", "best_prec1": 0.5, "state_dict": content, **(beside or {})}
    torch.save(whole, path, **how)


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
    assert found.unexpected == ("classifier.fc.weight", "classifier.fc.bias")
    assert all(name.endswith("num_batches_tracked") for name in found.missing)
    for name, value in network.body.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name]), name
    assert all(torch.equal(value, head[name]) for name, value in network.head.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as before PyTorch 1.6"])
def test_numbers_beside_the_weights_are_no_matter(tmp_path, zipped):
    """Training scripts save their best score with the weights, as NumPy's numbers too."""
    state = source_body()
    path = tmp_path / "weights.pth.tar"
    beside = {"best_prec1": np.float64(77.5), "optimizer": {"state": {}, "param_groups": []}}
    write_iabn(path, state, beside=beside, _use_new_zipfile_serialization=zipped)
    if not zipped:
        # As NumPy 1 spelled it.
        content = path.read_bytes()
        assert content.count(b"numpy._core.multiarray\n") == 1
        path.write_bytes(content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    network = network_of()
    load_imagenet(network, path)
    assert torch.equal(network.body.mod1.conv1.weight, state["mod1.conv1.weight"])


def test_the_report_names_what_was_left_aside(tmp_path):
    state = source_body()
    state["sobel.weight"] = torch.zeros(3)
    write_iabn(tmp_path / "weights.pth.tar", state)
    report = str(load_imagenet(network_of(norm="bn"), tmp_path / "weights.pth.tar"))
    n_set = sum(not name.endswith("num_batches_tracked") for name in state) - 1
    for words in (
        f"{tmp_path / 'weights.pth.tar'}: {n_set} tensors of the encoder are set",
        hashlib.sha256((tmp_path / "weights.pth.tar").read_bytes()).hexdigest(),
        "inplace-abn's names",
        "converted from norm abn to bn, |weight| + 1e-05 taken as the weight",
        "the classifier of ImageNet: classifier.fc.weight, classifier.fc.bias",
        "UNEXPECTED in the file, and left aside: sobel.weight",
        "missing in the file: 53 counters num_batches_tracked",
    ):
        assert words in report
    torch.save(torchvision_names(source_body()), tmp_path / "weights.pth")
    report = str(load_imagenet(network_of(norm="bn"), tmp_path / "weights.pth"))
    assert "torchvision's names" in report
    for words in ("UNEXPECTED", "scales", "missing"):
        assert words not in report


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


def test_pickled_code_is_not_executed(tmp_path, capsys):
    class Attack:
        def __reduce__(self):
            return (print, ("executed",))

    for zipped in (True, False):
        path = tmp_path / "attack.pth"
        torch.save({"state_dict": Attack()}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CissError, match=r"a Python object, \S*print, .* it could run code"):
            load_imagenet(network_of(), path)
    assert "executed" not in capsys.readouterr().out


# --- Fetching ------------------------------------------------------------------------------


def test_the_addresses_are_torchvision_s():
    """Its module cannot be imported everywhere, its source can be read."""
    (path,) = (path for path in files("torchvision") if path.match("models/resnet.py"))
    source = Path(str(path.locate())).read_text()
    for backbone in ("resnet18", "resnet34", "resnet50", "resnet101"):
        remote = remote_weights("torchvision", backbone)
        class_ = source.partition(f"class ResNet{backbone[6:]}_Weights")[2].partition("class ")[0]
        default = re.search(r"DEFAULT = (\w+)", class_)[1]
        assert f'url="{remote.urls[0]}"' in class_.partition(f"{default} = Weights(")[2]
        assert remote.urls[0].endswith(f"/{remote.name}")


def test_weights_that_nobody_publishes():
    with pytest.raises(CissError, match=r"no published weights of resnet50; set model\.weights"):
        remote_weights("published", "resnet50")


@pytest.fixture
def fetch_weights(tmp_path, monkeypatch):
    """Run the script of rule imagenet_weights here."""
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "workflow_scripts"), *sys.path])
    script = import_module("imagenet_weights")
    monkeypatch.setattr("ciss.download._pause", lambda failures: 0.0)

    def run(source, backbone, mirror, checksums=()):
        output = tmp_path / "weights" / f"{source}-{backbone}.pth"
        given = {"source": source, "backbone": backbone, "output": output, "mirror": mirror}
        archives = tmp_path / "archives"
        script.main(argparse.Namespace(**given, archives=archives, checksums=[*checksums]))
        return output

    return run


def full_size(backbone):
    network = SegmentationNetwork(NetworkConfig(backbone, norm="bn"), [1])
    return {name: torch.zeros_like(value) for name, value in network.body.state_dict().items()}


def test_the_published_weights_are_fetched_and_compared_from_then_on(
    tmp_path, fetch_weights, caplog
):
    path = tmp_path / "resnet101_iabn_sync.pth.tar"
    write_iabn(path, full_size("resnet101"), _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with serving({path.name: content}) as site, caplog.at_level(logging.INFO, "ciss"):
        site.breaks = [1_000_000]
        output = fetch_weights("published", "resnet101", site.url)
        assert output.read_bytes() == content
        exchanged = bytearray(content)
        exchanged[-5] ^= 1
        output.write_bytes(exchanged)
        with pytest.raises(CissError, match=rf"not the file that was fetched: .* notes {digest}"):
            load_imagenet(network_of("resnet101", width=64), output)
        assert site.asked[1] == (f"/{path.name}", "bytes=1000000-")
        for words in (
            "resnet101_iabn_sync.pth.tar: 520 tensors of the encoder are set",
            "the classifier of ImageNet: classifier.fc.weight, classifier.fc.bias",
            f"no checksum of {path.name} is published: sha256 {digest} is noted",
        ):
            assert words in caplog.text
        output.unlink()
        site.files[path.name] = b"another file"
        with pytest.raises(CissError, match=f"noted in .* is {digest}.*train from scratch"):
            fetch_weights("published", "resnet101", site.url)
        assert not output.exists()


def test_torchvision_s_weights_have_their_digest_in_their_name(tmp_path, fetch_weights):
    name = "resnet18-f37072fd.pth"
    torch.save(torchvision_names(full_size("resnet18")), tmp_path / name)
    with pytest.raises(CissError, match=r"its sha256 is .*, the one published is f37072fd"):
        fetch_weights("torchvision", "resnet18", str(tmp_path))
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    # Without a network: the file under its own name where archives are kept.
    (tmp_path / "archives").mkdir()
    (tmp_path / name).rename(tmp_path / "archives" / name)
    output = fetch_weights("torchvision", "resnet18", "", [(name, digest)])
    assert output.read_bytes() == (tmp_path / "archives" / name).read_bytes()


def test_a_file_of_another_backbone_is_not_kept(tmp_path, fetch_weights):
    name = "resnet34-b627a593.pth"
    torch.save(torchvision_names(full_size("resnet18")), tmp_path / name)
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    with pytest.raises(CissError, match=f"^{name} does not cover the encoder") as caught:
        fetch_weights("torchvision", "resnet34", str(tmp_path), [(name, digest)])
    assert "layer" not in str(caught.value)
    assert list((tmp_path / "weights").iterdir()) == []
