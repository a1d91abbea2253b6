"""The NVIDIA card of this machine and the tools around it; nothing of kgrec_fast is imported."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

NO_GPU = 2  # exit code of what needs one


def why_no_gpu() -> str | None:
    """One sentence, or None where torch can use an NVIDIA GPU."""
    if torch.version.cuda is None:
        return f"no NVIDIA GPU can be used here: torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return f"no NVIDIA GPU can be used here: torch {torch.__version__} sees none"
    return None


def answer_of(command: Sequence[str]) -> str | None:
    """What a command prints; None where it is absent, fails or takes longer than 30 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def capability() -> str:
    """Compute capability of the current device, as "9.0"."""
    return ".".join(map(str, torch.cuda.get_device_capability()))


def describe() -> dict[str, str | int | None]:
    """Name, memory, driver and CUDA versions of the current device."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    question = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = answer_of(question)
    nvcc = tool("nvcc")
    release = re.search(r"release ([\d.]+)", answer_of([nvcc, "--version"]) or "" if nvcc else "")
    return {
        "name": properties.name,
        "capability": capability(),
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "driver": driver.splitlines()[0] if driver else None,
        "cuda_of_torch": torch.version.cuda,
        "cuda_toolkit": release[1] if release else None,
    }


def file_name(card: str) -> str:
    """The name of a card as that of a file: "NVIDIA H100 PCIe" is "nvidia-h100-pcie"."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def _folders() -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            yield Path(home) / "bin"
    yield Path("/usr/local/cuda/bin")
    for packages in site.getsitepackages():  # NVIDIA's own wheels
        yield from sorted(Path(packages).glob("nvidia/*/bin"))


def tool(name: str) -> str | None:
    """The path of a tool of the CUDA toolkit, or None."""
    found = (shutil.which(name, path=str(folder)) for folder in _folders())
    return shutil.which(name) or next(filter(None, found), None)
