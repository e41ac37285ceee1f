"""The modules under autocast, functional calls, vmap, other devices, tracing and compiling."""

import pytest
import torch
import torch._dynamo.testing
from tolerances import assert_same
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from twins import TWINS, arguments, every_class, every_sequence, pair, results_and_gradients

import fusedrnn

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
    found = torch.func.vmap(torch.func.grad(lambda w: run(w).sum()))(stacked)
    for n, module in enumerate(ensemble):
        grads = torch.autograd.grad(wanted[n].sum(), module.parameters(), retain_graph=True)
        assert_same([found[name][n] for name, _ in module.named_parameters()], list(grads))


@every_class
def test_meta_device(plain):
    ours = TWINS[plain](3, 4, device="meta")
    found, wanted = (m(*(tree_map(lambda t: t.to("meta"), a) for a in arguments(plain, dtype=torch.float32)))
                     for m in (ours, plain(3, 4, device="meta")))  # fmt: skip
    for a, b in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
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
def test_autocast(plain):
    ours, theirs = pair(plain, 3, 4, dtype=torch.float32)
    args = arguments(plain, dtype=torch.float32, grad=True)
    wanted = results_and_gradients(theirs, *args)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        output = ours(*args)
    assert all(t.dtype == torch.bfloat16 for t in tree_leaves(output))
    for a, b in zip(tree_leaves(output), wanted[0], strict=True):
        assert (a - b).abs().max() < 0.02  # values within 1, eight bits of mantissa
    sum(t.float().sum() for t in tree_leaves(output)).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in ours.parameters())
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        double = TWINS[plain](3, 4, dtype=torch.float64)(*arguments(plain))
    assert all(t.dtype == torch.float64 for t in tree_leaves(double))


@every_class
def test_traced_module(plain):
    ours, _ = pair(plain, 3, 4)
    x, h = arguments(plain)
    flat = tree_leaves(h)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ours

        def forward(self, x, *flat):
            return tuple(tree_leaves(self.inner(x, flat if len(flat) == 2 else flat[0])))

    traced = torch.jit.trace(Flat(), (x, *flat), check_trace=False)
    y, g = arguments(plain, T=9)
    assert_same(traced(y, *tree_leaves(g)), tuple(tree_leaves(ours(y, g))))


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
