"""One atomic file: tab-separated text under a header of `field:type` cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kgrec_fast.data.errors import DataFormatError, decode_utf8

if TYPE_CHECKING:
    import pandas as pd

FIELD_TYPES = ("token", "token_seq", "float", "float_seq")


def import_pandas() -> Any:
    """Returns pandas, or raises an ImportError that says how to get it."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "reading atomic files needs pandas: pip install kgrec_fast[train]"
        ) from error
    return pandas


def _header(path: Path, line: str) -> tuple[list[str], list[str]]:
    """Field names and types of a header line."""
    names, types = [], []
    for cell in line.split("\t"):
        name, colon, kind = cell.rpartition(":")
        if not colon or not name or kind not in FIELD_TYPES:
            reason = (
                f"header cell {cell!r} is not field:type with a type of {', '.join(FIELD_TYPES)}"
            )
            raise DataFormatError(path, 1, reason)
        if name in names:
            raise DataFormatError(path, 1, f"field {name!r} occurs twice in the header")
        names.append(name)
        types.append(kind)
    return names, types


def _check_field_counts(path: Path, raw: bytes, expected: int) -> None:
    """Every line must hold `expected` fields; counts tabs without a loop over lines."""
    data = np.frombuffer(raw, dtype=np.uint8)
    ends = np.r_[np.flatnonzero(data == ord("\n")), len(data)]
    tabs = np.searchsorted(np.flatnonzero(data == ord("\t")), ends)
    fields = np.diff(tabs, prepend=0) + 1
    wrong = np.flatnonzero(fields != expected)
    if wrong.size:
        line = int(wrong[0])
        start = int(ends[line - 1]) + 1 if line else 0
        found = int(fields[line]) if int(ends[line]) > start else 0
        raise DataFormatError(path, line + 1, f"expected {expected} fields, found {found}")


def read_atomic(
    path: str | Path, required: Sequence[str], numeric: Sequence[str] = ()
) -> pd.DataFrame:
    """Reads the named columns of one atomic file.

    Args:
        path: the file.
        required: columns that must be there; read as strings.
        numeric: columns read as float64 where the file has them with type `float`.

    Returns:
        A frame with the required columns and those of `numeric` that exist, one row a data line
        (row i is line i + 2 of the file). All other columns are left out.

    Raises:
        FileNotFoundError: if there is no such file.
        DataFormatError: for anything in the file that is not as it should be.
        ImportError: if pandas is not installed.
    """
    pd = import_pandas()
    path = Path(path)
    raw = path.read_bytes()
    decode_utf8(path, raw)
    raw = raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").rstrip(b"\n")
    if not raw:
        raise DataFormatError(path, 1, "the file is empty; expected a header of field:type cells")
    first, _, body = raw.partition(b"\n")
    names, types = _header(path, first.decode("utf-8"))
    missing = [name for name in required if name not in names]
    if missing:
        reason = f"column {missing[0]!r} is missing; the header has {', '.join(names)}"
        raise DataFormatError(path, 1, reason)
    if not body:
        raise DataFormatError(path, 2, "no rows under the header")
    if b"\0" in raw:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise DataFormatError(path, line, "the line holds a NUL byte")
    _check_field_counts(path, raw, len(names))
    kinds = dict(zip(names, types, strict=True))
    numeric = [name for name in numeric if kinds.get(name) == "float"]
    frame = pd.read_csv(
        io.BytesIO(body),
        sep="\t",
        header=None,
        names=names,
        usecols=[*required, *numeric],
        dtype=str,
        quoting=csv.QUOTE_NONE,
        na_filter=False,
        skip_blank_lines=False,
        lineterminator="\n",
        encoding="utf-8",
    )
    for name in required:
        empty = np.flatnonzero((frame[name] == "").to_numpy())
        if empty.size:
            raise DataFormatError(path, int(empty[0]) + 2, f"field {name!r} is empty")
    for name in numeric:
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            row = int(bad[0])
            reason = f"field {name!r} is not a finite number: {frame[name].iloc[row]!r}"
            raise DataFormatError(path, row + 2, reason)
        frame[name] = values
    return frame
