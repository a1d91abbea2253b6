"""An integration whose framework is not there says what to install."""

from __future__ import annotations

import importlib
import sys

import pytest
from click.testing import CliRunner

from kgrec_fast.cli import main


@pytest.mark.parametrize("framework", ["hopwise", "recbole"])
def test_says_what_to_install(framework, monkeypatch):
    name = f"kgrec_fast.integrations.{framework}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ImportError, match=rf"cannot import {framework}.*kgrec_fast\[{framework}\]"):
        importlib.import_module(name)


def test_the_command_says_it_in_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "kgrec_fast.integrations.hopwise", raising=False)
    monkeypatch.setitem(sys.modules, "hopwise", None)
    result = CliRunner().invoke(main, ["hopwise", "train", "--model", "KGRec", "--epochs=1"])
    assert result.exit_code == 2
    assert result.output.startswith("Error: kgrec_fast.integrations.hopwise cannot import hopwise")
    assert len(result.output.splitlines()) == 1
