"""CSV files of rows that other jobs rely on: they tell when one was cut off on its way.

The last column, ``left``, counts the rows that follow. Files of older versions lack it; of those a
last line that was cut off is noticed, but no line that is gone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ciss.errors import CissError
from ciss.files import write_text

LEFT = "left"


def write_rows(path: Path, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Write ``columns`` of a table as CSV, whole or not at all."""
    counted = table.assign(**{LEFT: range(len(table) - 1, -1, -1)})
    write_text(path, as_csv(counted, [*columns, LEFT]))


def read_rows(
    path: Path, what: str, columns: Sequence[str], numbers: Sequence[str]
) -> pd.DataFrame:
    """Read what ``write_rows`` wrote: ``columns``, of which ``numbers`` are int64, others text.

    ``what`` the file is to an error: "index". Raises ``CissError`` where it cannot be read, has
    other columns, lacks rows or a part of one, or has something else where a number should be.
    """
    again = "copy it again, or delete it to have it made again"
    try:
        text = path.read_text(encoding="utf-8")
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("its rows have more fields than its header")
    except (OSError, ValueError) as error:
        # A decoder's or parser's reason may have several lines.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CissError(f"cannot read the {what} {path}: {reason}; {again}") from None
    if tuple(table.columns) not in (tuple(columns), (*columns, LEFT)):
        raise CissError(
            f"{path} is no {what}: its columns are {', '.join(table.columns)} instead of "
            f"{', '.join(columns)}; {again}"
        )
    left = [str(count) for count in range(len(table) - 1, -1, -1)]
    if not text.endswith("\n") or (LEFT in table and table[LEFT].tolist() != left):
        raise CissError(f"the {what} {path} was cut off or lacks rows; {again}")
    for name in numbers:
        wrong = table[~table[name].str.fullmatch("[0-9]{1,18}")]
        if len(wrong):
            raise CissError(
                f"the {what} {path} is damaged: {name} of {wrong['image'].iloc[0]} is "
                f"'{wrong[name].iloc[0]}', no number; {again}"
            )
    return table[list(columns)].astype(dict.fromkeys(numbers, "int64"))


def as_csv(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return ``columns`` of a table as the text of a CSV file."""
    return table.to_csv(columns=list(columns), index=False, lineterminator="\n")
