"""The functions under the names and in the arguments of torch_scatter and torch_geometric."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
from segment_helpers import random_values

from kgrec_fast import ops
from kgrec_fast.integrations import torch_geometric, torch_scatter

INDEX = torch.tensor([2, 0, 2, 1])
SRC = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])


def arguments(function: object) -> list[tuple[str, object]]:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [(p.name, None if p.default is p.empty else p.default) for p in parameters]


def test_arguments_are_theirs() -> None:
    common = [("src", None), ("index", None), ("dim", -1)]
    reduction = [*common, ("out", None), ("dim_size", None)]
    for name in ("scatter_sum", "scatter_add", "scatter_mean"):
        assert arguments(getattr(torch_scatter, name)) == reduction
    assert arguments(torch_scatter.scatter) == [*reduction, ("reduce", "sum")]
    assert arguments(torch_scatter.scatter_softmax) == [*common, ("dim_size", None)]
    assert arguments(torch_geometric.softmax) == [
        *(("src", None), ("index", None), ("ptr", None), ("num_nodes", None), ("dim", 0))
    ]


def test_scatter_chooses_the_reduction() -> None:
    total = [[3.0, 4.0], [7.0, 8.0], [6.0, 8.0], [0.0, 0.0]]
    mean = [[3.0, 4.0], [7.0, 8.0], [3.0, 4.0], [0.0, 0.0]]
    for reduce, expected in (("sum", total), ("add", total), ("mean", mean)):
        out = torch_scatter.scatter(SRC, INDEX, 0, None, 4, reduce)
        assert out.tolist() == expected
    assert torch_scatter.scatter(SRC, INDEX, 0).tolist() == total[:3]
    out = torch.ones(3, 2)
    assert torch_scatter.scatter(SRC, INDEX, dim=-2, out=out, reduce="add") is out
    assert out.tolist() == [[4.0, 5.0], [8.0, 9.0], [7.0, 9.0]]
    with pytest.raises(ValueError, match="reduce is 'max', expected one of sum, add, mean"):
        torch_scatter.scatter(SRC, INDEX, 0, reduce="max")


def test_softmax_runs_along_the_last_dimension() -> None:
    src, index = random_values((3, 4), torch.float64), torch.tensor([1, 0, 1, 1])
    out = torch_scatter.scatter_softmax(src, index)
    torch.testing.assert_close(out[:, 1], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(out[:, [0, 2, 3]], src[:, [0, 2, 3]].softmax(1))
    own = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    out = torch_scatter.scatter_softmax(src, own, dim=1, dim_size=2)
    torch.testing.assert_close(out[0], src[0].softmax(0))
    torch.testing.assert_close(out[1:].view(2, 2, 2), src[1:].view(2, 2, 2).softmax(2))
    with pytest.raises(ValueError, match=r"index\[2, 0\] is 1, expected 0 <= index < 1"):
        torch_scatter.scatter_softmax(src, own[[0, 0, 2]], dim=1, dim_size=1)


def test_softmax_of_pyg_is_the_op() -> None:
    assert torch_geometric.softmax is ops.scatter_softmax


@pytest.mark.parametrize("module", [torch_scatter, torch_geometric])
def test_what_is_absent_says_what_is_there(module: object) -> None:
    there = "softmax" if module is torch_geometric else "scatter, scatter_add, scatter_mean"
    with pytest.raises(AttributeError, match=f"no 'scatter_max'; it has {there}"):
        module.scatter_max  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(module, "segment_csr")


def test_other_code_finds_it_under_the_original_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch_scatter", "torch_scatter.composite"):
        monkeypatch.setitem(sys.modules, name, torch_scatter)
    found: dict = {}
    exec(
        "from torch_scatter import scatter_mean\n"
        "from torch_scatter.composite import scatter_softmax\n"
        "import torch_scatter",
        found,
    )
    assert found["scatter_mean"] is ops.scatter_mean
    assert found["scatter_softmax"] is torch_scatter.scatter_softmax
    assert found["torch_scatter"].scatter_add is ops.scatter_sum
