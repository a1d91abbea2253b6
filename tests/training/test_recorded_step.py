"""Recorded steps are the plain ones, to the bit; and what cannot be recorded is not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_helpers import fresh_model, make_config, small_dataset

from kgrec_fast import InteractionGraph, RelGraph, ops
from kgrec_fast.data import KGDataset
from kgrec_fast.models import KGRec
from kgrec_fast.nn import _row_graphs
from kgrec_fast.training import Trainer, build_model
from kgrec_fast.training.optimizer import make_adam, optimizer_tensors
from kgrec_fast.training.recorded_step import RecordedStep, why_not_recorded
from kgrec_fast.training.report import Reporter
from kgrec_fast.training.steps import PlainStep

LR = 0.02
WARM_UP = 3  # a plain step, and two that are recorded


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


# What a batch of 16 reads is little beside these: the last hop has a graph of its own.
USERS, ITEMS, NODES, RELATIONS = 90, 80, 300, 5


def make_model(dtype: torch.dtype = torch.float32, weighted: bool = False, **hyper: Any) -> KGRec:
    generator = torch.Generator().manual_seed(1)

    def draw(*sizes: int, count: int) -> Tensor:
        return torch.stack([torch.randint(n, (count,), generator=generator) for n in sizes])

    ends = draw(NODES, NODES, count=1500)
    ends[0, :600] %= ITEMS
    ends[0] %= 220  # the other nodes have no edges
    relation = torch.randint(RELATIONS - 1, (1500,), generator=generator)
    kg = RelGraph.from_edges(ends, relation, num_nodes=NODES, num_relations=RELATIONS - 1)
    pairs = draw(USERS, ITEMS, count=900).unique(dim=1)
    weight = torch.rand(pairs.shape[1], generator=generator) if weighted else None
    interactions = InteractionGraph.from_edges(
        pairs, num_users=USERS, num_items=ITEMS, weight=weight
    )
    torch.manual_seed(2)
    sizes = (USERS, ITEMS, NODES, RELATIONS)
    return KGRec(*sizes, kg, interactions, 16, **{"mae_msize": 5, **hyper}).to(dtype).train()


def batches(count: int, sizes: tuple[int, ...] = (16,)) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for number in range(count):
        size = sizes[number % len(sizes)]
        batch = {"user_id": torch.randint(USERS, (size,), generator=generator)}
        for name in ("item_id", "neg_item_id"):
            batch[name] = torch.randint(ITEMS, (size,), generator=generator)
        yield batch


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return make_adam(model, LR, 1e-4)


def both(
    model: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adam
) -> tuple[PlainStep, RecordedStep]:
    """A step of a copy of the model, and one of it that is recorded."""
    other = copy.deepcopy(model)
    return (
        PlainStep(other, optimizer(other), torch.tensor([5, 0])),
        RecordedStep(model, optimizer(model), torch.tensor([5, 0])),
    )


def assert_alike(plain: PlainStep, recorded: RecordedStep) -> None:
    assert torch.equal(plain.rng, recorded.rng)
    for ours, theirs in zip(recorded.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)
    ours, theirs = (optimizer_tensors(s.optimizer, s.model) for s in (recorded, plain))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


def compare(
    model: nn.Module,
    given: Iterator[dict[str, Tensor]],
    change: Callable[..., None] | None = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adam,
) -> RecordedStep:
    """Steps of both kinds; `change(step, number)` comes before each of them."""
    plain, recorded = both(model, optimizer)
    for number, batch in enumerate(given):
        for step in (plain, recorded):
            if change is not None:
                change(step, number)
        assert recorded(batch).equal(plain(batch))
        assert_alike(plain, recorded)
    return recorded


def sizes_of(step: RecordedStep, name: str, count: int) -> set[tuple[int, ...]]:
    """Numbers of edges of the graphs that an operator makes in each of so many steps."""
    seen: list[int] = []

    def wrapped(call: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            seen.append(found[1].numel())
            return found

        return run if call.name == name else function

    found = set()
    for batch in batches(count):
        program = step.program(batch)
        assert program is not None
        seen.clear()
        program.compiled(wrapped)(batch, None)
        found.add(tuple(seen))
    return found


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "as published": {},
    "one hop": {"context_hops": 1},
    "no hops": {"context_hops": 0},
    "three hops": {"context_hops": 3},
    "nothing sampled": {"node_dropout_rate": 0.0},
    "nothing dropped": {"mess_dropout_rate": 0.0, "cl_drop": 0.0},
    "quirks": {"published_quirks": True},
    "weighted": {"weighted": True},
    "float64": {"dtype": torch.float64},
    "half": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("few", [False, True], ids=["all interactions", "those kept"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_are_the_plain_steps(name: str, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if few:
        monkeypatch.setattr(_row_graphs, "MANY_INTERACTIONS", 1)
    step = compare(make_model(**CONFIGURATIONS[name]), batches(9))
    assert step.reason is None
    assert step.program(next(batches(1))) is not None


def test_sizes_that_depend_on_draws_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of other sizes come of each step, and none of these is an argument."""
    monkeypatch.setattr(_row_graphs, "MANY_INTERACTIONS", 1)
    step = compare(make_model(), batches(6))
    for name in ("row_subgraph", "edge_subgraph"):
        found = sizes_of(step, f"kgrec_fast::{name}", 8)
        assert {len(sizes) for sizes in found} == {2}
        assert len(found) > 4


