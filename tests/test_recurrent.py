"""Cells that users write, in layers: the compiled kernels against the cell's own function, step by step."""

import copy
import io
import itertools
import pickle
import threading
import time
import warnings

import pytest
import torch
from tolerances import IN_A_16_BIT_TYPE, SAME, assert_same, distance
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import compiler, zoo
from fusedrnn.backends import compiled


@fusedrnn.cell(
    gates="a b c", states="h k", recurrent="a c", parameters="u", gate_parameters="v", inputs="e", unit_inputs="d"
)
def everything(x, r, s, p, e):
    a = torch.sigmoid(x.a * p.v.a + r.a + e.e)
    k = a * s.k + torch.tanh(x.b + p.u * s.h) * torch.sigmoid(e.d)
    return torch.tanh(k * p.v.c + torch.relu(x.c) * r.c) + p.v.b, k


CELLS = {"everything": everything, "peephole_lstm": zoo.peephole_lstm, "min_gru": zoo.min_gru, "augru": zoo.augru}


def given_inputs(cell, shape, hidden, dtype):
    def leaf(*size):
        return torch.rand(*size, dtype=dtype).requires_grad_()

    return {n: leaf(*shape) for n in cell.inputs} | {n: leaf(*shape, hidden) for n in cell.unit_inputs}


@pytest.fixture
def reference_only(monkeypatch):
    return lambda: monkeypatch.setattr(compiled, "is_compiled", lambda *_: False)


def results_and_gradients(layer, x, given, options):
    torch.manual_seed(1)
    output, state, steps = layer(x, inputs=given, return_state_sequence="all", **options)
    output = output.data if isinstance(x, torch.nn.utils.rnn.PackedSequence) else output
    outputs = [t for t in torch.utils._pytree.tree_leaves((output, state, steps)) if isinstance(t, torch.Tensor)]
    outputs = [t for t in outputs if t.requires_grad]
    leaves = [*layer.parameters(), *given.values(), *options.get("hx", ()), *[x] * isinstance(x, torch.Tensor)]
    grads = [torch.randn(t.shape, dtype=torch.float64).to(t.dtype) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads, allow_unused=True)]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("layers, bidirectional", [(1, False), (2, True)])
def test_kernels_give_what_the_function_gives(name, layers, bidirectional, reference_only):
    """Lengths, resets, zoneout, threads and chunks of rows, in float64."""
    cell, dtype = CELLS[name], torch.float64
    shapes = [(6, 5, 19), (40, 33, 70), (7, 1, 130)]
    results = []
    for kernels in (True, False):
        if not kernels:
            reference_only()
        results.append([])
        for (T, N, H), masked in itertools.product(shapes, (False, True)):
            torch.manual_seed(0)
            options = {"bidirectional": bidirectional, "dtype": dtype}
            layer = fusedrnn.Recurrent(cell, 11, H, layers, zoneout={"h": 0.2} if masked else None, **options)
            assert layer.backend == ("compiled" if kernels else "reference")
            x = torch.randn(T, N, 11, dtype=dtype, requires_grad=True)
            call = {}
            if masked:
                call = {"lengths": torch.randint(0, T + 1, (N,)), "reset": torch.rand(T, N) < 0.2}
            results[-1] += results_and_gradients(layer, x, given_inputs(cell, (T, N), H, dtype), call)
    assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_of_every_dtype(dtype, reference_only):
    torch.manual_seed(0)
    layer = fusedrnn.Recurrent(everything, 11, 37, dtype=dtype)
    assert layer.backend == "compiled"
    x, given = torch.randn(9, 6, 11, dtype=dtype, requires_grad=True), given_inputs(everything, (9, 6), 37, dtype)
    ours = results_and_gradients(layer, x, given, {})
    reference_only()
    exact = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    wide = copy.deepcopy(layer).double()
    theirs = results_and_gradients(wide, x.detach().double().requires_grad_(), exact, {})
    limit = SAME.get(dtype) or IN_A_16_BIT_TYPE[str(dtype).removeprefix("torch.")]
    for a, b in zip(ours, theirs, strict=True):
        assert distance(a, b) <= limit


