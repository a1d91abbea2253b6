"""KGRec under the interface of the paper's code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from logging import getLogger
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgrec_fast import models, ops
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.integrations.paper._arguments import (
    hyper_parameters,
    interactions_of,
    sizes_of,
    triples_of,
)
from kgrec_fast.integrations.paper.layers import AttnHGCN
from kgrec_fast.models import StepMasks
from kgrec_fast.models._arguments import batch_ids
from kgrec_fast.models.sampling import share_of
from kgrec_fast.nn import Contrast
from kgrec_fast.nn._streams import draw_rng


class KGRec(models.KGRec):
    """:class:`kgrec_fast.models.KGRec` as the paper's code has it: constructor, batches, results.

    Parameters have the published names, shapes and order: state dicts, and the states of an
    optimizer over ``parameters()``, load strictly both ways. (The contrast of an earlier revision,
    ``grace_loss.*``, is taken for ``contrast_fn.*``.) Initial values are drawn from the published
    distributions. The loss is the published one, with the log-sigmoid for BPR; see
    ``docs/paper_code.md`` for what is not the same.

    What :class:`kgrec_fast.models.KGRec` has besides (``training_step``, ``embeddings``,
    ``full_sort_predict``, ``rationales``) is there too: both can be trained and evaluated by
    :mod:`kgrec_fast.training`. Relation ids count from 1 here, from 0 in ``kg``.

    Args:
        data_config: Sizes "n_users", "n_items", "n_entities", "n_relations" (the interaction being
            one of them) and "n_nodes" (users and entities).
        args_config: The parsed command line: ``l2``, ``dim``, ``context_hops``,
            ``node_dropout_rate``, ``mess_dropout``, ``mess_dropout_rate``, ``mae_coef``,
            ``mae_msize``, ``cl_coef``, ``cl_tau``, ``cl_drop_ratio``. A ``dataset`` that
            :data:`PRESETS` knows sets the last five, as published. Others are not read: the model
            is made on the CPU, move it with ``to``.
        graph: The knowledge graph: a ``networkx.MultiDiGraph`` whose keys are relations from 1, or
            int [E, 3] of heads, tails and relations.
        adj_mat: The interactions with their weights (1 / number of the user's, as published): a
            scipy matrix [n_users, at least n_items].
        hp_dict: Hyper-parameters by the names of the published attributes, which take the place of
            all others: ``decay``, ``emb_size``, ``context_hops``, ``node_dropout_rate``,
            ``mess_dropout``, ``mess_dropout_rate``, ``mae_coef``, ``mae_msize``, ``cl_coef``,
            ``tau``, ``cl_drop``, ``samp_func``, ``kg_drop_test_keep_rate``.
        published_quirks: Whether to sample as published where that is no part of the method, see
            :class:`kgrec_fast.models.KGRec`.

    Raises:
        TypeError, ValueError: An argument is not what is expected; the message names it.
    """

    bpr_eps = 0.0

    gcn: AttnHGCN
    all_embed: nn.Parameter
    _edge_index: Tensor
    _edge_type: Tensor
    _inter_edge: Tensor

    def __init__(
        self,
        data_config: Mapping[str, int],
        args_config: Any,
        graph: Any,
        adj_mat: Any,
        hp_dict: Mapping[str, Any] | None = None,
        *,
        published_quirks: bool = True,
    ) -> None:
        sizes = sizes_of(data_config)
        hyper, own = hyper_parameters(args_config, hp_dict)
        if published_quirks and hyper["node_dropout_rate"] == 0:
            raise ValueError(
                "node_dropout_rate is 0, expected it in (0, 1]: "
                "it is the share of edges and interactions that a step keeps"
            )
        edge_index, edge_type = triples_of(graph)
        inter_edge, weight = interactions_of(adj_mat)
        kg = RelGraph.from_edges(
            edge_index,
            edge_type,
            num_nodes=sizes["n_entities"],
            num_relations=sizes["n_relations"] - 1,
            first_relation=1,
        )
        interactions = InteractionGraph.from_edges(
            inter_edge, weight, num_users=sizes["n_users"], num_items=sizes["n_items"]
        )
        hyper |= sizes
        super().__init__(
            kg=kg, interactions=interactions, published_quirks=published_quirks, **hyper
        )
        self.logger = getLogger()
        self.args_config = args_config
        self.encoder_dropout = bool(own["mess_dropout"])
        self.kg_drop_test_keep_rate: float | None = own["kg_drop_test_keep_rate"]
        self.register_buffer("_edge_index", edge_index, persistent=False)
        self.register_buffer("_edge_type", edge_type, persistent=False)
        self.register_buffer("_inter_edge", inter_edge, persistent=False)

    # -- parameters -------------------------------------------------------------------------------

    def _add_parameters(self) -> None:
        size = self.embedding_size
        self.all_embed = nn.Parameter(torch.empty(self.n_nodes, size))
        self.gcn = AttnHGCN(
            size,
            self.context_hops,
            self.n_users,
            self.n_relations,
            self.node_dropout_rate,
            self.mess_dropout_rate,
        )
        self.contrast_fn = Contrast(size, tau=self.cl_tau)

    def _tables(self) -> tuple[Tensor, Tensor]:
        # Not split(): its results, marked as views of one tensor, stop torch.compile.
        users, entities = self.all_embed.unsafe_split_with_sizes([self.n_users, self.n_entities])
        return users, entities

    def reset_parameters(self) -> None:
        """Xavier-uniform values for the embeddings and ``W_Q``, torch's own for the contrast."""
        nn.init.xavier_uniform_(self.all_embed)
        self.gcn.reset_parameters()
        for layer in self.contrast_fn.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        state, prefix = args[0], args[1]
        earlier = f"{prefix}grace_loss."
        for name in [name for name in state if name.startswith(earlier)]:
            state[f"{prefix}contrast_fn.{name.removeprefix(earlier)}"] = state.pop(name)
        super()._load_from_state_dict(*args, **kwargs)

    # -- the training step ------------------------------------------------------------------------

    def forward(  # type: ignore[override]  # the published interface, not that of models.KGRec
        self, batch: Mapping[str, Any], masks: StepMasks | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The training loss of a batch.

        Reading the parts of the loss waits for the device: ``training_step`` does not.

        Args:
            batch: "users", "pos_items" and "neg_items", int64 [B] each. Where "batch_start" is 0,
                the standard deviation of the rationale scores is logged.
            masks: The random choices of the step; drawn where it is None.

        Returns:
            The loss (scalar), and its weighted parts as numbers, "rec_loss" (BPR with L2),
            "mae_loss" and "cl_loss".

        Raises:
            TypeError, ValueError: The batch is not what is expected, or the BPR loss is NaN.
        """
        users = batch_ids(batch, "users", self.n_users)
        pairs = {"user_id": users}
        for name, published in (("item_id", "pos_items"), ("neg_item_id", "neg_items")):
            pairs[name] = batch_ids(batch, published, self.n_items, users)
        if users.numel() == 0:
            raise ValueError("users is empty, expected at least one pair")
        rng = draw_rng(self.device) if masks is None else masks.rng
        if batch.get("batch_start") == 0:
            # The edges of a step are a function of rng: these are the ones drawn below.
            sampled = self.sampler.sample_edges(self.kg, rng) if masks is None else masks.sampled
            self._log_spread(sampled)
        losses = self._losses(pairs, rng, masks)
        names = ("rec_loss", "mae_loss", "cl_loss")
        parts = dict(zip(names, torch.stack([x.detach() for x in losses]).tolist(), strict=True))
        if math.isnan(parts["rec_loss"]):
            raise ValueError("the BPR loss is NaN, expected a number")
        rec_loss, mae_loss, cl_loss = losses
        return rec_loss + mae_loss + cl_loss, parts

    def create_bpr_loss(
        self, users: Tensor, pos_items: Tensor, neg_items: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """BPR with the log-sigmoid, and the L2 loss.

        Args:
            users, pos_items, neg_items: [B, D] each, propagated embeddings.

        Returns:
            Their sum; the mean of -log sigmoid(<u, p> - <u, n>); ``decay`` times
            (|u|^2 + |p|^2 + |n|^2) / 2B. Scalars.

        Raises:
            ValueError: The second is NaN.
        """
        gap = (users * (pos_items - neg_items)).sum(1)
        mf_loss = F.softplus(-gap).mean()
        if torch.isnan(mf_loss):
            raise ValueError("the BPR loss is NaN, expected a number")
        squares = users.square().sum() + pos_items.square().sum() + neg_items.square().sum()
        emb_loss = self.decay * squares / 2 / users.shape[0]
        return mf_loss + emb_loss, mf_loss, emb_loss

    @torch.no_grad()
    def _log_spread(self, sampled: Tensor | None) -> None:
        """Logs the spread of the rationale scores of edges: bool [E] in row order, None for all."""
        mask = None if sampled is None else self.kg.edge_mask(sampled, "row")
        scores, logits = self.gcn.rationale_scores(self._tables()[1], self.kg, None, mask)
        self.gcn.log_spread(scores[logits > -torch.inf])

    # -- use --------------------------------------------------------------------------------------

    def generate(self) -> tuple[Tensor, Tensor]:
        """Entities [N, D] and users [U, D], propagated over the whole graphs without dropout."""
        users, entities = self._propagate()
        return entities, users

    def generate_kg_drop(self) -> tuple[Tensor, Tensor]:
        """:meth:`generate` on floor(``kg_drop_test_keep_rate`` * E) edges drawn from all."""
        rate = self.kg_drop_test_keep_rate
        if rate is None or not 0 <= rate <= 1:
            raise ValueError(
                f"kg_drop_test_keep_rate is {rate}, expected it in [0, 1]: set it, or give it in "
                "hp_dict"
            )
        edges = self.kg.num_edges
        kept = ops.sample_edges(edges, share_of(rate, edges), draw_rng(self.device))
        users, entities = self._propagate(self.kg.edge_mask(kept))
        return entities, users

    def generate_global_attn_score(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rationale scores [E] of all edges, their heads and tails [2, E], their relations [E]."""
        return self.rationales(), self.edge_index, self.edge_type

    def rating(self, u_g_embeddings: Tensor, i_g_embeddings: Tensor) -> Tensor:
        """Scores [n, m] of users [n, D] and items [m, D]."""
        return u_g_embeddings @ i_g_embeddings.t()

    def print_shapes(self) -> None:
        """Logs the hyper-parameters and the sizes of the model and its graphs."""
        hyper = "tau cl_drop cl_coef mae_coef mae_msize context_hops node_dropout_rate"
        sizes = "mess_dropout_rate n_users n_items n_entities n_relations"
        for name in f"{hyper} {sizes}".split():
            self.logger.info("%s: %s", name, getattr(self, name))
        for name in ("all_embed", "inter_edge", "edge_index", "edge_type"):
            self.logger.info("%s: %s", name, list(getattr(self, name).shape))

    # -- published names --------------------------------------------------------------------------

    @property
    def edge_index(self) -> Tensor:
        """int64 [2, E], heads and tails in the order of the graph given."""
        return self._edge_index

    @property
    def edge_type(self) -> Tensor:
        """int64 [E], relations from 1."""
        return self._edge_type

    @property
    def inter_edge(self) -> Tensor:
        """int64 [2, M], users and items."""
        return self._inter_edge

    @property
    def inter_edge_w(self) -> Tensor:
        """[M], weights of the interactions."""
        return self.inter_weight

    @property
    def n_nodes(self) -> int:
        """Users and entities."""
        return self.n_users + self.n_entities

    @property
    def emb_size(self) -> int:
        """D."""
        return self.embedding_size

    @property
    def decay(self) -> float:
        """Weight of the L2 loss."""
        return self.reg_weight

    @property
    def tau(self) -> float:
        """Temperature of the contrast."""
        return self.cl_tau

    @property
    def mess_dropout(self) -> bool:
        """Whether messages of the encoder are dropped; those of the contrast's views always are."""
        return self.encoder_dropout

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.all_embed.device
