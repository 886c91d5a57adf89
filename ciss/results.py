"""From confusion files to tidy tables: IoU by class and step, mIoU by step, summaries of runs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ciss import metrics
from ciss.errors import CissError
from ciss.files import write_text

#: columns that name a run of one seed, in tidy tables and in everything made from them
KEYS = ["dataset", "scenario", "run", "method", "init", "seed"]
#: of the run's scenario: foreground classes at step 0 and in all, and steps
PROTOCOL = ["n_base", "n_classes", "n_steps"]
#: what a summary says of a run, all in percent
SCORES = [
    "old",
    "new",
    "all",
    "old_without_background",
    "all_without_background",
    "harmonic",
    "average_over_steps",
    "forgetting",
]

_TEXT = ["dataset", "scenario", "run", "method", "init", "class_name"]
_COLUMNS = [
    *KEYS,
    "step",
    "class_index",
    "class_name",
    "learned_at",
    "iou",
    "images",
    *PROTOCOL,
]


@dataclass(frozen=True)
class RunKey:
    """One run, spelled as in experiments: scenario ``15-1-disjoint``, run ``mib_awt``."""

    dataset: str
    scenario: str
    run: str
    seed: int


def collect(
    confusions: Iterable[tuple[RunKey, int, Path]],
    classes_per_step: tuple[int, ...],
    runs: Mapping[str, tuple[str, str]],
) -> pd.DataFrame:
    """Read the confusion files of one dataset and scenario: a row for each run, step and class.

    ``classes_per_step``: outputs added at each step, background included in step 0's. ``runs``:
    method and initialisation (empty for the method's own) of each run. Columns: ``dataset``,
    ``scenario``, ``run``, ``method``, ``init``, ``seed``, ``step``, ``class_index``,
    ``class_name``, ``learned_at`` (a step, 0 for the background), ``iou`` (percent, NaN for a
    class that the ground truth does not show), ``images`` (evaluated; from the file's metadata),
    and of the scenario ``n_base`` and ``n_classes`` (foreground) and ``n_steps``. Only classes
    learned by then have a row. Join scenarios with ``pandas.concat``.

    Raises ``CissError`` when a file cannot be read or does not have its step's classes, and
    ``ValueError`` when scenarios are mixed or a step of a run is given twice.
    """
    read = cache(metrics.read_confusion)  # runs share their step 0
    learned_at = [step for step, count in enumerate(classes_per_step) for _ in range(count)]
    seen: set[tuple[RunKey, int]] = set()
    parts = []
    for key, step, path in confusions:
        if (key, step) in seen:
            raise ValueError(f"step {step} of {key} is given twice")
        seen.add((key, step))
        file = read(Path(path))
        n_seen = sum(classes_per_step[: step + 1])
        if len(file.class_names) != n_seen or not 0 <= step < len(classes_per_step):
            raise CissError(
                f"{path} has {len(file.class_names)} classes; step {step} of "
                f"{key.dataset} {key.scenario} knows {n_seen}; delete it and evaluate again"
            )
        method, init = runs[key.run]
        part = pd.DataFrame(
            {
                "class_index": range(n_seen),
                "class_name": file.class_names,
                "learned_at": learned_at[:n_seen],
                "iou": metrics.iou(file.matrix).numpy(),
            }
        )
        parts.append(
            part.assign(
                **dict(zip(("dataset", "scenario", "run", "seed"), astuple(key), strict=True)),
                method=method,
                init=init,
                step=step,
                images=file.metadata.get("images"),
            )
        )
    if len({(key.dataset, key.scenario) for key, _ in seen}) > 1:
        raise ValueError("one scenario at a time: their classes per step differ")
    if not parts:
        return pd.DataFrame(columns=_COLUMNS)
    return pd.concat(parts, ignore_index=True).assign(
        images=lambda table: table["images"].astype("Int64"),
        n_base=classes_per_step[0] - 1,
        n_classes=sum(classes_per_step) - 1,
        n_steps=len(classes_per_step),
    )[_COLUMNS]


def write_table(path: Path | str, table: pd.DataFrame) -> None:
    """Write a tidy table or a summary as CSV, whole or not at all; NaN is an empty field."""
    write_text(path, table.to_csv(index=False))


def read_table(path: Path | str) -> pd.DataFrame:
    """Read what ``write_table`` wrote, names as text (an empty ``init`` stays empty)."""
    path = Path(path)
    if not path.is_file():
        raise CissError(f"table of results {path} does not exist; aggregate the results first")
    text = path.read_text(encoding="utf-8")
    header = text.partition("\n")[0].split(",")
    names = [name for name in _TEXT if name in header]
    numbers = [name for name in header if name not in names]
    table = pd.read_csv(
        io.StringIO(text),
        dtype=dict.fromkeys(names, str),
        keep_default_na=False,
        na_values={name: [""] for name in numbers},
    )
    return table.astype({"images": "Int64"}) if "images" in header else table


def by_step(tidy: pd.DataFrame) -> pd.DataFrame:
    """Mean IoU after every step that was evaluated: a row for each run, seed and step.

    Beside the run's columns: ``step``, ``n_base``, ``n_classes``, ``n_steps`` and the fields of
    ``metrics.GroupedMiou``; ``new`` is everything learned after step 0, NaN at step 0.
    """
    rows = []
    keys = [*KEYS, *PROTOCOL, "step"]
    for values, group in tidy.groupby(keys, sort=False):
        row = dict(zip(keys, values, strict=True))
        iou = torch.from_numpy(group.sort_values("class_index")["iou"].to_numpy(float, copy=True))
        groups = metrics.grouped_miou(iou, int(group["n_base"].iloc[0]), len(iou) - 1)
        rows.append(row | groups._asdict())
    return pd.DataFrame(rows, columns=[*keys, *metrics.GroupedMiou._fields])


def forgetting_by_class(tidy: pd.DataFrame) -> pd.DataFrame:
    """Best earlier IoU minus the final one: a row for each finished run, seed and class.

    Columns ``class_index``, ``class_name``, ``learned_at`` and ``forgetting``: NaN for classes
    that are absent or that only the last step knows. Runs that lack a step are left out.
    """
    parts = []
    for values, group in tidy.groupby(KEYS, sort=False):
        if not _finished(group):
            continue
        last = group[group["step"] == group["step"].max()].sort_values("class_index")
        part = last[["class_index", "class_name", "learned_at"]].assign(
            **dict(zip(KEYS, values, strict=True)),
            forgetting=metrics.forgetting(_history(group)).numpy(),
        )
        parts.append(part)
    columns = [*KEYS, "class_index", "class_name", "learned_at", "forgetting"]
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True)[columns]


def summary(tidy: pd.DataFrame) -> pd.DataFrame:
    """One row for each run and seed: the columns ``SCORES`` after the scenario's last step.

    ``forgetting`` is the mean over the base classes, background included. A run without its last
    step has NaN everywhere, one that lacks an earlier step in the two scores that need it.
    """
    steps = by_step(tidy)
    final = steps[steps["step"] == steps["n_steps"] - 1]
    rows = []
    keys = [*KEYS, *PROTOCOL]
    for values, group in tidy.groupby(keys, sort=False):
        row = dict(zip(keys, values, strict=True))
        mine = (steps[KEYS] == [row[key] for key in KEYS]).all(axis=1)
        for score in metrics.GroupedMiou._fields:
            found = final.loc[mine.reindex(final.index), score]
            row[score] = float(found.iloc[0]) if len(found) else float("nan")
        row["average_over_steps"] = row["forgetting"] = float("nan")
        if _finished(group):
            row["average_over_steps"] = metrics.mean_over_steps(steps.loc[mine, "all"].to_list())
            base = range(int(group["n_base"].iloc[0]) + 1)
            row["forgetting"] = metrics.mean_iou(metrics.forgetting(_history(group)), base)
        rows.append(row)
    return pd.DataFrame(rows, columns=[*keys, *SCORES])


def over_seeds(summary: pd.DataFrame) -> pd.DataFrame:
    """Mean of each score over the seeds that have it, and their number: one row for each run.

    For each score its mean under its own name and ``<score>_sd``, the sample standard deviation
    (NaN for a single seed); ``seeds`` counts the seeds whose last step was evaluated.
    """
    keys = [name for name in [*KEYS, *PROTOCOL] if name != "seed"]
    groups = summary.groupby(keys, sort=False)
    scores = groups[SCORES]
    table = scores.mean().join(scores.std(ddof=1).add_suffix("_sd"))
    return table.assign(seeds=groups["all"].count()).reset_index()


def _finished(run: pd.DataFrame) -> bool:
    return run["step"].nunique() == int(run["n_steps"].iloc[0])


def _history(run: pd.DataFrame) -> Tensor:
    wide = run.pivot(index="step", columns="class_index", values="iou")
    return torch.from_numpy(wide.sort_index().sort_index(axis=1).to_numpy(float, copy=True))
