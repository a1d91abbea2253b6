"""A run made of weights that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

import kgrec_fast
from kgrec_fast.training.build import build_model, fingerprint, read_dataset
from kgrec_fast.training.checkpoint import compare_tensors, model_tensors, save_checkpoint
from kgrec_fast.training.config import Config
from kgrec_fast.training.run_folder import RunFolder


def import_run(
    weights: Callable[[int], Mapping[str, Tensor]], config: Config, run_dir: Path | None = None
) -> RunFolder:
    """Makes a run folder that can be evaluated and recommended with, not resumed.

    Args:
        weights: From the number of users, the state dict of the model.
        config: The configuration; its data set is read, its model built.
        run_dir: The folder; ``runs/<dataset>-<timestamp>`` where None.

    Raises:
        ConfigError: The configuration cannot be used, or the folder already holds a run.
        CheckpointError: The weights do not fit the data set and the configuration.
        FileNotFoundError, DataFormatError: As the readers.
    """
    dataset = read_dataset(config)
    model = build_model(dataset, config)
    state = weights(dataset.n_users)
    compare_tensors(state, model.state_dict(), "weights: the model")
    model.load_state_dict(dict(state))
    folder = RunFolder.create(run_dir, config)
    metadata = {
        "kgrec_fast_version": kgrec_fast.__version__,
        "config": config.model_dump(mode="json"),
        "dataset_fingerprint": fingerprint(dataset),
        "epoch": 0,
    }
    save_checkpoint(folder.best, model_tensors(model), metadata)
    return folder
