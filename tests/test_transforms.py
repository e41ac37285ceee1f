"""The modules under functional calls, vmap, other devices, tracing and compiling."""

import itertools
import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
from tolerances import assert_same
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map
from twins import TWINS, arguments, every_class, every_sequence, only_on_cpu, pair, results_and_gradients

import fusedrnn
from fusedrnn.backends import extension

pytestmark = pytest.mark.usefixtures("device")


@every_class
def test_parametrized_weights(plain):
    ours, theirs = pair(plain, 3, 4)
    name = next(name for name, _ in ours.named_parameters() if "weight_hh" in name)
    for module in (ours, theirs):
        torch.manual_seed(0)
        nn.utils.parametrizations.weight_norm(module, name)
    args = arguments(plain)
    for _ in range(2):
        assert_same(*(results_and_gradients(m, *args) for m in (ours, theirs)))
        for module in (ours, theirs):
            for p in module.parameters():
                p.data.mul_(1.5)


@every_class
def test_functional_call_uses_the_given_weights(plain):
    ours, theirs = pair(plain, 3, 4)
    args = arguments(plain)
    new = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    assert_same(*(torch.func.functional_call(m, new, args) for m in (ours, theirs)))


@every_class
def test_ensembles_by_vmap_and_gradients_by_torch_func(plain):
    ensemble = [TWINS[plain](3, 4, dtype=torch.float64) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(ensemble)
    args = arguments(plain)

    def run(weights):
        return tree_leaves(torch.func.functional_call(ensemble[0], weights, args))[0]

    wanted = torch.stack([tree_leaves(m(*args))[0] for m in ensemble])
    assert_same(torch.func.vmap(run)(stacked), wanted)
    results = torch.func.vmap(torch.func.grad(lambda w: run(w).sum()))(stacked)
    for n, module in enumerate(ensemble):
        grads = torch.autograd.grad(wanted[n].sum(), module.parameters(), retain_graph=True)
        assert_same([results[name][n] for name, _ in module.named_parameters()], list(grads))


@every_class
def test_gradients_of_each_sample(plain):
    ours, _ = pair(plain, 3, 4)
    weights = {name: p.detach() for name, p in ours.named_parameters()}
    cases = [arguments(plain) for _ in range(3)]

    def loss(weights, args):
        return tree_leaves(torch.func.functional_call(ours, weights, args))[0].square().sum()

    stacked = tree_map(lambda *t: torch.stack(t), *cases)
    results = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, stacked)
    for n, args in enumerate(cases):
        grads = torch.autograd.grad(loss(dict(ours.named_parameters()), args), ours.parameters())
        assert_same([results[name][n] for name in weights], list(grads))


@every_class
def test_expanded_weights_are_refused(plain):
    ours = TWINS[plain](3, 4)
    with pytest.raises(RuntimeError, match="Expanded Weights encountered"):
        call_for_per_sample_grads(ours, batch_size=2)(arguments(plain, dtype=torch.float32)[0])


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "shared"])
@pytest.mark.parametrize("rate", ["dropout", "weight_drop", "recurrent_dropout", "zoneout_h", "zoneout_c"])
def test_vmap_draws_masks_as_its_randomness_says(rate, batched):
    model = fusedrnn.FusedLSTM(3, 4, 2, dtype=torch.float64, **{rate: 0.5})
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    xs, in_dims = (x.expand(3, *x.shape).contiguous(), 0) if batched else (x, None)

    def run(randomness):
        torch.manual_seed(0)
        return torch.func.vmap(lambda x, _: model(x)[0], (in_dims, 0), randomness=randomness)(xs, torch.zeros(3))

    torch.manual_seed(0)
    wanted = model(x)[0]
    assert_same(list(run("same")), [wanted] * 3)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(run("different"), 2))
    with pytest.raises(RuntimeError, match="randomness error mode"):
        run("error")


@every_class
def test_meta_device(plain):
    ours = TWINS[plain](3, 4, device="meta")
    results, wanted = (m(*(tree_map(lambda t: t.to("meta"), a) for a in arguments(plain, dtype=torch.float32)))
                     for m in (ours, plain(3, 4, device="meta")))  # fmt: skip
    for a, b in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
        assert a.is_meta and (a.shape, a.dtype) == (b.shape, b.dtype)


@every_class
def test_device_context_and_to(plain):
    with torch.device("meta"):
        ours = TWINS[plain](3, 4)
    assert next(ours.parameters()).is_meta
    ours = ours.to_empty(device=torch.get_default_device()).double()
    ours.load_state_dict(plain(3, 4).state_dict())
    assert tree_leaves(ours(*arguments(plain)))[0].dtype == torch.float64


@every_class
def test_traced_module(plain):
    ours, _ = pair(plain, 3, 4)
    x, h = arguments(plain)
    traced = trace(Flat(ours), x, *tree_leaves(h))
    y, g = arguments(plain, T=9)
    assert_same(traced(y, *tree_leaves(g)), tuple(tree_leaves(ours(y, g))))


def trace(module, *args):
    return torch.jit.trace(module, args)  # with its check, which traces again, without gradients


