"""Full-ranking evaluation against a dense loop over users with torchmetrics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_metrics import ORACLES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kgrec_fast.data import KGDataset
from kgrec_fast.training.evaluation import KNOWN_SPLITS, evaluate


def model_of(user: Tensor, item: Tensor) -> SimpleNamespace:
    return SimpleNamespace(embeddings=lambda: (user, item))


def make_dataset(n_users: int, n_items: int, **splits: list[tuple[int, int]]) -> KGDataset:
    pairs = {
        name: torch.tensor(splits.get(name, []), dtype=torch.int64).reshape(-1, 2).T
        for name in ("train", "valid", "test")
    }
    return KGDataset(
        n_users=n_users,
        n_items=n_items,
        n_entities=n_items,
        n_relations=2,
        edge_index=torch.zeros(2, 0, dtype=torch.int64),
        edge_type=torch.zeros(0, dtype=torch.int64),
        user_tokens=[f"u{user}" for user in range(n_users)],
        item_tokens=[f"i{item}" for item in range(n_items)],
        entity_tokens=[f"i{item}" for item in range(n_items)],
        relation_tokens=["r"],
        **pairs,
    )


def random_dataset(n_users: int, n_items: int, seed: int) -> KGDataset:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 8, (n_users, n_items), generator=generator)
    splits = {}
    for name, kinds in (("train", (0, 1)), ("valid", (2,)), ("test", (3,))):
        chosen = torch.isin(kind, torch.tensor(kinds))
        chosen[::5] &= name != "test"  # users without test items
        splits[name] = chosen.nonzero().tolist()
    return make_dataset(n_users, n_items, **splits)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("max_scores", [1, 100, 1 << 20])
def test_agrees_with_a_dense_loop(split: str, max_scores: int) -> None:
    data = random_dataset(40, 30, seed=1)
    generator = torch.Generator().manual_seed(2)
    user = torch.randn(40, 6, generator=generator)
    entity = torch.randn(50, 6, generator=generator)  # more nodes than items
    ks = [1, 4, 10]
    got = evaluate(model_of(user, entity), data, split, ks=ks, max_scores=max_scores)

    rows: dict[str, list[Tensor]] = {name: [] for name in got}
    for u in range(40):
        mine = {name: data.split(name)[1][data.split(name)[0] == u] for name in KNOWN_SPLITS}
        if mine[split].numel() == 0:
            continue
        known = [data.train[1][data.train[0] == u]]
        known += [mine["valid"]] if split == "test" else []
        left = torch.ones(30, dtype=torch.bool)
        left[torch.cat(known)] = False
        target = torch.zeros(30, dtype=torch.bool)
        target[mine[split]] = True
        scores = (user[u] @ entity[:30].T)[left]
        scores = scores - scores.min() + 1  # torchmetrics wants probabilities: nothing below 0
        for metric, function in ORACLES.items():
            for k in ks:
                rows[f"{metric}@{k}"].append(function(scores, target[left], top_k=k))
    for name, values in rows.items():
        expected = torch.stack(values).double().mean().item()
        assert got[name] == pytest.approx(expected, abs=1e-6), name
    assert len(rows["ndcg@4"]) < 40 or split == "valid"


def test_known_items_differ_between_the_splits() -> None:
    # The user likes items in the order 0, 1, 2, 3.
    user, item = torch.ones(1, 1), torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    data = make_dataset(1, 4, train=[(0, 0)], valid=[(0, 1)], test=[(0, 2)])
    model = model_of(user, item)
    assert evaluate(model, data, "valid", ks=[1])["hit@1"] == 1.0
    assert evaluate(model, data, "test", ks=[1])["hit@1"] == 1.0


def test_fewer_items_than_k() -> None:
    user, item = torch.ones(1, 1), torch.tensor([[3.0], [2.0], [1.0]])
    data = make_dataset(1, 3, train=[(0, 0)], test=[(0, 2)])
    got = evaluate(model_of(user, item), data, "test", ks=[10])
    assert got["recall@10"] == 1.0
    assert got["precision@10"] == pytest.approx(0.1)
    assert got["mrr@10"] == 0.5


def test_a_user_whose_items_are_all_known_counts_as_a_miss() -> None:
    # The second user's only test item is, against all custom, a training item too.
    user, item = torch.ones(2, 1), torch.tensor([[2.0], [1.0]])
    data = make_dataset(2, 2, train=[(1, 0), (1, 1)], test=[(0, 0), (1, 0)])
    got = evaluate(model_of(user, item), data, "test", ks=[2])
    assert got["recall@2"] == 0.5
    assert got["mrr@2"] == 0.5


def test_equal_embeddings_give_the_same_result_in_any_block() -> None:
    data = random_dataset(30, 25, seed=4)
    model = model_of(torch.zeros(30, 3), torch.zeros(25, 3))
    results = [evaluate(model, data, "test", max_scores=size) for size in (1, 60, 10_000)]
    assert results[0] == pytest.approx(results[1], abs=1e-12)
    assert results[0] == pytest.approx(results[2], abs=1e-12)


def test_never_more_scores_than_allowed() -> None:
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.kgrec_fast.topk_rows.default:
                seen.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    data = random_dataset(40, 30, seed=1)
    with Recorder():
        evaluate(model_of(torch.randn(40, 2), torch.randn(30, 2)), data, "test", max_scores=95)
    assert max(seen) == 90
    assert sum(seen) == 30 * data.test[0].unique().numel()


def test_the_mode_of_the_model_is_restored(dataset: KGDataset) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modes: list[bool] = []

        def embeddings(self) -> tuple[Tensor, Tensor]:
            self.modes.append(self.training)
            assert not torch.is_grad_enabled()
            return torch.ones(dataset.n_users, 2), torch.ones(dataset.n_items, 2)

    model = Model()
    evaluate(model, dataset, "valid")
    assert model.modes == [False]
    assert model.training
    evaluate(model.eval(), dataset, "valid")
    assert not model.training


def test_mistakes() -> None:
    data = make_dataset(1, 2, train=[(0, 0)], test=[(0, 1)])
    model = model_of(torch.ones(1, 1), torch.ones(2, 1))
    with pytest.raises(ValueError, match="split: got 'train', expected one of valid, test"):
        evaluate(model, data, "train")
    with pytest.raises(ValueError, match="split: got 'valid', which has no interactions"):
        evaluate(model, data, "valid")
    with pytest.raises(ValueError, match="ks: got 0"):
        evaluate(model, data, "test", ks=[0])
    with pytest.raises(ValueError, match="max_scores: got 0"):
        evaluate(model, data, "test", max_scores=0)
    bad = model_of(torch.ones(1, 1), torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match="item embeddings hold NaN"):
        evaluate(bad, data, "test")


def test_an_evaluation_can_be_stopped_between_blocks() -> None:
    data = random_dataset(40, 30, seed=1)
    calls = iter([False, False, True])
    with pytest.raises(InterruptedError):
        evaluate(
            model_of(torch.ones(40, 1), torch.ones(30, 1)),
            data,
            "test",
            max_scores=1,
            stop=lambda: next(calls),
        )
