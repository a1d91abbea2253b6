"""Every op on a CUDA device, against float64 on the CPU, and what only a device can show.

Skipped where there is no GPU. KGREC_FAST_TEST_DEVICE=cpu runs the same tests on the CPU kernels,
which shows that the tests themselves are right; streams and captures are skipped then.
KGREC_FAST_TEST_DEVICE=cuda makes the absence of a GPU an error.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from op_inputs import HEADS, OPS, RNG, Inputs, assert_right, assert_same, upstream
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kgrec_fast import InteractionGraph, RelGraph, _library, ops
from kgrec_fast.models import KGRec, StepMasks
from kgrec_fast.nn._rows import readers
from kgrec_fast.ops.random import Stream, random_bits, random_bits_reference
from kgrec_fast.training.optimizer import make_adam
from kgrec_fast.training.steps import CapturedStep, PlainStep

sys.path.insert(0, str(Path(__file__).parent / "ops"))
from graph_helpers import CASES, assert_as_good_as

ASKED = os.environ.get("KGREC_FAST_TEST_DEVICE", "")
# Clock cycles for which a stream is held up: some tens of milliseconds.
DELAY = 50_000_000


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The device under test, on which native kernels must be there: else nothing is tested."""
    found = torch.device(ASKED or "cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        if ASKED:
            pytest.fail(f"KGREC_FAST_TEST_DEVICE is {ASKED}, but torch sees no CUDA device")
        pytest.skip("torch sees no CUDA device (KGREC_FAST_TEST_DEVICE=cpu tests the CPU instead)")
    if not _library.is_native(found):
        missing = sorted({*_library.ops_for_cuda()} - {*_library.cuda_op_names()})
        pytest.fail(f"ops would run as references: {_library.CUDA.error or missing}")
    return found


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """For what exists on CUDA alone."""
    if device.type != "cuda":
        pytest.skip("streams and graph capture exist on CUDA only")
    return device


# -- values and gradients -------------------------------------------------------------------------


def _table() -> list[Any]:
    """Every op on every case, masked where it takes a mask."""
    return [
        pytest.param(name, case, masked, id=f"{name}-{case}-{'masked' if masked else 'whole'}")
        for name, op in OPS.items()
        for case in CASES
        for masked in ((False, True) if op.masked else (False,))
    ]


each_op = pytest.mark.parametrize("name", OPS)


@pytest.mark.parametrize(("name", "case", "masked"), _table())
def test_float32(name: str, case: str, masked: bool, device: torch.device) -> None:
    assert_right(Inputs.make(name, CASES[case], masked), device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@each_op
def test_other_types(name: str, dtype: torch.dtype, device: torch.device) -> None:
    for case in ("bipartite", "hub row"):
        inputs = Inputs.make(name, CASES[case], OPS[name].masked, dtype)
        assert_right(inputs, device)


@pytest.mark.parametrize("shape", [(1, 1), (6, 3), (32, 4), (100, 2), (128, 8), (256, 1)], ids=str)
@each_op
def test_other_shapes(name: str, shape: tuple[int, int], device: torch.device) -> None:
    width, heads = shape
    case, masked = CASES["bipartite"], OPS[name].masked
    assert_right(Inputs.make(name, case, masked, width=width, heads=heads), device)


@each_op
def test_strided_operands(name: str, device: torch.device) -> None:
    """Rows at a distance, and at places that no vector load may read; columns first."""
    inputs = Inputs.make(name, CASES["bipartite"], OPS[name].masked)
    there = inputs.to(device)
    for view in (
        lambda x: torch.cat([x.new_zeros(*x.shape[:-1], 5), x], -1)[..., 5:],
        lambda x: torch.stack([x, x.new_zeros(x.shape)], -1)[..., 0],
        lambda x: x.t().contiguous().t(),
    ):
        leaves = [view(x) for x in there.leaves]
        assert not leaves[0].is_contiguous()
        assert_right(inputs, device, dataclasses.replace(there, leaves=leaves).run())


@each_op
def test_gradients_that_are_broadcast(name: str, device: torch.device) -> None:
    inputs = Inputs.make(name, CASES["bipartite"])
    if not inputs.op.differentiable:
        pytest.skip("has no gradient")
    there = inputs.to(device)
    ones = [x.new_ones(()).expand(x.shape) for x in there.outputs()]
    assert_same(there.run(grads=ones), there.run(grads=[x.contiguous() for x in ones]))


@pytest.mark.parametrize("n", [0, 1, 5, 4096, 100_003])
def test_random_bits_are_those_of_the_reference(n: int, device: torch.device) -> None:
    for rng in (RNG, (-1, 2**32 - 1), (0, 0)):
        there = random_bits(torch.tensor(rng, device=device), Stream.ITEM_MESSAGE, n)
        assert torch.equal(
            there.cpu(), random_bits_reference(torch.tensor(rng), Stream.ITEM_MESSAGE, n)
        )


def selections(values: Tensor, mask: Tensor, rng: Tensor, suffix: str = "") -> list[Tensor]:
    """Results of every op that selects, or of their references."""
    n = values.numel()
    topk, positions, edges, weighted, noise = (
        getattr(ops, name + suffix)
        for name in ("topk_mask", "mask_positions", "masked_edges", "gumbel_topk", "gumbel_noise")
    )
    return [
        topk(values, n // 3, mask=mask, rng=rng, streams=(Stream.EDGE_NOISE, 7)),
        topk(values, rate=0.4, largest=False, mask=mask),
        weighted(values, n // 5, rng, Stream.INTERACTION_NOISE),
        noise(n, rng, Stream.EDGE_NOISE).view(torch.int32),
        positions(mask, n // 2),
        *edges(values, None, n, n // 7, rng),
    ]


def selection_operands(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    values = torch.randint(-9, 9, (n,), generator=generator) * 0.37  # many of them equal
    mask = torch.rand(n, generator=generator) < 0.6
    return values.to(device), mask.to(device), torch.tensor(RNG, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [0, 1, 5, 2049, 100_003])
def test_selections_are_those_of_the_references(
    n: int, dtype: torch.dtype, device: torch.device
) -> None:
    values, mask, rng = selection_operands(n, torch.device("cpu"))
    expected = selections(values.to(dtype), mask, rng, "_reference")
    found = selections(values.to(device, dtype), mask.to(device), rng.to(device))
    assert_same([x.cpu() for x in found], expected)


def test_capture_of_selections(cuda: torch.device) -> None:
    """Replayed on other values, with another mask and at another step."""
    given = selection_operands(100_003, cuda)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        selections(*given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = selections(*given)
    values, mask, rng = given
    for _ in range(2):
        values.mul_(-0.5)
        mask.copy_(mask.roll(1) & (values > -1))
        rng[1].add_(1)
        graph.replay()
        assert_same(found, selections(*given))


def sample(device: torch.device, rng: Tensor, suffix: str = "") -> list[Tensor]:
    """Every op that samples, on graphs that are moved there."""
    generator = torch.Generator().manual_seed(8)
    pairs = torch.randint(70, (2, 2000), generator=generator)
    inter = InteractionGraph.from_edges(pairs, num_users=70, num_items=90).to(device)
    users = torch.randint(70, (2048,), generator=generator).to(device)
    calls: list[tuple] = [("sample_negatives", users, inter, rng)]
    for case in ("hub row", "many relations"):
        kg = CASES[case].build().to(device)
        calls += [("sample_edges_per_relation", kg, 0.4, rng, 7, x) for x in ("caller", "row")]
    for n in (0, 1, 2, 5, 100_003):
        calls += [("sample_edges", n, n // 3, rng), ("random_permutation", n, rng, 9)]
        calls += [("dropout_mask", n, 0.3, rng)]
    return [getattr(ops, name + suffix)(*arguments) for name, *arguments in calls]


def test_samples_are_those_of_the_reference(device: torch.device) -> None:
    for rng in (RNG, (-1, 2**32 - 1), (0, 0)):
        found = sample(device, torch.tensor(rng, device=device))
        assert all(x.device.type == device.type for x in found)
        wanted = sample(torch.device("cpu"), torch.tensor(rng), "_reference")
        assert_same([x.cpu() for x in found], wanted)


def test_users_out_of_range_read_nothing_out_of_bounds(cuda: torch.device) -> None:
    inter = InteractionGraph.from_edges(torch.tensor([[0, 1], [1, 1]]), num_items=3).to(cuda)
    rng = torch.tensor(RNG, device=cuda)
    far, near = (torch.tensor(u, device=cuda) for u in ([-(2**40), 2**40], [0, 1]))
    assert_same(*([ops.sample_negatives(u, inter, rng)] for u in (far, near)))


@pytest.mark.parametrize("case", CASES)
def test_graphs_are_the_same_built_there_or_moved(case: str, device: torch.device) -> None:
    given = CASES[case]
    moved = given.build().to(device)
    built = dataclasses.replace(
        given, edge_index=given.edge_index.to(device), edge_type=given.edge_type.to(device)
    ).build()
    for columns in (False, True):
        assert_same(built.tensors(columns, plan=True), moved.tensors(columns, plan=True))


def ranking_on(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Embeddings of small integers, whose products are exact, and k and known items."""
    generator = torch.Generator().manual_seed(15)
    user = torch.randint(-3, 4, (70, 8), generator=generator).to(dtype)
    item = torch.randint(-3, 4, (1500, 8), generator=generator).to(dtype)
    counts = torch.randint(0, 60, (70,), generator=generator)
    counts[5] = 0
    ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    known = torch.randint(1500, (int(ptr[-1]),), generator=generator)
    return [x.to(device) if isinstance(x, Tensor) else x for x in (user, item, 20, ptr, known)]


@pytest.mark.parametrize("k", [1, 20, 1024, 1200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_best_items_are_those_of_the_reference(
    k: int, dtype: torch.dtype, device: torch.device
) -> None:
    user, item, _, ptr, known = ranking_on(device, dtype)
    users = torch.arange(69, -1, -1, device=device)
    for named in ({}, {"max_scores": 4000}, {"users": users, "known_items": known.int()}):
        arguments = {"known_ptr": ptr, "known_items": known} | named
        values, items = ops.topk_items(user, item, k, **arguments)
        there = {n: x.cpu() if isinstance(x, Tensor) else x for n, x in arguments.items()}
        wanted = ops.topk_items_reference(user.cpu(), item.cpu(), k, **there)
        assert torch.equal(values.cpu(), wanted[0])
        assert torch.equal(items.cpu(), wanted[1])


def test_capture_of_the_best_items(cuda: torch.device) -> None:
    arguments = ranking_on(cuda)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ops.topk_items(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.topk_items(*arguments)
    for _ in range(2):
        arguments[0].neg_()
        graph.replay()
        assert_same(list(found), list(ops.topk_items(*arguments)))


# -- the kernels that run -------------------------------------------------------------------------


class _Recorder(TorchDispatchMode):
    """Names of the ops of the library that were called, with the devices of their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "kgrec_fast":
            operand = next(x for x in args if isinstance(x, Tensor))
            self.seen.add((name, operand.device.type))
        return func(*args, **(kwargs or {}))


def test_native_kernels_run_and_no_reference(device: torch.device) -> None:
    recorder = _Recorder()
    with recorder:
        for name in OPS:
            Inputs.make(name, CASES["bipartite"], OPS[name].masked).to(device).run()
        random_bits(torch.tensor(RNG, device=device), 0, 8)
        ops.topk_items(*ranking_on(device))
        selections(*selection_operands(9, device))
        sample(device, torch.tensor(RNG, device=device))
        x = torch.ones(3, 4, device=device, requires_grad=True)
        readers(x, torch.tensor([2], device=device))[0].sum().backward()
    called = {name for name, where in recorder.seen if where == device.type}
    if device.type == "cuda":
        assert _library.cuda_is_complete()
        assert called == set(_library.cuda_op_names())
    else:
        # None of these is an op on operands: graphs and masks of their edges come of them.
        made = {"edge_subgraph", "row_subgraph", "count_edges", "edges_of_rows"}
        assert called | made == set(_library.op_names())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_op
def test_repeated_runs_are_bit_equal(name: str, dtype: torch.dtype, device: torch.device) -> None:
    inputs = Inputs.make(name, CASES["hub row"], OPS[name].masked, dtype).to(device)
    first = inputs.run()
    for _ in range(3):
        assert_same(inputs.run(), first)


# -- streams and captures -------------------------------------------------------------------------


def warm_up(inputs: Inputs, grads: list[Tensor] | None = None) -> None:
    """Makes what is made once (orders of the graph, the library's handles), off the main stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        inputs.run(grads=grads)
    torch.cuda.current_stream().wait_stream(stream)


@each_op
def test_another_stream(name: str, cuda: torch.device) -> None:
    """Operands that are written late on a side stream: who launches elsewhere reads zeros."""
    source = Inputs.make(name, CASES["hub row"], OPS[name].masked).to(cuda)
    wanted = source.run()
    late = dataclasses.replace(source, leaves=[torch.zeros_like(x) for x in source.leaves])
    grads = upstream(source.outputs())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(DELAY)
        for to, x in zip(late.leaves, source.leaves, strict=True):
            to.copy_(x)
        found = late.run(grads=grads)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same(found, wanted)


@each_op
def test_capture_and_replay(name: str, cuda: torch.device) -> None:
    """Forward and backward in one CUDA graph, replayed on values that were not there before."""
    inputs = Inputs.make(name, CASES["hub row"], OPS[name].masked).to(cuda)
    grads = upstream(inputs.outputs())
    if inputs.mask is not None:
        inputs = dataclasses.replace(inputs, mask=inputs.graph.edge_mask(inputs.mask))
    warm_up(inputs, grads)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = inputs.run(grads=grads)
    for scale in (1.0, 0.5):
        for x in inputs.leaves:
            x.mul_(scale)
        graph.replay()
        assert_same(found, inputs.run(grads=grads))


def chain(inputs: Inputs, rng: Tensor) -> list[Tensor]:
    """Two hops of attention with message dropout, their residual, and its gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs.leaves]
    x, weight, relation = leaves
    rows = inputs.graph.num_rows
    message, residual = x, x[:rows]
    for hop in range(2):
        padded = torch.cat([message[:rows], x[rows:]])
        out = ops.projected_attention(padded, weight, relation, inputs.graph, HEADS, inputs.mask)
        message, residual = ops.dropout_normalize_add(
            out, residual, 0.3, rng, int(Stream.ENTITY_MESSAGE) + hop
        )
    return [residual.detach(), *torch.autograd.grad(residual.square().sum(), leaves)]


def test_capture_of_a_chain_draws_anew_at_replay(cuda: torch.device) -> None:
    inputs = Inputs.make("projected_attention", CASES["self-loops"]).to(cuda)
    rng = torch.tensor(RNG, device=cuda)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        chain(inputs, rng)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain(inputs, rng)
        rng[1].add_(1)
    seen = []
    for step in range(3):
        graph.replay()
        expected = chain(inputs, torch.tensor((RNG[0], RNG[1] + step), device=cuda))
        assert_same(found, expected)
        seen.append(found[0].clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_capture_of_samples_draws_anew_at_replay(cuda: torch.device) -> None:
    """Nothing that samples waits for the device, once graphs have what they keep."""
    inputs = Inputs.make("relation_mean", CASES["hub row"]).to(cuda)
    pairs = torch.tensor([[0, 1, 1], [5, 2, 3]])
    inter = InteractionGraph.from_edges(pairs, num_items=1000).to(cuda)
    users = torch.arange(2, device=cuda).repeat(50)
    rng = torch.tensor(RNG, device=cuda)

    def draw(rng: Tensor) -> list[Tensor]:
        return [
            ops.sample_edges_per_relation(inputs.graph, 0.4, rng),
            ops.sample_edges(1000, 300, rng),
            ops.random_permutation(1000, rng, 3),
            ops.dropout_mask(1000, 0.3, rng),
            ops.sample_negatives(users, inter, rng),
        ]

    draw(rng)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = draw(rng)
        rng[1].add_(1)
    seen = []
    for step in range(2):
        graph.replay()
        assert_same(found, draw(torch.tensor((RNG[0], RNG[1] + step), device=cuda)))
        seen.append([x.clone() for x in found])
    assert not any(torch.equal(a, b) for a, b in zip(*seen, strict=True))


# -- a training step ------------------------------------------------------------------------------


def small_model() -> KGRec:
    """Users, items and other entities, with hubs; weights that make every loss count."""
    generator = torch.Generator().manual_seed(12)

    def ids(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    edge_index = torch.stack([ids(90, 3000), ids(200, 3000)])
    edge_index[0, :900] = 3
    kg = RelGraph.from_edges(edge_index, ids(7, 3000), num_nodes=200, num_relations=7)
    pairs = torch.randperm(60 * 50, generator=generator)[:700]
    inter = InteractionGraph.from_edges(
        torch.stack([pairs // 50, pairs % 50]), num_users=60, num_items=50
    )
    torch.manual_seed(13)
    return KGRec(60, 50, 200, 8, kg, inter, mae_msize=32, mae_coef=1.0, cl_coef=1.0)


def batch_on(device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(14)
    highs = {"user_id": 60, "item_id": 50, "neg_item_id": 50}
    return {n: torch.randint(h, (64,), generator=generator).to(device) for n, h in highs.items()}


def masks_on(masks: StepMasks, device: torch.device) -> StepMasks:
    moved = {f.name: getattr(masks, f.name).to(device) for f in dataclasses.fields(masks)}
    return StepMasks(**moved)


def training_step(model: KGRec, masks: StepMasks) -> list[Tensor]:
    """The loss, all gradients, and all parameters after a step of plain gradient descent."""
    device = model.inter_weight.device
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model.calculate_loss(batch_on(device), masks_on(masks, device))
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    return [loss.detach(), *grads, *(p.detach() for p in model.parameters())]


def test_training_step_is_that_of_the_cpu(device: torch.device) -> None:
    model = small_model()
    masks = model.draw_masks()
    exact = training_step(copy.deepcopy(model).double(), masks)
    there = copy.deepcopy(model).double().to(device)
    for ours, wanted in zip(training_step(there, masks), exact, strict=True):
        torch.testing.assert_close(ours.cpu(), wanted, rtol=1e-9, atol=1e-11)
    with ops.use_reference():
        theirs = training_step(copy.deepcopy(model), masks)
    found = training_step(copy.deepcopy(model).to(device), masks)
    assert len(found) == 1 + 2 * len(list(model.parameters()))
    for ours, plain, wanted in zip(found, theirs, exact, strict=True):
        assert_as_good_as(ours.cpu(), plain, wanted)


def test_training_step_draws_its_own_masks(device: torch.device) -> None:
    model = small_model().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.calculate_loss(batch_on(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert len(set(losses)) == 3


def test_draws_of_a_step_are_those_of_the_cpu(device: torch.device) -> None:
    """Bit by bit, where they do not depend on scores, whose last digits differ."""
    model = small_model()
    rng = torch.tensor(RNG)
    wanted = model.draw_masks(rng)
    found = copy.deepcopy(model).to(device).draw_masks(rng.to(device))
    for name in ("sampled", "kept", "permutation"):
        assert torch.equal(getattr(found, name).cpu(), getattr(wanted, name)), name


def test_a_training_step_never_waits(cuda: torch.device) -> None:
    model = small_model().to(cuda)
    optimizer = make_adam(model, 0.01, 0.0)
    step = PlainStep(model, optimizer, torch.tensor(RNG, device=cuda))
    batch = batch_on(cuda)
    del batch["neg_item_id"]
    step(batch)  # makes what graphs and libraries keep
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_captured_steps_are_the_plain_ones(cuda: torch.device) -> None:
    """Batches of different sizes, negatives drawn in the step."""
    ends = []
    for captured in (False, True):
        model = small_model().to(cuda)
        optimizer, rng = make_adam(model, 0.01, 0.0), torch.tensor((5, 0), device=cuda)
        step = PlainStep(model, optimizer, rng)
        if captured:
            step = CapturedStep(model, optimizer, rng, 64)
        losses = []
        for number in range(8):
            batch = {n: x[: 64 - 5 * (number % 3)] for n, x in batch_on(cuda).items()}
            del batch["neg_item_id"]
            losses.append(step(batch))
        ends.append((torch.stack(losses), *(p.detach() for p in model.parameters())))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)
