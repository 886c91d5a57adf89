"""Tables of results in the papers' layout; ``ciss.table_formats`` renders them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ciss import comparison, published, results, table_formats
from ciss.style import DATASET_NAMES, pretty_name
from ciss.table_formats import MISSING, Cell, Table

#: scores of the table, in order; only the last is the better the smaller
_SHOWN = ("old", "new", "all", "average_over_steps", "forgetting")


def csv(summary: pd.DataFrame) -> str:
    """Wide CSV, one row for each dataset and run, for further computation: nothing is rounded.

    Columns ``dataset``, ``run``, ``method``, ``init``, ``name``, and for each scenario and score
    ``15-1 old``, ``15-1 old sd`` … and ``15-1 seeds``. Missing values are empty.
    """
    table = results.over_seeds(summary)
    keys = ["dataset", "run", "method", "init"]
    wide = table[keys].drop_duplicates().reset_index(drop=True)
    names = [pretty_name(m, i) for m, i in zip(wide["method"], wide["init"], strict=True)]
    wide["name"] = names
    for scenario in table["scenario"].drop_duplicates():
        part = table[table["scenario"] == scenario].set_index(keys)
        columns = {}
        for score in results.SCORES:
            columns[f"{scenario} {score}"] = part[score]
            columns[f"{scenario} {score} sd"] = part[f"{score}_sd"]
        columns[f"{scenario} seeds"] = part["seeds"].astype("Int64")
        wide = wide.join(pd.DataFrame(columns), on=keys)
    return str(wide.to_csv(index=False, lineterminator="\n"))


def per_step(tidy: pd.DataFrame, score: str = "all", digits: int = 2) -> list[Table]:
    """Lay out the mIoU after each step, one table for each dataset and scenario.

    ``score``: a field of ``metrics.GroupedMiou``; ``old`` shows the base classes.
    """
    steps = results.by_step(tidy)
    tables = []
    for (dataset, scenario), group in steps.groupby(["dataset", "scenario"], sort=False):
        columns = [_Column("", f"step {k}", k) for k in range(int(group["n_steps"].iloc[0]))]
        values: dict[tuple[str, object], _Value] = {
            (str(run), step): _Value.over(part[score])
            for (run, step), part in group.groupby(["run", "step"], sort=False)
        }
        title = f"{_dataset_name(str(dataset))} {scenario}, after each step"
        classes = "all classes seen so far" if score == "all" else score.replace("_", " ")
        head = f"mIoU (%), {classes}, after each step."
        tables.append(_table(title, head, columns, _names(group), values, digits))
    return tables


def beside_published(
    distances: pd.DataFrame, summary: pd.DataFrame, digits: int = 2
) -> list[Table]:
    """Lay out ours, the published number and the difference, for each dataset and scenario.

    ``distances``: of ``comparison.distances``; ``summary``: what it was made of. Where papers count
    the background or do not, a run has a row for either.
    """
    tables = []
    runs: dict[tuple[Any, ...], Mapping[Any, Any]] = {
        tuple(run[key] for key in ("dataset", "scenario", "method", "init")): run
        for run in results.over_seeds(summary).to_dict("records")
    }
    for (dataset, scenario), group in distances.groupby(["dataset", "scenario"], sort=False):
        heads = dict(zip(("old", "new", "all"), class_heads(group), strict=True))
        if int(group["n_steps"].iloc[0]) == 1:
            heads = {"all": "all"}
        rows = []
        for (method, init, background), cells in group.groupby(
            ["method", "init", "background"], sort=False
        ):
            name = pretty_name(str(method), str(init))
            found: dict[str, Mapping[Any, Any]] = {
                cell["score"].partition("_")[0]: cell for cell in cells.to_dict("records")
            }
            ours = runs[dataset, scenario, method, init]
            shown = [
                text
                for score in heads
                for text in (
                    _beside(found[score], digits)
                    if score in found
                    else (_ours(ours, published.SCORES[bool(background)][score], digits), *_NONE)
                )
            ]
            shown.append(_sources(found))
            name += "" if background else ", no background"
            rows.append((name, tuple(map(Cell, shown))))
        tables.append(
            Table(
                f"{_dataset_name(str(dataset))} {scenario}, beside published numbers",
                _BESIDE
                + (_NOT_SEEN if (group["confidence"] != "seen").any() else "")
                + (_OTHERWISE if group["otherwise"].any() else ""),
                (
                    *((head, ("ours", "publ.", "diff.")) for head in heads.values()),
                    ("", ("source",)),
                ),
                tuple(rows),
                whole=True,
            )
        )
    return tables


def distance_report(
    distances: pd.DataFrame, base_steps: pd.DataFrame, departures: Mapping[str, str]
) -> str:
    """Markdown: one line for each published cell, step 0, and what is not compared and why.

    ``distances`` and ``base_steps``: of ``ciss.comparison``. ``departures``: why an experiment
    that has published numbers is not compared.
    """
    parts = ["# Distance to the papers", ""]
    if distances.empty and base_steps.empty and not departures:
        return "\n".join([*parts, "Nothing is published of these experiments.", ""])
    if len(distances):
        parts += [comparison.say_overall(distances), ""]
    if len(base_steps):
        parts.append(table_formats.markdown(_base_step_table(base_steps)))
    if len(distances):
        parts.append(table_formats.markdown(_cell_table(distances)))
    otherwise = {
        f"{cell['dataset']}_{cell['scenario']}_{cell['run']}": cell["otherwise"]
        for cell in distances.to_dict("records")
        if cell["otherwise"]
    }
    if otherwise:
        parts.append(table_formats.markdown_list("‡ Trained otherwise by their authors", otherwise))
    if departures:
        parts.append(table_formats.markdown_list("Not trained as published", departures))
    used = {key for cell in distances["sources"] for key in cell.split(", ")}
    named = {key: said for key, said in published.sources().items() if key in used}
    named |= {key: published.sources()[key] for key in base_steps["source"]}
    if named:
        parts.append(table_formats.markdown_list("Sources", named))
    return "\n".join(parts)


def _base_step_table(base_steps: pd.DataFrame) -> Table:
    rows = [
        (
            f"{row['step_0']} seed {row['seed']}",
            tuple(
                map(
                    Cell,
                    (
                        f"{row['ours']:.2f}",
                        f"{row['published']:.1f} ± {row['sd']:.1f}",
                        f"{row['difference']:+.2f}",
                        "yes" if row["reached"] else "NO",
                        str(row["source"]),
                    ),
                )
            ),
        )
        for row in base_steps.to_dict("records")
    ]
    return Table(
        "Step 0",
        "mIoU (%) of base classes and background. Where it is not within the published deviation, "
        "look at step 0 before comparing anything later.",
        (("", ("ours", "published", "difference", "within", "source")),),
        tuple(rows),
        whole=True,
        first="Model",
    )


def _cell_table(distances: pd.DataFrame) -> Table:
    rows = []
    for cell in distances.to_dict("records"):
        lowest, highest = (cell[f"others_{end}"] for end in ("lowest", "highest"))
        others = MISSING if lowest != lowest else f"{lowest:g}"
        others += f"-{highest:g}" if highest > lowest else ""
        sure = "" if cell["confidence"] == "seen" else cell["confidence"]
        said = "; ".join(filter(None, [cell["kind"], sure, cell["note"]]))
        shown = (*_beside(cell, digits=2), others, cell["sources"], said)
        name = f"{cell['dataset']}_{cell['scenario']}_{cell['run']}"
        rows.append((name, tuple(map(Cell, (_classes(cell), *shown)))))
    heads = ("classes", "ours", "published", "difference", "others", "sources", "kind")
    return Table(
        "Cells",
        f"{_BESIDE} Others: lowest and highest of the other numbers that there are for a cell.",
        (("", heads),),
        tuple(rows),
        whole=True,
        first="Experiment",
    )


def _classes(cell: Mapping[Any, Any]) -> str:
    """The classes of a cell's mean: ``0-15``, or ``1-15`` without the background."""
    base, last = int(cell["n_base"]), int(cell["n_classes"])
    score = str(cell["score"]).partition("_")[0]
    if score == "new":
        return f"{base + 1}-{last}" if last > base + 1 else str(last)
    return f"{0 if cell['background'] else 1}-{base if score == 'old' else last}"


