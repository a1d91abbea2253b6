"""Checkpoints of the paper's code, and their weights under the names of this library's model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kgrec_fast._files import unpickled

_RELATION, _RELATION_WEIGHT = "gcn.relation_emb", "gcn.relation_embedding.weight"


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict that the paper's code has saved with ``torch.save``, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else.
    """
    path = Path(path)
    state = unpickled(path)
    if state is None:
        raise ValueError(f"{path}: no checkpoint of tensors, as torch.save writes it")
    tensors = isinstance(state, Mapping) and all(isinstance(x, Tensor) for x in state.values())
    if not tensors or "all_embed" not in state or state["all_embed"].dim() != 2:
        raise ValueError(f"{path}: expected a state dict of the paper's KGRec, with its all_embed")
    return {name.replace("grace_loss.", "contrast_fn."): x for name, x in state.items()}


def model_state(state: Mapping[str, Tensor], n_users: int) -> dict[str, Tensor]:
    """The weights of :class:`kgrec_fast.models.KGRec` from those of the paper's code.

    Args:
        state: As :func:`read_checkpoint` gives it.
        n_users: How many of the embeddings are users'; the others are entities'.

    Returns:
        A state dict; its tensors are views of those given.
    """
    renamed = {_RELATION: _RELATION_WEIGHT}
    rest = {renamed.get(name, name): x for name, x in state.items() if name != "all_embed"}
    users, entities = state["all_embed"][:n_users], state["all_embed"][n_users:]
    return {"user_embedding.weight": users, "entity_embedding.weight": entities, **rest}


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way: the weights of the paper's code, in its order.

    Args:
        state: The state dict of a :class:`kgrec_fast.models.KGRec`.

    Returns:
        A state dict for the paper's code, its ``all_embed`` a new tensor [U + N, D].
    """
    tables = torch.cat([state["user_embedding.weight"], state["entity_embedding.weight"]])
    contrast = {name: x for name, x in state.items() if name.startswith("contrast_fn.")}
    return {
        "all_embed": tables,
        _RELATION: state[_RELATION_WEIGHT],
        "gcn.W_Q": state["gcn.W_Q"],
        **contrast,
    }
