"""Tables as Markdown, LaTeX and text: panels, escapes, and LaTeX that compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from ciss import comparison, results, table_formats, tables
from ciss.table_formats import Cell, Table

#: everything that means something in one of the formats
NASTY = r"a|b_c*d`e\f~g^h&i%j$k#l{m}n<o>p[q] ± † – é"


def wide(groups: int, whole: bool = False) -> Table:
    rows = [
        (name, tuple(Cell(f"{i}.{j:02d} ± 1.25", j == 1) for j in range(3 * groups)))
        for i, name in enumerate(["FT", "MiB + AWT", "PLOP"])
    ]
    heads = [(f"1{i}-1 (3 steps)", ("0-10", "11-20", "all")) for i in range(groups)]
    return Table("Data", "What it shows.", tuple(heads), tuple(rows), whole=whole)


NASTY_TABLE = Table(NASTY, NASTY, ((NASTY, (NASTY,)),), ((NASTY, (Cell(NASTY, True),)),))
#: as a scenario and an experiment of its own may be called
TABLES = {
    "one panel": wide(1),
    "panels": wide(5),
    "whole": wide(5, whole=True),
    "nasty": NASTY_TABLE,
    "no groups' titles": Table("t", "c", (("", ("a", "b")),), (("r", (Cell("1"), Cell("2"))),)),
}


def test_columns_that_do_not_fit_stand_below_each_other() -> None:
    lines = table_formats.text(wide(5)).splitlines()
    assert max(map(len, lines)) <= table_formats.PANEL + 10
    heads = [re.findall(r"1\d-1", line) for line in lines if "(3 steps)" in line]
    assert heads == [["10-1", "11-1"], ["12-1", "13-1"], ["14-1"]]
    # Each value is there once, in the row of its run.
    for i, name in enumerate(["FT", "MiB + AWT", "PLOP"]):
        found = [
            value
            for line in lines
            if line.startswith(name)
            for value in re.findall(r"[\d.]+ ±", line)
        ]
        assert found == [f"{i}.{j:02d} ±" for j in range(15)]
    assert table_formats.markdown(wide(5)).count("| Method |") == 3
    assert table_formats.latex(wide(5)).count(r"\begin{tabular}") == 3
    assert "part 3 of 3; for the columns see part 1" in table_formats.latex(wide(5))


def test_a_whole_table_and_a_narrow_one_have_one_panel() -> None:
    for table in (wide(5, whole=True), wide(1)):
        assert table_formats.markdown(table).count("| Method |") == 1
        assert "part" not in table_formats.latex(table)


def test_markdown_keeps_its_columns_whatever_is_written_in_it() -> None:
    lines = table_formats.markdown(NASTY_TABLE).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 3
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 3, row
    said = table_formats.markdown_list("Missing", {"voc_15-1_mib": "steps 1, 2 of a_b"})
    assert said == "### Missing\n\n- `voc_15-1_mib`: steps 1, 2 of a\\_b\n"


def parse(source: str) -> None:
    """Check what a compiler would: environments and braces that close, rows of equal length."""
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", source):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    plain = re.sub(r"\\[\\{}&%$#_]", "", source)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert plain.isascii() or set(re.sub(r"[\x00-\x7f]", "", plain)) <= {"é"}
    for table in re.findall(
        r"\\begin\{tabular\}\{([lr ]+)\}(.*?)\\end\{tabular\}", source, re.DOTALL
    ):
        columns = len(table[0].replace(" ", ""))
        for row in re.findall(r"^ *(.*) \\\\$", table[1], re.MULTILINE):
            spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row))
            assert row.replace(r"\&", "").count("&") + spanned + 1 == columns, row


def compile_latex(source: str, folder: Path) -> None:
    """Run the LaTeX that is installed, if any, on a paper of nothing but ``source``."""
    preamble = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}"
    document = "\n".join([preamble, r"\begin{document}", source, r"\end{document}"])
    (folder / "paper.tex").write_text(document)
    commands = {
        "pdflatex": ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        "tectonic": ["tectonic", "--only-cached", "paper.tex"],
    }
    for program, command in commands.items():
        if shutil.which(program):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
            if "booktabs.sty' not found" in done.stdout:
                pytest.skip(
                    "the LaTeX that is installed lacks booktabs; the source was parsed only"
                )
            assert done.returncode == 0, done.stdout[-3000:]
            assert "Overfull \\hbox" not in done.stdout
            assert (folder / "paper.pdf").stat().st_size > 5000
            return


@pytest.mark.parametrize("name", TABLES)
def test_latex_parses(name: str) -> None:
    parse(table_formats.latex(TABLES[name]))


def test_latex_compiles(tmp_path: Path) -> None:
    compile_latex("\n".join(map(table_formats.latex, TABLES.values())), tmp_path)


def test_ranges_and_signs_are_no_hyphens() -> None:
    groups = (("0-15", ("ours", "diff.")), ("15-1 (6 steps)", ("16-20",)))
    row = ("a-b", (Cell("1.0"), Cell("-2.5"), Cell("3-4")))
    source = table_formats.latex(Table("t", "c", groups, (row,)))
    assert r"{0--15} & \multicolumn{1}{c}{15-1 (6 steps)}".replace("\\\\", "\\") in source
    assert "ours & diff. & 16--20" in source
    assert r"a-b & 1.0 & $-$2.5 & 3-4 \\".replace("\\\\", "\\") in source


def test_latex_of_results_beside_published_numbers_compiles(tmp_path: Path) -> None:
    cell = dict.fromkeys(comparison.CELL) | {
        "dataset": "voc",
        "scenario": "15-1",
        "run": "mib_awt",
        "method": "mib",
        "init": "awt",
        "n_base": 15,
        "n_classes": 20,
        "n_steps": 6,
        "background": True,
        "score": "all",
        "ours": 50.0,
        "sd": 1.5,
        "seeds": 3,
        "published": 49.1,
        "difference": 0.9,
        "kind": "paper",
        "sources": "A_B, C",
        "confidence": "derived",
        "note": "",
    }
    ours = {name: cell[name] for name in (*results.KEYS[:-1], *results.PROTOCOL)}
    summary = pd.DataFrame([ours | dict.fromkeys(results.SCORES, 50.0) | {"seed": 1}])
    (table,) = tables.beside_published(pd.DataFrame([cell]), summary)
    source = table_formats.latex(table)
    assert r"50.00 $\pm$ 1.50 & 49.1 $\dagger$ & +0.90 & A\_B \\" in source
    parse(source)
    compile_latex(source, tmp_path)
