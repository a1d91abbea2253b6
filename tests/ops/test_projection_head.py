"""Dense products on the CPU against float64, and against the layers that they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_helpers import assert_as_good_as
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kgrec_fast import _library, ops
from kgrec_fast.ops._projection import project, project_backward_onto

# Columns of x, of the hidden rows and of the result: less than a vector, whole blocks, and not.
WIDTHS = ((1, 1, 1), (3, 7, 5), (16, 32, 16), (64, 64, 64), (65, 33, 70), (128, 200, 96))
# None, fewer than a tile, not a whole one, several parts.
ROWS = (0, 1, 5, 47, 49, 1700)
ISAS = _library.supported_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest):
    before = _library.isa()
    _library.set_isa(request.param)
    yield request.param
    _library.set_isa(before)


def sample(rows: int, widths: tuple[int, int, int], seed: int = 0) -> list[Tensor]:
    """x, w1, b1, w2, b2 and a gradient of the result, float64."""
    generator = torch.Generator().manual_seed(seed)
    d, hidden, out = widths
    shapes = ((rows, d), (hidden, d), (hidden,), (out, hidden), (out,), (rows, out))
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def published(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    hidden = x @ w1.t() + b1
    return hidden.clamp(min=0) @ w2.t() + b2


def with_grads(function, operands: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in operands]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_values_and_gradients(rows: int, widths: tuple[int, int, int], isa: str) -> None:
    *operands, grad = sample(rows, widths)
    expected = with_grads(published, operands, grad)
    for ours, theirs in zip(with_grads(ops.projection_head, operands, grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    single = [x.float() for x in operands]
    ours = with_grads(ops.projection_head, single, grad.float())
    theirs = with_grads(ops.projection_head_reference, single, grad.float())
    for value, reference, right in zip(ours, theirs, expected, strict=True):
        assert value.dtype == torch.float32
        assert_as_good_as(value, reference, right)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_one_product(rows: int, widths: tuple[int, int, int], isa: str) -> None:
    x, weight, *_, grad = sample(rows, (widths[0], widths[2], widths[2]))
    weight = weight.t()  # not contiguous, as parameters may be
    before = sample(rows, widths, seed=1)[0]
    torch.testing.assert_close(project(x, weight), x @ weight, rtol=1e-12, atol=1e-12)
    grad_x = before.clone()
    grad_weight = project_backward_onto(grad_x, grad, x, weight)
    torch.testing.assert_close(grad_weight, x.t() @ grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad_x, before + grad @ weight.t(), rtol=1e-12, atol=1e-12)
    single = [a.float() for a in (before, grad, x, weight)]
    grad_weight = project_backward_onto(*single)
    assert_as_good_as(grad_weight, x.float().t() @ grad.float(), x.t() @ grad)


def test_gradients_by_differences() -> None:
    *operands, _ = sample(7, (3, 5, 4))
    assert torch.autograd.gradcheck(
        ops.projection_head, [x.requires_grad_() for x in operands], fast_mode=False
    )


def test_operands_in_any_layout() -> None:
    *operands, grad = sample(50, (8, 16, 8))
    strided = [torch.stack([x, x.flip(0)], -1)[..., 0] for x in operands]
    assert not any(x.is_contiguous() for x in strided)
    expanded = grad[:1].expand_as(grad)
    ours = with_grads(ops.projection_head, strided, expanded)
    for value, right in zip(ours, with_grads(published, operands, expanded), strict=True):
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)


def test_results_do_not_depend_on_threads() -> None:
    *operands, grad = (x.float() for x in sample(5000, (64, 64, 64)))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(with_grads(ops.projection_head, operands, grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_infinities_and_nan_are_those_of_the_layers() -> None:
    x, w1, b1, w2, b2, _ = sample(6, (4, 4, 4))
    x[0, 0], x[1, 1], x[2, 2] = torch.inf, -torch.inf, torch.nan
    ours, theirs = (f(x, w1, b1, w2, b2) for f in (ops.projection_head, published))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_the_layers_themselves(dtype: torch.dtype) -> None:
    *operands, _ = (x.to(dtype) for x in sample(20, (8, 8, 8)))
    x, w1, b1, w2, b2 = operands
    expected = F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)
    assert torch.equal(ops.projection_head(*operands), expected)
    assert torch.equal(project(x, w1.t()), x @ w1.t())


def test_autocast() -> None:
    *operands, _ = (x.float() for x in sample(20, (8, 8, 8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.projection_head(*operands).dtype == torch.bfloat16
        assert project(operands[0], operands[1]).dtype == torch.bfloat16


def test_no_second_derivative() -> None:
    *operands, _ = sample(5, (4, 4, 4))
    x = operands[0].requires_grad_()
    (grad,) = torch.autograd.grad(ops.projection_head(*operands).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        grad.sum().backward()


def test_compiles_and_takes_fake_tensors() -> None:
    *operands, grad = sample(9, (4, 6, 5))
    compiled = torch.compile(ops.projection_head, fullgraph=True, backend="aot_eager")
    for value, right in zip(
        with_grads(compiled, operands, grad), with_grads(published, operands, grad), strict=True
    ):
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x).requires_grad_() for x in operands]
        assert ops.projection_head(*fake).shape == (9, 5)


def test_opcheck() -> None:
    library = torch.ops.kgrec_fast
    x, w1, b1, w2, b2, grad = sample(9, (4, 6, 5))
    torch.library.opcheck(library.projection_head.default, (x, w1, b1, w2, b2))
    torch.library.opcheck(library.projection_head_backward.default, (grad, x, w1, b1, w2))
    torch.library.opcheck(library.project.default, (x, w1.t()))
    given = (torch.zeros_like(x), x @ w1.t(), x, w1.t())
    torch.library.opcheck(library.project_backward_onto.default, given)


def test_torch_func() -> None:
    *operands, _ = sample(6, (4, 4, 4))

    def loss(x: Tensor) -> Tensor:
        return ops.projection_head(x, *operands[1:]).square().sum()

    def right(x: Tensor) -> Tensor:
        return published(x, *operands[1:]).square().sum()

    x = operands[0]
    torch.testing.assert_close(torch.func.grad(loss)(x), torch.func.grad(right)(x))
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.func.vmap(loss)(batch), torch.func.vmap(right)(batch))


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("x", torch.ones(4), ValueError, r"x has shape \[4\], expected \[N, D\]"),
        ("x", torch.ones(3, 4, dtype=torch.int64), TypeError, "x has dtype torch.int64"),
        ("w1", torch.ones(6, 5), ValueError, "w1 has 5 columns, expected 4"),
        ("w1", torch.ones(6, 4).double(), TypeError, "w1 has dtype torch.float64"),
        ("b1", None, TypeError, "b1 is a NoneType, expected a torch.Tensor"),
        ("b1", torch.ones(5), ValueError, r"b1 has shape \[5\], expected \[6\]"),
        ("w2", torch.ones(5, 7), ValueError, "w2 has 7 columns, expected 6, the rows of w1"),
        ("w2", torch.ones(5, 6).double(), TypeError, "w2 has dtype torch.float64"),
        ("b2", torch.ones(1, 5), ValueError, r"b2 has shape \[1, 5\], expected \[5\]"),
        ("b2", torch.ones(5).half(), TypeError, "b2 has dtype torch.float16"),
        ("b2", torch.ones(5, device="meta"), ValueError, "b2 is on meta, expected cpu"),
    ],
)
def test_errors_name_the_argument(
    name: str, value: Tensor | None, kind: type[Exception], message: str
) -> None:
    shapes = {"x": (3, 4), "w1": (6, 4), "b1": (6,), "w2": (5, 6), "b2": (5,)}
    operands = {key: torch.ones(shape) for key, shape in shapes.items()}
    with pytest.raises(kind, match=message):
        ops.projection_head(**{**operands, name: value})


def test_the_library_checks_shapes_itself() -> None:
    x, weight = torch.ones(4, 3), torch.ones(3, 2)
    library = torch.ops.kgrec_fast
    with pytest.raises(RuntimeError, match="weight is expected"):
        library.project(x, torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="grad_x is expected as 12"):
        library.project_backward_onto(torch.ones(3, 3), torch.ones(4, 2), x, weight)
    with pytest.raises(RuntimeError, match="grad_out is expected"):
        library.project_backward_onto(torch.ones(4, 3), torch.ones(3, 2), x, weight)
    with pytest.raises(RuntimeError, match="float32 or float64"):
        library.project(x.half(), weight.half())