def test_negatives_drawn_by_the_model_and_weights() -> None:
    def given() -> Iterator[dict[str, Tensor]]:
        for batch in batches(6):
            yield {"user_id": batch["user_id"], "item_id": batch["item_id"]}

    assert compare(make_model(), given()).reason is None
    weighted = ({**batch, "weight": batch["user_id"] / USERS} for batch in batches(6))
    assert compare(make_model(), weighted).reason is None


def test_batches_of_several_sizes() -> None:
    step = compare(make_model(), batches(20, (16, 16, 5)))
    for batch in batches(3, (16, 16, 5)):
        assert step.program(batch) is not None
    step = compare(make_model(), batches(24, (1, 2, 3, 4, 5, 6)))
    recorded = [step.program(batch) is not None for batch in batches(6, (1, 2, 3, 4, 5, 6))]
    assert sum(recorded) == RecordedStep.MOST_SIZES
    assert step.reason is None


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=LR),
    "SGD with momentum": lambda m: torch.optim.SGD(
        m.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=LR, fused=True, amsgrad=True),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=LR, fused=True),
    "two groups": lambda m: torch.optim.Adam(
        [
            {"params": list(m.gcn.parameters()), "lr": LR / 2},
            {"params": [p for n, p in m.named_parameters() if not n.startswith("gcn.")]},
        ],
        lr=LR,
        fused=True,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_optimizers(name: str) -> None:
    step = compare(make_model(), batches(8), optimizer=OPTIMIZERS[name])
    assert step.reason is None
    assert step.program(next(batches(1))) is not None


def test_an_optimizer_that_counts_in_python_is_not_recorded() -> None:
    step = compare(
        make_model(), batches(6), optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=LR)
    )
    assert "gives a value of a tensor to Python" in str(step.reason)


def test_a_tensor_given_twice() -> None:
    """Items and negatives in one tensor, and then not."""

    def given() -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(batches(8)):
            yield {**batch, "neg_item_id": batch["item_id"]} if number < 4 else batch

    step = compare(make_model(), given())
    assert step.program(next(batches(1))) is not None


# -- what changes between steps --------------------------------------------------------------------


def change_rate(step: PlainStep) -> None:
    step.optimizer.param_groups[0]["lr"] = LR / 2


def change_attribute(step: PlainStep) -> None:
    step.model.cl_coef = 0.5


def freeze(step: PlainStep) -> None:
    step.model.user_embedding.weight.requires_grad_(False)


def move_memory(step: PlainStep) -> None:
    step.model.user_embedding.weight.data = step.model.user_embedding.weight.data * 2


