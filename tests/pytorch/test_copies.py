"""Copies of graphs, masks, layers and models: deepcopy, pickle, torch.save."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_helpers import Example, Small, same
from torch import Tensor
from torch.utils import _pytree

from kgrec_fast import EdgeMask, InteractionGraph, RelGraph, ops
from kgrec_fast.nn import AttnHGCN, Contrast
from kgrec_fast.relation_pairs import head_runs


def through_torch(x: Any, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "torch.save": lambda x: through_torch(x, weights_only=False),
}
DATA_WAYS = {**WAYS, "weights only": lambda x: through_torch(x, weights_only=True)}


def data() -> dict[str, Any]:
    """What has no code: graphs, bare and with all that they keep, masks, choices of a step."""
    model = Small.make().model
    inter = model.interactions
    kept = RelGraph.from_edges(model.edge_index, model.edge_type, num_nodes=60)
    kept.tensors(columns=True, plan=True)
    kept.ranks("row")
    head_runs(kept)
    mask = torch.arange(200) % 3 > 0
    return {
        "graph": RelGraph.from_edges(model.edge_index, model.edge_type),
        "graph with all it keeps": kept,
        "interactions": inter,
        "interactions with weights": InteractionGraph.from_edges(inter.edge_index, torch.rand(45)),
        "hops": model.hops,
        "mask": kept.edge_mask(mask),
        "masks of a step": model.draw_masks(torch.tensor([1, 2])),
    }


def tensors(x: Any) -> list[Tensor]:
    return [v for v in _pytree.tree_leaves(x) if isinstance(v, Tensor)]


@pytest.mark.parametrize("way", DATA_WAYS)
@pytest.mark.parametrize("name", data())
def test_data(name: str, way: str) -> None:
    original = data()[name]
    again = DATA_WAYS[way](original)
    assert type(again) is type(original)
    assert len(tensors(original)) > 1
    same(tensors(again), tensors(original))
    ours = {x.data_ptr() for x in tensors(original) if x.numel()}
    assert not ours & {x.data_ptr() for x in tensors(again) if x.numel()}


@pytest.mark.parametrize("way", DATA_WAYS)
def test_a_copied_graph_works(way: str) -> None:
    example = Example("relation_mean")
    leaves, _, _, rng = example.inputs
    graph = example.of.graph
    bare = RelGraph.from_edges(graph.edge_index, graph.edge_type, num_rows=12, num_cols=31)
    mask = bare.edge_mask(torch.arange(300) % 3 > 0)
    again = DATA_WAYS[way](mask)
    assert isinstance(again, EdgeMask)
    assert torch.equal(again.col, mask.col)
    same(example(leaves, again.graph, again, rng), example(*example.inputs))
    # What a graph makes when it is first asked for, a copy can make too.
    same(DATA_WAYS[way](bare).ranks("row"), bare.ranks("row"))


@pytest.mark.parametrize("way", WAYS)
def test_layers(way: str) -> None:
    small = Small.make()
    users, entities = (small.model.user_embedding.weight, small.model.entity_embedding.weight)
    gcn = AttnHGCN(8, 2, 9, 6).eval()
    args = (users, entities, small.model.kg, None, small.model.interactions, None)
    same(WAYS[way](gcn)(*args), gcn(*args))
    contrast, permutation = Contrast(8, 0.3), torch.arange(60).roll(3)
    again = WAYS[way](contrast)
    same([again(entities, -entities, permutation)], [contrast(entities, -entities, permutation)])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_models(way: str, cached: bool) -> None:
    small = Small.make()
    if cached:
        small.model.eval().embeddings()
        assert small.model._cache is not None
    again = Small(WAYS[way](small.model), small.batch, small.rng)
    same(again.model.embeddings(), small.model.embeddings())
    small.model.train()
    again.model.train()
    same([again.loss()], [small.loss()])
    same(again.gradients().values(), small.gradients().values())
    # Two models, not one.
    before = small.loss()
    with torch.no_grad():
        for parameter in again.model.parameters():
            parameter.zero_()
    assert torch.equal(small.loss(), before)


def test_a_state_dict_loads_weights_only() -> None:
    model, other = Small.make().model, Small.make(2).model
    other.load_state_dict(through_torch(model.state_dict(), weights_only=True))
    same(other.state_dict().values(), model.state_dict().values())


def test_a_file_loads_in_a_fresh_process(tmp_path: Path) -> None:
    """Which has to import what the file names."""
    small = Small.make()
    torch.save(small.model, tmp_path / "model.pt")
    torch.save([small.model.kg, small.batch, small.rng], tmp_path / "data.pt")
    code = (
        "import sys, torch, kgrec_fast\n"
        "model = torch.load(sys.argv[1] + '/model.pt', weights_only=False)\n"
        "graph, batch, rng = torch.load(sys.argv[1] + '/data.pt')\n"
        "assert torch.equal(graph.perm, model.kg.perm)\n"
        "print(float(model.training_step(batch, rng)).hex())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == float(small.loss().detach()).hex()


def test_a_deep_copy_within_a_cache_of_raw_edges() -> None:
    """Raw edges are sorted once for each tensor; a copy of them is another tensor."""
    gcn = AttnHGCN(8, 1, 9, 6).eval()
    small = Small.make()
    entities = small.model.entity_embedding.weight
    edges, types = small.model.edge_index, small.model.edge_type
    wanted = gcn.kg_agg(entities, edges, types)
    same([copy.deepcopy(gcn).kg_agg(entities, copy.deepcopy(edges), types)], [wanted])
    graph = RelGraph.from_edges(edges, types, num_nodes=60, num_relations=5)
    weight = gcn.relation_embedding.weight
    same([wanted], [ops.relation_mean(entities, weight, copy.deepcopy(graph))])
