"""The error that malformed data files raise."""

from __future__ import annotations

from pathlib import Path


class DataFormatError(ValueError):
    """A data file does not follow its format.

    Attributes:
        path: the file.
        line: 1-based line number, or None where the file as a whole is at fault.
        reason: what was found and what was expected.
    """

    def __init__(self, path: str | Path, line: int | None, reason: str) -> None:
        self.path = Path(path)
        self.line = line
        self.reason = reason
        where = str(path) if line is None else f"{path}, line {line}"
        super().__init__(f"{where}: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str | Path, int | None, str]]:
        return type(self), (self.path, self.line, self.reason)


def decode_utf8(path: str | Path, raw: bytes) -> str:
    """Returns the text of `raw`; raises DataFormatError with the line of the first bad byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        reason = f"not UTF-8: byte 0x{raw[error.start]:02x} cannot be decoded"
        raise DataFormatError(path, line, reason) from None