def write_in_place(step: PlainStep) -> None:
    step.model.load_state_dict({k: v * 1.5 for k, v in step.model.state_dict().items()})


def load_state(step: PlainStep) -> None:
    step.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))


def swap_a_layer(step: PlainStep) -> None:
    step.model.contrast_fn.mlp1[1] = nn.Identity()


def add_an_attribute(step: PlainStep) -> None:
    step.model.gcn.encoder_dropout = False
    step.model.encoder_dropout = False


def count_on(step: PlainStep) -> None:
    step.rng[1] = 100


CHANGES = [
    change_rate,
    change_attribute,
    freeze,
    move_memory,
    write_in_place,
    load_state,
    swap_a_layer,
    add_an_attribute,
    count_on,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_changes_is_seen(change: Callable[[PlainStep], None]) -> None:
    def once(step: PlainStep, number: int) -> None:
        if number == WARM_UP + 2:
            change(step)

    step = compare(make_model(), batches(12), once)
    assert step.reason is None
    assert step.program(next(batches(1))) is not None


@pytest.mark.parametrize("on", ["module", "parameter", "optimizer"])
def test_hooks_that_come_later_are_called(on: str) -> None:
    _, step = both(make_model())
    for batch in batches(WARM_UP + 1):
        step(batch)
    calls: list[int] = []
    hook = lambda *_: calls.append(1)  # noqa: E731
    if on == "module":
        step.model.contrast_fn.register_forward_hook(hook)
    elif on == "parameter":
        step.model.gcn.W_Q.register_hook(hook)
    else:
        step.optimizer.register_step_pre_hook(hook)
    for batch in batches(4):
        step(batch)
    assert len(calls) == 4
    assert "hooks" in str(step.reason)


def test_an_attribute_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KGRec, "cl_coef", 0.5, raising=False)

    def once(step: PlainStep, number: int) -> None:
        if number == WARM_UP + 2:
            del step.model.cl_coef  # the class has one

    step = compare(make_model(), batches(10), once)
    assert step.program(next(batches(1))) is not None


def test_parameters_that_are_given_to_the_optimizer_later() -> None:
    def others(model: nn.Module) -> torch.optim.Optimizer:
        named = model.named_parameters()
        return torch.optim.Adam([p for n, p in named if n[:4] != "gcn."], lr=LR, fused=True)

    def once(step: PlainStep, number: int) -> None:
        if number == WARM_UP + 2:
            step.optimizer.add_param_group({"params": list(step.model.gcn.parameters())})

    step = compare(make_model(), batches(10), once, others)
    assert step.program(next(batches(1))) is not None


def test_a_rate_of_its_own_for_each_step() -> None:
    def schedule(step: PlainStep, number: int) -> None:
        step.optimizer.param_groups[0]["lr"] = LR / (number + 1)

    step = compare(make_model(), batches(14), schedule)
    assert step.reason == "attributes of the model or of the optimizer change from step to step"


def test_the_kept_embeddings_are_those_of_now() -> None:
    step = compare(make_model(), batches(WARM_UP))
    for batch in batches(3):
        step.model.eval()
        before = step.model.embeddings()[0]
        step.model.training = True  # not train(), which would forget them
        step(batch)
        step.model.training = False
        assert not torch.equal(step.model.embeddings()[0], before)


