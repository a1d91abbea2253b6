"""The documents keep their word: Python runs, pictures show their data, links lead somewhere.

Examples for a framework run where it is installed, tests/integrations/test_framework_documents.py;
those of adding_an_op.md and paper_code.md have tests of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

from kgrec_fast import cli
from kgrec_fast.data import planted_rationales
from kgrec_fast.training import load_config

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FRAMEWORKS = ("hopwise", "recbole")
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
TOLD_ELSEWHERE = ("adding_an_op.md", "paper_code.md")


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """(line of the fence, text) of every fenced block in a language."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start()) + 1, match.group(1)) for match in found]


def examples(path: Path) -> list[tuple[int, str]]:
    """The Python blocks that need no framework."""
    return [
        (line, text)
        for line, text in blocks(path, "python")
        if not any(f"kgrec_fast.integrations.{name}" in text for name in FRAMEWORKS)
    ]


WITH_EXAMPLES = [path for path in DOCUMENTS if path.name not in TOLD_ELSEWHERE and examples(path)]


def write_atomic_files(folder: Path) -> None:
    """A small data set in the format of ml-100k."""
    data = planted_rationales(40, 30, 2, attributes=6, interactions=(10, 14))
    pairs = torch.cat([data.train, data.valid, data.test], dim=1).t().tolist()
    triples = zip(data.edge_index.t().tolist(), data.edge_type.tolist(), strict=True)
    content = {
        "inter": [("user_id:token", "item_id:token"), *((f"{u + 160}", f"i{i}") for u, i in pairs)],
        "link": [
            ("item_id:token", "entity_id:token"),
            *((f"i{i}", f"e{i}") for i in range(data.n_items)),
        ],
        "kg": [
            ("head_id:token", "relation_id:token", "tail_id:token"),
            *((f"e{head}", f"r{relation}", f"e{tail}") for (head, tail), relation in triples),
        ],
    }
    folder.mkdir(parents=True)
    for kind, rows in content.items():
        text = "".join("\t".join(row) + "\n" for row in rows)
        (folder / f"{folder.name}.{kind}").write_text(text, encoding="utf-8")


@pytest.mark.filterwarnings("ignore:mae_msize is:UserWarning")
@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.name)
def test_python_examples_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("torch_scatter", "torch_scatter.composite"):  # an example sets them
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))
    write_atomic_files(tmp_path / "dataset" / "ml-100k")
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "document"}
    for line, text in examples(path):  # each continues the ones before it
        # Padded, so that a traceback names the line of the document.
        exec(compile("\n" * line + text, str(path), "exec"), names)
    printed = capsys.readouterr().out
    if path.name == "README.md":
        assert (tmp_path / "runs" / "example" / "metrics.json").is_file()
        assert 0 < float(printed.splitlines()[0]) < 1  # ndcg@10
    # What an example says that it prints.
    for said in re.findall(r"print\(error\)  # (.*)", path.read_text(encoding="utf-8")):
        assert said in printed


@pytest.mark.filterwarnings("ignore:mae_msize is:UserWarning")
def test_the_first_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small stand-in for ml-100k; those of the paper's code are run by their own tests."""
    monkeypatch.chdir(tmp_path)
    write_atomic_files(tmp_path / "dataset" / "ml-100k")
    printed = [text for _, text in blocks(ROOT / "README.md", "") if text.startswith("kgrec-fast")]
    for line in printed[0].splitlines():
        program, *arguments = shlex.split(line)
        assert program == "kgrec-fast"
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}{result.exception!r}"
    assert "user 196" in result.output


def test_these_documents_have_examples() -> None:
    names = {path.name for path in WITH_EXAMPLES}
    assert names == {"README.md", "integrations.md", "training.md", "troubleshooting.md"}


def test_yaml_example_is_a_configuration(tmp_path: Path) -> None:
    ((_, text),) = blocks(DOCS / "training.md", "yaml")
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    config = load_config(file)
    assert config.dataset.name is not None
    assert config != load_config()


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_the_table_of_the_readme() -> None:
    script = load_script(DOCS / "draw_speed_up.py")
    rows = script.read_table((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(rows) >= 5
    for row in rows:
        assert 1 < row.low <= row.high
    drawn = script.PICTURE.read_text(encoding="utf-8")
    assert drawn == script.draw(rows), "run python docs/draw_speed_up.py"


@pytest.mark.parametrize("name", ["ops", "nn", "models", "training", "data"])
def test_the_reference_has_every_public_name(name: str) -> None:
    package = importlib.import_module(f"kgrec_fast.{name}")
    page = (DOCS / "reference" / f"{name}.rst").read_text(encoding="utf-8")
    listed = set(re.findall(rf"^\.\. auto\w+:: kgrec_fast\.{name}\.([\w.]+)$", page, re.MULTILINE))
    # A reference has the arguments of its op, and is named there.
    public = {x for x in package.__all__ if x.removesuffix("_reference") == x}
    assert public <= {name.rpartition(".")[2] for name in listed}


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
