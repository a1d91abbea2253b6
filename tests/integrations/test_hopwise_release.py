"""What is hopwise's alone: its matrices, its link prediction, a release with a KGRec of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from framework_runs import build, framework_utils, integration, options, python

OWN_KGREC = '''
"""A KGRec that hopwise brings itself: the published parameters, and a loss of them."""
import torch
from torch import nn
from hopwise.model.abstract_recommender import KnowledgeRecommender
from hopwise.utils import InputType


class Layer(nn.Module):
    def __init__(self, size, relations):
        super().__init__()
        self.no_attn_convs = nn.ModuleList()
        self.relation_embedding = nn.Embedding(relations - 1, size)
        self.W_Q = nn.Parameter(torch.randn(size, size))
        self.mess_dropout = nn.Dropout(0.1)


class Contrast(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.mlp1 = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
        self.mlp2 = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))


class KGRec(KnowledgeRecommender):
    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        size = config["embedding_size"]
        self.user_embedding = nn.Embedding(self.n_users, size)
        self.entity_embedding = nn.Embedding(self.n_entities, size)
        self.gcn = Layer(size, self.n_relations)
        self.contrast_fn = Contrast(size)

    def calculate_loss(self, interaction):
        return sum(parameter.square().sum() for parameter in self.parameters())
'''

# A hopwise that finds the file above. Whatever is wrong ends the process with an error.
REPLACE = """
import copy, sys, torch
data_path, folder = sys.argv[1:]
sys.argv = sys.argv[:1]
import hopwise.model.knowledge_aware_recommender as package
package.__path__.append(folder)

import kgrec_fast.integrations.hopwise as ours
from hopwise.trainer import KGTrainer
from hopwise.utils import ModelType, get_model, get_trainer

theirs = get_model("KGRec")  # stays, until it is replaced by name
assert theirs.__module__ == "hopwise.model.knowledge_aware_recommender.kgrec", theirs
assert get_trainer(ModelType.KNOWLEDGE, "KGRec") is KGTrainer
ours.register()
assert get_model("KGRec") is ours.KGRec
assert package.KGRec is ours.KGRec
assert get_trainer(ModelType.KNOWLEDGE, "KGRec") is ours.KGRecTrainer
ours.register()  # once more does no harm

from framework_runs import build, options
built = build(options(data_path))
model, other = built.model, theirs(built.config, built.dataset)
assert type(model) is ours.KGRec
for source, target in ((model, other), (other, model)):
    target.load_state_dict(source.state_dict(), strict=True)
    adam = torch.optim.Adam(source.parameters(), lr=0.01)
    source.calculate_loss(built.batch()).backward()
    adam.step()
    copied = torch.optim.Adam(target.parameters(), lr=0.01)
    copied.load_state_dict(copy.deepcopy(adam.state_dict()))
    target.load_state_dict(source.state_dict(), strict=True)
    for ours_, theirs_ in zip(source.parameters(), target.parameters(), strict=True):
        theirs_.grad = ours_.grad.clone()
    adam.step()
    copied.step()
    for ours_, theirs_ in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(ours_, theirs_)
print("replaced")
"""


def test_weights_are_those_of_the_normalised_matrix(data_path):
    built = build(options(data_path))
    matrix, _ = built.dataset._create_norm_ckg_adjacency_matrix(symmetric=False)
    matrix = matrix.coalesce()
    model = built.model
    wanted = dict(zip(map(tuple, matrix.indices().t().tolist()), matrix.values(), strict=True))
    edges = list(map(tuple, model.interactions.edge_index.t().tolist()))
    assert set(edges) == set(wanted)
    expected = torch.stack([wanted[edge] for edge in edges])
    torch.testing.assert_close(model.inter_weight, expected, rtol=2e-7, atol=0)


def test_the_edges_are_those_of_the_graph(data_path):
    built = build(options(data_path))
    graph = built.dataset.kg_graph(form="coo", value_field="relation_id")
    assert built.model.edge_index.tolist() == [graph.row.tolist(), graph.col.tolist()]
    assert built.model.edge_type.tolist() == graph.data.tolist()


def test_returns_what_the_trainer_of_knowledge_models_does(data_path):
    built = build(options(data_path, epochs=1))
    score, result = built.trainer().fit(built.train, built.valid, verbose=False, saved=False)
    task = framework_utils.KnowledgeEvaluationType.REC
    assert list(score) == list(result) == [task]
    assert score[task] == result[task]["ndcg@10"]


def test_link_prediction_is_refused(data_path):
    built = build(options(data_path, epochs=1))
    with pytest.raises(ValueError, match="link prediction, which KGRec cannot do"):
        built.trainer().fit(built.train, [built.valid, built.valid], verbose=False)


def test_replaces_an_own_kgrec(data_path, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "kgrec.py").write_text(OWN_KGREC, encoding="utf-8")
    folders = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    path = os.pathsep.join(folders)
    said = python(REPLACE, str(data_path), str(tmp_path / "own"), PYTHONPATH=path)
    assert said == "replaced"


def test_importing_it_is_enough_for_a_name():
    script = f"import {integration.__name__}\n" + (
        "from hopwise.utils import get_model\nprint(get_model('KGRec').__module__)"
    )
    assert python(script) == integration.__name__
