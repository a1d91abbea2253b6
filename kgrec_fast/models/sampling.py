"""The random choices of a training step, as masks over fixed graphs.

A step never builds an edge list. Everything it draws is a subset of the edges of the knowledge
graph or of the interactions, written as one bool per edge in *row order* (see
:mod:`kgrec_fast.graph`), or a number of slots that is fixed when the model is built. So no shape
depends on what was drawn, nothing waits for the device, and no function here loops over relations,
edges or users in Python. All draws are functions of ``rng`` (int64 [2], seed and step), each use
with a stream of its own (:class:`kgrec_fast.ops.random.Stream`); elements are numbered in row
order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgrec_fast import ops
from kgrec_fast.graph import InteractionGraph, RelGraph, register_pytree
from kgrec_fast.ops.random import Stream


@dataclass(frozen=True)
class StepMasks:
    """The random choices of one training step.

    Attributes:
        sampled: bool [E], the edges kept in step 1; None keeps all.
        kept: bool [M], the interactions that survive dropout; None keeps all.
        masked: bool [E], the sampled edges that are masked and reconstructed.
        slots: int64 [2 k], positions of the masked edges; those in the second half were drawn at
            random and may stand in the first half too.
        slot_weight: float32 [2 k], 0 where a slot repeats another, else 1.
        contrast_edges: bool [E], the sampled edges in the KG view of the items.
        contrast_interactions: bool [M], the kept interactions in the user-item view.
        permutation: int64 [n_items], who is whose negative in the contrast.
        rng: int64 [2], seed and step of message dropout.
    """

    sampled: Tensor | None
    kept: Tensor | None
    masked: Tensor
    slots: Tensor
    slot_weight: Tensor
    contrast_edges: Tensor
    contrast_interactions: Tensor
    permutation: Tensor
    rng: Tensor


register_pytree(StepMasks)


def share_of(rate: float, count: int) -> int:
    """floor(rate * count)."""
    return int(rate * count)


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
        published_quirks: Whether to sample as the paper's code does, see
            :class:`kgrec_fast.models.KGRec`.
    """

    user_item: Tensor

    def __init__(
        self,
        kg: RelGraph,
        interactions: InteractionGraph,
        n_items: int,
        node_dropout_rate: float,
        mae_msize: int,
        cl_drop: float,
        published_quirks: bool = False,
    ) -> None:
        super().__init__()
        self.num_edges, self.num_interactions = kg.num_edges, interactions.num_edges
        self.n_items = n_items
        self.node_dropout_rate, self.cl_drop = node_dropout_rate, cl_drop
        self.published_quirks = published_quirks and node_dropout_rate > 0
        self.keep_rate = node_dropout_rate if self.published_quirks else 1 - node_dropout_rate
        quota = (kg.relation_counts.double() * node_dropout_rate).long()
        if self.published_quirks:
            quota[-1:] = 0
        self.num_sampled = int(quota.sum()) if node_dropout_rate > 0 else kg.num_edges
        self.num_masked = min(mae_msize, self.num_sampled)
        self.num_contrast_edges = self.num_sampled - share_of(cl_drop, self.num_sampled)
        self.register_buffer("user_item", interactions.col, persistent=False)

    def sample_edges(self, kg: RelGraph, rng: Tensor) -> Tensor | None:
        """bool [E], floor(rate * n_r) of the edges of each relation; None for all of them."""
        if self.node_dropout_rate == 0:
            return None
        sampled = ops.sample_edges_per_relation(kg, self.node_dropout_rate, rng, edge_order="row")
        return sampled & (kg.rel < kg.num_relations - 1) if self.published_quirks else sampled

    def sample_interactions(self, rng: Tensor) -> Tensor | None:
        """bool [M], True where an interaction survives dropout; None where none is dropped."""
        if self.node_dropout_rate == 0 or not (self.training or self.published_quirks):
            return None
        return ops.dropout_mask(self.num_interactions, 1 - self.keep_rate, rng)

    def item_scores(self, score: Tensor, kg: RelGraph, sampled: Tensor | None) -> Tensor:
        """(1 + m) / 2 for each item, m the mean score of the sampled edges with that tail.

        m is 1 where there is no such edge or the mean is 0. The 1 is the mean over the edges with
        that head: a softmax times its degree.

        Args:
            score: [E] rationale scores.
            kg: The knowledge graph.
            sampled: bool [E] or None for all.

        Returns:
            [n_items].
        """
        mask = None if sampled is None else kg.edge_mask(sampled, "row")
        mean = ops.edge_score_means(score, kg, mask, self.n_items, edge_order="row")
        mean = F.threshold(mean, 0, 1)  # scores are not negative
        return torch.rsub(mean, 0.5, alpha=-0.5)  # 0.5 + 0.5 * mean, in one pass

    @torch.no_grad()
    def draw(
        self,
        score: Tensor,
        kg: RelGraph,
        sampled: Tensor | None,
        kept: Tensor | None,
        rng: Tensor,
    ) -> StepMasks:
        """Draws what depends on the rationale scores, and the rest.

        Args:
            score: [E] rationale scores in row order.
            kg: The knowledge graph.
            sampled: bool [E] of :meth:`sample_edges`.
            kept: bool [M] of :meth:`sample_interactions`.
            rng: int64 [2], seed and step.
        """
        item_score = self.item_scores(score, kg, sampled)
        noisy = score + ops.gumbel_noise(self.num_edges, rng, Stream.EDGE_NOISE)
        slots, slot_weight, masked = ops.masked_edges(
            noisy, sampled, self.num_sampled, self.num_masked, rng
        )
        # The published weights of interactions are noisy themselves, softmax(score + Gumbel), and
        # so there is noise twice: theirs, and that of drawing without replacement.
        noise = (Stream.INTERACTION_NOISE, Stream.INTERACTION_NOISE + 1)
        return StepMasks(
            sampled=sampled,
            kept=kept,
            masked=masked,
            slots=slots,
            slot_weight=slot_weight,
            contrast_edges=ops.topk_mask(noisy, self.num_contrast_edges, mask=sampled),
            contrast_interactions=ops.topk_mask(
                item_score,
                rate=1 - self.cl_drop,
                mask=kept,
                rng=rng,
                streams=noise,
                index=self.user_item,
            ),
            permutation=ops.random_permutation(self.n_items, rng, Stream.CONTRAST_NEGATIVES),
            rng=rng,
        )
