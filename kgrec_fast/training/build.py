"""From a configuration to a data set, a device and a model."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from kgrec_fast import _library
from kgrec_fast.training.config import Config, ConfigError

if TYPE_CHECKING:
    from kgrec_fast.data.dataset import KGDataset
    from kgrec_fast.models import KGRec


def read_dataset(config: Config) -> KGDataset:
    """Reads the data set that a configuration names.

    Raises:
        ConfigError: if it names none.
        FileNotFoundError, ValueError: as the readers, which name file, line and reason.
    """
    from kgrec_fast.data.atomic import AtomicFields
    from kgrec_fast.data.load import load_dataset

    section = config.dataset
    if section.name is None:
        raise ConfigError("dataset.name: got nothing, expected a known name or a folder")
    return load_dataset(
        section.name,
        format=section.format,
        min_rating=section.min_rating,
        recbole_items=section.recbole_items,
        inverse=section.inverse,
        split=section.split,
        carve_valid=section.carve_valid,
        fields=AtomicFields(**section.fields) if section.fields else None,
        seed=section.split_seed,
    )


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where that works and our kernels are, else the CPU.

    Raises:
        ConfigError: if torch knows no such device, or cannot use it here.
    """
    if name == "auto":
        cuda = torch.device("cuda")
        usable = torch.cuda.is_available() and _library.is_native(cuda)
        return cuda if usable else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # meta tensors hold no number
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"training.device: got {name!r}, expected a device that works here ({reason})"
        ) from None
    return device


def build_model(dataset: KGDataset, config: Config) -> KGRec:
    """KGRec on the graphs of a data set, on the configured device.

    Seeds torch's generator with ``training.seed``: the initial weights follow from it.

    Raises:
        ConfigError: if the device cannot be used.
    """
    from kgrec_fast.graph import InteractionGraph, RelGraph
    from kgrec_fast.models import KGRec

    device = resolve_device(config.training.device)
    kg = RelGraph.from_edges(
        dataset.edge_index,
        dataset.edge_type,
        num_nodes=dataset.n_entities,
        num_relations=dataset.n_relations - 1,
    )
    interactions = InteractionGraph.from_edges(
        dataset.train, num_users=dataset.n_users, num_items=dataset.n_items
    )
    torch.manual_seed(config.training.seed)
    model = KGRec(
        dataset.n_users,
        dataset.n_items,
        dataset.n_entities,
        dataset.n_relations,
        kg,
        interactions,
        **config.model.model_dump(),
    )
    return model.to(device)


def fingerprint(dataset: Any) -> str:
    """A hash of every id in a data set, by which a checkpoint knows its own."""
    digest = hashlib.sha256()
    sizes = [dataset.n_users, dataset.n_items, dataset.n_entities, dataset.n_relations]
    digest.update(repr([int(size) for size in sizes]).encode())
    for name in ("edge_index", "edge_type", "train", "valid", "test"):
        values = getattr(dataset, name).to(dtype=torch.int64, device="cpu").contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
