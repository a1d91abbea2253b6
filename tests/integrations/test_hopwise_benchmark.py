"""The benchmark runs to its end on the small data set, and says what it is expected to say."""

from __future__ import annotations

import json

import pytest

from benchmarks import hopwise_epoch
from benchmarks.hopwise_epoch import Run


def test_quick(data_path, tmp_path, monkeypatch, capsys, restore_threads):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # what the benchmark pins ends with the test
    arguments = ["--quick", "--threads", "1", "--baseline", "torch", "--seeds", "7", "8"]
    arguments += ["--dataset", "planted", "--data-path", str(data_path)]
    hopwise_epoch.main([*arguments, "--json", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert [(run["side"], run["seed"]) for run in record["runs"]] == [("ours", 7), ("published", 7)]
    assert all(len(run["epoch_seconds"]) == 1 for run in record["runs"])
    (row,) = record["rows"]
    assert (row["op"], row["graph"], row["baseline"]) == ("epoch", "planted", "torch")
    assert "largest difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("published", "verdict"), [((0.10, 0.22), "above minus"), ((0.15, 0.25), "not above")]
)
def test_verdict(published, verdict):
    pairs = [
        (Run("ours", seed, [1.0], 0.1, test), Run("published", seed, [9.0, 8.0, 10.0], 0.1, other))
        for seed, test, other in zip((1, 2), (0.11, 0.20), published, strict=True)
    ]
    text = hopwise_epoch.report(pairs)
    assert f": {verdict}" in text
    assert "9.0" in text.splitlines()[1]  # the ratio
