"""The random choices of a training step, as masks over fixed graphs.

A step never builds an edge list. Everything it draws is a subset of the edges of the knowledge
graph or of the interactions, written as one bool per edge in *row order* (see
:mod:`kgrec_fast.graph`). No function here loops over relations, edges or users in Python. Draws
come from torch's default generator of the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kgrec_fast import ops
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.nn._streams import draw_rng

RANDOM_BITS = 32


@dataclass(frozen=True)
class StepMasks:
    """The random choices of one training step.

    Attributes:
        sampled: bool [E], the edges kept in step 1; None keeps all.
        kept: bool [M], the interactions that survive dropout; None keeps all.
        masked: bool [E], the sampled edges that are masked and reconstructed.
        contrast_edges: bool [E], the sampled edges in the KG view of the items.
        contrast_interactions: bool [M], the kept interactions in the user-item view.
        permutation: int64 [n_items], who is whose negative in the contrast.
        rng: int64 [2], seed and step of message dropout.
    """

    sampled: Tensor | None
    kept: Tensor | None
    masked: Tensor
    contrast_edges: Tensor
    contrast_interactions: Tensor
    permutation: Tensor
    rng: Tensor


def gumbel_like(x: Tensor) -> Tensor:
    """Gumbel noise of the shape of ``x``, in float32 for half types."""
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return -torch.log(-torch.log(torch.rand(x.shape, dtype=dtype, device=x.device)))


def mask_of(positions: Tensor, size: int) -> Tensor:
    """bool [size], True at ``positions`` (int64)."""
    mask = torch.zeros(size, dtype=torch.bool, device=positions.device)
    return mask.scatter_(0, positions, True)


def share_of(rate: float, count: int) -> int:
    """floor(rate * count)."""
    return int(rate * count)


def quota_positions(counts: Tensor, rate: float) -> Tensor:
    """Which of the edges sorted by relation are among the first floor(rate * n_r) of theirs.

    Args:
        counts: int64 [R], edges n_r of each relation.
        rate: The share, in [0, 1].

    Returns:
        int64 positions, as many as edges are kept. O(E).
    """
    quota = (counts.double() * rate).long()
    relation = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    rank = torch.arange(len(relation), device=counts.device) - (counts.cumsum(0) - counts)[relation]
    return (rank < quota[relation]).nonzero().flatten()


def sample_per_relation(relation: Tensor, quota: Tensor) -> Tensor:
    """Edges drawn without replacement, an exact number of each relation.

    Sorts (relation, random number) and takes what :func:`quota_positions` says. The sort of
    integers is a radix sort on CPU: O(E).

    Args:
        relation: int64 [E].
        quota: int64 [S] of :func:`quota_positions`.

    Returns:
        int64 [S] positions of edges, in order of relations and in random order within each.
    """
    key = torch.randint(1 << RANDOM_BITS, relation.shape, device=relation.device)
    return torch.sort(key.add_(relation, alpha=1 << RANDOM_BITS)).indices.index_select(0, quota)


def sample_by_score(log_weight: Tensor, count: int) -> Tensor:
    """int64 [count]: drawn without replacement with weights exp(``log_weight``) [n].

    The ``count`` largest of log-weight + Gumbel noise: what ``torch.multinomial`` draws from the
    softmax, without its limit of 2**24 and without underflow where the weights lie far apart.
    """
    return torch.topk(log_weight + gumbel_like(log_weight), count, sorted=False).indices


def mask_edges(noisy_score: Tensor, count: int) -> Tensor:
    """int64 [2 * count] positions, some twice: the ``count`` largest and as many at random.

    Args:
        noisy_score: [S].
        count: At most S.
    """
    top = torch.topk(noisy_score, count, sorted=False).indices
    random = torch.randperm(noisy_score.shape[0], device=noisy_score.device)[:count]
    return torch.cat([top, random])


def lowest_edges(noisy_score: Tensor, rate: float) -> Tensor:
    """int64 positions of the floor(rate * S) lowest of ``noisy_score`` [S]."""
    count = share_of(rate, noisy_score.shape[0])
    return torch.topk(noisy_score, count, largest=False, sorted=False).indices


class StepSampler(nn.Module):
    """Draws the choices of a step; holds what depends on the graphs and the rates alone.

    The order of a step: :meth:`sample_edges` and :meth:`sample_interactions`, rationale scores of
    the sampled edges, then :meth:`draw`.

    Args:
        kg: The knowledge graph, E edges.
        interactions: The interactions, M of them.
        n_items: Items are the first nodes.
        node_dropout_rate: Share of the edges of each relation that is kept, and probability that
            an interaction is dropped; at 0 nothing is sampled.
        mae_msize: Edges masked by score, and as many at random.
        cl_drop: Share of edges and of interactions that the contrast leaves out.
    """

    relation: Tensor
    quota: Tensor
    user_item: Tensor
    item_ptr: Tensor
    item_edges: Tensor

    def __init__(
        self,
        kg: RelGraph,
        interactions: InteractionGraph,
        n_items: int,
        node_dropout_rate: float,
        mae_msize: int,
        cl_drop: float,
    ) -> None:
        super().__init__()
        self.num_edges, self.num_interactions = kg.num_edges, interactions.num_edges
        self.n_items = n_items
        self.node_dropout_rate, self.cl_drop = node_dropout_rate, cl_drop
        quota = quota_positions(kg.relation_counts, node_dropout_rate)
        self.num_sampled = quota.numel() if node_dropout_rate > 0 else kg.num_edges
        self.num_masked = min(mae_msize, self.num_sampled)

        colptr, _, _, pos, _ = kg.columns()
        buffers = {
            "relation": kg.rel.long(),
            "quota": quota,
            "user_item": interactions.col,
            # Edges whose tail is an item, by item.
            "item_ptr": colptr[: n_items + 1].clone(),
            "item_edges": pos[: int(colptr[n_items])].clone(),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def sample_edges(self) -> Tensor | None:
        """int64 [S] positions of the sampled edges; None for all of them, in order."""
        if self.node_dropout_rate == 0:
            return None
        return sample_per_relation(self.relation, self.quota)

    def sample_interactions(self) -> Tensor | None:
        """bool [M], True where an interaction survives dropout; None where none is dropped."""
        if self.node_dropout_rate == 0 or not self.training:
            return None
        draws = torch.rand(self.num_interactions, device=self.user_item.device)
        return draws >= self.node_dropout_rate

    def item_scores(self, score: Tensor, sampled: Tensor | None) -> Tensor:
        """(1 + m) / 2 for each item, m the mean score of the sampled edges with that tail.

        m is 1 where there is no such edge or the mean is 0. The 1 is the mean over the edges with
        that head: a softmax times its degree.

        Args:
            score: [E] rationale scores, 0 where an edge is not sampled.
            sampled: bool [E] or None for all.

        Returns:
            [n_items].
        """
        if self.item_edges.numel() == 0:
            return score.new_ones(self.n_items)
        total = ops.segment_sum(score.index_select(0, self.item_edges), self.item_ptr)
        if sampled is None:
            count = self.item_ptr.diff().to(score.dtype)
        else:
            chosen = sampled.index_select(0, self.item_edges).to(score.dtype)
            count = ops.segment_sum(chosen, self.item_ptr)
        mean = total / count.clamp(min=1)
        return 0.5 + 0.5 * torch.where(mean == 0, 1.0, mean)

    @torch.no_grad()
    def draw(
        self, score: Tensor, edges: Tensor | None, sampled: Tensor | None, kept: Tensor | None
    ) -> StepMasks:
        """Draws what depends on the rationale scores, and the rest.

        Args:
            score: [E] rationale scores in row order.
            edges: int64 [S] of :meth:`sample_edges`.
            sampled: bool [E], the same as a mask.
            kept: bool [M] of :meth:`sample_interactions`.
        """
        item_score = self.item_scores(score, sampled)
        noisy = score if edges is None else score.index_select(0, edges)
        noisy = noisy + gumbel_like(noisy)
        masked = mask_edges(noisy, self.num_masked)
        dropped = lowest_edges(noisy, self.cl_drop)
        if edges is not None:
            masked, dropped = edges.index_select(0, masked), edges.index_select(0, dropped)

        if sampled is None:
            contrast_edges = score.new_ones(self.num_edges, dtype=torch.bool)
        else:
            contrast_edges = sampled.clone()
        return StepMasks(
            sampled=sampled,
            kept=kept,
            masked=mask_of(masked, self.num_edges),
            contrast_edges=contrast_edges.scatter_(0, dropped, False),
            contrast_interactions=self._contrast_interactions(item_score, kept),
            permutation=torch.randperm(self.n_items, device=score.device),
            rng=draw_rng(score.device),
        )

    def _contrast_interactions(self, item_score: Tensor, kept: Tensor | None) -> Tensor:
        """bool [M]: floor((1 - cl_drop) * count) of those kept, weighted by noisy item scores."""
        items, positions = self.user_item, None
        if kept is not None:
            positions = kept.nonzero().flatten()
            items = items.index_select(0, positions)
        weight = item_score.index_select(0, items)
        # The published weights are themselves noisy: softmax(score + Gumbel).
        weight = weight + gumbel_like(weight)
        chosen = sample_by_score(weight, share_of(1 - self.cl_drop, weight.shape[0]))
        if positions is not None:
            chosen = positions.index_select(0, chosen)
        return mask_of(chosen, self.num_interactions)
