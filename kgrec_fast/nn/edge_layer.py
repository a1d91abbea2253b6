"""What layers share that take raw edges or graphs, whatever the names of their arguments."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from kgrec_fast import ops
from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.graph_cache import as_interaction_graph
from kgrec_fast.nn._arguments import Mask, check_embedding, resolve_hops, resolve_interactions
from kgrec_fast.nn._streams import draw_rng
from kgrec_fast.nn.hops import HopGraphs
from kgrec_fast.nn.propagation import Propagation
from kgrec_fast.ops.random import check_rng


class EdgeLayer(Propagation):
    """:class:`Propagation` for the two published interfaces: checks, graphs, residual sums."""

    first_relation: ClassVar[int] = 0
    """The lowest id in a raw ``edge_type``."""

    def propagate(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        hops: HopGraphs,
        inter: InteractionGraph,
        weight: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Users [U, D] and entities [N, D] with their :meth:`messages` added; arguments as there.

        Args:
            **options: ``edge_mask``, ``inter_mask``, ``rng``.
        """
        rows = hops.first.num_rows
        residuals = (user_emb, entity_emb[:rows])
        user_sum, entity_sum = self.messages(
            user_emb, entity_emb, hops, inter, weight, residuals=residuals, **options
        )
        return user_sum, _joined(entity_sum, entity_emb[rows:])

    def propagate_kg(
        self,
        entity_emb: Tensor,
        hops: HopGraphs,
        edge_mask: EdgeMask | None = None,
        rng: Tensor | None = None,
    ) -> Tensor:
        """Entities [N, D] with their :meth:`kg_messages` added; arguments as there."""
        rows = hops.first.num_rows
        residual = entity_emb[:rows]
        entity_sum = self.kg_messages(
            entity_emb, hops, edge_mask=edge_mask, rng=rng, residual=residual
        )
        return _joined(entity_sum, entity_emb[rows:])

    @torch.no_grad()
    def rationale_scores(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph | HopGraphs,
        edge_type: Tensor | None = None,
        edge_mask: Mask = None,
    ) -> tuple[Tensor, Tensor]:
        """Rationale scores of the edges (section 3.1 of KGRec), without gradient.

        The logit of an edge is the mean of its attention scores over the attention heads; its
        rationale score is the softmax of the logits over the edges of the head node, times their
        number.

        Args:
            entity_emb: [N, D].
            edge_index, edge_type: Two tensors, or a graph and None; a raw ``edge_index`` without
                ``edge_type`` leaves the relations out of the logits.
            edge_mask: Which edges count.

        Returns:
            Scores and logits, [E] each in the caller's order of edges. A masked edge has the score
            0 and the logit -inf.
        """
        check_embedding("entity_emb", entity_emb, self.embedding_size, self.relation)
        relation: Tensor | None = self.relation
        if edge_type is None and not isinstance(edge_index, RelGraph | HopGraphs):
            relation, nodes = None, entity_emb.shape[0]
            graph: RelGraph | InteractionGraph = as_interaction_graph(edge_index, nodes, nodes)
        else:
            graph = self._hops(entity_emb, edge_index, edge_type).first
        # Without relations any graph will do.
        return ops.rationale_scores(
            entity_emb @ self.W_Q, relation, cast(RelGraph, graph), self.n_heads, edge_mask
        )

    def _rng(self, x: Tensor, rng: Tensor | None = None) -> Tensor | None:
        """Seed and step of the dropout: int64 [2]; None where nothing is dropped."""
        if not self.training or self.mess_dropout_rate == 0:
            return None
        return draw_rng(x.device) if rng is None else check_rng(rng, x.device)

    def _hops(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph | HopGraphs,
        edge_type: Tensor | None,
    ) -> HopGraphs:
        check_embedding("entity_emb", entity_emb, self.embedding_size, self.relation)
        nodes, relations = entity_emb.shape[0], self.n_relations - 1
        return resolve_hops(edge_index, edge_type, nodes, relations, self.first_relation)

    def _interactions(
        self,
        user_emb: Tensor,
        item_emb: Tensor,
        inter_edge: Tensor | InteractionGraph,
        items_name: str,
    ) -> InteractionGraph:
        check_embedding("user_emb", user_emb, self.embedding_size)
        check_embedding(items_name, item_emb, self.embedding_size)
        return resolve_interactions(
            inter_edge, user_emb.shape[0], item_emb.shape[0], exact=items_name == "item_emb"
        )


def _joined(first: Tensor, rest: Tensor) -> Tensor:
    return first if rest.shape[0] == 0 else torch.cat([first, rest])
