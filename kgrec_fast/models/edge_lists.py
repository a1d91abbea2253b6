"""The published sampling methods, from edge lists to edge lists.

A training step does not call them: it draws the same choices as masks
(:mod:`kgrec_fast.models.sampling`). They are here for code that calls or overrides them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kgrec_fast import ops
from kgrec_fast.graph import RelGraph
from kgrec_fast.models.sampling import share_of
from kgrec_fast.nn._streams import draw_rng
from kgrec_fast.ops._edge_masks import among
from kgrec_fast.ops.random import Stream


class EdgeListSampling:
    """Mix-in of :class:`~kgrec_fast.models.KGRec`; needs ``kg`` and ``cl_drop``."""

    cl_drop: float

    @property
    def kg(self) -> RelGraph:
        """The knowledge graph."""
        raise NotImplementedError

    def get_edges(self, graph: Any) -> tuple[Tensor, Tensor]:
        """``edge_index`` [2, E] and ``edge_type`` [E] of a graph.

        Args:
            graph: A :class:`~kgrec_fast.graph.RelGraph`, or a matrix in coordinate form: arrays
                ``row``, ``col`` and ``data`` (the relation), as scipy's ``coo_matrix`` has them.
        """
        device = self.kg.device
        if isinstance(graph, RelGraph):
            return graph.edge_index.to(device), graph.edge_type.to(device)
        row, col, data = (torch.as_tensor(x) for x in (graph.row, graph.col, graph.data))
        return torch.stack([row, col]).long().to(device), data.long().to(device)

    def relation_aware_edge_sampling(self, sampling_rate: float = 0.5) -> tuple[Tensor, Tensor]:
        """floor(rate * n_r) of the edges of each relation.

        Returns:
            ``edge_index`` [2, S] and ``edge_type`` [S].
        """
        _check_share("sampling_rate", sampling_rate)
        mask = ops.sample_edges_per_relation(self.kg, sampling_rate, draw_rng(self.kg.device))
        return self.kg.edge_index[:, mask], self.kg.edge_type[mask]

    def edge_sampling(
        self, edge_index: Tensor, edge_type: Tensor, sampling_rate: float = 0.5
    ) -> tuple[Tensor, Tensor]:
        """floor(rate * E) of the edges [2, E] and types [E], without replacement."""
        _check_share("sampling_rate", sampling_rate)
        count = edge_index.shape[1]
        mask = ops.sample_edges(count, share_of(sampling_rate, count), draw_rng(edge_index.device))
        return edge_index[:, mask], edge_type[mask]

    def mae_edge_mask_adapt_mixed(
        self, edge_index: Tensor, edge_type: Tensor, topk_edge_id: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Masks the edges ``topk_edge_id`` (int64 [k]), and k more drawn from all.

        Returns:
            ``edge_index`` and ``edge_type`` of the edges that remain, the same of the masked ones,
            and the mask, bool [E].
        """
        count, rng = edge_index.shape[1], draw_rng(edge_index.device)
        random = ops.random_permutation(
            count, rng, Stream.RANDOM_MASKED_EDGES, topk_edge_id.shape[0]
        )
        mask = among(torch.cat([topk_edge_id, random]), count)
        return edge_index[:, ~mask], edge_type[~mask], edge_index[:, mask], edge_type[mask], mask

    def adaptive_kg_drop_cl(
        self, edge_index: Tensor, edge_type: Tensor, edge_attn_score: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Drops the floor(cl_drop * E) edges with the lowest of ``edge_attn_score`` [E]."""
        count = edge_attn_score.shape[0]
        keep = ops.topk_mask(edge_attn_score, count - share_of(self.cl_drop, count))
        return edge_index[:, keep], edge_type[keep]

    def adaptive_ui_drop_cl(
        self, item_attn_mean: Tensor, inter_edge: Tensor, inter_edge_w: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draws floor((1 - cl_drop) * M) interactions, weighted by softmax(item score + Gumbel).

        Args:
            item_attn_mean: [n_items], score of each item.
            inter_edge: int64 [2, M].
            inter_edge_w: [M].

        Returns:
            Interactions [2, M'] and their weights [M'], divided by 1 - cl_drop.
        """
        weight = item_attn_mean.index_select(0, inter_edge[1])
        chosen = ops.topk_mask(
            weight,
            rate=1 - self.cl_drop,
            rng=draw_rng(weight.device),
            streams=(Stream.INTERACTION_NOISE, Stream.INTERACTION_NOISE + 1),
        )
        return inter_edge[:, chosen], inter_edge_w[chosen] / (1 - self.cl_drop)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}, expected it in [0, 1]")
