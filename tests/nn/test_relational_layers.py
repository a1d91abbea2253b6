"""The layers of KGIN, KGCL, KGAT and R-GAT: against their references, and loops over edges."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kgrec_fast import InteractionGraph, RelGraph, ops
from kgrec_fast.nn import KGATAttention, KGCLAggregation, KGINAggregation, RGATAttention

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from graph_helpers import CASES, Case, assert_as_good_as, kept, operands, random_mask

WIDTH, USERS, INTENTS = 8, 9, 3
# The others have 70,000 relations, a projection each in KGAT, or 30,000 edges.
SMALL = [name for name in CASES if name not in ("many relations", "hub row")]
LAYERS = ["KGIN", "KGCL", "KGAT", "R-GAT"]
each_layer = pytest.mark.parametrize("name", LAYERS)


def interactions(items: int, generator: torch.Generator) -> InteractionGraph:
    """40 of them; the last user has none, some come twice."""
    users = torch.randint(USERS - 1, (40,), generator=generator)
    item = torch.randint(items, (40,), generator=generator)
    weight = torch.rand(40, generator=generator, dtype=torch.float64) + 0.1
    return InteractionGraph.from_edges(
        torch.stack([users, item]), weight, num_users=USERS, num_items=items
    )


class Setting:
    """A layer in float64 on a case, and how it is called there.

    Attributes:
        layer: The layer.
        floats: Its floating operands.
        inputs: What goes in, from floats, edges or a graph, and relations or None.
    """

    def __init__(self, name: str, case: Case, width: int = WIDTH, extra: int = 3) -> None:
        generator = torch.Generator().manual_seed(7)
        relations = case.num_relations + extra
        self.case, self.masks = case, {"edge_mask": random_mask(case)}
        x, _, relation = operands(case, width, extra=extra)
        self.floats = [x]
        inter = interactions(x.shape[0], generator)
        layers: dict[str, Callable[[], nn.Module]] = {
            "KGIN": lambda: KGINAggregation(width, INTENTS, relations + 1),
            "KGCL": lambda: KGCLAggregation(width),
            "KGAT": lambda: KGATAttention(width, 5, relations),
            "R-GAT": lambda: RGATAttention(width, 2, relations),
        }
        self.layer = layers[name]().double()
        self.inputs: Callable[..., tuple] = lambda floats, *kg: (*floats, *kg)
        if name == "KGCL":
            self.floats.append(relation)
        if name == "KGIN":
            for rows in (USERS, INTENTS):
                self.floats.append(torch.randn(rows, width, generator=generator).double())
            self.masks["inter_mask"] = torch.arange(40) % 4 > 0
            self.inputs = lambda f, *kg: (f[1], f[0], f[2], *kg, inter, inter.weight.to(f[0].dtype))
        with torch.no_grad():  # far from where exponentials and tanh are nearly linear
            for parameter in self.layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def edges(self) -> tuple[Tensor, Tensor]:
        return self.case.edge_index, self.case.edge_type

    def run(self, method: str, masked: bool, *kg: Any) -> list[Tensor]:
        """Outputs, and gradients of all operands and parameters."""
        floats = [x.detach().requires_grad_() for x in self.floats]
        masks = self.masks if masked else {}
        out = getattr(self.layer, method)(*self.inputs(floats, *kg), **masks)
        out = list(out) if isinstance(out, tuple) else [out]
        generator = torch.Generator().manual_seed(3)
        grads = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in out]
        leaves = [*floats, *self.layer.parameters()]
        pulled = torch.autograd.grad(
            out, leaves, grads, allow_unused=not self.case.edge_type.numel()
        )
        zeros = [
            torch.zeros_like(x) if g is None else g for g, x in zip(pulled, leaves, strict=True)
        ]
        return [*(y.detach() for y in out), *zeros]


# -- values and gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", [*SMALL, "hub row"])
@each_layer
def test_equals_the_reference(name: str, case: str, masked: bool) -> None:
    """In a graph that nodes and relations without edges come with; no row is left out."""
    setting = Setting(name, CASES[case])
    found = setting.run("forward", masked, CASES[case].build(), None)
    wanted = setting.run("reference", masked, CASES[case].build(), None)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    if not masked and case == "bipartite":  # nothing is tested where everything is zero
        assert all(bool((x != 0).any()) for x in wanted)


@pytest.mark.parametrize("name", ["KGIN", "KGCL", "R-GAT"])
def test_more_relations_than_16_bits_hold(name: str) -> None:
    setting = Setting(name, CASES["many relations"], width=4)
    graph = CASES["many relations"].build()
    torch.testing.assert_close(
        setting.run("forward", True, graph, None),
        setting.run("reference", True, graph, None),
        rtol=1e-9,
        atol=1e-10,
    )


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    total = sum(math.exp(s - top) for s in scores)
    return [math.exp(s - top) / total for s in scores]


def leaky(score: Tensor) -> float:
    return float(score if score > 0 else 0.2 * score)


def loop(setting: Setting, masked: bool) -> list[Tensor]:
    """The published formulas, node by node and edge by edge."""
    layer: Any = setting.layer
    x = setting.floats[0]
    edges = kept(setting.case, setting.masks["edge_mask"] if masked else None)
    out = torch.zeros_like(x)
    for node in range(x.shape[0]):
        mine = [(t, r) for _, h, t, r in edges if h == node]
        if isinstance(layer, KGCLAggregation):
            out[node] = x[node]
        if not mine:
            continue
        if isinstance(layer, KGINAggregation):
            out[node] = sum(x[t] * layer.weight[r] for t, r in mine) / len(mine)
        elif isinstance(layer, KGCLAggregation):
            relation = setting.floats[1]
            scores = [leaky(layer.fc(torch.cat([x[node], x[t]])) @ relation[r]) for t, r in mine]
            out[node] += sum(a * x[t] for a, (t, _) in zip(softmax(scores), mine, strict=True))
        elif isinstance(layer, KGATAttention):
            w = layer.trans_w.weight.view(-1, WIDTH, 5)
            rel = layer.relation_embedding.weight
            scores = [float((x[t] @ w[r]) @ torch.tanh(x[node] @ w[r] + rel[r])) for t, r in mine]
            out[node] = sum(a * x[t] for a, (t, _) in zip(softmax(scores), mine, strict=True))
        else:
            z, rel = x @ layer.W, layer.relation_embedding.weight
            for k in range(2):
                part = slice(4 * k, 4 * k + 4)
                scores = [
                    leaky(
                        layer.att_head[k] @ z[node, part]
                        + layer.att_tail[k] @ z[t, part]
                        + layer.att_relation[k] @ rel[r, part]
                    )
                    for t, r in mine
                ]
                weights = softmax(scores)
                out[node, part] = sum(
                    a * z[t, part] for a, (t, _) in zip(weights, mine, strict=True)
                )
    if not isinstance(layer, KGINAggregation):
        return [out]
    users, latent = setting.floats[1:]
    inter = setting.inputs(setting.floats, None, None)[5]
    user_out = torch.zeros_like(users)
    for e, (user, item) in enumerate(inter.edge_index.t().tolist()):
        if not masked or setting.masks["inter_mask"][e]:
            user_out[user] += inter.weight[e] * x[item]
    intents = [
        sum(a * layer.weight[r] for r, a in enumerate(softmax(logits)))
        for logits in layer.disen_weight_att.tolist()
    ]
    for user in range(USERS):
        shares = softmax([float(users[user] @ latent[f]) for f in range(INTENTS)])
        wish = sum(share * intent for share, intent in zip(shares, intents, strict=True))
        user_out[user] = user_out[user] * wish + user_out[user]
    return [out, user_out]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", ["wide", "empty rows", "duplicates", "self-loops"])
@each_layer
@torch.no_grad()
def test_layer_and_reference_are_the_published_formulas(name: str, case: str, masked: bool) -> None:
    setting = Setting(name, CASES[case])
    wanted = loop(setting, masked)
    for method in ("forward", "reference"):
        masks = setting.masks if masked else {}
        found = getattr(setting.layer, method)(
            *setting.inputs(setting.floats, *setting.edges()), **masks
        )
        found = list(found) if isinstance(found, tuple) else [found]
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)


@each_layer
def test_float32_is_as_exact_as_pytorch(name: str) -> None:
    """Out of Adam's hands: each output and gradient by itself."""
    setting = Setting(name, CASES["bipartite"], width=32)
    graph = CASES["bipartite"].build()
    exact = setting.run("reference", False, graph, None)
    setting.layer.float()
    setting.floats = [x.float() for x in setting.floats]
    found = setting.run("forward", False, graph, None)
    theirs = setting.run("reference", False, graph, None)
    for ours, plain, wanted in zip(found, theirs, exact, strict=True):
        assert_as_good_as(ours, plain, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_layer
def test_autocast(name: str, dtype: torch.dtype) -> None:
    setting = Setting(name, CASES["bipartite"])
    setting.layer.float()
    setting.floats = [x.float() for x in setting.floats]
    graph = CASES["bipartite"].build()
    exact = setting.run("reference", False, graph, None)
    with torch.autocast("cpu", dtype):
        found = setting.run("forward", False, graph, None)
        out = setting.layer(*setting.inputs(setting.floats, graph, None))
    kinds = [x.dtype for x in (out if isinstance(out, tuple) else (out,))]
    # KGCL adds the nodes themselves, in float32.
    assert kinds == [torch.float32 if name == "KGCL" else dtype] * len(kinds)
    for ours, wanted in zip(found, exact, strict=True):
        scale = float(wanted.abs().max())
        assert float((ours - wanted).abs().max()) <= 4 * torch.finfo(dtype).eps * scale


@each_layer
def test_repeats_bit_by_bit_for_every_number_of_threads(name: str) -> None:
    setting = Setting(name, CASES["hub row"], width=16)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(setting.run("forward", True, CASES["hub row"].build(), None))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# -- what they take --------------------------------------------------------------------------------


@each_layer
def test_raw_edges_a_graph_and_masks_of_both_kinds(name: str) -> None:
    case = CASES["bipartite"]
    setting = Setting(name, case)
    raw = setting.run("forward", True, *setting.edges())
    graph = case.build()
    setting.masks["edge_mask"] = graph.edge_mask(setting.masks["edge_mask"])
    found = setting.run("forward", True, graph, None)
    torch.testing.assert_close(found, raw, rtol=1e-12, atol=1e-12)
    # A mask is the same as the edges that it keeps.
    keep = random_mask(case)
    setting.masks.pop("edge_mask")
    fewer = setting.run("forward", True, case.edge_index[:, keep], case.edge_type[keep])
    torch.testing.assert_close(fewer, raw, rtol=1e-12, atol=1e-12)


@each_layer
def test_graphs_keep_what_the_layers_make_of_them(name: str) -> None:
    graph = CASES["bipartite"].build()
    setting = Setting(name, CASES["bipartite"])
    first = setting.run("forward", True, graph, None)
    made = graph.node_pairs, graph.head_runs
    again = setting.run("forward", True, copy.deepcopy(graph), None)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    setting.run("forward", False, graph, None)
    assert (graph.node_pairs is made[0], graph.head_runs is made[1]) == (True, True)
    moved = graph.to("meta")
    assert moved.node_pairs is None
    assert moved.head_runs is None


@each_layer
def test_on_the_references_of_the_ops(name: str) -> None:
    setting = Setting(name, CASES["bipartite"])
    graph = CASES["bipartite"].build()
    found = setting.run("forward", True, graph, None)
    with ops.use_reference():
        plain = setting.run("forward", True, graph, None)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-11)