def test_what_runs_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under anomaly detection, or when references are asked for."""
    step = compare(make_model(), batches(WARM_UP + 1))
    calls: list[int] = []
    training_step = step.model.training_step
    monkeypatch.setattr(
        KGRec, "training_step", lambda *args: calls.append(1) or training_step(*args[1:])
    )
    batch = next(batches(1))
    step(batch)
    assert not calls
    with torch.autograd.detect_anomaly(check_nan=False):
        step(batch)
    with ops.use_reference():
        step(batch)
    assert len(calls) == 2


# -- the loss is looked at -------------------------------------------------------------------------


def test_a_bad_loss_does_not_reach_the_weights() -> None:
    _, step = both(make_model())
    seen: list[float] = []

    def check(loss: Tensor) -> None:
        seen.append(loss.item())
        if len(seen) > WARM_UP + 2:
            raise ValueError(f"no more than {WARM_UP + 2}")

    losses = [step(batch, check).item() for batch in batches(WARM_UP + 2)]
    assert seen == losses
    assert step.program(next(batches(1))) is not None
    before = [p.clone() for p in step.model.parameters()], step.rng.clone()
    with pytest.raises(ValueError, match="no more than 5"):
        step(next(batches(1)), check)
    assert all(map(torch.equal, before[0], step.model.parameters()))
    assert torch.equal(step.rng, before[1])


# -- what cannot be recorded -----------------------------------------------------------------------


class Toy(nn.Module):
    """A model whose step does something besides."""

    def __init__(self, besides: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.weight = nn.Parameter(torch.randn(USERS, 4))
        self.besides = besides

    def training_step(self, batch: dict[str, Tensor], rng: Tensor) -> Tensor:
        ids = batch["user_id"]
        return self.weight[ids].square().sum() + self.besides(self.weight, ids)


def reads(x: Tensor, ids: Tensor) -> Tensor:
    return x.sum() * ids.max().item()


def branches(x: Tensor, ids: Tensor) -> Tensor:
    return x.sum() if ids.sum() % 2 else x.sum() * 2


def asks_whether_equal(x: Tensor, ids: Tensor) -> Tensor:
    return x.sum() if torch.equal(ids, ids.flip(0)) else x.sum() * 2


def takes_a_size(x: Tensor, ids: Tensor) -> Tensor:
    return x[: ids.unique().numel()].sum()


def takes_some_rows(x: Tensor, ids: Tensor) -> Tensor:
    return x[: len(ids)][ids > 4].sum()


def takes_a_size_unseen(x: Tensor, ids: Tensor) -> Tensor:
    return x[: len(set(ids.tolist()))].sum()


def takes_another_path(x: Tensor, ids: Tensor) -> Tensor:
    return x.sin().sum() if ids.tolist()[0] % 2 else x.cos().sum()


def takes_one_path_more(x: Tensor, ids: Tensor) -> Tensor:
    return x.sum() if ids.tolist()[0] % 2 else x.sum() + x.sum()


def draws_with_numpy(x: Tensor, ids: Tensor) -> Tensor:
    return x.sum() * torch.from_numpy(np.random.default_rng(ids.numpy()).random(4))[0]


def writes_a_shape(x: Tensor, ids: Tensor) -> Tensor:
    return ((x * 1).t_() @ x).sum()


REFUSED = {
    reads: "aten::_local_scalar_dense gives a value of a tensor to Python",
    branches: "aten::_local_scalar_dense gives a value of a tensor to Python",
    asks_whether_equal: "aten::equal gives a value of a tensor to Python",
    takes_a_size: "the size of what aten::_unique2 gives depends on values",
    takes_some_rows: "the size of what aten::index.Tensor gives depends on values",
    takes_a_size_unseen: "the arguments of aten::slice.Tensor differ between steps",
    takes_another_path: "was called in one step, aten::",
    takes_one_path_more: "was called in one step",
    draws_with_numpy: "a tensor that is read was another one in each step",
    writes_a_shape: "aten::t_ gives a tensor another shape in place",
}


@pytest.mark.parametrize("besides", REFUSED, ids=lambda f: f.__name__)
def test_what_cannot_be_recorded_runs_plainly(besides: Callable[..., Tensor]) -> None:
    def given() -> Iterator[dict[str, Tensor]]:
        for number in range(8):  # the first id is odd in every other, and 2, 3, ... are distinct
            yield {"user_id": torch.arange(16).clamp(max=number + 1).flip(0)}

    step = compare(Toy(besides), given())
    assert REFUSED[besides] in str(step.reason)
    assert step.program(next(given())) is None


def test_lists_and_random_numbers_are_recorded() -> None:
    """Numbers of torch's generator are drawn anew in each step."""

    def besides(x: Tensor, ids: Tensor) -> Tensor:
        first, second = (x[ids] * torch.rand(1)).split([2, 2], dim=1)
        return (first + second).relu().sum() + torch.stack([x, x]).unbind()[1].mean()

    model = Toy(besides)
    plain, recorded = both(model)
    for batch in batches(9):
        torch.manual_seed(int(batch["user_id"][0]))
        found = recorded(batch)
        torch.manual_seed(int(batch["user_id"][0]))
        assert found.equal(plain(batch))
        assert_alike(plain, recorded)
    assert recorded.reason is None
    assert recorded.program(next(batches(1))) is not None


