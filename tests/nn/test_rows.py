"""Rows of a large matrix, read by several: gradients, and those of gradients."""

import torch
from torch import Tensor

from kgrec_fast.nn._rows import only_rows, readers

IDS = torch.tensor([4, 0, 4])


def matrix() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 3, dtype=torch.float64, requires_grad=True)


def test_readers_have_gradients_of_both_orders():
    def read(x: Tensor) -> tuple[Tensor, ...]:
        chosen, whole, first = readers(x * x, IDS, 2, copies=2)  # whose gradient is nobody else's
        return chosen.sin(), whole * whole, first[0] * 3, first[1].exp()

    assert torch.autograd.gradcheck(read, matrix())
    assert torch.autograd.gradgradcheck(read, matrix())


def test_a_penalty_on_the_gradient_of_rows_is_not_passed_over():
    def gradients(rows_of) -> tuple[Tensor, Tensor]:
        x = matrix()
        loss = (rows_of(x.sin(), IDS) ** 3).sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        # With a graph again: without one, rows that nobody reads are left unwritten.
        return grad, torch.autograd.grad(loss + grad.square().sum(), x, create_graph=True)[0]

    torch.testing.assert_close(gradients(only_rows), gradients(lambda x, ids: x[ids]))
