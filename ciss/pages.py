"""HTML pages of a report: tables that sort, jobs with their logs, what the models were made with.

Each page is one file that a browser opens without a network. Snakemake's report embeds them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

#: lines that are kept of a long log; fewer where all logs together would make the page too large
LOG_LINES = (300, 100, 30, 10)
#: bytes of a page up to which logs are kept longer: Chromium opens no page of more than two
#: megabytes that another one embeds, and embedding adds a third
MOST_BYTES = 1_500_000

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; }
thead th { position: sticky; top: 0; background: #f4f4f4; border-bottom: 1px solid #999; }
thead button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0;
  cursor: pointer; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
tbody tr:hover { background: #f0f5fa; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; }
td pre { margin: 0; max-width: 100rem; }
"""

# A click on a column's head sorts by it, numbers from the largest; a second click turns it round.
_SORT = """
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex, numbers = head.classList.contains("number");
    const up = head.ariaSort ? head.ariaSort === "descending" : !numbers;
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const rows = [...body.rows].filter(row => !row.classList.contains("log"));
    for (const row of body.querySelectorAll("tr.log")) row.remove();
    rows.sort((a, b) => {
      const one = key(a), other = key(b);
      // What has no value comes last either way.
      if (one === "" || other === "") return (one === "") - (other === "");
      const order = numbers ? one - other : one.localeCompare(other, "en", {numeric: true});
      return up ? order : -order;
    });
    body.append(...rows);
  });
}
"""

# Logs are packed, as most of them are never looked at and all together are large.
_LOGS = """
const packed = document.getElementById("logs").textContent.trim();
let unpacked = null;
async function logs() {
  if (unpacked === null) {
    const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked = JSON.parse(await new Response(stream).text());
  }
  return unpacked;
}
for (const button of document.querySelectorAll("td button")) {
  button.addEventListener("click", async () => {
    const row = button.closest("tr"), next = row.nextElementSibling;
    if (next?.classList.contains("log")) { next.remove(); return; }
    let text;
    try { text = (await logs())[button.dataset.log]; }
    catch (error) { text = `This browser cannot unpack it; the log is ${button.title}`; }
    const log = document.createElement("tr"), cell = log.insertCell();
    log.className = "log"; cell.colSpan = row.cells.length;
    cell.append(Object.assign(document.createElement("pre"), {textContent: text}));
    row.after(log);
  });
}
"""


def page(title: str, *parts: str, logs: Mapping[str, str] | None = None) -> str:
    """Return a whole page of ``parts``, which are HTML; ``logs`` are what its buttons show."""
    scripts = [f"<script>{_SORT}</script>"]
    if logs is not None:
        room = MOST_BYTES - sum(len(part.encode()) for part in parts)
        scripts += [
            f'<script type="text/plain" id="logs">{_packed(logs, room)}</script>',
            f"<script>{_LOGS}</script>",
        ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1>",
            *parts,
            *scripts,
            "</body></html>\n",
        ]
    )


def heading(text: str) -> str:
    """Return a heading of a part of a page."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Return text whose line breaks and spaces are kept."""
    return f"<pre>{escape(text)}</pre>"


def table(
    frame: pd.DataFrame,
    errors: Mapping[str, str] | None = None,
    digits: int = 2,
    buttons: str | None = None,
) -> str:
    """Return a table whose columns sort when their head is clicked.

    Numbers are rounded to ``digits`` for the eye and sorted as they are; an absent one is a dash
    and comes last. ``errors`` names columns that stand behind others as ± in their cells, and are
    not shown themselves. The column ``buttons`` holds (key of a log, its path), or nothing.
    """
    errors = errors or {}
    shown = [str(name) for name in frame.columns if name not in set(errors.values())]
    numbers = {name for name in shown if pd.api.types.is_numeric_dtype(frame[name])}
    head = "".join(_head(name, name in numbers, name == buttons) for name in shown)
    rows = []
    for row in frame.to_dict("records"):
        cells = []
        for name in shown:
            value = row[name]
            if name == buttons:
                cells.append(_button(value))
            elif name in numbers:
                cells.append(_number(value, row.get(errors.get(name, "")), digits))
            else:
                cells.append(f"<td>{escape(str(value))}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>'
        "</table></div>"
    )


def shortened(log: str, lines: int) -> str:
    """Return a log without its middle where it has over ``lines``; a fifth is its beginning."""
    every = log.splitlines()
    if len(every) <= lines:
        return log
    head, tail = lines // 5, lines - lines // 5
    left_out = f"… {len(every) - lines} lines left out …"
    return "\n".join([*every[:head], left_out, *every[-tail:]])


def _packed(logs: Mapping[str, str], room: int) -> str:
    packed = b""
    for lines in LOG_LINES:
        kept = {key: shortened(log, lines) for key, log in logs.items()}
        packed = base64.b64encode(gzip.compress(json.dumps(kept).encode(), mtime=0))
        if len(packed) <= room:
            break
    return packed.decode()


def _head(name: str, number: bool, button: bool) -> str:
    kind = ' class="number"' if number else ""
    text = escape(name)
    inner = text if button else f'<button type="button" title="sort by {text}">{text}</button>'
    return f'<th scope="col"{kind}>{inner}</th>'


def _number(value: Any, error: Any, digits: int) -> str:
    if pd.isna(value):
        return '<td class="number" data-key="">–</td>'
    whole = float(value).is_integer() and not isinstance(value, float)
    text = str(value) if whole else f"{value:.{digits}f}"
    if error is not None and not pd.isna(error):
        text += f" ± {error:.{digits}f}"
    return f'<td class="number" data-key="{value}">{text}</td>'


def _button(log: Sequence[str] | None) -> str:
    if not log:
        return "<td></td>"
    key, path = log
    return (
        f'<td><button type="button" data-log="{escape(key)}" title="{escape(path)}">log</button>'
        "</td>"
    )
