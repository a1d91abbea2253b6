"""Adam, and its state under names that a checkpoint can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kgrec_fast.training.checkpoint import Checkpoint, CheckpointError, tensors_under

_PREFIX = "optimizer."


def make_adam(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Adam over all parameters, in its fused form (one pass over each) where torch has it, and on
    CUDA in one that a CUDA graph can capture.

    Raises:
        ValueError: if the model has no parameters.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model: it has no trainable parameters, nothing to train")
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    capturable = all(p.device.type == "cuda" for p in parameters)
    return torch.optim.Adam(
        parameters, lr=lr, weight_decay=weight_decay, fused=fused, capturable=capturable
    )


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def optimizer_tensors(optimizer: torch.optim.Adam, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as ``optimizer.<parameter>:<entry>``."""
    return {
        f"{_PREFIX}{name}:{entry}": value
        for name, parameter in _named(model).items()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Adam, model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads the state that `optimizer_tensors` gave; learning rate and the like stay as they are.

    Raises:
        CheckpointError: if it belongs to other parameters.
    """
    named = _named(model)
    place = {name: index for index, name in enumerate(named)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors_under(checkpoint, _PREFIX).items():
        name, _, entry = key.rpartition(":")
        if name not in named:
            raise CheckpointError(f"{checkpoint.path}: optimizer state of unknown {name!r}")
        if entry != "step" and value.shape != named[name].shape:
            raise CheckpointError(
                f"{checkpoint.path}: optimizer state {key}: got {list(value.shape)}, expected "
                f"{list(named[name].shape)}"
            )
        state.setdefault(place[name], {})[entry] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
