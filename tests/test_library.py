"""The native libraries: what they say of themselves, why one is not used, and that both leave the
CPU as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kgrec_fast import _library, info, ops

SCHEMAS = Path(__file__).parents[1] / "csrc" / "ops.cpp"


def test_every_schema_is_an_op() -> None:
    text = SCHEMAS.read_text()
    in_source = re.findall(r'm\.def\(\s*"([a-z]\w*)\(', text)
    assert _library.op_names() == sorted(in_source)


def test_info_names_what_is_loaded() -> None:
    facts = info.describe()
    assert facts["library _C"].startswith("loaded from")
    assert facts["library _C_cuda"].startswith("loaded from" if _library.CUDA.loaded else "not ")
    count, total = re.match(r"(\d+) of (\d+)", facts["ops on cuda"]).groups()  # type: ignore
    assert (int(count), int(total)) == (len(_library.cuda_op_names()), len(_library.ops_for_cuda()))
    assert facts["ops on cuda"].count(",") == max(int(count) - 1, 0)


@pytest.mark.skipif(not _library.CPU.loaded, reason="no CPU kernels")
def test_info_says_what_is_wrong_with_the_instruction_set() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kgrec_fast.info"],
        env={**os.environ, "KGREC_FAST_ISA": "sse9"},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("cpu isa"))
    assert line.endswith("none: KGREC_FAST_ISA is sse9, expected baseline, avx2 or avx512")


def test_cuda_ops_are_there_where_their_library_is() -> None:
    if not _library.CUDA.loaded:
        assert _library.cuda_op_names() == []
        assert _library.cuda_architectures() == []
        assert info.describe()["cuda architectures"] == "none loaded"
        return
    assert _library.cuda_op_names() == _library.ops_for_cuda()
    assert _library.cuda_is_complete()
    architectures = _library.cuda_architectures()
    assert architectures == sorted(set(architectures))
    assert all(50 <= x < 200 for x in architectures)


def test_cpu_tensors_do_not_care_what_else_is_loaded() -> None:
    x = torch.ones(2, 4)
    y, out = ops.dropout_normalize_add(x, x, 0.0, None)
    torch.testing.assert_close(y, x / 2)
    torch.testing.assert_close(out, x * 1.5)


# -- why a library is not loaded -------------------------------------------------------------------


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of each library; no loader takes it."""
    path = tmp_path / "_C.abi3.so"
    path.write_bytes(b"\0 libcudart.so.12\0")
    monkeypatch.setattr(_library, "_find", lambda name: path)
    return path


def test_a_torch_too_old(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    library = _library._load("_C")
    assert not library.loaded
    assert library.error == (
        "torch 2.9.1+cpu is too old: update it with `pip install 'torch>=2.10'`"
    )


def test_a_library_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_find", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    pip = "pip install --no-build-isolation .` in the sources of kgrec_fast"
    assert _library._load("_C").error == (
        f"no such file lies beside the package: build it here with `{pip}"
    )
    assert _library._load_cuda().error == (
        f"no such file lies beside the package: build it here with `KGREC_FAST_CUDA=1 {pip}"
    )


def test_a_library_of_another_system(found: Path) -> None:
    """The loader's own words, in one line, and what to do."""
    error = _library._load("_C").error or ""
    assert str(found) in error
    assert error.endswith(_library.BUILD)
    assert "\n" not in error


def test_a_cuda_library_beside_a_torch_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _library._load_cuda().error == f"torch {torch.__version__} was built without CUDA"


