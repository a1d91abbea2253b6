"""Every public op as a module of its inputs, graphs among them, and a small model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kgrec_fast import InteractionGraph, RelGraph
from kgrec_fast.graph import EdgeMask
from kgrec_fast.models import KGRec
from kgrec_fast.nn import KGATAttention, KGCLAggregation, KGINAggregation, RGATAttention
from kgrec_fast.relation_pairs import head_runs

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from graph_helpers import CASES
from op_inputs import OPS, Inputs, Op, finite

CASE = CASES["bipartite"]


def _score(case: Any, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(case.edge_type.numel(), generator=generator, dtype=torch.float64)]


def _draw(function: str, arguments: Callable[[Inputs], tuple]) -> Op:
    """What has no gradient: a score of each edge, and random numbers."""
    return Op(function, _score, arguments, masked=False, differentiable=False)


def _interactions(c: Inputs) -> InteractionGraph:
    assert isinstance(c.graph, InteractionGraph)
    return c.graph


DRAWS = {
    "sample_edges_per_relation": lambda c: (c.graph, 0.4, c.rng),
    "sample_edges": lambda c: (30, 7, c.rng),
    "random_permutation": lambda c: (30, c.rng, 9, 7),
    "dropout_mask": lambda c: (30, 0.2, c.rng),
    "sample_negatives": lambda c: (torch.arange(12), _interactions(c), c.rng),
    "gumbel_noise": lambda c: (30, c.rng, 5),
    "topk_mask": lambda c: (c.leaves[0], None, 0.3, True, c.leaves[0] < 1, c.rng, (1, 2)),
    "gumbel_topk": lambda c: (c.leaves[0], 9, c.rng, 5),
    "mask_positions": lambda c: (c.leaves[0] > 0, 20),
    "masked_edges": lambda c: (c.leaves[0], None, c.leaves[0].numel(), 5, c.rng),
}
EXAMPLES = {
    **OPS,
    **{name: _draw(name, arguments) for name, arguments in DRAWS.items()},
    "topk_items": Op(
        "topk_items",
        lambda case, width: [x.abs() for x in OPS["relation_attention"].leaves(case, width)[:2]],
        lambda c: (*c.leaves, 5),
        masked=False,
        differentiable=False,
    ),
}
DIFFERENTIABLE = [name for name, op in EXAMPLES.items() if op.differentiable]
RANDOM = [name for name in DRAWS if name != "mask_positions"]


class Example(nn.Module):
    """An op as a module whose inputs are all that it reads.

    Attributes:
        inputs: Floating operands, graph, edge mask, random numbers: a pytree.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, width: int = 8) -> None:
        super().__init__()
        op = EXAMPLES[name]
        leaves = [x.to(dtype) for x in op.leaves(CASE, width)]
        graph: RelGraph | InteractionGraph = CASE.build()
        if name == "sample_negatives":
            graph = InteractionGraph.from_edges(CASE.edge_index, num_users=12, num_items=31)
            graph.untouched()
        elif name == "sample_edges_per_relation":
            assert isinstance(graph, RelGraph)
            graph.ranks("caller")
        graph.columns()
        mask = torch.arange(CASE.edge_type.numel()) % 3 > 0
        edge_mask = graph.edge_mask(mask) if op.masked else None
        self.of = Inputs(op, leaves, graph, edge_mask, torch.tensor([2024, 7]))  # type: ignore[arg-type]
        self.inputs = (leaves, graph, edge_mask, self.of.rng)

    def forward(
        self, leaves: list[Tensor], graph: RelGraph, mask: EdgeMask | None, rng: Tensor
    ) -> tuple[Tensor, ...]:
        given = dataclasses.replace(self.of, leaves=leaves, graph=graph, mask=mask, rng=rng)
        return given.outputs()

    def loss(self, *leaves: Tensor) -> Tensor:
        """A number of which every output is a part, infinities left out."""
        out = self(list(leaves), *self.inputs[1:])
        return sum((finite(x) * x.new_ones(()).expand_as(x).cumsum(0)).sum() for x in out)  # type: ignore[return-value]


@dataclass(frozen=True)
class Small:
    """A model and a batch; every user, item and relation has edges."""

    model: KGRec
    batch: dict[str, Tensor]
    rng: Tensor

    @classmethod
    def make(cls, seed: int = 1, **hyper: Any) -> Small:
        generator = torch.Generator().manual_seed(seed)

        def ids(high: int, count: int) -> Tensor:
            return torch.randint(high, (count,), generator=generator)

        edge_index = torch.stack([ids(18, 200), ids(55, 200)])
        pairs = torch.randperm(9 * 11, generator=generator)[:45]
        model = KGRec(
            9,
            12,
            60,
            6,
            RelGraph.from_edges(edge_index, ids(5, 200), num_nodes=60, num_relations=5),
            InteractionGraph.from_edges(
                torch.stack([pairs // 11, pairs % 11]), num_users=9, num_items=12
            ),
            **{
                "embedding_size": 8,
                "mae_msize": 5,
                "mess_dropout_rate": 0.2,
                "mae_coef": 1.0,
                "cl_coef": 1.0,
                **hyper,
            },
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        model.interactions.untouched()
        batch = {"user_id": ids(9, 16), "item_id": ids(12, 16), "neg_item_id": ids(12, 16)}
        return cls(model, batch, torch.tensor([2024, 7]))

    def loss(self) -> Tensor:
        return self.model.training_step(self.batch, self.rng)

    def gradients(self, loss: Tensor | None = None) -> dict[str, Tensor]:
        """By the names of the parameters; of one's own step where no loss is given."""
        parameters = dict(self.model.named_parameters())
        grads = torch.autograd.grad(self.loss() if loss is None else loss, parameters.values())
        return dict(zip(parameters, grads, strict=True))


class Step(nn.Module):
    """The training step as a module that takes the graphs too."""

    def __init__(self, model: KGRec) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, hops: Any, interactions: Any, batch: dict[str, Tensor], rng: Tensor
    ) -> Tensor:
        model, kept = self.model, (self.model.hops, self.model.interactions)
        model.hops, model.interactions = hops, interactions
        try:
            return model.training_step(batch, rng)
        finally:
            model.hops, model.interactions = kept


def relational_layers(small: Small) -> dict[str, tuple[nn.Module, tuple]]:
    """Layers of other models, and their inputs on the graphs of this one."""
    generator = torch.Generator().manual_seed(2)
    model, kg = small.model, small.model.kg
    x, relations, latent = (
        torch.randn(rows, 8, generator=generator, requires_grad=True) for rows in (60, 6, 4)
    )
    users = torch.randn(9, 8, generator=generator)
    layers = {
        "KGIN": (KGINAggregation(8, 4, 6), (users, x, latent, kg, None, model.interactions, None)),
        "KGCL": (KGCLAggregation(8), (x, relations, kg)),
        "KGAT": (KGATAttention(8, 5, 6), (x, kg)),
        "R-GAT": (RGATAttention(8, 2, 6), (x, kg)),
    }
    head_runs(kg)  # a graph makes it when a layer first asks; here it may be an input
    for layer, _ in layers.values():
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return layers


def same(found: Any, wanted: Any) -> None:
    """Equal bits, types and shapes of all tensors of two sequences."""
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def close(found: Any, wanted: Any) -> None:
    """Equal types and shapes of all tensors of two sequences, and bits but for the last ones of
    dense products: whether ours or torch's makes them depends on what is differentiated, and only
    on some processors do both add up in the same order.
    """
    torch.testing.assert_close(list(found), list(wanted))
