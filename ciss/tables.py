"""Tables of results as Markdown, LaTeX, CSV and plain text, in the papers' layout."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ciss import results
from ciss.style import DATASET_NAMES, pretty_name

MISSING = "–"

#: scores of the table, in order; only the last is the better the smaller
_SHOWN = ("old", "new", "all", "average_over_steps", "forgetting")


@dataclass(frozen=True)
class Cell:
    """What one cell shows, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table before it is rendered: ``groups`` are pairs of a title and the heads under it."""

    title: str
    caption: str
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def markdown(summary: pd.DataFrame, digits: int = 2, note: str = "") -> str:
    """Markdown tables, one for each dataset of ``results.summary``."""
    return "\n".join(_markdown(table) for table in build(summary, digits, note))


def latex(summary: pd.DataFrame, digits: int = 2, note: str = "") -> str:
    """LaTeX tables for the package ``booktabs``, one for each dataset of ``results.summary``."""
    return "\n".join(_latex(table) for table in build(summary, digits, note))


def text(summary: pd.DataFrame, digits: int = 2, note: str = "") -> str:
    """Aligned plain text for a terminal, one table for each dataset of ``results.summary``."""
    return "\n".join(_text(table) for table in build(summary, digits, note))


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


def per_step(tidy: pd.DataFrame, score: str = "all", digits: int = 2) -> str:
    """Markdown tables of the mIoU after each step, one for each dataset and scenario.

    ``score``: a field of ``metrics.GroupedMiou``; ``old`` shows the base classes.
    """
    steps = results.by_step(tidy)
    parts = []
    for (dataset, scenario), group in steps.groupby(["dataset", "scenario"], sort=False):
        columns = [_Column("", f"step {k}", k) for k in range(int(group["n_steps"].iloc[0]))]
        values: dict[tuple[str, object], _Value] = {
            (str(run), step): _Value.over(part[score])
            for (run, step), part in group.groupby(["run", "step"], sort=False)
        }
        title = f"{_dataset_name(str(dataset))} {scenario}, after each step"
        classes = "all classes seen so far" if score == "all" else score.replace("_", " ")
        head = f"mIoU (%), {classes}, after each step."
        parts.append(_markdown(_table(title, head, columns, _names(group), values, digits)))
    return "\n".join(parts)


def markdown_list(title: str, items: Mapping[str, str]) -> str:
    """Markdown of a title and under it names (of experiments, verbatim) with what is said."""
    lines = [f"- `{name}`: {_escape_markdown(said)}" for name, said in items.items()]
    return "\n".join([f"### {title}", "", *lines, ""])


def build(summary: pd.DataFrame, digits: int = 2, note: str = "") -> list[Table]:
    """Lay out one table for each dataset: a row a run, for each scenario a group of columns.

    Rows and groups keep the order in which ``summary`` first names them. A run's number of seeds
    is in the caption where it is the same everywhere, else in a column of its own. ``note`` is a
    sentence for the caption.
    """
    tables = []
    for dataset, group in summary.groupby("dataset", sort=False):
        columns = [
            column
            for _, scenario in group.groupby("scenario", sort=False)
            for column in _columns(scenario)
        ]
        values: dict[tuple[str, object], _Value] = {
            (str(run), (scenario, score)): _Value.over(part[score])
            for (run, scenario), part in group.groupby(["run", "scenario"], sort=False)
            for score in _SHOWN
        }
        title = _dataset_name(str(dataset))
        caption = " ".join(filter(None, [_caption(group), note]))
        tables.append(_table(title, caption, columns, _names(group), values, digits))
    return tables


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
    name, base, last = str(first["scenario"]), int(first["n_base"]), int(first["n_classes"])
    steps = int(first["n_steps"])
    if steps == 1:
        return [_Column(name, "all", (name, "all"))]
    heads = (f"0-{base}", f"{base + 1}-{last}" if last > base + 1 else f"{last}")
    return [
        _Column(f"{name} ({steps} steps)", head, (name, score), score == "forgetting")
        for head, score in zip((*heads, "all", "avg", "forg."), _SHOWN, strict=True)
    ]


_CAPTION = (
    "mIoU (%) after the last step over the base classes (background included), the classes "
    "learned later, and all."
)
_CAPTION_STEPS = (
    " avg: mean over the steps of the mIoU of the classes seen by then. forg.: forgetting, the "
    "best earlier IoU minus the final one, mean over the base classes (smaller is better)."
)


def _caption(summary: pd.DataFrame) -> str:
    return _CAPTION + (_CAPTION_STEPS if (summary["n_steps"] > 1).any() else "")


def _names(table: pd.DataFrame) -> dict[str, str]:
    rows = table[["run", "method", "init"]].drop_duplicates()
    return {str(row.run): pretty_name(str(row.method), str(row.init)) for row in rows.itertuples()}


def _has_best(table: Table) -> bool:
    return any(cell.best for _, cells in table.rows for cell in cells)


def _markdown(table: Table) -> str:
    # Markdown has one line of heads; the group is named where it begins.
    heads = [
        f"{group}: {head}" if group and i == 0 else head
        for group, group_heads in table.groups
        for i, head in enumerate(group_heads)
    ]
    lines = [_pipes(["Method", *map(_escape_markdown, heads)])]
    lines.append(_pipes(["---", *["---:"] * len(heads)]))
    for name, cells in table.rows:
        shown = (f"**{cell.text}**" if cell.best else cell.text for cell in cells)
        lines.append(_pipes([_escape_markdown(name), *shown]))
    caption = table.caption + (" Best in bold." if _has_best(table) else "")
    return "\n".join([f"### {table.title}", "", *lines, "", _escape_markdown(caption), ""])


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex(table: Table) -> str:
    columns = "l" + "".join(" " + "r" * len(heads) for _, heads in table.groups)
    titles, rules, heads = [], [], []
    column = 2
    for group, group_heads in table.groups:
        width = len(group_heads)
        titles.append(rf"\multicolumn{{{width}}}{{c}}{{{_escape_latex(group)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        heads += [_escape_latex(re.sub(r"(?<=\d)-(?=\d)", "–", head)) for head in group_heads]
        column += width
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escape_latex(_latex_caption(table))}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {' & '.join(['', *titles])} \\\\",
        f"    {' '.join(rules)}",
        f"    Method & {' & '.join(heads)} \\\\",
        r"    \midrule",
    ]
    for name, cells in table.rows:
        shown = [
            rf"\textbf{{{_escape_latex(cell.text)}}}" if cell.best else _escape_latex(cell.text)
            for cell in cells
        ]
        lines.append(f"    {' & '.join([_escape_latex(name), *shown])} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _latex_caption(table: Table) -> str:
    best = " Best in bold." if _has_best(table) else ""
    return f"{table.title}. {table.caption}{best}"


def _text(table: Table) -> str:
    blocks = [_left(["", "Method", *(name for name, _ in table.rows)])]
    first = 0
    for group, heads in table.groups:
        columns = [
            [f"{head} ", *(_starred(cells[column]) for _, cells in table.rows)]
            for column, head in enumerate(heads, start=first)
        ]
        lines = [" ".join(line) for line in zip(*map(_right, columns), strict=True)]
        blocks.append(_right([group.center(len(lines[0])), *lines]))
        first += len(heads)
    title, heads_line, *rows = (" | ".join(line).rstrip() for line in zip(*blocks, strict=True))
    caption = table.caption + (" * marks the best." if _has_best(table) else "")
    rule = "-" * max(map(len, (heads_line, *rows)))
    return "\n".join(
        [table.title, "", title, heads_line, rule, *rows, "", textwrap.fill(caption, 100), ""]
    )


def _starred(cell: Cell) -> str:
    # The star's place is kept free elsewhere, so that the digits line up.
    return f"{cell.text}{'*' if cell.best else ' '}"


def _right(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) for cell in cells]


def _left(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]


def _dataset_name(dataset: str) -> str:
    return DATASET_NAMES.get(dataset, dataset)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
