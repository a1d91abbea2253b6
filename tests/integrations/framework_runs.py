"""What the tests ask of a framework, RecBole or hopwise, whose modules have the same names."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# One of them in each environment.
FRAMEWORK = "hopwise" if importlib.util.find_spec("hopwise") else "recbole"

integration: Any = importlib.import_module(f"kgrec_fast.integrations.{FRAMEWORK}")
quick_start: Any = importlib.import_module(f"{FRAMEWORK}.quick_start.quick_start")
framework_trainer: Any = importlib.import_module(f"{FRAMEWORK}.trainer.trainer")
framework_utils: Any = importlib.import_module(f"{FRAMEWORK}.utils")
framework_data: Any = importlib.import_module(f"{FRAMEWORK}.data")
Config: Any = importlib.import_module(f"{FRAMEWORK}.config").Config
run: Any = getattr(quick_start, f"run_{FRAMEWORK}")

PLANTED = "planted"
NARROW = {"embedding_size": 16, "mae_msize": 20, "train_batch_size": 256}


def options(data_path: Path, **more: Any) -> dict[str, Any]:
    """A configuration for the small data set."""
    return {"data_path": str(data_path), "show_progress": False, "use_gpu": False} | NARROW | more


@dataclass
class Built:
    """A model on the framework's own split, and the framework's trainer of it."""

    config: Any
    model: Any
    train: Any
    valid: Any
    test: Any

    @property
    def dataset(self) -> Any:
        return self.train.dataset if hasattr(self.train, "dataset") else self.train._dataset

    def trainer(self) -> Any:
        kind = self.config["MODEL_TYPE"]
        return framework_utils.get_trainer(kind, self.config["model"])(self.config, self.model)

    def batch(self) -> Any:
        """The first batch of interactions."""
        self.train.set_mode(framework_utils.KGDataLoaderState.RS)
        return next(iter(self.train))


def build(settings: dict[str, Any], model: Any = "KGRec") -> Built:
    """Everything up to training, step by step, from a model's name or class."""
    config = Config(model=model, dataset=PLANTED, config_dict=settings)
    framework_utils.init_seed(config["seed"], config["reproducibility"])
    dataset = framework_data.create_dataset(config)
    train, valid, test = framework_data.data_preparation(config, dataset)
    made = framework_utils.get_model(config["model"])(config, train._dataset)
    return Built(config, made.to(config["device"]), train, valid, test)


def pair_batch(built: Built, count: int = 64) -> dict[str, torch.Tensor]:
    """Ids of users, items and negatives by kgrec_fast's names, none of them padding."""
    model, generator = built.model, torch.Generator().manual_seed(count)
    highs = {"user_id": model.n_users, "item_id": model.n_items, "neg_item_id": model.n_items}
    return {
        name: torch.randint(1, high, (count,), generator=generator) for name, high in highs.items()
    }


def python(script: str, *arguments: str, **environment: str) -> str:
    """What a script prints last, run in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]
