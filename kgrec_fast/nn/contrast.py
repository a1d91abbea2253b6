"""Contrast of two views of the items."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgrec_fast._numbers import check_number
from kgrec_fast.nn._arguments import check_embedding, check_floating, check_size
from kgrec_fast.ops import contrast_loss, projection_head


class ProjectionHead(nn.Sequential):
    """Linear layer, ReLU, linear layer, computed at once (:func:`kgrec_fast.ops.projection_head`).

    One after the other, as any Sequential, where a layer was replaced or has hooks.
    """

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        kinds = [type(layer) for layer in layers]
        if kinds != [nn.Linear, nn.ReLU, nn.Linear] or any(map(_has_hooks, layers)):
            return cast(Tensor, super().forward(x))
        first, _, last = cast(list[nn.Linear], layers)
        return projection_head(x, first.weight, first.bias, last.weight, last.bias)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


class Contrast(nn.Module):
    """Contrastive loss of two views, one random negative in each direction (section 3.4 of KGRec).

    With s_ij the cosine similarity of row i of the first view and row j of the second, both after
    an MLP, and p a random permutation, the loss of row i is

        -log( e^(s_ii / tau) / (2 e^(s_ii / tau) + e^(s_ip(i) / tau) + e^(s_p(i)i / tau)) )

    The positive stands twice in the denominator, as published. The logarithm is taken of the sum
    as a whole, so that a small ``tau`` does not overflow.

    Args:
        num_hidden: Width D of both views.
        tau: Temperature, above 0.

    Raises:
        ValueError: ``num_hidden`` or ``tau`` is not above 0.
    """

    def __init__(self, num_hidden: int, tau: float = 0.7) -> None:
        super().__init__()
        num_hidden, tau = check_size("num_hidden", num_hidden), check_number("tau", tau)
        if not 0 < tau < math.inf:
            raise ValueError(f"tau is {tau}, expected a finite number above 0")
        self.num_hidden = num_hidden
        self.tau = tau
        self.mlp1 = ProjectionHead(num_hidden)
        self.mlp2 = ProjectionHead(num_hidden)

    def sim(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Cosine similarity [n, m] of each row of ``z1`` [n, D] with each of ``z2`` [m, D]."""
        return F.normalize(z1) @ F.normalize(z2).t()

    def self_sim(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Cosine similarity [n] of row i of ``z1`` [n, D] with row i of ``z2`` [n, D]."""
        return (F.normalize(z1) * F.normalize(z2)).sum(1)

    def loss(self, z1: Tensor, z2: Tensor, permutation: Tensor | None = None) -> Tensor:
        """Loss of each row.

        Args:
            z1: [n, D], the first view.
            z2: [n, D], the second view.
            permutation: int64 [n], the row that is the negative of each row; drawn from torch's
                generator where it is None.

        Returns:
            [n], float32 for half types. It has first derivatives, see
            :func:`kgrec_fast.ops.contrast_loss`.

        Raises:
            TypeError: The views are not floating, or ``permutation`` is not int64.
            ValueError: The shapes differ, or ``permutation`` is not of shape [n].
            RuntimeError: ``permutation`` is none (CPU).
        """
        check_floating("z1", z1)
        check_floating("z2", z2, z1)
        if z1.dim() != 2 or z1.shape != z2.shape:
            raise ValueError(
                f"z1 and z2 have shapes {list(z1.shape)} and {list(z2.shape)}, "
                "expected the same [n, D]"
            )
        rows = z1.shape[0]
        if permutation is None:
            permutation = torch.randperm(rows, device=z1.device)
        return contrast_loss(z1, z2, permutation, self.tau)

    def forward(self, z1: Tensor, z2: Tensor, permutation: Tensor | None = None) -> Tensor:
        """Mean loss (scalar) of the views ``z1`` and ``z2`` [n, D] after their MLPs."""
        check_embedding("z1", z1, self.num_hidden)
        check_embedding("z2", z2, self.num_hidden)
        return self.loss(self.mlp1(z1), self.mlp2(z2), permutation).mean()
