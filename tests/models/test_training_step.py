"""The training step in a loop: no shape depends on data, nothing waits for the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from kgrec_fast import _library
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec
from kgrec_fast.nn import HopGraphs, _row_graphs

RNG = torch.tensor([2024, 7])
# A torch built without CUDA has no fake tensors of it either.
DEVICES = ["cpu", "cuda"] if torch.backends.cuda.is_built() else ["cpu"]


def gradients(model: KGRec, loss: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


@pytest.fixture
def pairs(world) -> dict[str, Tensor]:
    """Users 0..7, who have touched some of the items 0..10 each."""
    generator = torch.Generator().manual_seed(3)
    return {
        "user_id": torch.randint(8, (16,), generator=generator),
        "item_id": torch.randint(11, (16,), generator=generator),
    }


def test_is_the_loss_of_the_same_choices(world):
    model = world.model()
    masks = model.draw_masks(RNG)
    found = model.training_step(world.batch(), RNG)
    wanted = model.calculate_loss(world.batch(), masks)
    assert found.item() == wanted.item()
    same_bits(gradients(model, found), gradients(model, wanted))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_repeats_bit_by_bit(world, pairs, threads, restore_threads):
    model = world.model()
    wanted = model.training_step(pairs, RNG)
    wanted_gradients = gradients(model, wanted)
    torch.set_num_threads(threads)
    found = model.training_step(pairs, RNG.clone())
    assert torch.equal(found, wanted)
    same_bits(gradients(model, found), wanted_gradients)
    assert not torch.equal(model.training_step(pairs, RNG + torch.tensor([0, 1])), wanted)


def test_anomaly_detection_finds_nothing(world, pairs):
    """Not even where memory that nobody writes, and nobody reads, would be NaN."""
    model = world.model()
    wanted = gradients(model, model.training_step(pairs, RNG))
    torch.use_deterministic_algorithms(True)  # fills such memory with NaN
    try:
        with torch.autograd.set_detect_anomaly(True):
            found = gradients(model, model.training_step(pairs, RNG))
    finally:
        torch.use_deterministic_algorithms(False)
    same_bits(found, wanted)


def test_draws_from_torch_where_there_is_no_rng(world, pairs):
    model = world.model()
    torch.manual_seed(5)
    first, second = model.training_step(pairs), model.training_step(pairs)
    assert first != second
    torch.manual_seed(5)
    assert model.training_step(pairs) == first


def test_negatives_are_items_that_the_user_has_not_touched(world, pairs, monkeypatch):
    model = world.model()
    seen = []
    step = model._step

    def spy(masks: Any, rng: Any, users: Tensor, items: list[Tensor]) -> Any:
        seen.append((users, items[1]))
        return step(masks, rng, users, items)

    monkeypatch.setattr(model, "_step", spy)
    for number in range(20):
        model.training_step(pairs, torch.tensor([1, number]))
    touched = set(zip(*world.inter_edge.tolist(), strict=True))
    drawn = [p for users, items in seen for p in zip(users.tolist(), items.tolist(), strict=True)]
    assert len(set(drawn)) > 16
    assert not touched & set(drawn)


@pytest.mark.parametrize("n_hops", [1, 2, 3])
def test_what_a_batch_reads_is_found_by_mask_or_in_graphs_of_its_own(
    world, pairs, n_hops, monkeypatch
):
    model = world.model(mae_coef=1.0, cl_coef=1.0, context_hops=n_hops).double()
    found = {}
    for sparse in (0, 10**6):  # all batches are small, or none
        monkeypatch.setattr(_row_graphs, "SPARSE", sparse)
        loss = model.training_step(pairs, RNG)
        found[sparse] = (loss, gradients(model, loss))
    torch.testing.assert_close(*found.values(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 5])
def test_padding_changes_nothing(world, pairs, rows):
    """Pairs of weight 0, whoever they are."""
    model = world.model(mae_coef=1.0, cl_coef=1.0).double()
    pairs["neg_item_id"] = torch.full((16,), 11)
    weight = torch.ones(16, dtype=torch.float64)
    wanted = gradients(model, model.training_step(pairs, RNG))
    padded = {name: torch.cat([ids, ids.new_full((rows,), 2)]) for name, ids in pairs.items()}
    padded["weight"] = torch.cat([weight, weight.new_zeros(rows)])
    loss = model.training_step(padded, RNG)
    torch.testing.assert_close(loss, model.training_step(pairs, RNG), rtol=1e-12, atol=0)
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12)


# -- on fake tensors, where a shape that depends on data or a read by the host is an error --


def map_tensors(value: Any, to: Any) -> Any:
    """A graph, or a tuple, with another tensor in the place of each."""
    if isinstance(value, Tensor):
        return to(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(v, to) for v in value)
    if isinstance(value, RelGraph | InteractionGraph | HopGraphs):
        fields = {
            f.name: map_tensors(getattr(value, f.name), to) for f in dataclasses.fields(value)
        }
        return type(value)(**fields)
    return value


def prepare_graphs(model: KGRec) -> None:
    """What a graph makes when it is first asked for, the plan of CUDA's kernels among it."""
    hops = model.hops
    for graph in (hops.first, hops.later, hops.leading, model.interactions):
        if graph is not None:
            graph.columns()
            graph.plan(columns=True)
    assert model.kg.relation_rank.numel() == model.kg.num_edges
    model.interactions.untouched()


