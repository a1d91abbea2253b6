"""A real Ctrl-C: a process of its own gets SIGINT, and the run goes on as if nothing had been."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from test_trainer import assert_same_run

LIMIT = 60.0


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "kgrec_fast", "train", *map(str, arguments)]


def test_ctrl_c_saves_and_resume_continues_exactly(data_folder: Path, tmp_path: Path) -> None:
    options = [
        data_folder, "--epochs", "8", "--eval-every", "2", "--batch-size", "16", "--threads", "1",
        "--lr", "0.01", "--set", "model.mae_msize=8",
    ]  # fmt: skip
    whole = subprocess.Popen(
        command(*options, "--run-dir", tmp_path / "whole"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "a run"
    stopped = subprocess.Popen(
        command(*options, "--run-dir", folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = time.monotonic()
    while not (folder / "best.safetensors").exists() and time.monotonic() - started < LIMIT:
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, message = stopped.communicate(timeout=LIMIT)
    assert stopped.returncode == 128 + signal.SIGINT, message
    assert "Stopped by SIGINT" in message
    assert f"kgrec-fast train --resume '{folder}'" in message
    assert "Traceback" not in message
    assert not (folder / "metrics.json").read_text().count('"epoch": 8')

    resumed = subprocess.run(
        command("--resume", folder), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    output, errors = whole.communicate(timeout=LIMIT)
    assert whole.returncode == 0, errors
    assert output.count("NDCG") == 6  # four evaluations, valid and test of the best
    assert_same_run(tmp_path / "whole", folder)
