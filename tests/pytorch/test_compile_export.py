"""torch.compile(fullgraph=True) and torch.export, graphs and masks among the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_helpers import EXAMPLES, Example, Small, Step, close, relational_layers, same
from torch import Tensor, nn
from torch.utils import _pytree

from kgrec_fast import InteractionGraph, RelGraph, ops
from kgrec_fast.nn import AttnHGCN, Contrast, HopGraphs

each_op = pytest.mark.parametrize("name", EXAMPLES)
strictly = pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])


# Shapes of their results depend on data.
EAGER = {"edge_subgraph", "row_subgraph"}


def test_every_public_op_is_here() -> None:
    public = {n for n in ops.__all__ if not n.endswith("_reference") and n != "use_reference"}
    assert {op.function for op in EXAMPLES.values()} == public - EAGER


def compiled(function: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def leaves_of(example: Example) -> list[Tensor]:
    return [x.requires_grad_(example.of.op.differentiable) for x in example.inputs[0]]


def pulled(out: tuple[Tensor, ...], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of the leaves, infinities of empty rows left out."""
    finite = [torch.nan_to_num(x, neginf=0.0) for x in out if x.requires_grad]
    weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in finite]
    return torch.autograd.grad(finite, leaves, weights)


@each_op
def test_ops_compile(name: str) -> None:
    example = Example(name)
    leaves = leaves_of(example)
    wanted, found = example(*example.inputs), compiled(example)(*example.inputs)
    same(found, wanted)
    if example.of.op.differentiable:
        # Sums of gradients may be made in another order.
        torch.testing.assert_close(pulled(found, leaves), pulled(wanted, leaves))


# Whose dense products are torch's in an exported program, and ours in eager mode.
WITH_PRODUCTS = ("projected_attention", "attention_and_mean")


@strictly
@each_op
def test_ops_export(name: str, strict: bool) -> None:
    example = Example(name)
    leaves = leaves_of(example)
    torch._dynamo.reset()
    program = torch.export.export(example, example.inputs, strict=strict).module()
    wanted, found = example(*example.inputs), program(*example.inputs)
    compare = close if name in WITH_PRODUCTS else same
    compare(found, wanted)
    if example.of.op.differentiable:
        torch.testing.assert_close(pulled(found, leaves), pulled(wanted, leaves))


@strictly
def test_an_exported_op_takes_other_edges(strict: bool) -> None:
    """The graph is an input, no constant."""
    example = Example("relation_mean")
    leaves, graph, mask, rng = example.inputs
    program = torch.export.export(example, example.inputs, strict=strict)
    tails = graph.edge_index.flip(1)[1] % graph.num_cols
    ends = torch.stack([graph.edge_index[0], tails])
    other = RelGraph.from_edges(
        ends, graph.edge_type, num_rows=graph.num_rows, num_cols=graph.num_cols, num_relations=6
    )
    other.columns()
    given = (leaves, other, other.edge_mask(mask.row), rng)
    wanted = example(*given)
    assert not torch.equal(wanted[0], example(*example.inputs)[0])
    same(program.module()(*given), wanted)


# -- layers ----------------------------------------------------------------------------------------