@pytest.mark.parametrize("name", CELLS)
def test_forms_of_a_batch_give_the_same(name):
    """Packed, batch first and unbatched, as lengths do."""
    cell, lengths, H = CELLS[name], [5, 3, 2], 8
    layer = fusedrnn.Recurrent(cell, 4, H, dtype=torch.float64)
    x, given = torch.randn(5, 3, 4, dtype=torch.float64), given_inputs(cell, (5, 3), H, torch.float64)
    output, state = layer(x, inputs=given, lengths=torch.tensor(lengths))

    def pack(t):
        return pack_sequence([t[:n, i] for i, n in enumerate(lengths)])

    packed, packed_state = layer(pack(x), inputs={k: pack(t) for k, t in given.items()})
    assert_same([packed.data, packed_state], [pack(output).data, state])
    layer.batch_first = True
    turned, _ = layer(x.transpose(0, 1), inputs={k: t.transpose(0, 1) for k, t in given.items()})
    layer.batch_first = False
    assert_same(turned.transpose(0, 1), layer(x, inputs=given)[0])
    single, _ = layer(x[:, 0], inputs={k: t[:, 0] for k, t in given.items()})
    assert_same(single, output[:, 0])
    cell_module = fusedrnn.RecurrentCell(cell, 4, H, dtype=torch.float64)
    cell_module.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    states = cell_module(x[0], inputs={k: t[0] for k, t in given.items()})
    assert_same((states if isinstance(states, tuple) else [states])[0], output[0])


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_both_orders_are_right(name):
    cell = CELLS[name]
    layer = fusedrnn.Recurrent(cell, 2, 3, dtype=torch.float64)
    given = given_inputs(cell, (2, 2), 3, torch.float64)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        return layer(x, inputs=dict(zip(given, values, strict=True)))[0]

    assert torch.autograd.gradcheck(run, (x, *given.values()))
    assert torch.autograd.gradgradcheck(run, (x, *given.values()))


def test_a_layer_can_be_copied_pickled_compiled_and_recomputed():
    torch.manual_seed(0)
    layer = fusedrnn.Recurrent(zoo.peephole_lstm, 4, 8, recompute=True)
    x = torch.randn(5, 3, 4)
    wanted = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.compile(layer, backend="aot_eager")):
        assert_same(other(x), wanted, torch.float32)
    plain = copy.deepcopy(layer)
    plain.recompute = False
    grads = [torch.autograd.grad(m(x)[0].sum(), list(m.parameters())) for m in (layer, plain)]
    assert_same(*grads, torch.float32)
    exported = torch.export.export(layer, (x,))
    assert_same(exported.module()(x), wanted, torch.float32)


def test_the_function_itself_runs_in_a_compiled_graph(reference_only):
    reference_only()
    layer, given = fusedrnn.Recurrent(everything, 4, 8), given_inputs(everything, (5, 3), 8, torch.float32)
    x = torch.randn(5, 3, 4, requires_grad=True)
    graph = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_same(results(graph, x, given), results(layer, x, given), torch.float32)


def results(layer, x, given):
    output, state = layer(x, inputs=given)
    return [output, *state, *torch.autograd.grad(output.sum(), [x, *given.values(), *layer.parameters()])]