def on_fakes(model: KGRec, mode: FakeTensorMode, device: str) -> KGRec:
    """The model with fake tensors in the places of its own."""

    def fake(x: Tensor) -> Tensor:
        converted = mode.from_tensor(x.detach())
        with mode:
            return converted.to(device)

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(fake(parameter)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, fake(buffer))
    model.hops = map_tensors(model.hops, fake)
    model.interactions = map_tensors(model.interactions, fake)
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "hyper",
    [{}, {"node_dropout_rate": 0.0}, {"published_quirks": True}, {"context_hops": 3}],
    ids=str,
)
def test_runs_on_fake_tensors(world, pairs, device, hyper, monkeypatch):
    """On CUDA as if its kernels were there: none is run."""
    monkeypatch.setattr(_library, "is_native", lambda device: True)
    model = world.model(**hyper)
    prepare_graphs(model)
    mode = FakeTensorMode()
    model = on_fakes(model, mode, device)
    batch = {name: mode.from_tensor(ids) for name, ids in pairs.items()}
    rng = mode.from_tensor(RNG)
    with mode:
        batch, rng = {name: ids.to(device) for name, ids in batch.items()}, rng.to(device)
        optimizer = torch.optim.Adam(model.parameters(), capturable=device == "cuda")
        for _ in range(2):
            optimizer.zero_grad()
            loss = model.training_step(batch, rng)
            if device == "cuda" and not torch.cuda.is_available():
                continue  # torch's engine of backward passes wants a device for them
            loss.backward()
            optimizer.step()
            assert model.entity_embedding.weight.grad.shape == (60, 8)
    assert loss.shape == ()
    assert loss.device.type == device


def test_fake_tensors_tell(world):
    """What the test above relies on."""
    mode = FakeTensorMode()
    x = mode.from_tensor(torch.ones(3))
    with mode:
        with pytest.raises(Exception, match="_local_scalar_dense"):
            x.sum().item()
        with pytest.raises(Exception, match="nonzero"):
            x.nonzero()


# -- compiled --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hyper", [{}, {"node_dropout_rate": 0.0}, {"published_quirks": True}], ids=str
)
def test_compiles_without_graph_breaks(world, pairs, hyper):
    model = world.model(mae_coef=1.0, cl_coef=1.0, **hyper)
    prepare_graphs(model)
    wanted = model.training_step(pairs, RNG)
    wanted_gradients = gradients(model, wanted)
    torch._dynamo.reset()
    step = torch.compile(model.training_step, fullgraph=True, backend="aot_eager")
    found = step(pairs, RNG)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    for name, gradient in gradients(model, found).items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-4, atol=1e-7)
    again = step(pairs, RNG + torch.tensor([0, 1]))
    torch.testing.assert_close(
        again, model.training_step(pairs, RNG + torch.tensor([0, 1])), rtol=1e-6, atol=0
    )
