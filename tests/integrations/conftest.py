"""A small data set as the frameworks read it, and a folder of its own for what they write."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kgrec_fast.data import planted_rationales

NAME = "planted"


def _rows(header: str, rows: list[tuple[object, ...]]) -> str:
    return "\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n"


@pytest.fixture(scope="session")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the data set `planted`: atomic files, some interactions of which repeat."""
    data = planted_rationales(60, 50, 2, attributes=8, interactions=(10, 15), seed=3)
    pairs = torch.cat([data.train, data.valid, data.test, data.train[:, ::7]], dim=1)
    items = data.item_tokens
    interactions = [
        (data.user_tokens[user], items[item], 5, time)
        for time, (user, item) in enumerate(pairs.t().tolist())
    ]
    triples = [
        (data.entity_tokens[head], data.relation_tokens[relation], data.entity_tokens[tail])
        for (head, tail), relation in zip(
            data.edge_index.t().tolist(), data.edge_type.tolist(), strict=True
        )
    ]
    linked = [(token, token) for token in items]
    folder = tmp_path_factory.mktemp("data")
    (folder / NAME).mkdir()
    for suffix, header, rows in (
        ("inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", interactions),
        ("kg", "head_id:token\trelation_id:token\ttail_id:token", triples),
        ("link", "item_id:token\tentity_id:token", linked),
    ):
        (folder / NAME / f"{NAME}.{suffix}").write_text(_rows(header, rows), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logs and checkpoints go to a folder of the test; the frameworks see no command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers
