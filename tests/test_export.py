"""A finished model as ONNX: the graph computes what the model does, at any size."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ciss import ridge
from ciss.errors import CissError
from ciss.export import export, window_means
from ciss.loading import to_network_input
from ciss.models import NetworkConfig, SegmentationNetwork, initialise
from ciss.models.deeplab import DeepLabHead


def tiny() -> SegmentationNetwork:
    config = NetworkConfig("resnet18", width=4, head_channels=8, pooling=3)
    network = SegmentationNetwork(config, (3, 2))
    initialise(network, 0)
    return network.eval()


def test_windows_are_those_of_the_head() -> None:
    head = DeepLabHead(4, 4, 16, 5, "abn").eval()
    for size in ((3, 4), (5, 5), (9, 5), (4, 13), (12, 17), (1, 1)):
        maps = torch.randn(2, 4, *size)
        expected = head._pool(maps).expand_as(maps)
        torch.testing.assert_close(window_means(maps, 5), expected)


def test_the_file_computes_what_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    network, path = tiny(), tmp_path / "model ü.onnx"
    said = export(network, ["background", "a", "b", "c", "d"], {"source": "here"}, path)
    assert "largest difference" in said
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    entries = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert entries["classes"] == ["background", "a", "b", "c", "d"]
    assert entries["ciss"] == {"source": "here"}

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 33, 70), (3, 3, 96, 64)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        labels, logits = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            expected = network(to_network_input(images)).logits.numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
        assert (labels == expected.argmax(1)).mean() > 0.999

    # A file that computes something else is not kept, and the one that was there stays.
    before = path.read_bytes()

    monkeypatch.setattr(torch.onnx, "export", lambda *given, **how: Saved(before))
    network.classifiers[0].bias.data += 1
    with pytest.raises(CissError, match=r"does not compute what the model does: at 2 × "):
        export(network, ["background", "a", "b", "c", "d"], {}, path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_classifiers_of_random_features_can_be_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network = tiny()
    # More than are in memory at once.
    expansion = ridge.random_expansion(600, network.config.head_channels, seed=1)
    phi = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
    solved = ridge.with_head(network, expansion, phi, [3, 2])
    assert "0 labels" in export(solved, ["background", *"abcd"], {}, tmp_path / "model.onnx")


def test_a_model_with_an_unknown_can_be_exported(tmp_path: Path) -> None:
    """SSUL's: its labels are those in which the unknown is background."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network = SegmentationNetwork(tiny().config, (3, 2), unknown=True, hidden=True)
    initialise(network, 0)
    network.eval()
    with torch.no_grad():
        # Only together do background and unknown come before the second class.
        parts = [*network.classifiers, network.unknown]
        for classifier, logit in zip(parts, (0.4, -9, 0.8, 0.4), strict=True):
            classifier.weight.zero_()
            classifier.bias.fill_(logit)
    path = tmp_path / "model.onnx"
    assert "0 labels" in export(network, ["background", *"abcd"], {}, path)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    labels, logits = session.run(None, {"images": np.zeros((1, 3, 40, 40), np.uint8)})
    assert set(np.unique(labels)) == {0}
    assert set(np.unique(logits.argmax(1))) == {3}


class Saved:
    """What the exporter returns, as far as it is asked for: a graph that was made before."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.model = self
        self.metadata_props: dict[str, str] = {}
        self.doc_string = ""

    def save(self, path: Path) -> None:
        path.write_bytes(self.content)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("onnx"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CissError, match=r"needs onnx, onnxscript, onnxruntime, .*\[export\]"):
        export(tiny(), ["background"], {}, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
