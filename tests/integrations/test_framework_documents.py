"""The examples for this framework, in README and in docs/integrations.md, run as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from framework_runs import FRAMEWORK

ROOT = Path(__file__).resolve().parents[2]


def examples() -> list[tuple[str, str]]:
    """(place, text) of the Python blocks that name the integration."""
    found = []
    for path in (ROOT / "README.md", ROOT / "docs" / "integrations.md"):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            if f"kgrec_fast.integrations.{FRAMEWORK}" in match.group(1):
                line = text.count("\n", 0, match.start()) + 1
                found.append((f"{path.name}:{line}", match.group(1)))
    return found


def test_there_are_examples():
    assert len(examples()) >= 1


@pytest.mark.parametrize(("place", "text"), [pytest.param(*x, id=x[0]) for x in examples()])
def test_runs_as_printed(place, text, capsys):
    exec(compile(text, place, "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    assert 0.1 < float(printed) < 0.5
