"""What a run prints where there is no terminal, and where there is one."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from kgrec_fast._console import new_console
from kgrec_fast.training.metrics import metric_names
from kgrec_fast.training.report import ConsoleReporter, metrics_table, plain_table


def run(console: Console, epochs: int, eval_every: int) -> list[str]:
    reporter = ConsoleReporter(console)
    evaluations = epochs // eval_every
    reporter.start(epochs=epochs, pairs=100, evaluations=evaluations, done=0)
    for epoch in range(1, epochs + 1):
        reporter.epoch(epoch)
        reporter.step(0.5, 100)
        valid = dict.fromkeys(metric_names([10]), 0.25) if epoch % eval_every == 0 else None
        record: dict[str, Any] = {
            "epoch": epoch,
            "loss": 0.51234,
            "seconds": 1.5,
            "pairs_per_second": 66.6,
            "valid": valid,
        }
        reporter.epoch_end(record, is_best=epoch == eval_every)
    reporter.stop()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_file_is_not_flooded() -> None:
    lines = run(Console(file=io.StringIO()), epochs=3000, eval_every=1)
    assert len(lines) == 1  # one now, and another every ten seconds
    assert "ndcg@10 0.2500" in lines[0]
    assert "epoch 1/3000: loss 0.5123" in lines[0]


def test_a_log_file_has_a_table_an_evaluation() -> None:
    lines = run(Console(file=io.StringIO()), epochs=30, eval_every=10)
    assert sum("NDCG" in line for line in lines) == 3
    assert sum("best so far" in line for line in lines) == 1
    assert len(lines) < 40
    assert not any("\x1b" in line for line in lines)


def test_a_terminal_has_a_bar_with_loss_and_speed_left_out_at_the_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    text = "\n".join(run(console, epochs=30, eval_every=10))
    assert "loss 0.5000" in text
    assert "pairs/s" in text
    assert "epoch 30/30" in text
    assert text.count("NDCG") == 3


def test_brackets_in_tokens_are_kept() -> None:
    console = Console(file=io.StringIO(), markup=False, width=80)
    console.print(plain_table("user [bold]", ("item", "score"), [("[red]x[/red]", 0.5)]))
    console.print(metrics_table("t", dict.fromkeys(metric_names([5, 10]), 0.125)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "user [bold]" in text
    assert "[red]x[/red]" in text
    assert "0.1250" in text


def test_a_narrow_terminal_cuts_no_token_and_no_number() -> None:
    token = "https://example.org/catalogue/" + "-".join(str(part) for part in range(20))
    console = Console(file=io.StringIO(), width=30)
    console.print(plain_table("user u", ("rank", "item", "score"), [(1, token, 0.9504)]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    columns = zip(*rows, strict=True)
    rank, item, score = ("".join(cell.strip() for cell in column) for column in columns)
    assert (rank, item, score) == ("1", token, "0.9504")
    console = Console(file=io.StringIO(), width=30)
    console.print(metrics_table("t", dict.fromkeys(metric_names([1, 5, 10, 20, 100]), 0.125)))
    assert "…" not in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_stops_no_run(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes it for a terminal
    console = new_console()
    reporter = ConsoleReporter(console)
    reporter.start(epochs=1, pairs=100, evaluations=1, done=0)
    reporter.epoch(1)
    reporter.stop()
    console.print(plain_table("user u", ("item",), [("чай",)]))
    console.file.flush()
    text = raw.getvalue().decode(encoding)
    assert "epoch 1/1" in text
    assert r"\u0447\u0430\u0439" in text
    assert r"\u" not in text.split("user u")[0]  # the bar has signs for every terminal


def test_a_file_gets_tables_as_wide_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    console = new_console()
    console.print(plain_table("user u", ("item", "score"), [("x" * 300, 0.5)]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert sum("x" * 300 in line for line in lines) == 1
    assert max(map(len, lines)) < 330


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True)
    lines = run(console, epochs=4, eval_every=5)
    assert lines[0].startswith("epoch 1/4: loss 0.5123")
