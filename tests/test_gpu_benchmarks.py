"""What is measured on a GPU, at its smallest on this CPU; and the file that it goes into."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import REPOSITORY
from parity import ON_DEVICE, Cases
from test_parity import rates, write_cases

sys.path.insert(0, str(REPOSITORY))

from benchmarks import gpu, networks
from benchmarks.__main__ import gpu_rows
from benchmarks.on_gpu import MISSED, Machine, correctness, judged, training
from benchmarks.table import NOT_MEASURED, Row
from ciss import methods
from ciss.training import Recipe, Training

#: in this process, and without a compiler
SMALL = ["training-voc-24", "losses", "attribution", "evaluation", "variants"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(torch.device("cpu"), tiny=True, rounds=1, folder=tmp_path, workers=1)


def run(output: Path, *arguments: str) -> int:
    flags = ["--device", "cpu", "--tiny", "--rounds", "1", "--workers", "1", *arguments]
    return gpu.main(gpu.parser().parse_args([*flags, "--output", str(output)]))


def sections(output: Path) -> dict[str, Any]:
    return json.loads(output.read_text())["sections"]


def test_sections_measure_something(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    assert run(output, "--only", *SMALL) == 0
    found = sections(output)
    assert list(found) == sorted(SMALL, key=list(gpu.SECTIONS).index)
    for section in found.values():
        assert section["tiny"]
        assert section["torch"] == torch.__version__
        rows = [Row(**row) for row in section["rows"]]
        measured = [row for row in rows if row.ours is not None]
        assert measured
        assert all(row.note for row in rows if row.ours is None)
        assert all(row.ours > 0 for row in measured if not row.goal.startswith("≤"))
    what = [row["what"] for row in found["training-voc-24"]["rows"]]
    assert {"ft", "mib", "plop", "alone: teacher"} <= {*what}
    shown = {row.group for row in gpu_rows(output)}
    assert "GPU: training, VOC, batch 24" in shown
    assert "GPU: variants of the network" not in shown


def one_row(machine: Machine) -> Iterator[Row]:
    del machine
    yield Row("GPU", "one", "ms", ours=1.0)


def failing(machine: Machine) -> Iterator[Row]:
    yield from one_row(machine)
    raise RuntimeError("the GPU has fallen off the bus")


def test_a_later_run_measures_what_is_missing_or_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "SECTIONS", {"a": one_row, "b": failing, "c": one_row})
    assert run(output) == 1
    found = sections(output)
    assert {name: bool(section["error"]) for name, section in found.items()} == {
        "a": False,
        "b": True,
        "c": False,
    }
    assert found["b"]["rows"] == found["a"]["rows"]
    assert "fallen off the bus" in found["b"]["error"]
    monkeypatch.setattr(gpu, "SECTIONS", {"a": failing, "b": one_row, "c": failing})
    assert run(output) == 0
    assert not any(section["error"] for section in sections(output).values())
    assert run(output, "--again", "--only", "a") == 1
    assert "failed, and tried again by the same command: a" in capsys.readouterr().out


def test_rows_that_were_there_before_the_program_was_killed_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(machine: Machine) -> Iterator[Row]:
        yield from one_row(machine)
        raise Killed

    output = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "SECTIONS", {"a": killed})
    # As where git is not installed.
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Killed):
        run(output)
    found = sections(output)["a"]
    assert [row["what"] for row in found["rows"]] == ["one"]
    assert "was ended" in found["error"]
    assert found["revision"]
    monkeypatch.setattr(gpu, "SECTIONS", {"a": one_row})
    assert run(output) == 0
    assert not sections(output)["a"]["error"]


def test_when_time_is_up_the_rest_is_left_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "SECTIONS", {"a": one_row})
    assert run(tmp_path / "gpu.json", "--minutes", "1e-9") == 3
    assert "time is up before a" in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()


def missed(rows: Iterator[Row]) -> list[str]:
    return [row.what for row in rows if row.goal.endswith(MISSED)]


def test_methods_are_correct_on_the_device(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert missed(correctness.rows(machine)) == []
    monkeypatch.setattr(methods, "trained_names", lambda: ("mib",))
    alone, whole = correctness.losses_alone, correctness.iteration

    def a_little_off(*given: Any, double: bool) -> tuple[torch.Tensor, ...]:
        loss, gradient = alone(*given, double=double)
        return loss, gradient if double else 1.001 * gradient

    def without_gradient(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, gradient = whole(*given)
        return loss, 0 * gradient if given[-1] == "bf16" else gradient

    monkeypatch.setattr(correctness, "losses_alone", a_little_off)
    monkeypatch.setattr(correctness, "iteration", without_gradient)
    assert missed(correctness.rows(machine)) == [
        "mib, bf16: gradients",
        "mib, losses alone, fp32: gradients",
    ]


@pytest.mark.parametrize("name", methods.trained_names())
def test_an_iteration_stays_on_its_device_and_asks_it_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's device without data stands for a GPU.

    Its tensors mix with no others, and have no values that Python could wait for.
    """
    device = torch.device("meta")
    step = correctness.step_of(name, networks.TINY, 2, 64)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr("ciss.freezing.equal_modules", lambda *_: name == "dft")
    method = correctness.method_of(name, step, device, torch.float32)
    made = Training(
        step.network.to(device), step.teacher.to(device), method, Recipe(1, 1e-3), 10, device
    )
    terms, scores = made.update(step.images.to(device), step.labels.to(device))
    results = [*terms.values(), scores, made.network.eval()(step.images.to(device)).predicted]
    assert {value.device for value in results} == {device}


def test_an_aim_is_judged_before_it_is_scaled() -> None:
    rows = [judged("g", "w", value, 1.15, "%", scale=100) for value in (1.15, 1.16)]
    assert [row.goal for row in rows] == ["≤ 115 %: met", f"≤ 115 %: {MISSED}"]
    assert rows[1].ours == pytest.approx(116)


def test_flops_are_counted_and_peaks_known() -> None:
    one, three = (training.flops(networks.TINY, (classes,), 64) for classes in (1, 3))
    # A 1 × 1 convolution on the 4 × 4 positions of 16 channels, of two classes.
    assert three[0] - one[0] == 2 * 2 * 16 * 16
    # Twice the forward pass, but for the gradient of the images.
    assert 1.5 * one[0] < one[1] < 2 * one[0]
    assert training.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert training.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert training.peak_flops("a GPU of tomorrow") is None


def test_the_page_says_what_was_not_measured(tmp_path: Path) -> None:
    assert gpu.markdown({}).count(NOT_MEASURED) == len(gpu.SECTIONS)
    run(tmp_path / "gpu.json", "--only", "evaluation")
    text = gpu.markdown(gpu.read(tmp_path / "gpu.json"))
    assert text.count(NOT_MEASURED) == len(gpu.SECTIONS) - 1
    assert "| 151 classes, an image |" in text
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert page.count(gpu.BEGIN) == page.count(gpu.END) == 1


def test_parity_cases_lie_on_the_device_where_it_computes_them(tmp_path: Path) -> None:
    write_cases(tmp_path, {"7_optim/a": rates()})
    cases = Cases(tmp_path, torch.device("meta"))
    entry = cases.entries[0]
    assert cases.load(entry).tensor("lr_0").device.type == "meta"
    assert cases.load(entry, torch.device("cpu")).tensor("lr_0").device.type == "cpu"
    assert "7_optim" not in ON_DEVICE
