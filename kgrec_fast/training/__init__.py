"""Training: configuration, loop, evaluation, checkpoints, reports."""

from __future__ import annotations

try:
    import matplotlib  # noqa: F401
    import pydantic  # noqa: F401
    import rich  # noqa: F401
    import safetensors  # noqa: F401
    import yaml  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"kgrec_fast.training needs {error.name}: pip install 'kgrec_fast[train]'"
    ) from error

from kgrec_fast.training.build import build_model, read_dataset
from kgrec_fast.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from kgrec_fast.training.config import Config, ConfigError, load_config
from kgrec_fast.training.evaluation import evaluate
from kgrec_fast.training.interrupts import TrainingInterrupted
from kgrec_fast.training.recorded_step import RecordedStep
from kgrec_fast.training.run_folder import RunFolder
from kgrec_fast.training.trainer import Results, Trainer, TrainingError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Config",
    "ConfigError",
    "RecordedStep",
    "Results",
    "RunFolder",
    "Trainer",
    "TrainingError",
    "TrainingInterrupted",
    "build_model",
    "evaluate",
    "load_checkpoint",
    "load_config",
    "load_model",
    "read_dataset",
    "save_checkpoint",
]
