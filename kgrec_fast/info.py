"""``python -m kgrec_fast.info``: what this installation is made of and what it runs on."""

from __future__ import annotations

import platform
import sys

import numpy
import torch

import kgrec_fast
from kgrec_fast import _library


def describe() -> dict[str, str]:
    """Versions, libraries (or the reason why one is not loaded) and what they hold, for reports."""
    libraries = {
        library.name: f"loaded from {library.path}"
        if library.loaded
        else f"not loaded: {library.error}"
        for library in (_library.CPU, _library.CUDA)
    }
    on_cuda = _library.cuda_op_names()
    why_not = _library.why_not_native(torch.device("cuda"))
    detail = f": {why_not}" if _library.CUDA.loaded else ""  # else it stands above
    cuda = torch.version.cuda or "none"
    if torch.cuda.is_available():
        cuda += f" on {torch.cuda.get_device_name()}"
    return {
        "kgrec_fast": kgrec_fast.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cuda of torch": cuda,
        "library _C": libraries["_C"],
        "library _C_cuda": libraries["_C_cuda"],
        "cuda architectures": ", ".join(f"sm_{x}" for x in _library.cuda_architectures())
        or "none loaded",
        "ops on cuda": f"{len(on_cuda)} of {len(_library.ops_for_cuda())}"
        f"{': ' if on_cuda else ''}{', '.join(on_cuda)}",
        "cuda tensors": f"reference ops{detail}" if why_not else "native kernels",
        "cpu isa": _cpu_isa(),
        "threads": str(torch.get_num_threads()),
    }


def _cpu_isa() -> str:
    try:
        supported = ", ".join(_library.supported_isas()) or "none loaded"
    except RuntimeError as error:  # the variable names none, at which every op fails
        return f"none: KGREC_FAST_ISA{str(error).partition('KGREC_FAST_ISA')[2]}"
    return f"{_library.isa()} (this machine has: {supported})"


def main() -> None:
    """Prints `describe()` as two aligned columns."""
    facts = describe()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
