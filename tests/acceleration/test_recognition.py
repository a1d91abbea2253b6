"""Which layers are swapped, and what is said of those that only look like one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from stand_ins import (
    RELATIONS,
    USERS,
    WIDTH,
    ContrastLike,
    Edges,
    HopwiseLike,
    PaperLike,
)
from torch import nn

import kgrec_fast
from kgrec_fast import nn as own
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec
from kgrec_fast.models.reference import ReferenceKGRec, StepChoice


def hopwise(kind: type = HopwiseLike, **named: object) -> nn.Module:
    return kind(WIDTH, 2, USERS, RELATIONS, **named).double()


def paper(kind: type = PaperLike) -> nn.Module:
    return kind(WIDTH, 2, USERS, RELATIONS).double()


def reason_of(layer: nn.Module) -> str:
    """Why it was left alone, with its class and everything else as it was."""
    kind, content = type(layer), dict(vars(layer))
    (found,) = kgrec_fast.accelerate(layer).layers
    assert found.methods == ()
    assert type(layer) is kind
    assert vars(layer) == content
    return found.reason


# -- signatures ------------------------------------------------------------------------------------


class RequiredArgument(HopwiseLike):
    def kg_agg(self, entity_emb, edge_index, edge_type, relation):
        return super().kg_agg(entity_emb, edge_index, edge_type)


class OtherName(HopwiseLike):
    def ui_agg(self, users, item_emb, inter_edge, inter_edge_w):
        return super().ui_agg(users, item_emb, inter_edge, inter_edge_w)


class OtherOrder(PaperLike):
    def forward_kg(self, edge_index, edge_type, entity_emb, mess_dropout=True):
        return super().forward_kg(entity_emb, edge_index, edge_type, mess_dropout)


class OtherDefault(PaperLike):
    def forward_ui(self, user_emb, item_emb, inter_edge, inter_edge_w, mess_dropout=False):
        return super().forward_ui(user_emb, item_emb, inter_edge, inter_edge_w, mess_dropout)


class Variadic(HopwiseLike):
    def kg_agg(self, entity_emb, edge_index, edge_type, **further):
        return super().kg_agg(entity_emb, edge_index, edge_type)


class Fewer(ContrastLike):
    def loss(self, z1):
        return super().loss(z1, z1)


class Static(HopwiseLike):
    @staticmethod
    def kg_agg(entity_emb, edge_index, edge_type):
        return entity_emb


class Absent(nn.Module):
    forward = PaperLike.forward

    def __init__(self) -> None:
        super().__init__()
        self.W_Q, self.relation_emb = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(3, 4))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: hopwise(RequiredArgument),
            "its kg_agg takes (entity_emb, edge_index, edge_type, relation), "
            "expected (entity_emb, edge_index, edge_type)",
        ),
        (
            lambda: hopwise(OtherName),
            "its ui_agg takes (users, item_emb, inter_edge, inter_edge_w)",
        ),
        (
            lambda: paper(OtherOrder),
            "its forward_kg takes (edge_index, edge_type, entity_emb, mess_dropout=True), "
            "expected (entity_emb, edge_index, edge_type, mess_dropout=True)",
        ),
        (lambda: paper(OtherDefault), "inter_edge_w, mess_dropout=False), expected"),
        (
            lambda: hopwise(Variadic),
            "its kg_agg takes (entity_emb, edge_index, edge_type, **further)",
        ),
        (lambda: Fewer(WIDTH), "its loss takes (z1), expected (z1, z2)"),
        (lambda: hopwise(Static), "its kg_agg is a staticmethod, expected a method"),
        (Absent, "it has no forward_ui"),
    ],
)
def test_another_signature(make: Callable[[], nn.Module], expected: str) -> None:
    assert expected in reason_of(make())


class Meta(type):
    pass


class WithMetaclass(HopwiseLike, metaclass=Meta):
    pass


class WithRegistry(HopwiseLike):
    def __init_subclass__(cls, *, register):
        super().__init_subclass__()


@pytest.mark.parametrize(
    ("kind", "expected"), [(WithMetaclass, "metaclass conflict"), (WithRegistry, "'register'")]
)
def test_a_class_without_subclasses(kind: type, expected: str) -> None:
    reason = reason_of(hopwise(kind))
    assert reason.startswith("its class takes no subclass: ")
    assert expected in reason


def test_a_method_replaced_on_the_instance() -> None:
    layer = hopwise()
    layer.kg_agg = lambda entity_emb, edge_index, edge_type: entity_emb
    assert reason_of(layer) == "its kg_agg was replaced on the instance"


class FurtherArgument(HopwiseLike):
    """May scale its means."""

    def kg_agg(self, entity_emb, edge_index, edge_type, scale=1.0):
        return scale * super().kg_agg(entity_emb, edge_index, edge_type)


def test_a_further_argument_runs_the_layers_own_method(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, edges = hopwise(FurtherArgument), Edges.make()
    arguments = (edges.entities, edges.edge_index, edges.edge_type)
    plain, doubled = layer.kg_agg(*arguments), layer.kg_agg(*arguments, scale=2.0)
    assert kgrec_fast.accelerate(layer).swapped == ("",)
    for own_method in (
        lambda: layer.kg_agg(*arguments, 2.0),
        lambda: layer.kg_agg(*arguments, scale=2.0),
    ):
        assert torch.equal(own_method(), doubled)
    monkeypatch.setattr(HopwiseLike, "kg_agg", None)  # what the original calls
    for fast in (
        lambda: layer.kg_agg(*arguments),
        lambda: layer.kg_agg(*arguments, 1.0),
        lambda: layer.kg_agg(
            entity_emb=arguments[0], edge_index=arguments[1], edge_type=arguments[2]
        ),
    ):
        torch.testing.assert_close(fast(), plain)


# -- attributes ------------------------------------------------------------------------------------


def changed(layer: nn.Module, **attributes: object) -> nn.Module:
    for name, value in attributes.items():
        delattr(layer, name)
        setattr(layer, name, value)
    return layer


class OtherDropout(nn.Dropout):
    """Drops whole rows."""

    def forward(self, x):
        return x * nn.functional.dropout(torch.ones_like(x[:, :1]), self.p, self.training)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: changed(hopwise(), W_Q=torch.ones(WIDTH, 3)),
            "its W_Q is a tensor [8, 3], expected a matrix [D, D]",
        ),
        (lambda: changed(hopwise(), W_Q="x"), "its W_Q is a str"),
        (
            lambda: changed(hopwise(), relation_embedding=nn.Linear(2, 2)),
            "its relation_embedding is a Linear, expected an Embedding",
        ),
        (
            lambda: changed(hopwise(), relation_embedding=nn.Embedding(4, WIDTH, sparse=True)),
            "its relation_embedding has max_norm, padding_idx, sparse or scale_grad_by_freq set",
        ),
        (
            lambda: changed(hopwise(), relation_embedding=nn.Embedding(4, WIDTH, padding_idx=0)),
            "its relation_embedding has max_norm, padding_idx",
        ),
        (
            lambda: changed(paper(), relation_emb=nn.Parameter(torch.ones(4, 3))),
            "its relation embeddings are a tensor [4, 3], expected [relations, 8]",
        ),
        (lambda: changed(paper(), relation_emb=torch.ones(0, WIDTH)), "it has no relation"),
        (lambda: changed(paper(), n_heads=3), "its n_heads is 3 and its d_k 4"),
        (lambda: changed(paper(), d_k="4"), "it has no number d_k"),
        (lambda: changed(paper(), n_hops=1.5), "its n_hops is 1.5, expected an integer"),
        (
            lambda: hopwise(mess_dropout_rate=1.0),
            "its message dropout is 1.0, expected it in [0, 1)",
        ),
        (
            lambda: changed(hopwise(), mess_dropout=nn.AlphaDropout(0.5)),
            "its message dropout is a AlphaDropout, expected a Dropout",
        ),
        (
            lambda: changed(paper(), dropout=OtherDropout()),
            "its message dropout is a OtherDropout, expected a Dropout",
        ),
        (lambda: ContrastLike(WIDTH, 0.0), "its tau is 0.0, expected a number above 0"),
        (lambda: changed(ContrastLike(WIDTH), tau=torch.ones(2)), "its tau is a tensor [2]"),
    ],
)
def test_other_attributes(make: Callable[[], nn.Module], expected: str) -> None:
    assert reason_of(make()).startswith(expected)


# -- what it computes ------------------------------------------------------------------------------


class Residual(HopwiseLike):
    """Keeps something of itself where the published mean does not."""

    def kg_agg(self, entity_emb, edge_index, edge_type):
        return super().kg_agg(entity_emb, edge_index, edge_type) + 0.001 * entity_emb


class FromZero(PaperLike):
    """Its relation ids count from 0."""

    def attend(self, x, edge_index, relation):
        return super().attend(x, edge_index, relation.roll(1, 0))


class UsersFirst(PaperLike):
    def forward(
        self,
        user_emb,
        entity_emb,
        edge_index,
        edge_type,
        inter_edge,
        inter_edge_w,
        mess_dropout=True,
        item_attn=None,
    ):
        arguments = (user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w)
        return super().forward(*arguments, mess_dropout, item_attn)[::-1]


class Detached(HopwiseLike):
    """Trains no attention."""

    def logits(self, x, edge_index, relation):
        return super().logits(x, edge_index, relation).detach()


class Loud(ContrastLike):
    def loss(self, z1, z2):
        raise RuntimeError("not today")


class Single(ContrastLike):
    """Counts the positive once."""

    def loss(self, z1, z2):
        return super().loss(z1, z2) - torch.exp(self.self_sim(z1, z2) / self.tau).log1p() / 9


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: hopwise(Residual), "its forward_kg computes something else"),
        (lambda: paper(FromZero), "its forward computes something else"),
        (lambda: paper(UsersFirst), "its forward computes something else"),
        (lambda: hopwise(Detached), "its forward has another gradient"),
        (lambda: Single(WIDTH), "its loss computes something else"),
        (lambda: Loud(WIDTH), "it could not be tried out: RuntimeError: not today"),
    ],
)
def test_other_formulas(make: Callable[[], nn.Module], expected: str) -> None:
    assert reason_of(make()) == expected


def test_without_the_trial() -> None:
    """A layer whose own packages are missing cannot be run, but can be swapped."""
    layer, plain = Loud(WIDTH).double(), ContrastLike(WIDTH)
    report = kgrec_fast.accelerate(layer, verify=False)
    assert report.swapped == ("",)
    z1, z2 = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    torch.manual_seed(0)
    loss = layer.loss(z1, z2)
    torch.manual_seed(0)
    torch.testing.assert_close(loss, plain.loss(z1, z2))
    with pytest.raises(TypeError):
        kgrec_fast.accelerate(layer, False)  # type: ignore[misc]


# -- layers of this package ------------------------------------------------------------------------


def small() -> tuple[tuple[int, ...], tuple[torch.Tensor, ...]]:
    edges = Edges.make()
    sizes = (USERS, 9, edges.entities.shape[0], RELATIONS)
    return sizes, (edges.edge_index, edges.edge_type, edges.inter_edge)


def test_our_own_layers_are_left_alone() -> None:
    sizes, (edge_index, edge_type, inter_edge) = small()
    kg = RelGraph.from_edges(edge_index, edge_type, num_nodes=sizes[2], num_relations=RELATIONS - 1)
    interactions = InteractionGraph.from_edges(inter_edge, num_users=USERS, num_items=9)
    report = kgrec_fast.accelerate(KGRec(*sizes, kg, interactions, mae_msize=4))
    assert [layer.name for layer in report.layers] == ["gcn", "contrast_fn"]
    assert {layer.reason for layer in report.layers} == {"it is a layer of kgrec_fast"}
    assert reason_of(own.Contrast(4)) == "it is a layer of kgrec_fast"


def test_the_reference_model_is_recognised() -> None:
    """Its methods take the random choices of a step as further arguments."""
    sizes, edges = small()
    model = ReferenceKGRec(*sizes, *edges, mae_msize=4, mess_dropout_rate=0.0).double()
    model.inter_edge_w = model.inter_edge_w.double()
    choice = StepChoice(
        sampled_edges=torch.arange(0, 80, 2),
        kept_interactions=torch.arange(20),
        masked_edges=torch.arange(0, 80, 8),
        contrast_edges=torch.arange(0, 80, 4),
        contrast_interactions=torch.arange(0, 20, 2),
    )
    batch = {name: torch.arange(5) for name in ("user_id", "item_id", "neg_item_id")}
    results = []
    for _ in range(2):
        torch.manual_seed(2)
        loss = model.calculate_loss(batch, choice)
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
        swapped = kgrec_fast.accelerate(model).swapped
    assert swapped == ()  # at the second time
    assert kgrec_fast.restore(model) == ("gcn", "contrast_fn")
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-12)
