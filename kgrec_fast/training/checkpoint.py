"""Checkpoints: tensors in safetensors, everything else as JSON in the same file's header."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kgrec_fast.training.config import Config, parse_config

FORMAT_VERSION = 1
_KEY = "kgrec_fast"
_MODEL = "model."


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or made for something else."""


class WriteError(OSError):
    """A file that the system would not take, for want of room, say; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def write_atomically(path: Path, write: Any) -> None:
    """Calls ``write(temporary_path)``, then moves that file to `path` in one step.

    The temporary file stands in the same folder, for a rename is atomic within a file system only,
    and it is on the disk before the rename: a reader, a crash or a full disk finds either the
    old file or the new one, never half of one.

    Raises:
        WriteError: if the file cannot be written, or not there.
    """
    path = Path(path)
    try:
        _write_beside(path, write)
    except (OSError, SafetensorError) as error:
        raise WriteError(f"{path}: cannot be written ({error})") from error


def _write_beside(path: Path, write: Any) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Args:
        path: the file, its folder must exist.
        tensors: any dtype that safetensors knows, on any device.
        metadata: what ``json`` can write; floats come back bit for bit.
    """
    header = json.dumps({"format_version": FORMAT_VERSION, **metadata}, allow_nan=False)
    # clone: safetensors refuses tensors that share memory, and so would a later in-place step.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata={_KEY: header}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU.

    Raises:
        CheckpointError: if there is no such file, it is damaged, or it was not written here.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            header = (stream.metadata() or {}).get(_KEY)
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    if header is None:
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of kgrec_fast")
    try:
        metadata = json.loads(header)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: its header is damaged ({error})") from None
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: got format version {version}, expected {FORMAT_VERSION}")
    return Checkpoint(path, tensors, metadata)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state under the names that checkpoints use."""
    return {_MODEL + name: tensor for name, tensor in model.state_dict().items()}


def load_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads the model's state, after every name, shape and dtype has been compared.

    Raises:
        CheckpointError: naming what is missing, unknown or of another shape or dtype; the model
            is then as before.
    """
    state = tensors_under(checkpoint, _MODEL)
    compare_tensors(state, model.state_dict(), f"{checkpoint.path}: model")
    model.load_state_dict(state)


def tensors_under(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }


def compare_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raises CheckpointError with all differences in names, shapes and dtypes, if there are any."""
    problems = [f"{name} is missing" for name in expected if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in expected]
    for name, tensor in expected.items():
        if name in given and _kind(given[name]) != _kind(tensor):
            problems.append(f"{name}: got {_kind(given[name])}, expected {_kind(tensor)}")
    if problems:
        shown = problems[:5] + ([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])
        raise CheckpointError(f"{what} does not fit: {'; '.join(shown)}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def check_dataset(checkpoint: Checkpoint, expected: str) -> None:
    """Raises CheckpointError if a checkpoint was made on other data than those of a fingerprint."""
    if checkpoint.metadata.get("dataset_fingerprint") != expected:
        raise CheckpointError(
            f"{checkpoint.path}: was trained on other data than those read now, expected the same "
            "files and the same dataset settings"
        )


def check_config(checkpoint: Checkpoint, config: Config, *sections: str) -> None:
    """Raises CheckpointError if a run would go on with other settings than it was begun.

    The number of epochs and of threads may change, how steps are run, and where the data lie.

    Args:
        checkpoint: of the run.
        config: the settings now.
        sections: those that are compared; without any, all.
    """
    # What was not there yet when the run was begun had its default.
    given = parse_config(checkpoint.metadata["config"]).model_dump(mode="json")
    expected = config.model_dump(mode="json", include=set(sections) or None)
    kinds_of_step = {"training.cuda_graph", "training.record_steps"}
    free = {"dataset.name", "training.epochs", "training.threads", *kinds_of_step}
    for section, fields in expected.items():
        for field_name, value in fields.items():
            was = given.get(section, {}).get(field_name)
            name = f"{section}.{field_name}"
            if name not in free and was != value:
                raise CheckpointError(
                    f"{name}: got {value!r}, expected {was!r}, with which {checkpoint.path} was "
                    "made: a run keeps its settings"
                )