def with_a_parameter(name):
    return fusedrnn.cell(gates="a", states="h", parameters=name)(lambda x, r, s, p: x.a * getattr(p, name))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: fusedrnn.Recurrent(torch.tanh, 4, 8), "cell must be made by fusedrnn.cell"),
        (lambda: fusedrnn.Recurrent(zoo.mgu, 4, 8, zoneout={"c": 0.1}), "has no state 'c', only h"),
        (lambda: fusedrnn.Recurrent(zoo.mgu, 4, 8)(torch.zeros(3, 2, 5)), "Expected 4, got 5"),
        (
            lambda: fusedrnn.Recurrent(zoo.mgu, 4, 8)(torch.zeros(3, 2, 4), torch.zeros(1, 3, 8)),
            "Expected hidden state h",
        ),
        (lambda: fusedrnn.Recurrent(zoo.augru, 4, 8)(torch.zeros(3, 2, 4)), "with: .*; got none"),
        (lambda: fusedrnn.Recurrent(zoo.mgu, 4, 8)(torch.zeros(3, 2, 4), inputs={"e": torch.zeros(3, 2)}), "got e"),
        (
            lambda: fusedrnn.Recurrent(everything, 4, 8)(
                torch.zeros(3, 2, 4), inputs={"e": torch.zeros(2, 3), "d": torch.zeros(3, 2, 8)}
            ),
            r"must be torch.float32 \[3, 2\] on cpu, got torch.float32 \[2, 3\]",
        ),
        (lambda: fusedrnn.Recurrent(zoo.mgu, 4, 8, zoneout=0.1), "zoneout must be a dictionary .*, got 0.1"),
        (
            lambda: fusedrnn.Recurrent(zoo.augru, 4, 8)(torch.zeros(3, 2, 4), inputs=torch.zeros(3, 2)),
            r"inputs must be a dictionary of tensors by name, got torch.float32 \[3, 2\]",
        ),
        (lambda: fusedrnn.RecurrentCell(with_a_parameter("forward"), 4, 8), "cannot be called 'forward'"),
        (lambda: fusedrnn.RecurrentCell(with_a_parameter("bias"), 4, 8), "cannot be called 'bias'"),
        (lambda: torch.jit.script(fusedrnn.Recurrent(zoo.mgu, 4, 8)), "TorchScript cannot compile cells"),
    ],
)
def test_bad_input_is_refused_with_what_was_seen(call, said):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=said):
        call()


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("module, x", [(fusedrnn.Recurrent, (5, 3, 4)), (fusedrnn.RecurrentCell, (3, 4))])
def test_an_export_to_onnx_is_refused_with_the_reason(module, x, dynamo):
    layer = module(zoo.peephole_lstm, 4, 8).eval()
    with pytest.raises((ValueError, RuntimeError), match="ONNX has no operator for the cell peephole_lstm"):
        torch.onnx.export(layer, (torch.zeros(x),), io.BytesIO(), dynamo=dynamo, verbose=False)


@fusedrnn.cell(gates="a", states="h k l", recurrent="")
def keeping(x, r, s):
    return s.h, s.k, s.k


def test_states_that_a_cell_returns_as_they_were_are_new_memory(reference_only):
    reference_only()
    given = [torch.randn(3, 8) for _ in range(3)]
    before = [s.clone() for s in given]
    for s in fusedrnn.RecurrentCell(keeping, 4, 8)(torch.zeros(3, 4), tuple(given)):
        assert s.abs().min() > 0
        s.zero_()
    assert all(map(torch.equal, given, before))


def test_a_compiler_that_fails_runs_once_for_all_threads(monkeypatch):
    tried = []

    def fail(*arguments):
        tried.append(arguments)
        time.sleep(0.1)
        raise compiler.CellBuildError("it fails")

    monkeypatch.setattr(compiler, "load", fail)
    monkeypatch.setattr(compiled, "_answers", {})
    layer = fusedrnn.Recurrent(keeping, 4, 8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=layer, args=(torch.zeros(2, 3, 4),)) for _ in range(3)]
        for run in (threading.Thread.start, threading.Thread.join):
            for thread in threads:
                run(thread)
    assert len(tried) == len(said) == 1 and "without kernels, correct but slow: it fails" in str(said[0].message)


@pytest.mark.parametrize("kernels", [True, False])
def test_what_stands_behind_the_end_of_a_row_counts_for_nothing(kernels, reference_only):
    if not kernels:
        reference_only()
    layer, lengths = fusedrnn.Recurrent(everything, 4, 8, dtype=torch.float64), torch.tensor([5, 2, 0])
    x, given = torch.randn(5, 3, 4, dtype=torch.float64), given_inputs(everything, (5, 3), 8, torch.float64)
    behind = torch.arange(5).unsqueeze(1) >= lengths
    spoilt = [t.detach().clone() for t in (x, *given.values())]
    for t in spoilt:
        t[behind] = float("nan")
    spoilt_given = {name: t.requires_grad_() for name, t in zip(given, spoilt[1:], strict=True)}
    wanted = results_and_gradients(layer, x.requires_grad_(), given, {"lengths": lengths})
    assert_same(results_and_gradients(layer, spoilt[0].requires_grad_(), spoilt_given, {"lengths": lengths}), wanted)
