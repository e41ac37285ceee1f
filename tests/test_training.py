"""Training at scale: several processes, checkpointing, reproducible masks, second derivatives."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tolerances import assert_same
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from twins import SEQUENCES, TWINS, arguments, every_sequence, only_on_cpu

import fusedrnn
from fusedrnn.backends import reference

pytestmark = pytest.mark.usefixtures("device")


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layers = nn.ModuleList(TWINS[plain](6, 6, dtype=torch.float64, **options) for plain in SEQUENCES)

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        return x


def gradients(module, run):
    module.zero_grad()
    output = run()
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in module.parameters())]


def train_in_process(rank, path):
    """DDP and FSDP2 on this process's half of the batch; the gradients must be those of the whole batch."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model, x = Model(), torch.randn(4, 6, 6, dtype=torch.float64)
    model(x).square().mean().backward()
    wanted, half = {name: p.grad for name, p in model.named_parameters()}, x.chunk(2, 1)[rank]
    distributed = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    sharded = copy.deepcopy(model)
    for layer in sharded.layers:
        fully_shard(layer)
    fully_shard(sharded)
    for twin in (distributed, sharded):
        twin.zero_grad()
        twin(half).square().mean().backward()
        for name, p in twin.named_parameters():
            grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            assert_same(grad, wanted[name.removeprefix("module.")])
    assert all(hasattr(p, "full_tensor") for p in sharded.parameters())
    dist.destroy_process_group()
    # Threads of gloo outlive their group, and one that wants Python's lock while Python ends aborts the process.
    os._exit(0)


@only_on_cpu
@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path):
    mp.spawn(train_in_process, (str(tmp_path / "rendezvous"),), nprocs=2)


@every_sequence
def test_masks_are_the_same_in_eager_compiled_recomputed_and_checkpointed_runs(plain):
    options = {"dropout": 0.5, "recurrent_dropout": 0.3, "zoneout_h": 0.2, "weight_drop": 0.4}
    module = TWINS[plain](4, 4, 3, dtype=torch.float64, bidirectional=True, **options)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    runs = {
        "eager": lambda: module(x)[0],
        "compiled": lambda: compiled(x)[0],
        "checkpointed": lambda: checkpoint(lambda x: module(x)[0], x, use_reentrant=False),
        "recomputed": lambda: module(x)[0],
    }
    results = {}
    for name, run in runs.items():
        module.recompute = name == "recomputed"
        torch.manual_seed(11)
        results[name] = gradients(module, run)
        assert_same(results[name], results["eager"])
    assert not torch.equal(runs["eager"](), runs["eager"]())


@pytest.mark.slow
def test_masks_are_the_same_in_a_graph_of_inductor():
    model = nn.Sequential(fusedrnn.FusedLSTM(4, 4, 3, dropout=0.5, zoneout_c=0.3))
    x = torch.randn(5, 3, 4)
    torch._dynamo.reset()
    compiled, results = torch.compile(model, fullgraph=True), []
    for run in (model, compiled):
        torch.manual_seed(11)
        results.append(gradients(model, lambda run=run: run(x)[0]))
    assert_same(*results, torch.float32)


@only_on_cpu
def test_dropout_between_layers_draws_as_torch_does():
    plain = nn.LSTM(4, 4, 3, dropout=0.5)
    fused = fusedrnn.convert(copy.deepcopy(plain))
    x, results = torch.randn(5, 3, 4), []
    for module in (fused, plain):
        torch.manual_seed(11)
        results.append(gradients(module, lambda module=module: module(x)[0]))
    assert_same(*results, torch.float32)


OPTIONS = {
    "plain": ({}, lambda x: {}),
    "masked": ({"recurrent_dropout": 0.3, "zoneout_h": 0.3}, lambda x: {}),
    "recomputed": ({"recompute": True}, lambda x: {"lengths": torch.tensor([3, 1])}),
    "reset": ({}, lambda x: {"reset": torch.tensor([[0, 1], [1, 0], [0, 0]]).bool(), "return_state_sequence": "all"}),
}


