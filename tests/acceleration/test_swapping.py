"""What `accelerate` leaves as it is, what survives it, and what `restore` gives back."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_ins import (
    RELATIONS,
    USERS,
    WIDTH,
    ContrastLike,
    Edges,
    HopwiseLike,
    Model,
    PaperLike,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

import kgrec_fast
from kgrec_fast.integrations import acceleration
from kgrec_fast.integrations.acceleration.layers import HopwiseLayer
from kgrec_fast.integrations.acceleration.swap import swapped_class

ROOT = Path(__file__).resolve().parents[2]
BOTH = pytest.mark.parametrize("paper", [False, True], ids=["hopwise", "paper"])


def run(model: nn.Module) -> Tensor:
    torch.manual_seed(7)
    return model.double()(Edges.make())


@BOTH
def test_restore_gives_back_everything(paper: bool) -> None:
    model = Model(paper).double()
    kind = PaperLike if paper else HopwiseLike
    value, attributes = run(model), {n: dict(vars(m)) for n, m in model.named_modules()}
    kgrec_fast.accelerate(model)
    assert type(model.gcn) is not kind
    assert isinstance(model.gcn, kind)
    assert kgrec_fast.restore(model) == ("gcn", "contrast_fn")
    assert type(model.gcn) is kind
    assert type(model.contrast_fn) is ContrastLike
    for name in ("forward", "forward_ui", "forward_kg", "kg_agg", "norm_attn_computer"):
        assert getattr(model.gcn, name).__func__ is getattr(kind, name)
    assert model.contrast_fn.loss.__func__ is ContrastLike.loss
    assert {n: dict(vars(m)) for n, m in model.named_modules()} == attributes
    assert torch.equal(run(model), value)
    assert kgrec_fast.restore(model) == ()


@BOTH
def test_state_dict_stays(paper: bool) -> None:
    model = Model(paper).double()
    before = {k: v.data_ptr() for k, v in model.state_dict().items()}
    kgrec_fast.accelerate(model)
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == before
    other = Model(paper).double()
    torch.nn.init.normal_(other.gcn.W_Q)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(run(model), run(other))
    assert repr(model) == repr(other)


def test_twice_is_once() -> None:
    model = Model(paper=False)
    first = kgrec_fast.accelerate(model)
    kinds = [type(m) for m in model.modules()]
    second = kgrec_fast.accelerate(model)
    assert [type(m) for m in model.modules()] == kinds
    assert second.swapped == ()
    assert [layer.reason for layer in second.layers] == ["it was swapped before"] * 2
    assert [layer.name for layer in second.layers] == [layer.name for layer in first.layers]
    kgrec_fast.restore(model)
    assert type(model.gcn) is HopwiseLike
    assert kgrec_fast.accelerate(model) == first


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@BOTH
@pytest.mark.parametrize("way", [copied, pickled, saved])
def test_copies(paper: bool, way) -> None:
    model = Model(paper).double()
    kgrec_fast.accelerate(model)
    value = run(model)
    other = way(model)
    assert type(other.gcn) is type(model.gcn)
    assert torch.equal(run(other), value)
    with torch.no_grad():
        other.gcn.W_Q.add_(1.0)
        (other.gcn.relation_emb if paper else other.gcn.relation_embedding.weight).add_(1.0)
    assert not torch.equal(run(other), value), "it reads its own parameters"
    assert torch.equal(run(model), value)
    kgrec_fast.restore(other)
    assert type(other.gcn) in (PaperLike, HopwiseLike)
    assert type(model.gcn) is not type(other.gcn)


def test_a_pickle_loads_in_a_fresh_process(tmp_path: Path) -> None:
    model = Model(paper=True).double()
    kgrec_fast.accelerate(model)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    torch.save(run(model).detach(), tmp_path / "value.pt")
    script = """
