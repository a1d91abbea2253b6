"""Autocast on the CPU: float16 and bfloat16, each of them giving its own type."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from pytorch_helpers import EXAMPLES, Example, Small, same
from torch import Tensor

from kgrec_fast import ops

HALVES = [torch.bfloat16, torch.float16]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
# Functions that stand where matrix products do: which of their outputs have autocast's type. The
# others, log-sum-exp and scores of edges, are float32.
CAST = {
    "relation_attention": (True, False),
    "relation_attention, edges beside the graph": (True, False),
    "projected_attention": (True, False),
    "attention_and_mean": (True, True),
    "rationale_scores": (False, False),
    "relation_mean": (True,),
    "weighted_aggregate": (True,),
    "edge_dot": (False,),
    "projection_head": (True,),
}
CASTING = [name for name, op in EXAMPLES.items() if op.function in CAST]


@each_half
@pytest.mark.parametrize("name", EXAMPLES)
def test_ops(name: str, dtype: torch.dtype) -> None:
    """As on operands cast by hand, or, where nothing is cast, as without autocast."""
    example = Example(name, torch.float32)
    leaves, *others = example.inputs
    with torch.autocast("cpu", dtype):
        found = example(*example.inputs)
    if name not in CASTING:
        same(found, example(*example.inputs))
        return
    if name.startswith("weighted_aggregate"):  # its weights stay float32, as sums are
        cast = [leaves[0].to(dtype), *leaves[1:]]
    else:
        cast = [x.to(dtype) for x in leaves]
    same(found, example(cast, *others))
    assert [x.dtype == dtype for x in found] == list(CAST[EXAMPLES[name].function])
    assert all(x.dtype in (dtype, torch.float32) for x in found)


@each_half
@pytest.mark.parametrize("name", CASTING)
def test_references_cast_too(name: str, dtype: torch.dtype) -> None:
    example = Example(name, torch.float32)
    with torch.autocast("cpu", dtype):
        found = example(*example.inputs)
        with ops.use_reference():
            plain = example(*example.inputs)
    assert [x.dtype for x in plain] == [x.dtype for x in found]


@each_half
@pytest.mark.parametrize("name", [n for n in CASTING if EXAMPLES[n].differentiable])
def test_gradients_come_back_in_the_type_of_the_operands(name: str, dtype: torch.dtype) -> None:
    example = Example(name, torch.float32)
    leaves = [x.requires_grad_() for x in example.inputs[0]]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    with torch.autocast("cpu", dtype):
        loss = example.loss(*leaves)
    found = torch.autograd.grad(loss, leaves)
    wanted = torch.autograd.grad(example.loss(*exact), exact)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        scale = float(theirs.abs().max())
        assert float((ours - theirs).abs().max()) <= 8 * torch.finfo(dtype).eps * scale


@each_half
@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
@pytest.mark.parametrize("name", ["bpr_loss", "contrast_loss", "reconstruction_loss"])
def test_losses_of_what_layers_give_beside_parameters(
    name: str, native: bool, dtype: torch.dtype
) -> None:
    """A half type beside float32 is widened, as by torch's own losses."""
    example = Example(name, torch.float32)
    leaves = [x.to(dtype).requires_grad_() for x in example.inputs[0]]
    wide = [x.detach().float().requires_grad_() for x in leaves]
    leaves[-1] = wide[-1].detach().clone().requires_grad_()
    with nullcontext() if native else ops.use_reference():
        with torch.autocast("cpu", dtype):
            theirs = torch.nn.functional.mse_loss(leaves[0][:1], leaves[-1][:1])
            found = example.loss(*leaves)
        wanted = example.loss(*wide)
        assert found.dtype == theirs.dtype == torch.float32
        assert found == wanted
        pairs = zip(
            torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, wide), strict=True
        )
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain.to(ours.dtype), rtol=0, atol=0)
    with pytest.raises(TypeError, match="expected"):  # elsewhere it stays a mistake
        example.loss(*leaves)


@each_half
def test_layers(dtype: torch.dtype) -> None:
    model = Small.make().model.eval()
    gcn, kg, inter = model.gcn, model.kg, model.interactions
    users, entities = model.user_embedding.weight, model.entity_embedding.weight
    inputs = (users, entities, kg, None, inter, model.inter_weight)
    with torch.autocast("cpu", dtype):
        entity_agg, user_agg = gcn.shared_layer_agg(*inputs)
        assert entity_agg.dtype == user_agg.dtype == gcn.kg_agg(entities, kg).dtype == dtype
        found = gcn(*inputs)
        scores = gcn.norm_attn_computer(entities, kg)
        loss = model.contrast_fn(entities, 1 - entities, torch.arange(60).roll(3))
    # Rows of length one are added to float32 embeddings.
    assert {x.dtype for x in (*found, scores, loss)} == {torch.float32}
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, gcn(*inputs), rtol=tolerance, atol=tolerance)
    plain = model.contrast_fn(entities, 1 - entities, torch.arange(60).roll(3))
    torch.testing.assert_close(loss, plain, rtol=tolerance, atol=0)


@each_half
def test_the_training_step(dtype: torch.dtype) -> None:
    small = Small.make()
    with torch.autocast("cpu", dtype):
        loss = small.loss()
    wanted = small.loss()
    assert loss.dtype == torch.float32
    assert loss != wanted
    torch.testing.assert_close(loss, wanted, rtol=8 * torch.finfo(dtype).eps, atol=0)
    for name, gradient in small.gradients(loss).items():
        assert gradient.dtype == torch.float32, name
        assert torch.isfinite(gradient).all(), name


def test_the_two_types_are_told_apart_in_one_process() -> None:
    example = Example("relation_mean", torch.float32)

    def under(dtype: torch.dtype) -> Tensor:
        with torch.autocast("cpu", dtype):
            return example(*example.inputs)[0]

    assert [under(d).dtype for d in (*HALVES, *reversed(HALVES))] == [*HALVES, *reversed(HALVES)]
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert example(*example.inputs)[0].dtype == torch.float32
