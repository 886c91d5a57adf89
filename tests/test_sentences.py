"""The standard for what users do wrong refuses what does not meet it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sentences import Ended, assert_refused, assert_sentence, contents, run_call, run_script

from ciss.errors import CissError

GOOD = "12:00:00  error: no class 'dgo' in own; did you mean 'dog'?\n"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, GOOD),
        (70, GOOD),
        (1, ""),
        (1, GOOD + GOOD),
        (1, f"Traceback (most recent call last):\n{GOOD}"),
        (1, "error: no class 'dgo': KeyError('dgo')\n"),
        (1, "error: [Errno 2] No such file: 'dgo'\n"),
        (1, "error: no such class\n"),
    ],
)
def test_what_is_no_clear_refusal_fails(status: int, said: str) -> None:
    with pytest.raises(AssertionError):
        assert_sentence(status, said, ["'dgo'"])


def test_a_sentence_and_the_report_below_it() -> None:
    assert assert_sentence(1, f"a.py: started\n{GOOD}", ["'dgo'", "'dog'"]).startswith("no class")
    said = "Error: two problems:\n  1 empty file:\n    a.png\nShutting down\n"
    assert assert_sentence(2, said, ["a.png"]).endswith("a.png")


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "finished").unlink(),
        lambda folder: (folder / "finished").write_text("other"),
        lambda folder: (folder / "finished").write_text("old"),  # with another time
        lambda folder: (folder / ".x.partial").touch(),
        lambda folder: (folder / "a").mkdir(),
    ],
)
def test_what_is_changed_lost_or_left_fails(harm: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "finished").write_text("old")

    def run() -> Ended:
        (tmp_path / "logs").mkdir(exist_ok=True)
        (tmp_path / "logs" / "train.txt").write_text("a log")
        (tmp_path / "x.progress").write_text("a part")
        return Ended(1, GOOD)

    assert_refused(run, ["'dgo'"], tmp_path, may_leave=["*.progress"])
    assert contents(tmp_path).keys() == {"finished", "x.progress"}

    def harmful() -> Ended:
        harm(tmp_path)
        return run()

    with pytest.raises(AssertionError, match=r"left|lost|changed"):
        assert_refused(harmful, ["'dgo'"], tmp_path)


def test_calls_and_scripts_end_as_for_a_user(tmp_path: Path) -> None:
    def fail() -> None:
        raise CissError("no class 'dgo'")

    assert run_call(fail) == (1, "error: no class 'dgo'\n")
    assert run_call(dict) == (0, "")
    wrong = ["--dataset", "voc", "--kind", "voc", "--root", tmp_path / "x", "--output"]
    ended = run_script("index.py", *wrong, tmp_path / "index.csv")
    assert_sentence(*ended, ["there is no folder", "datasets.voc.root"])
    assert run_script("index.py", "--help").status == 0
    assert run_script("index.py").status == 2
