"""The native libraries: what they say of themselves, and that both leave the CPU as it is."""

from __future__ import annotations

import re
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
    assert (int(count), int(total)) == (len(_library.cuda_op_names()), len(_library.op_names()))
    assert facts["ops on cuda"].count(",") == max(int(count) - 1, 0)


def test_cuda_ops_are_there_where_their_library_is() -> None:
    if not _library.CUDA.loaded:
        assert _library.cuda_op_names() == []
        assert _library.cuda_architectures() == []
        assert info.describe()["cuda architectures"] == "none loaded"
        return
    assert _library.cuda_op_names() == _library.op_names()
    assert _library.cuda_is_complete()
    architectures = _library.cuda_architectures()
    assert architectures == sorted(set(architectures))
    assert all(50 <= x < 200 for x in architectures)


def test_cpu_tensors_do_not_care_what_else_is_loaded() -> None:
    x = torch.ones(2, 4)
    y, out = ops.dropout_normalize_add(x, x, 0.0, None)
    torch.testing.assert_close(y, x / 2)
    torch.testing.assert_close(out, x * 1.5)


@pytest.mark.parametrize("missing", [[], ["segment_sum"]])
def test_cuda_is_native_once_every_op_is_there(
    missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = _library.Library("_C_cuda", None, None)
    names = [name for name in _library.op_names() if name not in missing]
    monkeypatch.setattr(_library, "CUDA", loaded)
    monkeypatch.setattr(_library, "cuda_op_names", lambda: names)
    monkeypatch.setattr(_library, "_warned", False)
    _library.cuda_is_complete.cache_clear()
    try:
        device = torch.device("cuda")
        assert _library.is_native(device) == (not missing)
        if missing:
            with pytest.warns(UserWarning, match=rf"{len(names)} of {len(names) + 1} ops"):
                _library.warn_once(device)
    finally:
        _library.cuda_is_complete.cache_clear()