_BESIDE = (
    "mIoU (%) after the last step: ours, the published number, ours minus published. The number of "
    "the paper that proposes a run goes before other papers' tables, these before reruns by others."
)
_NOT_SEEN = " †: inferred or derived, not printed so in the source."
_OTHERWISE = (
    " ‡: its authors train otherwise than any settings here, as distance.md says: no difference is "
    "taken."
)


_NONE = (MISSING, MISSING)


def _ours(run: Mapping[Any, Any], score: str, digits: int) -> str:
    """Our score of a run of ``results.over_seeds``, whether or not anything is published."""
    seeds = int(run["seeds"])
    return _Value(run[score], run[f"{score}_sd"], seeds).text(digits, False) if seeds else MISSING


def _beside(cell: Mapping[Any, Any], digits: int) -> tuple[str, str, str]:
    """Ours, published and difference of one cell."""
    value = f"{cell['published']:.1f}"
    if float(value) != cell["published"]:
        value = f"{cell['published']:.2f}"
    mark = "" if cell["confidence"] == "seen" else " †"
    mark += " ‡" if cell["otherwise"] else ""
    if not cell["seeds"]:
        return MISSING, value + mark, MISSING
    ours = _Value(cell["ours"], cell["sd"], cell["seeds"])
    if cell["otherwise"]:
        return ours.text(digits, False), value + mark, MISSING
    return ours.text(digits, False), value + mark, f"{cell['difference']:+.{digits}f}"


