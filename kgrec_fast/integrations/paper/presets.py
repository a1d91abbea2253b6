"""Hyper-parameters of the paper's code, by data set, under the names of this library."""

from __future__ import annotations

from typing import Any

# What the model sets by the name of the data set, whatever the command line says.
PRESETS: dict[str, dict[str, Any]] = {
    "last-fm": {
        "mae_coef": 0.1,
        "mae_msize": 256,
        "cl_coef": 0.01,
        "cl_tau": 1.0,
        "cl_drop": 0.5,
        "samp_func": "torch",
    },
    "mind-f": {
        "mae_coef": 0.1,
        "mae_msize": 256,
        "cl_coef": 0.001,
        "cl_tau": 0.1,
        "cl_drop": 0.6,
        "samp_func": "np",
    },
    "alibaba-fashion": {
        "mae_coef": 0.1,
        "mae_msize": 256,
        "cl_coef": 0.001,
        "cl_tau": 0.2,
        "cl_drop": 0.5,
        "samp_func": "torch",
    },
}

# Defaults of its command line.
_MODEL = {
    "embedding_size": 64,
    "reg_weight": 1e-5,
    "context_hops": 2,
    "node_dropout_rate": 0.5,
    "mess_dropout_rate": 0.1,
}
_TRAINING = {"epochs": 1000, "batch_size": 1024, "lr": 1e-4, "seed": 2020}
# Its loop evaluates last-fm every tenth epoch and stops after 5 evaluations without gain.
_PACE = {"last-fm": {"eval_every": 10, "patience": 5}}


def run_settings(name: str) -> dict[str, Any]:
    """The settings of a training run by dotted names, such as ``training.lr``.

    Raises:
        ValueError: There is no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}")
    model = _MODEL | PRESETS[name]
    training = _TRAINING | _PACE.get(name, {"eval_every": 1, "patience": 10})
    return {f"model.{key}": value for key, value in model.items()} | {
        f"training.{key}": value for key, value in training.items()
    }
