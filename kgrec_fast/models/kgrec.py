"""KGRec: knowledge graph self-supervised rationalization for recommendation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgrec_fast import ops
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models._arguments import Batch, batch_ids
from kgrec_fast.models._graphs import check_graphs, compact, weights_of
from kgrec_fast.models.edge_lists import EdgeListSampling
from kgrec_fast.models.prediction import Prediction
from kgrec_fast.models.sampling import StepMasks, StepSampler
from kgrec_fast.nn import AttnHGCN, Contrast, HopGraphs
from kgrec_fast.nn._rows import readers, within
from kgrec_fast.nn._streams import draw_rng
from kgrec_fast.ops._projection import project
from kgrec_fast.ops.sampling import negatives_of


class KGRec(EdgeListSampling, Prediction):
    """Recommender that learns which edges of a knowledge graph explain the interactions.

    Yang, Huang, Xia, Huang: "Knowledge Graph Self-Supervised Rationalization for Recommendation",
    KDD 2023. A training step samples edges, scores them, masks some of the highest and reconstructs
    these, and contrasts two views of the items; see :meth:`forward`. What it draws are masks over
    the two fixed graphs (:class:`~kgrec_fast.models.StepMasks`), never edge lists.

    Parameters have the names and shapes of hopwise's port, whose state dicts load. Unlike there,
    ``gcn.W_Q`` is Xavier-initialised: hopwise leaves it as uninitialised memory.

    Args:
        n_users: Number of users, U.
        n_items: Number of items; they are the first nodes of the knowledge graph.
        n_entities: N, all nodes of the knowledge graph.
        n_relations: Number of relations, the interaction being one of them: the knowledge graph
            has ``n_relations - 1``.
        kg: The knowledge graph, N x N.
        interactions: The training interactions, U x n_items. Its weights, where it has some, take
            the place of 1 / (number of interactions of the user + 1e-7).
        embedding_size: D, an even number.
        reg_weight: Weight of the L2 loss.
        context_hops: Hops of propagation.
        node_dropout_rate: Share of the edges of each relation that a step keeps, and probability
            that it drops an interaction, in [0, 1); at 0 nothing is sampled.
        mess_dropout_rate: Probability of message dropout, in [0, 1).
        mae_coef: Weight of the reconstruction loss.
        mae_msize: Edges masked by score; as many are masked at random. Where a step samples fewer
            edges than this, all of them are masked, with a warning at construction.
        cl_coef: Weight of the contrast loss.
        cl_tau: Temperature of the contrast, above 0.
        cl_drop: Share of edges and interactions left out of the contrast, in [0, 1).
        samp_func: "torch" or "np", the published choice of a library for drawing interactions.
            Both mean the same here: exact weighted sampling without replacement.
        published_quirks: Whether to sample as the paper's code does where that is no part of the
            method: no edge of the last relation is ever sampled (its loop over relations counts
            from 0, its relations from 1), and an interaction is kept, not dropped, with probability
            ``node_dropout_rate`` (which may be 1), in evaluation mode too.

    Raises:
        TypeError, ValueError: An argument is not what is expected; the message names it.
    """

    bpr_eps = 1e-10  # added to the sigmoid of the BPR loss
    encoder_dropout = True  # whether messages of the encoder are dropped, as those of the views

    contrast_fn: Contrast
    _user_weight: Tensor | None

    def __init__(
        self,
        n_users: int,
        n_items: int,
        n_entities: int,
        n_relations: int,
        kg: RelGraph,
        interactions: InteractionGraph,
        embedding_size: int = 64,
        reg_weight: float = 1e-5,
        context_hops: int = 2,
        node_dropout_rate: float = 0.5,
        mess_dropout_rate: float = 0.1,
        mae_coef: float = 0.1,
        mae_msize: int = 256,
        cl_coef: float = 0.01,
        cl_tau: float = 1.0,
        cl_drop: float = 0.5,
        samp_func: str = "torch",
        published_quirks: bool = False,
    ) -> None:
        # Not super(): an integration also derives from its framework's base class, which comes
        # before nn.Module and takes other arguments.
        nn.Module.__init__(self)
        check_graphs(n_users, n_items, n_entities, n_relations, kg, interactions)
        for name, rate in (("node_dropout_rate", node_dropout_rate), ("cl_drop", cl_drop)):
            keeps_all = name == "node_dropout_rate" and published_quirks and rate == 1
            if not 0 <= rate < 1 and not keeps_all:
                raise ValueError(f"{name} is {rate}, expected it in [0, 1)")
        for name, weight in (
            ("reg_weight", reg_weight),
            ("mae_coef", mae_coef),
            ("cl_coef", cl_coef),
        ):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} is {weight}, expected a finite number of at least 0")
        if mae_msize < 1:
            raise ValueError(f"mae_msize is {mae_msize}, expected at least 1")
        if not 0 < cl_tau < math.inf:
            raise ValueError(f"cl_tau is {cl_tau}, expected a finite number above 0")
        if samp_func not in ("torch", "np"):
            raise ValueError(f"samp_func is {samp_func!r}, expected 'torch' or 'np'")
        self.n_users, self.n_items, self.n_entities = n_users, n_items, n_entities
        self.n_relations, self.embedding_size = n_relations, embedding_size
        self.reg_weight, self.mae_coef, self.cl_coef = reg_weight, mae_coef, cl_coef
        self.context_hops = context_hops
        self.node_dropout_rate, self.mess_dropout_rate = node_dropout_rate, mess_dropout_rate
        self.mae_msize, self.cl_tau, self.cl_drop = mae_msize, cl_tau, cl_drop
        self.samp_func = samp_func

        self._add_parameters()
        self.reset_parameters()

        self.hops, self.interactions = HopGraphs.of(compact(kg, n_items), n_items), interactions
        # What a step asks the graphs for is made here: it would have to wait for the device.
        for graph in (interactions, self.kg, self.hops.later, self.hops.leading):
            if graph is not None:
                graph.columns()
        self.kg.ranks("row")
        self.sampler = StepSampler(
            self.kg,
            interactions,
            n_items,
            node_dropout_rate,
            mae_msize,
            cl_drop,
            published_quirks,
        )
        edge_weight, user_weight = weights_of(interactions)
        self.register_buffer("_edge_weight", edge_weight, persistent=False)
        self.register_buffer("_user_weight", user_weight, persistent=False)
        if self.sampler.num_masked < mae_msize or mae_msize == self.sampler.num_sampled:
            warnings.warn(
                f"mae_msize is {mae_msize}, but a step samples {self.sampler.num_sampled} edges: "
                "it masks all of them and propagates over none",
                stacklevel=2,
            )

    def _add_parameters(self) -> None:
        """Makes the parameters. Models with other names override this, and :meth:`_tables`."""
        size = self.embedding_size
        self.user_embedding = nn.Embedding(self.n_users, size)
        self.entity_embedding = nn.Embedding(self.n_entities, size)
        self.gcn = AttnHGCN(
            size, self.context_hops, self.n_users, self.n_relations, self.mess_dropout_rate
        )
        self.contrast_fn = Contrast(size, tau=self.cl_tau)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Embeddings of users [U, D] and entities [N, D] before propagation."""
        return self.user_embedding.weight, self.entity_embedding.weight

    @property
    def inter_weight(self) -> Tensor:
        """Weights [M] of the interactions, in the order in which they were given."""
        if self._edge_weight is not None:
            return self._edge_weight
        assert self._user_weight is not None
        weight = self._user_weight.index_select(0, self.interactions.head)
        return self.interactions.to_caller_order(weight)

    def reset_parameters(self) -> None:
        """Xavier-uniform values for all weights, zeros for the biases."""
        self.gcn.reset_parameters()
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.entity_embedding.weight)
        for layer in self.contrast_fn.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    @property
    def kg(self) -> RelGraph:
        """The knowledge graph, without the rows after the last that has edges (or is an item)."""
        return self.hops.first

    # -- the training step ------------------------------------------------------------------------

    @torch.no_grad()
    def draw_masks(self, rng: Tensor | None = None, query: Tensor | None = None) -> StepMasks:
        """Draws the choices of a step.

        Args:
            rng: int64 [2], seed and step, of which they are a function; drawn from torch's
                generator where it is None.
            query: [N, D] entity embeddings times ``W_Q``, where it is known already.
        """
        if rng is None:
            rng = draw_rng(self.kg.device)
        if query is None:
            query = project(self._tables()[1], self.gcn.W_Q)
        sampled = self.sampler.sample_edges(self.kg, rng)
        scores, _ = ops.rationale_scores(
            query,
            self.gcn.relation.detach(),
            self.kg,
            self.gcn.n_heads,
            edge_mask=None if sampled is None else self.kg.edge_mask(sampled, "row"),
            edge_order="row",
        )
        kept = self.sampler.sample_interactions(rng)
        return self.sampler.draw(scores, self.kg, sampled, kept, rng)

    def forward(self, masks: StepMasks | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Propagates over sampled edges and computes the two self-supervised losses.

        In training mode interactions and messages are dropped; edges are sampled in either mode.

        Args:
            masks: The choices of the step; drawn where it is None.

        Returns:
            Users [U, D], entities [N, D], reconstruction loss and contrast loss (scalars).
        """
        users, entity_sum, _, mae_loss, cl_loss = self._step(masks)
        entities, rows = self._tables()[1], entity_sum.shape[0]
        propagated = torch.cat([entities[:rows] + entity_sum, entities[rows:]])
        return users, propagated, mae_loss, cl_loss

    def _step(
        self,
        masks: StepMasks | None,
        rng: Tensor | None = None,
        user_ids: Tensor | None = None,
        item_ids: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
        """One step up to the losses that need no batch.

        No shape depends on data, and nothing waits for the device. With ids (int64) of the users
        and items that a batch reads, no work is done for what only others need.

        Returns:
            The propagated embeddings of users [U, D] (of ``user_ids``, where given), what is added
            to those of the first entities [A, D] (of those read, where there are ``item_ids``), the
            propagated embeddings of each of ``item_ids``, reconstruction loss, contrast loss.
        """
        users, entities = self._tables()
        query = project(entities, self.gcn.W_Q)  # for the rationale scores and the first hop
        if masks is None:
            masks = self.draw_masks(rng, query)
        kg, inter = self.kg, self.interactions
        kept = None if masks.kept is None else inter.edge_mask(masks.kept, "row")
        dropout = masks.rng if self.training and self.mess_dropout_rate > 0 else None
        # Masked edges are sampled ones.
        encoded = ~masks.masked if masks.sampled is None else masks.sampled ^ masks.masked

        ends = [ids.index_select(0, masks.slots) for ids in (kg.head, kg.col)]
        read = torch.cat([*item_ids, *ends]).long()
        chosen, entities, items = readers(entities, read, self.n_items, copies=4)
        # Of more users than there are, all are propagated once.
        few_users = None if user_ids is None or len(user_ids) >= self.n_users else user_ids
        chosen_users, users, _ = readers(users, few_users)
        edge_mask = kg.edge_mask(encoded, "row")
        contrast_mask = kg.edge_mask(masks.contrast_edges, "row")
        attended, averaged = self.gcn.first_hops(
            entities, self.hops, edge_mask, contrast_mask, query
        )

        # First, so that no mean of all nodes is held while the other hops are made.
        view_kg = items[0] + self.gcn.kg_messages(
            entities,
            self.hops,
            edge_mask=contrast_mask,
            rng=dropout,
            first_rows=self.n_items,
            first=averaged,
        )
        del averaged

        propagated, entity_sum = self.gcn.messages(
            users,
            entities,
            self.hops,
            inter,
            self._edge_weight,
            edge_mask=edge_mask,
            inter_mask=kept,
            rng=dropout if self.encoder_dropout else None,
            residuals=(users if few_users is None else chosen_users, None),
            query=query,
            item_emb=items[1],
            user_ids=few_users,
            entity_ids=read if item_ids else None,
            first=attended,
        )
        if few_users is None and user_ids is not None:
            propagated, _, _ = readers(propagated, user_ids)
        if not item_ids:
            chosen = chosen + entity_sum.index_select(0, within(read, entity_sum))
        else:
            chosen = chosen + entity_sum
        *chosen_items, head, tail = chosen.split([ids.numel() for ids in (*item_ids, *ends)])
        mae_loss = ops.reconstruction_loss(
            head,
            tail,
            self.gcn.relation,
            kg.rel.index_select(0, masks.slots),
            masks.slot_weight,
        )

        view_ui = self.gcn.ui_messages(
            users,
            items[2],
            inter,
            self._edge_weight,
            user_weight=self._user_weight,
            inter_mask=inter.edge_mask(masks.contrast_interactions, "row"),
            rng=dropout,
            residual=items[3],
        )
        cl_loss = self.contrast_fn(view_ui, view_kg, masks.permutation)
        return propagated, entity_sum, chosen_items, mae_loss, cl_loss

    def training_step(
        self, batch: Batch, rng: Tensor | None = None, masks: StepMasks | None = None
    ) -> Tensor:
        """The loss of :meth:`calculate_loss` for use in a loop: nothing here waits for the device.

        All random choices are functions of ``rng``, which lies on the device: the step can be
        captured in a CUDA graph together with its optimizer, and draws anew when ``rng`` changes.
        Ids are not checked.

        In several processes (a module whose forward is this step, in DistributedDataParallel): the
        mean of their gradients is that of one process if they are given the same ``rng`` and equal
        shares of one batch, negatives included; for the two self-supervised losses are then the
        same in all of them. Every parameter gets a gradient, but for ``gcn.W_Q`` without hops.

        Args:
            batch: "user_id" and "item_id", int64 [B] each; "neg_item_id" likewise, or negatives
                are drawn here, uniformly from what the user has not touched in ``interactions``;
                and "weight" [B], or all pairs weigh the same. A pair of weight 0 is padding.
            rng: int64 [2], seed and step; drawn from torch's generator where it is None.
            masks: The choices of the step; drawn where it is None.

        Returns:
            Scalar.
        """
        loss, mae_loss, cl_loss = self._losses(batch, rng, masks)
        return loss + mae_loss + cl_loss

    def _losses(
        self, batch: Batch, rng: Tensor | None, masks: StepMasks | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The parts of the loss, weighted: BPR with L2, reconstruction, contrast."""
        if self._cache is not None:  # torch.export would take an assignment for a side effect
            self._cache = None
        user, positive = batch["user_id"], batch["item_id"]
        if rng is None:
            rng = draw_rng(self.kg.device) if masks is None else masks.rng
        negative = batch.get("neg_item_id")
        if negative is None:
            negative = negatives_of(user, self.interactions, rng)
        user_emb, _, (positive, negative), mae_loss, cl_loss = self._step(
            masks, rng, user, [positive, negative]
        )
        weight = batch.get("weight")
        loss = ops.bpr_loss(user_emb, positive, negative, self.reg_weight, weight, self.bpr_eps)
        return loss, self.mae_coef * mae_loss, self.cl_coef * cl_loss

    def calculate_loss(self, batch: Batch, masks: StepMasks | None = None) -> Tensor:
        """The training loss of a batch, all parts weighted and added up.

        ``-log(1e-10 + sigmoid(s_up - s_un))`` averaged, plus ``reg_weight`` times
        ``(|u|^2 + |p|^2 + |n|^2) / 2B`` of the propagated embeddings, plus ``mae_coef`` and
        ``cl_coef`` times the losses of :meth:`forward`.

        Args:
            batch: "user_id", "item_id" and "neg_item_id", int64 [B] each.
            masks: The choices of the step; drawn where it is None.

        Returns:
            Scalar.

        Raises:
            TypeError, ValueError: The batch is not what is expected; an id out of range is named
                on CPU (elsewhere the check would stall the device).
        """
        user = batch_ids(batch, "user_id", self.n_users)
        pairs = {"user_id": user}
        for name in ("item_id", "neg_item_id"):
            pairs[name] = batch_ids(batch, name, self.n_items, user)
        if user.numel() == 0:
            raise ValueError("user_id is empty, expected at least one pair")
        return self.training_step(pairs, masks=masks)

    def create_mae_loss(
        self, node_pair_emb: Tensor, masked_edge_emb: Tensor | None = None
    ) -> Tensor:
        """Mean of -log sigmoid(<head, tail * relation>), computed so that it cannot overflow.

        Args:
            node_pair_emb: [m, 2, D], head and tail.
            masked_edge_emb: [m, D], relation; None leaves it out.

        Returns:
            Scalar.
        """
        head, tail = node_pair_emb.unbind(1)
        if masked_edge_emb is not None:
            tail = tail * masked_edge_emb
        return F.softplus(-(head * tail).sum(1)).mean()

    @property
    def edge_index(self) -> Tensor:
        """int64 [2, E], heads and tails in the order in which the graph was given."""
        return self.kg.edge_index

    @property
    def edge_type(self) -> Tensor:
        """int64 [E], relations in the order in which the graph was given."""
        return self.kg.edge_type

    # -- upkeep -----------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KGRec:
        super()._apply(fn, recurse)
        device = self.gcn.W_Q.device
        self.hops, self.interactions = self.hops.to(device), self.interactions.to(device)
        self._cache = None
        return self