def _sources(cells: Mapping[str, Mapping[Any, Any]]) -> str:
    """The first source of each cell, with the scores that it holds for where they differ."""
    scores: dict[str, list[str]] = {}
    for score, cell in cells.items():
        scores.setdefault(cell["sources"].partition(",")[0], []).append(score)
    if len(scores) == 1:
        return next(iter(scores))
    return "; ".join(f"{', '.join(held)}: {source}" for source, held in scores.items())


def build(summary: pd.DataFrame, digits: int = 2, note: str = "") -> list[Table]:
    """Lay out one table for each dataset: a row a run, for each scenario a group of columns.

    Rows and groups keep the order in which ``summary`` first names them. The number of seeds is in
    the caption where it is the same everywhere, else in each cell. ``note`` is a sentence for the
    caption.
    """
    return [
        _by_scenario(
            group,
            _dataset_name(str(dataset)),
            " ".join(filter(None, [_caption(group), note])),
            _columns,
            digits,
        )
        for dataset, group in summary.groupby("dataset", sort=False)
    ]


def without_background(summary: pd.DataFrame, digits: int = 2) -> list[Table]:
    """Lay out the means that leave the background out, and the harmonic mean, as ``build`` does."""
    return [
        _by_scenario(
            group,
            f"{_dataset_name(str(dataset))}, background left out",
            _CAPTION_WITHOUT,
            _columns_without_background,
            digits,
        )
        for dataset, group in summary.groupby("dataset", sort=False)
    ]


def _by_scenario(
    summary: pd.DataFrame,
    title: str,
    caption: str,
    columns_of: Callable[[pd.DataFrame], list[_Column]],
    digits: int,
) -> Table:
    """Lay out one data set: a row a run, for each scenario the columns that it has."""
    columns = [
        column
        for _, scenario in summary.groupby("scenario", sort=False)
        for column in columns_of(scenario)
    ]
    values: dict[tuple[str, object], _Value] = {
        (str(run), (scenario, score)): _Value.over(part[score])
        for (run, scenario), part in summary.groupby(["run", "scenario"], sort=False)
        for score in results.SCORES
    }
    return _table(title, caption, columns, _names(summary), values, digits)


@dataclass(frozen=True)
class _Column:
    group: str
    head: str
    key: object
    smaller_is_better: bool = False


@dataclass(frozen=True)
class _Value:
    mean: float
    sd: float
    seeds: int

    @classmethod
    def over(cls, scores: pd.Series) -> _Value:
        return cls(float(scores.mean()), float(scores.std(ddof=1)), int(scores.count()))

    def text(self, digits: int, with_seeds: bool) -> str:
        deviation = f" ± {self.sd:.{digits}f}" if self.seeds > 1 else ""
        return f"{self.mean:.{digits}f}{deviation}" + (f" ({self.seeds})" if with_seeds else "")


