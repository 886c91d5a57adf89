"""A laid-out table as Markdown, as LaTeX for ``booktabs`` and ``graphicx``, and as plain text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

MISSING = "–"
#: characters of a row beyond which columns go into another panel below
PANEL = 100


@dataclass(frozen=True)
class Cell:
    """What one cell shows, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table before it is rendered: ``groups`` are pairs of a title and the heads under it.

    Groups that are too many for a page's width stand below each other in panels, unless the table
    is to stay ``whole``.
    """

    title: str
    caption: str
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    whole: bool = False
    #: head of the column of names
    first: str = "Method"

    @property
    def has_best(self) -> bool:
        """Whether a cell is marked as the best."""
        return any(cell.best for _, cells in self.rows for cell in cells)


def markdown(table: Table) -> str:
    """Markdown of a table, its title a heading and its caption below."""
    parts = [f"### {table.title}", ""]
    for panel in _panels(table):
        # Markdown has one line of heads; the group is named where it begins.
        heads = [
            f"{group}: {head}" if group and i == 0 else head
            for group, group_heads in panel.groups
            for i, head in enumerate(group_heads)
        ]
        parts.append(_pipes([table.first, *map(_escape_markdown, heads)]))
        parts.append(_pipes(["---", *["---:"] * len(heads)]))
        for name, cells in panel.rows:
            shown = (_escape_markdown(cell.text) for cell in cells)
            bold = (f"**{t}**" if c.best else t for t, c in zip(shown, cells, strict=True))
            parts.append(_pipes([_escape_markdown(name), *bold]))
        parts.append("")
    caption = table.caption + (" Best in bold." if table.has_best else "")
    return "\n".join([*parts, _escape_markdown(caption), ""])


def markdown_list(title: str, items: Mapping[str, str]) -> str:
    """Markdown of a title and under it names (of experiments, verbatim) with what is said."""
    lines = [f"- `{name}`: {_escape_markdown(said)}" for name, said in items.items()]
    return "\n".join([f"### {title}", "", *lines, ""])


def latex(table: Table) -> str:
    """LaTeX of a table: a float for each panel, shrunk where it is wider than the line."""
    panels = list(_panels(table))
    return "\n".join(
        _latex_float(panel, _latex_caption(table, part, len(panels)))
        for part, panel in enumerate(panels, start=1)
    )


def text(table: Table) -> str:
    """Aligned plain text of a table for a terminal."""
    parts = [table.title, ""]
    for panel in _panels(table):
        parts += [*_text_panel(panel), ""]
    caption = table.caption + (" * marks the best." if table.has_best else "")
    return "\n".join([*parts, textwrap.fill(caption, PANEL), ""])


def _panels(table: Table) -> Iterator[Table]:
    """Split the groups of columns so that no panel is wider than a page, if possible."""
    starts = [0]
    for _, heads in table.groups:
        starts.append(starts[-1] + len(heads))
    names = max((len(name) for name, _ in table.rows), default=0)
    chosen: list[int] = []
    width = names
    for group, (_, heads) in enumerate(table.groups):
        columns = range(starts[group], starts[group + 1])
        wide = sum(
            3 + max([len(head), *(len(cells[column].text) for _, cells in table.rows)])
            for head, column in zip(heads, columns, strict=True)
        )
        if chosen and width + wide > PANEL and not table.whole:
            yield _panel(table, chosen, starts)
            chosen, width = [], names
        chosen.append(group)
        width += wide
    yield _panel(table, chosen, starts)


def _panel(table: Table, groups: Sequence[int], starts: Sequence[int]) -> Table:
    first, last = starts[groups[0]], starts[groups[-1] + 1]
    return replace(
        table,
        groups=tuple(table.groups[group] for group in groups),
        rows=tuple((name, cells[first:last]) for name, cells in table.rows),
    )


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex_caption(table: Table, part: int, parts: int) -> str:
    """The whole caption of the first part; the others refer to it."""
    if part > 1:
        return f"{table.title}, part {part} of {parts}; for the columns see part 1."
    best = " Best in bold." if table.has_best else ""
    of = f", part 1 of {parts}" if parts > 1 else ""
    return f"{table.title}{of}. {table.caption}{best}"


def _latex_float(panel: Table, caption: str) -> str:
    columns = "l" + "".join(" " + "r" * len(heads) for _, heads in panel.groups)
    titles: list[str] = []
    rules: list[str] = []
    heads: list[str] = []
    column = 2
    for group, group_heads in panel.groups:
        width = len(group_heads)
        titles.append(rf"\multicolumn{{{width}}}{{c}}{{{_latex_ranges(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        heads += map(_latex_ranges, group_heads)
        column += width
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escape_latex(caption)}}}",
        r"  \smallskip\footnotesize",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
    ]
    if rules:
        lines += [f"    {' & '.join(['', *titles])} \\\\", f"    {' '.join(rules)}"]
    lines += [f"    {panel.first} & {' & '.join(heads)} \\\\", r"    \midrule"]
    for name, cells in panel.rows:
        shown = [
            rf"\textbf{{{_escape_latex(cell.text)}}}" if cell.best else _escape_latex(cell.text)
            for cell in cells
        ]
        lines.append(f"    {' & '.join([_escape_latex(name), *shown])} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}}", r"\end{table}", ""]
    return "\n".join(lines)


def _text_panel(panel: Table) -> list[str]:
    blocks = [_left(["", panel.first, *(name for name, _ in panel.rows)])]
    first = 0
    for group, heads in panel.groups:
        columns = [
            [f"{head} ", *(_starred(cells[column]) for _, cells in panel.rows)]
            for column, head in enumerate(heads, start=first)
        ]
        lines = [" ".join(line) for line in zip(*map(_right, columns), strict=True)]
        blocks.append(_right([group.center(len(lines[0])), *lines]))
        first += len(heads)
    title, heads_line, *rows = (" | ".join(line).rstrip() for line in zip(*blocks, strict=True))
    rule = "-" * max(map(len, (title, heads_line, *rows)))
    return [title, heads_line, rule, *rows]


def _starred(cell: Cell) -> str:
    # The star's place is kept free elsewhere, so that the digits line up.
    return f"{cell.text}{'*' if cell.best else ' '}"


def _right(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) for cell in cells]


def _left(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _escape_latex(text: str) -> str:
    # A number's sign is no hyphen.
    signed = re.sub(r"^-(?=\d)", "−", text)
    return "".join(_LATEX.get(character, character) for character in signed)


def _latex_ranges(head: str) -> str:
    """Escape a head of classes: ``0-15`` is a range, the scenario ``15-1`` a name."""
    return re.sub(r"^(\d+)-(?=\d+$)", r"\1--", _escape_latex(head))