def export(module, *args):
    return torch.export.export(module, args).module()


def fx(module, *args):
    captured = make_fx(lambda weights, *args: torch.func.functional_call(module, weights, args))(
        dict(module.named_parameters()), *args
    )
    run = nn.Module()
    run.forward = lambda *args: captured(dict(module.named_parameters()), *args)
    run.parameters = module.parameters
    return run


class Flat(nn.Module):
    """States as arguments of their own; packed: rows of 5 and 3 steps."""

    def __init__(self, inner, packed=False):
        super().__init__()
        self.inner, self.packed = inner, packed

    def forward(self, x, *flat):
        if self.packed:
            x = pack_padded_sequence(x, torch.tensor([5, 3], device="cpu"))
        output, *state = tree_leaves(self.inner(x, flat if len(flat) == 2 else flat[0]))
        return output, *(t for t in state if isinstance(t, torch.Tensor) and t.is_floating_point())


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("capture", [trace, export, fx])
@every_class
def test_a_captured_graph_can_be_trained(plain, capture, grad):
    ours, _ = pair(plain, 3, 4)
    x, h = arguments(plain)
    with torch.set_grad_enabled(grad):
        captured = capture(Flat(ours), x, *tree_leaves(h))
    x, h = arguments(plain, grad=True)
    inputs = [x, *tree_leaves(h)]
    wanted = results_and_gradients(ours, x, h, inputs=inputs)
    assert_same(results_and_gradients(captured, *inputs, inputs=inputs), wanted)


@only_on_cpu
def test_tensorboard_draws_the_graph(device, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    for plain, fused in TWINS.items():
        x, _ = arguments(plain, dtype=torch.float32)
        with tensorboard.SummaryWriter(tmp_path) as writer:
            writer.add_graph(fused(3, 4), x)


KEEPING = [{"num_layers": 2, "bidirectional": True}, {"proj_size": 2}, {"recompute": True}]


# torch.export has no number of rows for what pack_padded_sequence makes.
@pytest.mark.parametrize(
    "capture, options",
    [*itertools.product([trace, export], KEEPING), (trace, {"packed": True})],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__,
)
def test_what_a_captured_graph_keeps_is_enough(options, capture):
    options = dict(options)
    packed = options.pop("packed", False)
    model = Flat(fusedrnn.FusedLSTM(3, 4, **options, dtype=torch.float64).requires_grad_(False), packed)
    layers = 4 if "num_layers" in options else 1
    x, (h, c) = arguments(nn.LSTM, layers=layers)
    inputs = [x, h[..., : options.get("proj_size", 4)], c]
    with torch.no_grad():
        captured = capture(model, *inputs)
    inputs = [t.requires_grad_() for t in inputs]  # no parameter did while it was captured, nor now
    assert_same(*(results_and_gradients(m, *inputs, inputs=inputs) for m in (captured, model)))


@every_class
def test_one_graph_for_all_lengths_and_batches(plain):
    ours, theirs = pair(plain, 3, 4)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=counter)
    for T, N in [(5, 2), (7, 3), (9, 4), (11, 5)]:
        args = arguments(plain, T=T, N=N, grad=True)
        assert_same(*(results_and_gradients(m, *args, inputs=tree_leaves(args)) for m in (compiled, theirs)))
    assert counter.frame_count == 1


@every_sequence
def test_compiled_with_every_option(plain):
    ours, _ = pair(plain, 3, 4, 2, bidirectional=True, batch_first=True)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, h = arguments(plain, N=3, layers=4, grad=True)
    options = {
        "lengths": torch.tensor([5, 0, 3]),
        "reset": torch.rand(3, 5) < 0.4,
        "reset_state": tree_map(lambda t: t[:, :1].detach() * 2, h),
        "return_state_sequence": "all",
    }
    x = x.transpose(0, 1)
    assert_same(*(results_and_gradients(m, x, h, inputs=tree_leaves(h), **options) for m in (compiled, ours)))
    with torch.no_grad():
        assert_same(compiled(x, h, **options), ours(x, h, **options))


@pytest.mark.slow
def test_compiled_by_inductor():
    model = nn.Sequential(fusedrnn.FusedLSTM(3, 4, 2, bidirectional=True))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(5, 2, 3)
    assert_same(*(results_and_gradients(m, x) for m in (compiled, model)), torch.float32)


@every_sequence
def test_exported_with_dynamic_steps_and_batch(plain):
    ours, _ = pair(plain, 3, 4, 2)
    x, _ = arguments(plain)
    T, N = torch.export.Dim("T", min=2), torch.export.Dim("N", min=2)
    exported = torch.export.export(ours, (x,), dynamic_shapes={"input": {0: T, 1: N}}).module()
    y, _ = arguments(plain, T=9, N=4)
    assert_same(exported(y), ours(y))


def test_marks_of_constants_are_those_of_torch():
    marks = [vars(mark(lambda: None)) for mark in (extension.constant_in_graphs, torch.compiler.assume_constant_result)]
    assert marks[0] == marks[1] != {}


def test_an_import_does_not_load_the_compiler_of_torch():
    code = "import sys, torch, fusedrnn; assert 'torch._dynamo' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