import pickle, sys, torch
from pathlib import Path
from stand_ins import Edges, PaperLike
torch.set_num_threads(1)
folder = Path(sys.argv[1])
model = pickle.loads((folder / "model.pickle").read_bytes())
torch.manual_seed(7)
assert torch.equal(model(Edges.make()), torch.load(folder / "value.pt"))
import kgrec_fast
assert kgrec_fast.restore(model) == ("gcn", "contrast_fn")
assert type(model.gcn) is PaperLike
"""
    environment = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)


@BOTH
def test_moves_between_types(paper: bool) -> None:
    model = Model(paper)
    kgrec_fast.accelerate(model)
    assert model.double()(Edges.make()).dtype == torch.float64
    assert model.float()(Edges.make(torch.float32)).dtype == torch.float32
    assert model.to("meta").gcn.W_Q.device.type == "meta"


@BOTH
def test_functional_call_replaces_parameters(paper: bool) -> None:
    model = Model(paper).double()
    other = Model(paper).double()
    kgrec_fast.accelerate(model)
    torch.manual_seed(7)
    out = torch.func.functional_call(model, dict(other.named_parameters()), (Edges.make(),))
    torch.testing.assert_close(out, run(other))


def test_nothing_else_is_touched() -> None:
    """Not the layer's training mode, its gradients, its hooks, nor torch's random state."""
    model = Model(paper=False, mess_dropout_rate=0.2).double()
    called = []
    model.gcn.register_forward_hook(lambda *_: called.append(1))
    model(Edges.make()).backward()
    called.clear()
    model.gcn.W_Q.requires_grad_(False)
    model.eval()
    model.gcn.train()
    grads = {n: p.grad for n, p in model.named_parameters()}
    values = {n: p.clone() for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    with torch.no_grad():
        assert len(kgrec_fast.accelerate(model).swapped) == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert not called
    assert all(p.grad is grads[n] for n, p in model.named_parameters())
    assert all(torch.equal(p, values[n]) for n, p in model.named_parameters())
    assert not model.training
    assert model.gcn.training
    assert not model.gcn.W_Q.requires_grad
    model(Edges.make())
    assert called == [1]


def test_wherever_the_layer_is() -> None:
    shared = HopwiseLike(WIDTH, 2, USERS, RELATIONS)
    model = nn.ModuleDict(
        {"list": nn.ModuleList([shared, PaperLike(WIDTH, 1, USERS, RELATIONS)]), "again": shared}
    )
    report = kgrec_fast.accelerate(model)
    assert report.swapped == ("list.0", "list.1")
    assert [layer.interface for layer in report.layers] == [
        "AttnHGCN of hopwise",
        "AttnHGCN of the paper",
    ]
    assert model["again"] is shared
    assert kgrec_fast.restore(model["list"][0]) == ("",)
    assert kgrec_fast.restore(model) == ("list.1",)


def test_a_report_prints() -> None:
    model = Model(paper=True)
    text = str(kgrec_fast.accelerate(model))
    assert text.splitlines()[0] == "Model: 2 of 2 layers swapped"
    assert "gcn (PaperLike): swapped forward, forward_ui" in text
    assert "contrast_fn (ContrastLike): swapped loss [Contrast]" in text
    again = str(kgrec_fast.accelerate(model))
    assert "gcn (PaperLike): left alone, it was swapped before" in again
    alone = str(kgrec_fast.accelerate(model.gcn))
    assert "the model itself (PaperLike): left alone" in alone
    plain = kgrec_fast.accelerate(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2)))
    assert plain.layers == ()
    assert str(plain) == "Sequential: none of its 3 modules is a layer of KGRec"


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@BOTH
def test_parametrized_before(paper: bool) -> None:
    """A parametrization gives a layer a class of its own, which is the one to go back to."""
    model = Model(paper).double()
    parametrize.register_parametrization(model.gcn, "W_Q", Doubled())
    value, kind = run(model), type(model.gcn)
    assert kgrec_fast.accelerate(model).swapped == ("gcn", "contrast_fn")
    torch.testing.assert_close(run(model), value)
    assert kgrec_fast.restore(model) == ("gcn", "contrast_fn")
    assert type(model.gcn) is kind
    assert torch.equal(run(model), value)


@BOTH
def test_parametrized_after(paper: bool) -> None:
    """What is derived from a swapped class is not undone with it: that would break the layer."""
    model = Model(paper).double()
    plain, kinds = run(model), [type(m) for m in model.modules()]
    kgrec_fast.accelerate(model)
    parametrize.register_parametrization(model.gcn, "W_Q", Doubled())
    value, swapped = run(model), [type(m) for m in model.modules()]
    assert not torch.equal(value, plain)
    with pytest.raises(ValueError, match=r"gcn is a Parametrized.*remove parametrizations first"):
        kgrec_fast.restore(model)
    assert [type(m) for m in model.modules()] == swapped
    assert torch.equal(run(model), value)
    parametrize.remove_parametrizations(model.gcn, "W_Q", leave_parametrized=False)
    assert kgrec_fast.restore(model) == ("gcn", "contrast_fn")
    assert [type(m) for m in model.modules()] == kinds
    torch.testing.assert_close(run(model), plain)


class Derived(swapped_class(HopwiseLike, HopwiseLayer)):  # type: ignore[misc]
    pass


def test_a_class_derived_from_a_swapped_one_is_pickled_as_itself() -> None:
    assert pickle.loads(pickle.dumps(Derived)) is Derived
    layer = Derived(WIDTH, 2, USERS, RELATIONS)
    assert type(pickle.loads(pickle.dumps(layer))) is Derived


@pytest.mark.parametrize("bad", [None, torch.zeros(3), HopwiseLike, "model"])
def test_no_module(bad: object) -> None:
    for function in (kgrec_fast.accelerate, kgrec_fast.restore):
        expected = f"model is a {type(bad).__name__}, expected a torch.nn.Module"
        with pytest.raises(TypeError, match=expected):
            function(bad)


def test_the_package_does_not_import_the_layers() -> None:
    script = """
import sys, kgrec_fast
assert "kgrec_fast.nn" not in sys.modules
import kgrec_fast.integrations.acceleration
assert callable(kgrec_fast.accelerate) and callable(kgrec_fast.restore)
assert not hasattr(kgrec_fast, "decelerate")
from kgrec_fast import accelerate, restore
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": str(ROOT)})
    assert kgrec_fast.accelerate is acceleration.accelerate
    with pytest.raises(AttributeError, match="no attribute 'decelerate'"):
        kgrec_fast.decelerate  # noqa: B018


def test_the_log_of_the_paper_is_written(caplog: pytest.LogCaptureFixture) -> None:
    layer, edges = PaperLike(WIDTH, 2, USERS, RELATIONS).double(), Edges.make()
    kgrec_fast.accelerate(layer)
    arguments = (edges.entities, edges.edge_index, edges.edge_type + 1)
    with caplog.at_level("INFO"):
        quiet = layer.norm_attn_computer(*arguments)
        assert not caplog.records
        loud = layer.norm_attn_computer(*arguments, print=True)
    assert [r.name for r in caplog.records] == ["paper_like"]
    torch.testing.assert_close(loud, quiet)