class Sizes(TorchDispatchMode):
    """The largest number of elements of any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.largest = max(self.largest, *made, 0)
        return out


@each_layer
def test_no_tensor_of_edges_times_width_is_made(name: str) -> None:
    """Forward and backward, on 30,000 edges of 200 pairs of a head and a relation."""
    setting = Setting(name, CASES["hub row"], width=16)
    graph = CASES["hub row"].build()
    setting.run("forward", False, graph, None)  # what the graph keeps is made here
    edges = graph.num_edges
    with Sizes() as ours:
        setting.run("forward", False, graph, None)
    with Sizes() as theirs:
        setting.run("reference", False, graph, None)
    assert ours.largest <= 2 * edges
    assert theirs.largest >= 16 * edges


# -- KGAT's weights, published names, errors -------------------------------------------------------


def test_attention_of_kgat_can_be_made_once() -> None:
    setting = Setting("KGAT", CASES["bipartite"])
    layer, graph = setting.layer, CASES["bipartite"].build()
    x, mask = setting.floats[0].requires_grad_(), setting.masks["edge_mask"]
    with torch.no_grad():
        weights = layer.attention(x, graph, edge_mask=mask)
    assert weights.shape == (300,)
    assert not weights[~mask].any()
    heads = graph.edge_index[0]
    sums = torch.zeros(12, dtype=torch.float64).index_add(0, heads, weights)
    has_edges = torch.bincount(heads[mask], minlength=12) > 0
    torch.testing.assert_close(sums, has_edges.double())
    found = layer(x, graph, attention=weights, edge_mask=mask)
    torch.testing.assert_close(found, layer(x, graph, edge_mask=mask), rtol=1e-12, atol=1e-13)
    # Then it is a constant: the gradient is that of a weighted sum.
    (grad,) = torch.autograd.grad(found.sum(), x)
    tails = torch.zeros(x.shape[0], dtype=torch.float64).index_add(0, graph.edge_index[1], weights)
    torch.testing.assert_close(grad, tails.unsqueeze(1).expand_as(x))


def test_parameters_have_the_published_names_and_shapes() -> None:
    shapes = {
        name: {n: tuple(p.shape) for n, p in layer.named_parameters()}
        for name, layer in (
            ("KGIN", KGINAggregation(8, 4, 6)),
            ("KGCL", KGCLAggregation(8)),
            ("KGAT", KGATAttention(8, 5, 6)),
        )
    }
    assert shapes == {
        "KGIN": {"weight": (5, 8), "disen_weight_att": (4, 5)},
        "KGCL": {"fc.weight": (8, 16), "fc.bias": (8,)},
        "KGAT": {"relation_embedding.weight": (6, 5), "trans_w.weight": (6, 40)},
    }


@each_layer
def test_parameters_start_apart_and_reset(name: str) -> None:
    torch.manual_seed(0)
    layer = type(Setting(name, CASES["bipartite"]).layer)
    sizes = {"KGIN": (8, 4, 6), "KGCL": (8,), "KGAT": (8, 5, 6), "R-GAT": (8, 2, 6)}[name]
    for parameter in layer(*sizes).parameters():
        assert torch.isfinite(parameter).all()
        assert parameter.std() > 0.05


GRAPH = RelGraph.from_edges(torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 4]), num_nodes=4)
X = torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (lambda: KGINAggregation(8, 0, 6), ValueError, "n_factors is 0, expected at least 1"),
        (lambda: KGINAggregation(8, 3, 1), ValueError, "n_relations is 1, expected at least 2"),
        (lambda: KGCLAggregation(0), ValueError, "embedding_size is 0"),
        (lambda: KGATAttention(8, 0, 3), ValueError, "relation_size is 0, expected at least 1"),
        (
            lambda: RGATAttention(8, 3, 5),
            ValueError,
            "num_heads is 3, expected a divisor of the width",
        ),
        (lambda: RGATAttention(8, 2, 0), ValueError, "n_relations is 0"),
        (
            lambda: RGATAttention(8, 2, 4)(X, GRAPH),
            ValueError,
            "4 columns and 5 relations, expected at most 4, 4 .* and 4",
        ),
        (
            lambda: KGATAttention(8, 2, 5)(X[:, :7], GRAPH),
            ValueError,
            r"entity_emb has shape \[4, 7\], expected \[n, 8\]",
        ),
        (
            lambda: KGCLAggregation(8)(X, X[:4], GRAPH),
            ValueError,
            "and 5 relations, expected at most 4, 4 .* and 4",
        ),
        (lambda: KGCLAggregation(8)(X, None, GRAPH), TypeError, "relation_emb is a NoneType"),
        (
            lambda: KGATAttention(8, 2, 5)(X, GRAPH, attention=torch.ones(3)),
            ValueError,
            r"attention has shape \[3\], expected \[2\]",
        ),
        (
            lambda: KGINAggregation(8, 3, 6)(X, X, X, GRAPH, None, GRAPH.edge_index, None),
            ValueError,
            "latent_emb has 4 rows, expected 3, one for each intent",
        ),
        (
            lambda: RGATAttention(8, 2, 5)(X, GRAPH.edge_index),
            ValueError,
            "edge_type is None, expected the relation of each edge",
        ),
    ],
)
def test_bad_arguments_are_named(wrong: Callable, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        wrong()
