"""What the commands say on the terminal: mistakes as one line, warnings as notes."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console


class Mistake(click.ClickException):
    """A user's mistake: one line on stderr and exit code 2."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code: int = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        click.echo(f"Error: {' '.join(self.format_message().split())}", err=True)


@contextmanager
def mistakes(*kinds: type[Exception], exit_code: int = 2) -> Iterator[None]:
    """Turns errors of the given kinds into one line and an exit code."""
    try:
        yield
    except kinds as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
        raise Mistake(message, exit_code) from error


# Columns of what is no terminal: a file can be scrolled, and searched for whole tokens.
_WIDE = 10_000


def new_console() -> Console:
    """A console on stdout, which no token of a data set can stop or be cut by."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    # No markup: tokens of a data set may hold square brackets.
    console = Console(file=sys.stdout, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


@contextmanager
def warnings_as_notes(console: Console) -> Iterator[None]:
    """Prints warnings as lines, without the line of source that they came from."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for warning in caught:
                console.print(f"note: {warning.message}", soft_wrap=True)