@pytest.mark.parametrize(("cuda", "fits"), [("13.0", False), ("12.8", True)])
def test_a_cuda_library_of_another_version(
    cuda: str, fits: bool, found: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    error = _library._load_cuda().error or ""
    misfit = f"built for CUDA 12, and torch {torch.__version__} has {cuda}: {_library.BUILD_CUDA}"
    # What fits goes to the loader, which has its own opinion of this file.
    assert (str(found) in error) if fits else (error == misfit)


@pytest.fixture
def cuda_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As where the CUDA library is loaded, with every op in it, and has warned of nothing."""
    caches = (_library.cuda_is_complete, _library._why_not_on_card)
    monkeypatch.setattr(_library, "CUDA", _library.Library("_C_cuda", None, None))
    monkeypatch.setattr(_library, "cuda_op_names", _library.ops_for_cuda)
    monkeypatch.setattr(_library, "_warned", False)
    for cached in caches:
        cached.cache_clear()
    yield monkeypatch
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("card", "built", "fits"),
    [
        ((7, 0), [75, 80, 90], False),
        ((7, 5), [75, 80, 90], True),
        ((8, 6), [75, 80, 90], True),  # machine code for 8.0
        ((8, 0), [86, 90], False),
        ((9, 0), [75, 80], True),  # PTX of the last
        ((8, 0), [75, 90], False),  # of the last alone
        ((12, 0), [75, 120], True),
    ],
)
def test_an_unsupported_card(
    card: tuple[int, int], built: list[int], fits: bool, cuda_loaded: pytest.MonkeyPatch
) -> None:
    cuda_loaded.setattr(torch.cuda, "is_available", lambda: True)
    cuda_loaded.setattr(torch.cuda, "get_device_capability", lambda index: card)
    cuda_loaded.setattr(torch.cuda, "get_device_name", lambda index=0: f"Card {index}")
    cuda_loaded.setattr(_library, "cuda_architectures", lambda: built)
    device = torch.device("cuda", 3)
    assert _library.is_native(device) == fits
    if fits:
        return
    names = ", ".join(f"sm_{x}" for x in built)
    sentence = (
        f"Card 3 is sm_{card[0]}{card[1]}, and _C_cuda was built for {names}: build it here with "
        f"`TORCH_CUDA_ARCH_LIST={card[0]}.{card[1]} KGREC_FAST_CUDA=1 pip install "
        "--no-build-isolation .` in the sources of kgrec_fast"
    )
    assert _library.why_not_native(device) == sentence
    with pytest.warns(UserWarning, match=re.escape(f"slower: {sentence}. See `python")):
        _library.warn_once(device)
    cuda_loaded.setattr(torch.cuda, "current_device", lambda: 3)
    assert info.describe()["cuda tensors"] == f"reference ops: {sentence}"


def test_fake_tensors_of_cuda_need_no_card(cuda_loaded: pytest.MonkeyPatch) -> None:
    cuda_loaded.setattr(torch.cuda, "is_available", lambda: False)
    assert _library.is_native(torch.device("cuda"))
    assert _library.is_native(torch.device("cuda", 1))


def test_the_choice_on_cuda_can_be_compiled(cuda_loaded: pytest.MonkeyPatch) -> None:
    cuda_loaded.setattr(torch.cuda, "is_available", lambda: False)

    def step(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if _library.is_native(torch.device("cuda", 0)) else x

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(3)), torch.ones(3))


@pytest.mark.parametrize("missing", [[], ["segment_sum"]])
def test_cuda_is_native_once_every_op_is_there(
    missing: list[str], cuda_loaded: pytest.MonkeyPatch
) -> None:
    names = [name for name in _library.ops_for_cuda() if name not in missing]
    cuda_loaded.setattr(_library, "cuda_op_names", lambda: names)
    cuda_loaded.setattr(torch.cuda, "is_available", lambda: False)
    device = torch.device("cuda")
    assert _library.is_native(device) == (not missing)
    if missing:
        with pytest.warns(UserWarning, match=rf"{len(names)} of {len(names) + 1} ops"):
            _library.warn_once(device)


def test_other_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = _library.why_not_native(torch.device("xpu"))
    assert reason == "no native kernels exist for device type 'xpu'"
    monkeypatch.setattr(_library, "CPU", _library.Library("_C", None, "gone"))
    for name in ("cpu", "cuda", "meta", "xpu"):
        assert _library.why_not_native(torch.device(name)) == "gone"