def test_says_why_before() -> None:
    model = make_model()
    optimizer = make_adam(model, LR, 0.0)
    assert why_not_recorded(model, optimizer) is None
    handle = model.gcn.register_forward_hook(lambda *_: None)
    assert "AttnHGCN has hooks" in str(why_not_recorded(model, optimizer))
    handle.remove()
    handle = model.gcn.W_Q.register_hook(lambda grad: grad)
    assert "a parameter has hooks" in str(why_not_recorded(model, optimizer))
    handle.remove()
    handle = optimizer.register_step_post_hook(lambda *_: None)
    assert "the optimizer has hooks" in str(why_not_recorded(model, optimizer))
    handle.remove()
    assert why_not_recorded(model, optimizer) is None
    model = fresh_model(small_dataset())
    assert why_not_recorded(model, make_adam(model, LR, 0.0)) == (
        "MatrixFactorisation has no training_step"
    )
    meta = make_model().to("meta")
    assert "the model is on meta" in str(why_not_recorded(meta, torch.optim.SGD(meta.parameters())))


# -- in a training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset() -> KGDataset:
    return small_dataset()


def test_a_training_is_the_same_to_the_bit(tmp_path: Path, dataset: KGDataset) -> None:
    config = make_config(epochs=3)
    ends = []
    for record in (None, False):
        notes, model = Notes(), build_model(dataset, config)
        trainer = Trainer(
            model, dataset, config, tmp_path / str(record), notes, record_steps=record
        )
        assert type(trainer._step.step) is (PlainStep if record is False else RecordedStep)
        results = trainer.fit()
        history = [{k: r[k] for k in ("epoch", "loss", "valid")} for r in results.history]
        ends.append((history, results.test, [p.tolist() for p in model.parameters()]))
        assert notes.notes == []
    assert ends[0] == ends[1]


def test_who_is_recorded(tmp_path: Path, dataset: KGDataset) -> None:
    class Mine(KGRec):
        pass

    def kind(number: int, model: nn.Module, **training: Any) -> type:
        config = make_config(**training)
        return type(Trainer(model, dataset, config, tmp_path / str(number), notes)._step.step)

    notes, config = Notes(), make_config()
    assert kind(0, build_model(dataset, config)) is RecordedStep
    assert kind(1, build_model(dataset, config), record_steps=False) is PlainStep
    mine = build_model(dataset, config)
    mine.__class__ = Mine
    assert kind(2, mine) is PlainStep  # what its step does is not known
    assert kind(3, mine, record_steps=True) is RecordedStep
    assert kind(4, fresh_model(dataset)) is PlainStep
    assert notes.notes == []
    assert kind(5, fresh_model(dataset), record_steps=True) is PlainStep
    assert notes.notes == [
        "record_steps: MatrixFactorisation has no training_step; steps are not recorded"
    ]


def test_a_training_goes_on_plainly(
    tmp_path: Path, dataset: KGDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = KGRec.training_step

    def reading(model: KGRec, batch: Any, rng: Tensor) -> Tensor:
        return training_step(model, batch, rng) + 0 * rng[1].item()

    monkeypatch.setattr(KGRec, "training_step", reading)
    config, notes = make_config(epochs=1), Notes()
    trainer = Trainer(build_model(dataset, config), dataset, config, tmp_path / "run", notes)
    trainer.fit()
    assert notes.notes == [
        "record_steps: aten::_local_scalar_dense gives a value of a tensor to Python; "
        "steps run plainly"
    ]
    assert type(trainer._step.step) is PlainStep
