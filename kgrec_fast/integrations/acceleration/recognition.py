"""Which modules are layers of KGRec, by what they have and how their methods are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kgrec_fast.integrations.acceleration.layers import (
    ContrastLayer,
    HopwiseLayer,
    PaperLayer,
    dropout_module,
    message_dropout,
)
from kgrec_fast.nn import Contrast
from kgrec_fast.nn._streams import MAX_HOPS
from kgrec_fast.nn.propagation import Propagation


@dataclass(frozen=True)
class Interface:
    """A kind of layer.

    Attributes:
        name: For reports.
        methods: The class whose methods take the place of the layer's, in the same signatures.
        marks: A module with all of these attributes is taken for such a layer, and looked at.
        objection: What is wrong with the attributes of such a module, or None.
    """

    name: str
    methods: type
    marks: tuple[str, ...]
    objection: Callable[[nn.Module], str | None]

    @property
    def method_names(self) -> tuple[str, ...]:
        """Names of the methods that are swapped."""
        return tuple(name for name in vars(self.methods) if not name.startswith("__"))


def find_interface(module: nn.Module) -> Interface | None:
    """The layer that a module looks like, or None."""
    return next((i for i in INTERFACES if all(hasattr(module, m) for m in i.marks)), None)


def objection(module: nn.Module, interface: Interface) -> str | None:
    """Why a module that looks like such a layer is none that can be swapped; None where it is."""
    if isinstance(module, Propagation | Contrast):
        return "it is a layer of kgrec_fast"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a script module"
    for name in interface.method_names:
        reason = _method_objection(
            module, name, inspect.signature(getattr(interface.methods, name))
        )
        if reason is not None:
            return reason
    return interface.objection(module)


def extra_defaults(original: Callable[..., Any], fast: Callable[..., Any]) -> dict[str, object]:
    """The parameters, with their defaults, that the original has beyond those of the fast one."""
    known = inspect.signature(fast).parameters
    theirs = inspect.signature(original).parameters.values()
    return {p.name: p.default for p in theirs if p.name not in known}


def _method_objection(module: nn.Module, name: str, expected: inspect.Signature) -> str | None:
    """Signatures must agree; further parameters are admitted at the end, with a default."""
    if name in vars(module):
        return f"its {name} was replaced on the instance"
    method = inspect.getattr_static(type(module), name, None)
    if method is None:
        return f"it has no {name}"
    if not inspect.isfunction(method):
        return f"its {name} is a {type(method).__name__}, expected a method"
    theirs = list(inspect.signature(method).parameters.values())
    ours = list(expected.parameters.values())
    same = len(theirs) >= len(ours) and all(
        t.kind is o.kind and t.default is o.default and t.name == o.name
        for t, o in zip(theirs[1:], ours[1:], strict=False)
    )
    further = theirs[len(ours) :]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not same or any(p.default is p.empty or p.kind in variadic for p in further):
        plain = [p.replace(annotation=p.empty) for p in ours[1:]]
        found = [p.replace(annotation=p.empty) for p in theirs[1:]]
        return (
            f"its {name} takes ({', '.join(map(str, found))}), "
            f"expected ({', '.join(map(str, plain))})"
        )
    return None


def _graph_objection(module: Any, relation: object) -> str | None:
    """What is wrong with the attributes of a graph layer."""
    w = module.W_Q
    if not isinstance(w, Tensor) or w.dim() != 2 or w.shape[0] != w.shape[1]:
        return f"its W_Q is {_described(w)}, expected a matrix [D, D]"
    width = w.shape[0]
    if not isinstance(relation, Tensor) or relation.dim() != 2 or relation.shape[1] != width:
        return f"its relation embeddings are {_described(relation)}, expected [relations, {width}]"
    if relation.shape[0] == 0:
        return "it has no relation"
    for name in ("n_hops", "n_heads", "d_k", "mess_dropout_rate"):
        if not isinstance(getattr(module, name, None), int | float):
            return f"it has no number {name}"
    hops, heads, d_k = module.n_hops, module.n_heads, module.d_k
    if not isinstance(hops, int) or not 0 <= hops <= MAX_HOPS:
        return f"its n_hops is {hops}, expected an integer in [0, {MAX_HOPS}]"
    if not isinstance(heads, int) or heads < 1 or heads * d_k != width:
        return f"its n_heads is {heads} and its d_k {d_k}, expected a product of {width}"
    dropout = dropout_module(module)  # the trial does not see what it does
    if dropout is not None and type(dropout) not in (nn.Dropout, nn.Identity):
        return f"its message dropout is {_described(dropout)}, expected a Dropout"
    rate = message_dropout(module)
    if not 0 <= rate < 1:
        return f"its message dropout is {rate}, expected it in [0, 1)"
    return None


def _hopwise_objection(module: Any) -> str | None:
    embedding = module.relation_embedding
    if not isinstance(embedding, nn.Embedding):
        return f"its relation_embedding is {_described(embedding)}, expected an Embedding"
    if (embedding.max_norm, embedding.padding_idx) != (None, None) or (
        embedding.sparse or embedding.scale_grad_by_freq
    ):
        return "its relation_embedding has max_norm, padding_idx, sparse or scale_grad_by_freq set"
    return _graph_objection(module, embedding.weight)


def _paper_objection(module: Any) -> str | None:
    return _graph_objection(module, module.relation_emb)


def _contrast_objection(module: Any) -> str | None:
    if not isinstance(module.tau, int | float) or not module.tau > 0:
        return f"its tau is {_described(module.tau)}, expected a number above 0"
    return None


def _described(x: object) -> str:
    if isinstance(x, Tensor):
        return f"a tensor {list(x.shape)}"
    return repr(x) if isinstance(x, int | float) else f"a {type(x).__name__}"


INTERFACES = (
    Interface(
        "AttnHGCN of hopwise", HopwiseLayer, ("W_Q", "relation_embedding"), _hopwise_objection
    ),
    Interface("AttnHGCN of the paper", PaperLayer, ("W_Q", "relation_emb"), _paper_objection),
    Interface("Contrast", ContrastLayer, ("tau", "mlp1", "mlp2"), _contrast_objection),
)
