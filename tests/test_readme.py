"""The documents keep their word: Python runs, the YAML example loads, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from kgrec_fast.training import load_config

ROOT = Path(__file__).resolve().parent.parent
# Examples for these run where they are installed: tests/integrations/test_framework_documents.py.
FRAMEWORKS = ("hopwise", "recbole")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """(line of the fence, text) of every fenced block in a language."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start()) + 1, match.group(1)) for match in found]


def test_python_blocks_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [
        (line, text)
        for line, text in blocks(ROOT / "README.md", "python")
        if not any(f"kgrec_fast.integrations.{name}" in text for name in FRAMEWORKS)
    ]
    assert len(examples) == 7
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "readme"}
    for line, text in examples:  # each continues the ones before it
        # Padded, so that a traceback names the line of the README.
        exec(compile("\n" * line + text, str(ROOT / "README.md"), "exec"), names)
    assert (tmp_path / "runs" / "example" / "metrics.json").is_file()
    metric, *report = capsys.readouterr().out.splitlines()
    assert 0 < float(metric) < 1
    assert "swapped" in "".join(report)


def test_yaml_example_is_a_configuration(tmp_path: Path) -> None:
    ((_, text),) = blocks(ROOT / "docs" / "training.md", "yaml")
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    config = load_config(file)
    assert config.dataset.name is not None
    assert config != load_config()


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as they are made from their text."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def prose(path: Path) -> str:
    """A document without its fenced blocks, in which brackets mean something else."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)) if "://" not in link]
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