def _table(
    title: str,
    caption: str,
    columns: Sequence[_Column],
    names: Mapping[str, str],
    values: Mapping[tuple[str, object], _Value],
    digits: int,
) -> Table:
    present = {key: value for key, value in values.items() if value.seeds}
    wanted = [(run, column.key) for run in names for column in columns]
    seeds = {present[key].seeds for key in wanted if key in present}

    cells: dict[str, list[Cell]] = {run: [] for run in names}
    for column in columns:
        means = {
            run: round(present[run, column.key].mean, digits)
            for run in names
            if (run, column.key) in present
        }
        best = (min if column.smaller_is_better else max)(means.values(), default=None)
        for run, row in cells.items():
            if run in means:
                shown = present[run, column.key].text(digits, with_seeds=len(seeds) > 1)
                # Being the only one is no distinction.
                row.append(Cell(shown, best=len(means) > 1 and means[run] == best))
            else:
                row.append(Cell(MISSING))

    groups: dict[str, list[str]] = {}
    for column in columns:
        groups.setdefault(column.group, []).append(column.head)

    sentences = [caption]
    if len(seeds) > 1:
        sentences.append("Mean ± sample standard deviation (number of seeds).")
    elif seeds and max(seeds) > 1:
        sentences.append(f"Mean ± sample standard deviation over n = {max(seeds)} seeds.")
    if missing := sum(key not in present for key in wanted):
        sentences.append(f"{missing} of {len(wanted)} values are missing ({MISSING}).")
    return Table(
        title,
        " ".join(sentences),
        tuple((group, tuple(heads)) for group, heads in groups.items()),
        tuple((names[run], tuple(row)) for run, row in cells.items()),
    )


def _columns(scenario: pd.DataFrame) -> list[_Column]:
    """Columns of one scenario's group; without later steps there is nothing but the mean."""
    first = scenario.iloc[0]
    name, steps = str(first["scenario"]), int(first["n_steps"])
    if steps == 1:
        return [_Column(name, "all", (name, "all"))]
    return [
        _Column(f"{name} ({steps} steps)", head, (name, score), score == "forgetting")
        for head, score in zip((*class_heads(scenario), "avg", "forg."), _SHOWN, strict=True)
    ]


def _columns_without_background(scenario: pd.DataFrame) -> list[_Column]:
    first = scenario.iloc[0]
    name, steps = str(first["scenario"]), int(first["n_steps"])
    base, last = int(first["n_base"]), int(first["n_classes"])
    if steps == 1:
        return [_Column(name, f"1-{last}", (name, "all_without_background"))]
    return [
        _Column(f"{name} ({steps} steps)", head, (name, score))
        for head, score in (
            (f"1-{base}", "old_without_background"),
            (f"1-{last}", "all_without_background"),
            ("harmonic", "harmonic"),
        )
    ]


def class_heads(scenario: pd.DataFrame) -> tuple[str, str, str]:
    """Heads of old, new and all: ``0-15``, ``16-20``, ``all``."""
    base, last = (int(scenario[name].iloc[0]) for name in ("n_base", "n_classes"))
    return f"0-{base}", f"{base + 1}-{last}" if last > base + 1 else f"{last}", "all"


_CAPTION = (
    "mIoU (%) after the last step over the base classes (background included), the classes "
    "learned later, and all."
)
_CAPTION_STEPS = (
    " avg: mean over the steps of the mIoU of the classes seen by then. forg.: forgetting, the "
    "best earlier IoU minus the final one, mean over the base classes (smaller is better)."
)


_CAPTION_WITHOUT = (
    "mIoU (%) after the last step over the base classes and all classes without the background, as "
    "MiB reports. harmonic: harmonic mean of the base classes with the background and the classes "
    "learned later."
)


def _caption(summary: pd.DataFrame) -> str:
    return _CAPTION + (_CAPTION_STEPS if (summary["n_steps"] > 1).any() else "")


def _names(table: pd.DataFrame) -> dict[str, str]:
    rows = table[["run", "method", "init"]].drop_duplicates()
    return {str(row.run): pretty_name(str(row.method), str(row.init)) for row in rows.itertuples()}


def _dataset_name(dataset: str) -> str:
    return DATASET_NAMES.get(dataset, dataset)
