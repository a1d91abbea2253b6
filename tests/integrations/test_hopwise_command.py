"""`kgrec-fast hopwise`: hopwise's own command, which then knows KGRec."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=120
    )


def hopwise(*arguments: str) -> str:
    """What the command prints, without the colours of a terminal."""
    done = run("-m", "kgrec_fast", "hopwise", *arguments)
    output = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, output
    return output


def result_in(output: str) -> str:
    return re.findall(r"test result\s*: (.*)", output)[-1].strip()


def test_trains_and_evaluates(data_path):
    settings = [f"--data_path={data_path}", "--mae_msize=20", "--show_progress=False"]
    names = ["--model", "KGRec", "--dataset", "planted"]
    trained = hopwise("train", *names, "--epochs=2", *settings)
    assert re.findall(r"epoch (\d+) training", trained) == ["0", "1"]
    (file,) = Path("saved").glob("KGRec-*.pth")
    checkpoint = torch.load(file, weights_only=False)
    assert checkpoint["config"]["epochs"] == 2
    assert checkpoint["state_dict"]["gcn.W_Q"].shape == (64, 64)

    evaluated = hopwise("evaluate", *names, *settings, "--checkpoint", str(file))
    assert result_in(evaluated) == result_in(trained)


def test_help_is_hopwises():
    output = hopwise("train", "--help")
    assert "kgrec-fast hopwise train" in output
    assert "--checkpoint" in output


def test_says_what_hopwise_does_not_install():
    script = (
        "import sys; sys.modules['setproctitle'] = None\n"
        "from kgrec_fast.cli import main; main(['hopwise', 'train'])"
    )
    done = run("-c", script)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "Error: hopwise's command needs setproctitle: pip install setproctitle"
    )
