"""What is measured on a GPU, at its smallest on this CPU; and the file that it goes into."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
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
from benchmarks.on_gpu import Machine, correctness, jobs, judged, losses, training
from benchmarks.table import MISSED, NOT_MEASURED, Row, spelled
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
    assert {"ft", "mib", "plop", "alone: teacher", "input path alone"} <= {*what}
    # What was only tried out is no figure.
    assert {row.ours for row in gpu_rows(output)} == {None}
    for section in found.values():
        section["tiny"] = False
    gpu.write(output, found)
    shown = {row.group for row in gpu_rows(output)}
    assert "GPU: training, VOC, batch 24" in shown
    assert "GPU: variants of the network" not in shown
    absent = [row.what for row in gpu_rows(output) if row.group == "GPU"]
    assert absent == ["training-ade-24", "training-voc-12", "training-ade-12"]


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


def test_what_was_tried_out_or_made_elsewhere_is_measured_again_and_what_failed_comes_last() -> (
    None
):
    where = {"device": "a GPU", "tiny": False}
    sections = {
        "failed": {**where, "error": "why"},
        "done": {**where, "error": ""},
        "tiny": {**where, "tiny": True, "error": ""},
        "elsewhere": {**where, "device": "another", "error": ""},
    }
    names = ["failed", "done", "tiny", "elsewhere", "missing"]
    assert gpu.to_measure(names, sections, where) == ["tiny", "elsewhere", "missing", "failed"]


def test_time_that_is_up_ends_a_section_after_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(machine: Machine) -> Iterator[Row]:
        yield from one_row(machine)
        yield from one_row(machine)

    # Time is up when the first row is there.
    clock = iter([0.0] * 4)
    monkeypatch.setattr(gpu, "SECTIONS", {"a": rows, "b": one_row})
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock, 100.0))
    assert run(tmp_path / "gpu.json", "--minutes", "1") == 3
    found = sections(tmp_path / "gpu.json")
    assert [len(section["rows"]) for section in found.values()] == [1]
    assert found["a"]["error"] == gpu.TIME_UP
    found["a"]["tiny"] = False
    assert "It ended before its end: time was up in this section." in gpu.markdown(found)


def test_a_command_in_a_document_names_no_folder_of_a_machine() -> None:
    program = str(REPOSITORY / "benchmarks" / "gpu.py")
    command = spelled([program, "--minutes", "9", "--cases", "/home/me/cases", "pets=/data/VOC"])
    assert command == "python benchmarks/gpu.py --minutes 9 --cases cases pets=VOC"


def test_what_the_published_way_held_is_let_go_where_it_does_not_fit(machine: Machine) -> None:
    """Stands for a GPU that is full: the way that does not fit leaves nothing behind."""
    held: list[weakref.ref[torch.Tensor]] = []

    def full() -> None:
        large = torch.zeros(8)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert losses._peak_if_it_fits(machine, full) is None
    assert held[0]() is None


def test_cases_are_skipped_where_pytest_is_missing(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "find_spec", lambda name: None)
    (row,) = jobs.parity(replace(machine, cases=tmp_path))
    assert row.ours is None
    assert "pytest is not installed" in row.note


def test_time_and_memory_of_a_training_are_its_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other way to train is there while memory is looked at; waiting for files counts."""
    made: list[str] = []
    original = training.Bench.training

    def noting(self: training.Bench, name: str) -> Training:
        made.append(name)
        return original(self, name)

    looked: list[list[str]] = []
    monkeypatch.setattr(training.Bench, "training", noting)
    monkeypatch.setattr(Machine, "peak", lambda self, work: looked.append([*made]) or 0.0)
    monkeypatch.setattr(Machine, "clear", lambda self: made.clear())
    monkeypatch.setattr(training, "reading_seconds", lambda *_: 10.0)
    rows = list(training.rows((20, 1), 24, "tiny", machine))
    assert looked == [["ft", "ft"], ["mib"], ["plop"]]
    read = [row for row in rows if row.what.endswith("images from files")]
    assert [row.ours for row in read] == [0.2, 0.2, 0.2]


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
    measured = gpu.read(tmp_path / "gpu.json")
    assert gpu.markdown(measured).count(NOT_MEASURED) == len(gpu.SECTIONS)
    measured["evaluation"]["tiny"] = False
    text = gpu.markdown(measured)
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
