"""What a run prints where there is no terminal, and where there is one."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

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