class Method(nn.Module):
    """A method of a module as its forward."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, *args: Any) -> Any:
        return getattr(self.module, self.name)(*args)


def layers() -> dict[str, tuple[nn.Module, tuple]]:
    """A module and its inputs, by name."""
    small = Small.make(mess_dropout_rate=0.0)
    model = small.model
    gcn = AttnHGCN(8, 2, 9, 6, mess_dropout_rate=0.0)
    users, entities = model.user_embedding.weight, model.entity_embedding.weight
    kg, inter = model.kg, model.interactions
    users, entities = users.detach().requires_grad_(), entities.detach().requires_grad_()
    items, weight = entities[:12].detach().requires_grad_(), torch.rand(45)
    hops = HopGraphs.of(kg)
    for graph in (hops.first, hops.later, inter):
        if graph is not None:
            graph.columns()
    others = relational_layers(small)
    return {
        **others,
        "KGAT, attention alone": (Method(others["KGAT"][0], "attention"), others["KGAT"][1]),
        "forward": (gcn, (users, entities, kg, None, inter, weight)),
        "forward, item attention": (
            gcn,
            (users, entities, kg, None, inter, weight, torch.linspace(0, 1, 12)),
        ),
        "forward, HopGraphs": (gcn, (users, entities, hops, None, inter, weight)),
        "forward_ui": (Method(gcn, "forward_ui"), (users, items, inter, weight)),
        "forward_kg": (Method(gcn, "forward_kg"), (entities, kg)),
        "shared_layer_agg": (
            Method(gcn, "shared_layer_agg"),
            (users, entities, kg, None, inter, weight),
        ),
        "ui_agg": (Method(gcn, "ui_agg"), (users, items, inter, weight)),
        "kg_agg": (Method(gcn, "kg_agg"), (entities, kg)),
        "norm_attn_computer": (Method(gcn, "norm_attn_computer"), (entities, kg)),
        "Contrast": (
            Contrast(8),
            (entities, 1 - entities.detach(), torch.arange(60).roll(7)),
        ),
    }


def outputs(module: nn.Module, args: tuple) -> list[Tensor]:
    return [x for x in _pytree.tree_leaves(module(*args)) if isinstance(x, Tensor)]


def floating(module: nn.Module, args: tuple) -> list[Tensor]:
    """The operands with a gradient, and the parameters."""
    inputs = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    return [*inputs, *module.parameters()]


def grads(out: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    out = [x for x in out if x.requires_grad]
    if not out:
        return []
    weights = [torch.linspace(-1, 1, x.numel()).view(x.shape) for x in out]
    found = torch.autograd.grad(out, leaves, weights, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


@pytest.mark.parametrize("name", layers())
def test_layers_compile(name: str) -> None:
    torch.manual_seed(0)
    module, args = layers()[name]
    leaves = floating(module, args)
    wanted, found = outputs(module, args), outputs(compiled(module), args)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert any(x.requires_grad for x in found) == any(x.requires_grad for x in wanted)
    torch.testing.assert_close(grads(found, leaves), grads(wanted, leaves), rtol=1e-4, atol=1e-5)


@strictly
@pytest.mark.parametrize("name", layers())
def test_layers_export(name: str, strict: bool) -> None:
    torch.manual_seed(0)
    module, args = layers()[name]
    torch._dynamo.reset()
    program = torch.export.export(module, args, strict=strict).module()
    wanted, found = outputs(module, args), outputs(program, args)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    inputs = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    torch.testing.assert_close(grads(found, inputs), grads(wanted, inputs), rtol=1e-4, atol=1e-5)


def test_raw_edges_are_for_eager_mode() -> None:
    small = Small.make()
    gcn, entities = AttnHGCN(8, 1, 9, 6), small.model.entity_embedding.weight
    edges = (small.model.edge_index, small.model.edge_type)
    with pytest.raises(ValueError, match=r"edges are given as tensors to torch\.export"):
        torch.export.export(Method(gcn, "kg_agg"), (entities, *edges), strict=False)


# -- the training step -----------------------------------------------------------------------------


def step_inputs(small: Small) -> tuple:
    for graph in (small.model.hops.first, small.model.hops.later, small.model.interactions):
        if graph is not None:
            graph.columns()
    return small.model.hops, small.model.interactions, small.batch, small.rng


@pytest.mark.parametrize("negatives", [True, False], ids=["given", "drawn"])
def test_the_training_step_compiles(negatives: bool) -> None:
    small = Small.make()
    if not negatives:
        del small.batch["neg_item_id"]
    step = compiled(Step(small.model))
    args = step_inputs(small)
    wanted, found = small.loss(), step(*args)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        small.gradients(found), small.gradients(wanted), rtol=1e-4, atol=1e-6
    )
    # The graphs are inputs: others give another loss.
    model, kg = small.model, small.model.kg
    ends = torch.stack([kg.edge_index[0], kg.edge_index[1].flip(0)])
    model.hops = HopGraphs(
        RelGraph.from_edges(ends, kg.edge_type, num_rows=kg.num_rows, num_cols=60)
    )
    ends = torch.stack([model.interactions.head.flip(0), model.interactions.col])
    model.interactions = InteractionGraph.from_edges(ends, num_users=9, num_items=12)
    loss = small.loss()
    assert abs(loss - wanted) > 1e-3
    torch.testing.assert_close(step(*step_inputs(small)), loss, rtol=1e-6, atol=0)


def test_the_training_step_compiles_by_default() -> None:
    """With code generation, as users of torch.compile have it."""
    small = Small.make()
    args = step_inputs(small)
    torch._dynamo.reset()
    found, wanted = torch.compile(Step(small.model), fullgraph=True)(*args), small.loss()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(small.gradients(found), small.gradients(), rtol=1e-4, atol=1e-6)


@strictly
def test_the_training_step_exports_with_its_gradients(strict: bool) -> None:
    small = Small.make()
    torch._dynamo.reset()
    args = step_inputs(small)
    program = torch.export.export(Step(small.model), args, strict=strict).module()
    found, wanted = program(*args), small.loss()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    parameters = {n.removeprefix("model."): p for n, p in program.named_parameters()}
    pulled = torch.autograd.grad(found, list(parameters.values()))
    torch.testing.assert_close(
        dict(zip(parameters, pulled, strict=True)), small.gradients(), rtol=1e-4, atol=1e-6
    )
    # Other random numbers, other negatives.
    again = (*args[:2], {**small.batch, "neg_item_id": small.batch["item_id"].flip(0)}, args[3] + 1)
    torch.testing.assert_close(
        program(*again), small.model.training_step(*again[2:]), rtol=1e-6, atol=0
    )


@strictly
def test_the_choices_of_a_step_are_an_input(strict: bool) -> None:
    small = Small.make()
    step_inputs(small)
    torch._dynamo.reset()
    masks = [small.model.draw_masks(small.rng + i) for i in range(2)]
    module = Method(small.model, "training_step")
    program = torch.export.export(module, (small.batch, None, masks[0]), strict=strict).module()
    for given in masks:
        wanted = small.model.training_step(small.batch, masks=given)
        torch.testing.assert_close(program(small.batch, None, given), wanted, rtol=1e-6, atol=0)


def test_an_exported_op_is_saved_and_loaded(tmp_path: Path) -> None:
    example = Example("relation_attention")
    torch.export.save(torch.export.export(example, example.inputs), tmp_path / "op.pt2")
    program = torch.export.load(tmp_path / "op.pt2").module()
    same(program(*example.inputs), example(*example.inputs))


def test_a_mask_of_interactions_is_an_input_too() -> None:
    graph = InteractionGraph.from_edges(torch.tensor([[0, 1, 1, 2], [3, 0, 1, 3]]))
    graph.columns()

    class Masked(nn.Module):
        def forward(self, x: Tensor, graph: InteractionGraph, mask: Any) -> Tensor:
            return ops.weighted_aggregate(x, None, graph, edge_mask=mask)

    args = (torch.randn(4, 8), graph, graph.edge_mask(torch.tensor([True, False, True, True])))
    program = torch.export.export(Masked(), args).module()
    others = (args[0], graph, graph.edge_mask(torch.tensor([False, True, True, False])))
    for given in (args, others):
        same([program(*given)], [Masked()(*given)])
        same([compiled(Masked())(*given)], [Masked()(*given)])
