"""Estimates of the work ahead; through the real Snakemake in ``test_workflow.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY

from ciss import planning
from ciss.config import checked, merged, read_config
from ciss.errors import CissError
from ciss.experiments import matrix_experiments
from ciss.planning import Job, Records, chosen_experiments, describe, estimate, read_summary

HEADER = "output_file\tdate\trule\tlog-file(s)\tstatus\tplan\n"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """VOC and Cityscapes have the same network; the later steps of VOC take 10 epochs."""
    above = {"recipe": {"later": {"epochs": 10}}, "seeds": [1]}
    return checked(merged(read_config(REPOSITORY / "config.yaml"), above))


def summary(*lines: str) -> str:
    rows = (line.split() for line in lines)
    return HEADER + "".join(
        f"results/{output}\t-\t{rule}\t-\tmissing\t"
        f"{'update pending' if plan == 'do' else 'no update'}\n"
        for rule, output, plan in rows
    )


STEP_1 = "voc/15-5/mib/seed1/step1"
STEP_0 = "voc/15/ce/seed1/step0"


def split(results: Path, track: str, train: dict[int, int], test: dict[int, int]) -> None:
    path = results / track / "split.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{step},train,a.jpg,a.png" for step, count in train.items() for _ in range(count)]
    rows += [f"{step},test,b.jpg,b.png" for step, count in test.items() for _ in range(count)]
    path.write_text("\n".join(["step,subset,image,mask", *rows]) + "\n")


def benchmark(results: Path, step: str, name: str, seconds: float, memory: float = 1000) -> None:
    path = results / step / "benchmarks" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:00\t{memory}\n")


def trained(
    results: Path, step: str, seconds: list[float], benchmarked: float, memory: float = 1000
) -> None:
    benchmark(results, step, "train", benchmarked, memory)
    rows = [f"{number},{value}" for number, value in enumerate(seconds, 1)]
    (results / step / "history.csv").write_text("\n".join(["epoch,seconds", *rows]) + "\n")
    (results / step / "model.safetensors").touch()


def planned(jobs: list[Job], rule: str) -> Job:
    (job,) = (job for job in jobs if job.rule == rule and job.pending)
    return job


def test_the_files_of_a_job_are_one_job() -> None:
    text = "Warning: something\n" + summary(
        f"train_base {STEP_0}/model.safetensors done",
        f"train_base {STEP_0}/history.csv do",
        f"attribute {STEP_0}/attribution_15-5.safetensors do",
        f"attribute {STEP_0}/attribution_15-1.safetensors done",
        "class_figure reports/x/figures/voc_15-1/classes_mib.pdf do",
        "class_figure reports/x/figures/voc_15-1/classes_mib.png do",
        "class_figure reports/x/figures/voc_15-1/classes_ft.png do",
        "generate_shapes data/shapes/splits/val.txt do",
        "generate_shapes data/shapes/fingerprint.txt do",
    )
    found = [(job.rule, job.pending) for job in read_summary(text, "results")]
    assert found == [
        ("train_base", True),
        ("attribute", True),
        ("attribute", False),
        ("class_figure", True),
        ("class_figure", True),
        ("generate_shapes", True),
    ]


def test_what_is_no_summary_is_said() -> None:
    with pytest.raises(CissError, match="snakemake --summary"):
        read_summary("Building DAG of jobs...\n", "results")


def test_time_grows_with_images_and_epochs(tmp_path: Path, config: dict[str, Any]) -> None:
    # 20 images x 4 epochs in 40 s; ahead are 50 images x 10 epochs.
    split(tmp_path, "voc/15-1", train={1: 20}, test={1: 8})
    split(tmp_path, "voc/15-5", train={1: 50}, test={1: 16})
    trained(tmp_path, "voc/15-1/mib/seed1/step1", [10.0] * 4, 38.0, memory=3000)
    benchmark(tmp_path, "voc/15-1/mib/seed1/step1", "evaluate", 6.0)
    (tmp_path / "voc/15-1/mib/seed1/step1/confusion.csv").touch()
    text = summary(
        f"train_step {STEP_1}/model.safetensors do", f"evaluate {STEP_1}/confusion.csv do"
    )
    jobs = estimate(read_summary(text, "results"), Records(tmp_path, config))
    training, evaluation = planned(jobs, "train_step"), planned(jobs, "evaluate")
    assert training.seconds == pytest.approx(40 * (50 * 10) / (20 * 4))
    assert (training.memory_mb, training.basis) == (3000, "same method")
    assert evaluation.seconds == pytest.approx(12)


def test_an_interrupted_training_counts_as_a_whole(tmp_path: Path, config: dict[str, Any]) -> None:
    # The benchmark is of the last attempt only.
    split(tmp_path, "voc/15", train={0: 10}, test={0: 10})
    trained(tmp_path, STEP_0, [10.0] * 30, 25.0)
    text = summary(f"train_base {STEP_0}/model.safetensors do")
    jobs = estimate(read_summary(text, "results"), Records(tmp_path, config))
    assert planned(jobs, "train_base").seconds == pytest.approx(300)


def test_the_most_similar_record_counts(tmp_path: Path, config: dict[str, Any]) -> None:
    text = summary(f"train_step {STEP_1}/model.safetensors do")

    def ahead() -> Job:
        jobs = estimate(read_summary(text, "results"), Records(tmp_path, config))
        return planned(jobs, "train_step")

    split(tmp_path, "voc/15-5", train={1: 10}, test={1: 10})
    split(tmp_path, "shapes/15-5", train={1: 10}, test={1: 10})
    split(tmp_path, "cityscapes/14-5", train={1: 10}, test={1: 10})
    assert ahead().seconds is None
    trained(tmp_path, "shapes/15-5/mib/seed1/step1", [1.0] * 10, 0)
    assert ahead().seconds is None, "another network"
    trained(tmp_path, "cityscapes/14-5/mib/seed1/step1", [2.0] * 10, 0)
    assert (ahead().seconds, ahead().basis) == (pytest.approx(20), "other data sets")
    trained(tmp_path, "voc/15-5/ft/seed1/step1", [3.0] * 10, 0)
    assert (ahead().seconds, ahead().basis) == (pytest.approx(30), "same data set")
    trained(tmp_path, "voc/15-5/mib_awt/seed1/step1", [4.0] * 10, 0)
    assert (ahead().seconds, ahead().basis) == (pytest.approx(40), "same method")


def test_what_is_shared_and_how_long_it_takes(tmp_path: Path, config: dict[str, Any]) -> None:
    hour = 3600.0
    outputs = {
        "train_base": [f"{STEP_0}/model.safetensors"],
        "train_step": [f"{STEP_1}/model.safetensors", "voc/15-5/ft/seed1/step1/model.safetensors"],
        "evaluate": [f"{STEP_1}/confusion.csv", "voc/15-5/ft/seed1/step1/confusion.csv"],
        "table": ["reports/voc_15-5_mib/results.csv"],
    }
    seconds = {"train_base": 4 * hour, "train_step": hour, "evaluate": hour / 10}
    jobs = [
        Job(rule, path, True, seconds=seconds.get(rule), memory_mb=12000, basis="same method")
        for rule, listed in outputs.items()
        for path in listed
    ]
    chosen = chosen_experiments(config, ["voc_15-5_mib", "voc_15-5_ft"])
    text = describe(jobs, chosen)
    assert "2 runs of 2 experiments need 4 trainings; 1 are shared, 0 are done, 3 to do." in text
    assert f"{STEP_0} serves 2 runs" in text
    assert "GPU hours: 6.2" in text
    assert "One job at a time: 6 h 12 min. However many GPUs: 5 h 06 min at least" in text
    assert "GPU hours: 24.8 on the device that the records come from, 4 GPUs a job." in describe(
        jobs, chosen, gpus=4
    )
    assert "12.0 GB" in text
    assert "And jobs of seconds: 1 table." in text
    done = [planning.replace(job, pending=False) for job in jobs]
    assert "Nothing is to be done." in describe(done, chosen)
    unknown = [planning.replace(job, seconds=None, basis="") for job in jobs]
    assert "cannot be told yet" in describe(unknown, chosen)
    some = [planning.replace(job, seconds=None) if "/ft/" in job.output else job for job in jobs]
    assert "Not counted, as there is no record yet: 2 jobs of evaluate, train_step." in describe(
        some, chosen
    )


def test_targets_are_experiments_matrices_or_files(config: dict[str, Any]) -> None:
    def names(*targets: str) -> list[str]:
        return [experiment.name for experiment, _ in chosen_experiments(config, targets)]

    assert names("voc_15-1_mib", "voc_15-1_mib_mib") == ["voc_15-1_mib"]
    assert names("paper_voc") == [e.name for e in matrix_experiments(config, "paper_voc")]
    assert names() == names("paper") == names("paper_voc", "paper_ade", "paper_cityscapes")
    assert names("results/voc/index.csv") == []
    with pytest.raises(CissError, match="did you mean"):
        names("voc_15-1_mbi")