@every_sequence
@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_of_both_orders_and_forward_mode(plain, option):
    built, call = OPTIONS[option]
    module = TWINS[plain](2, 3, 2, bidirectional=True, dtype=torch.float64, **built)
    x, h = arguments(plain, 2, 3, 2, 3, layers=4, grad=True)
    names = [name for name, _ in module.named_parameters()]
    states = tree_leaves(h)

    def run(x, *rest):
        torch.manual_seed(5)
        hx = rest[: len(states)]
        weights = dict(zip(names, rest[len(states) :], strict=True))
        hx = tuple(hx) if len(hx) == 2 else hx[0]
        results = torch.func.functional_call(module, weights, (x, hx), call(x))
        return tuple(t for t in tree_leaves(results) if isinstance(t, torch.Tensor))

    inputs = (x, *states, *module.parameters())
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@every_sequence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_second_order_terms_are_there_in_every_dtype(plain, dtype):
    """A gradient penalty, as in WGAN-GP, against the same in float64."""
    module = TWINS[plain](3, 4, dtype=torch.float64)
    x, _ = arguments(plain)
    results = []
    for kind in (torch.float64, dtype):
        twin, leaf = copy.deepcopy(module).to(kind), x.to(kind).requires_grad_()
        (dx,) = torch.autograd.grad(twin(leaf)[0].square().sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), [leaf, *twin.parameters()]))
    eps = torch.finfo(dtype).eps
    for a, b in zip(results[1], results[0], strict=True):
        assert (a - b).abs().max() < 60 * eps * b.abs().max()  # some thirty roundings on the way, twice


@every_sequence
def test_second_order_terms_of_a_compiled_graph_are_an_error(plain):
    module = TWINS[plain](3, 4, dtype=torch.float64)
    x, _ = arguments(plain)

    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    leaf = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="double backward"):
        (dx,) = torch.autograd.grad(compiled(leaf)[0].square().sum(), leaf, create_graph=True)
        dx.square().sum().backward()


@every_sequence
def test_operators_have_second_derivatives(plain, monkeypatch):
    module = TWINS[plain](2, 3, bidirectional=True, dtype=torch.float64)
    x, _ = arguments(plain, 2, 3, 2, 3, grad=True)
    leaves = [x, *module.parameters()]

    def penalty():
        grads = torch.autograd.grad(module(x)[0].pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves, create_graph=True)

    wanted = penalty()
    monkeypatch.setattr("fusedrnn.backends.extension.scan", lambda *args: None)
    results = penalty()
    assert_same(results, wanted)


@only_on_cpu
def test_every_mode_is_tested_here():
    assert {TWINS[plain](2, 2).mode for plain in SEQUENCES} | {"RNN_RELU"} == set(reference.CELLS)


@every_sequence
def test_ensembles_and_derivatives_by_torch_func(plain):
    module = TWINS[plain](3, 4, 2, bidirectional=True, dtype=torch.float64)
    xs = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    lengths, reset = torch.tensor([[5, 2]] * 3), torch.rand(3, 5, 2) < 0.3

    def run(x, lengths, reset):
        return module(x, lengths=lengths, reset=reset)[0]

    wanted = torch.stack([run(*each) for each in zip(xs, lengths, reset, strict=True)])
    assert_same(torch.func.vmap(run)(xs, lengths, reset), wanted)
    x = xs[0, :2]
    reverse, forward = (f(lambda x: module(x)[0])(x) for f in (torch.func.jacrev, torch.func.jacfwd))
    assert_same(forward, reverse)
    _, tangent = torch.func.jvp(lambda x: module(x)[0], (x,), (torch.ones_like(x),))
    assert_same(tangent, reverse.sum((-1, -2, -3)))


def test_compile_time_does_not_depend_on_the_number_of_steps():
    sizes = []
    for T in (4, 64):
        module = fusedrnn.FusedLSTM(3, 4, 2, bidirectional=True)
        graphs = []
        torch._dynamo.reset()

        def backend(graph, inputs, graphs=graphs):
            graphs.append(graph)
            return graph

        torch.compile(module, fullgraph=True, backend=backend)(torch.randn(T, 2, 3))
        (graph,) = graphs
        operators = [n for n in graph.graph.nodes if n.target is torch.ops.fusedrnn.scan_forward.default]
        assert len(operators) == 2  # one node a layer
        sizes.append(len(graph.graph.nodes))
    assert sizes[0] == sizes[1]
