"""Cells with norms over a row: against equations written once more, and in every form of a layer."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_same
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import info, zoo
from fusedrnn.compiler import __main__

T, N, I, H = 6, 3, 5, 8


@fusedrnn.cell(gates="a b", states="h k", recurrent="b", unit_inputs="d")
def rms(x, r, s, e):
    k = fusedrnn.rms_norm(s.k) + fusedrnn.rms_norm(x.a) * torch.sigmoid(fusedrnn.rms_norm(r).b)
    return torch.tanh(k + fusedrnn.layer_norm(e.d * s.h)) - fusedrnn.rms_norm(2 * x - 1).b, k


def of_row(*gates):
    """Mean 0 and variance 1 of all gates' numbers together."""
    row = torch.cat(gates, -1)
    mean = row.sum(-1, keepdim=True) / row.size(-1)
    variance = (row - mean).square().sum(-1, keepdim=True) / row.size(-1)
    return ((row - mean) / (variance + 1e-5).sqrt()).chunk(len(gates), -1)


def rms_of_row(*gates):
    row = torch.cat(gates, -1)
    square = row.square().sum(-1, keepdim=True) / row.size(-1)
    return (row / (square + 1e-5).sqrt()).chunk(len(gates), -1)


def lstm_gates(x, r, p):
    rows = (p[name].chunk(4) for name in ("gain_x", "gain_r", "shift"))
    return (a * m + b * k + c for m, k, a, b, c in zip(of_row(*x), of_row(*r), *rows, strict=True))


def lstm_by_hand(x, r, s, p):
    i, f, g, o = lstm_gates(x, r, p)
    c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(of_row(c)[0] * p["gain_c"] + p["shift_c"]), c


def lstm_fed_back_by_hand(x, r, s, p):
    i, f, g, o = lstm_gates(x, r, p)
    c = of_row(torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g))[0] * p["gain_c"] + p["shift_c"]
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_by_hand(x, r, s, p):
    x = torch.cat(of_row(*x), -1) * p["gain_x"] + p["shift_x"]
    r = torch.cat(of_row(*r), -1) * p["gain_r"] + p["shift_r"]
    (x_r, x_z, x_n), (r_r, r_z, r_n) = x.chunk(3, -1), r.chunk(3, -1)
    z = torch.sigmoid(x_z + r_z)
    return ((1 - z) * s[0] + z * torch.tanh(x_n + torch.sigmoid(x_r + r_r) * r_n),)


def dreamer_by_hand(x, r, s, p):
    row = torch.cat(of_row(*(a + b for a, b in zip(x, r, strict=True))), -1) * p["gain"] + p["shift"]
    reset, n, u = row.chunk(3, -1)
    n, u = torch.tanh(torch.sigmoid(reset) * n), torch.sigmoid(u - 1)
    return (u * n + (1 - u) * s[0],)


def rms_by_hand(x, r, s, p):
    (a,), (b,), (k,), (d,) = rms_of_row(x[0]), rms_of_row(r[0]), rms_of_row(s[1]), of_row(p["d"] * s[0])
    k = k + a * torch.sigmoid(b)
    return torch.tanh(k + d) - rms_of_row(2 * x[0] - 1, 2 * x[1] - 1)[1], k


CASES = {
    "layer_norm_lstm": (zoo.layer_norm_lstm, lstm_by_hand),
    "layer_norm_lstm_fed_back": (zoo.layer_norm_lstm_fed_back, lstm_fed_back_by_hand),
    "layer_norm_gru": (zoo.layer_norm_gru, gru_by_hand),
    "dreamer_gru": (zoo.dreamer_gru, dreamer_by_hand),
    "rms": (rms, rms_by_hand),
}


def made(name, bias=True, **options):
    """A layer without initial ones and zeros, what it is called with, and by what name."""
    cell = CASES[name][0]
    layer = fusedrnn.Recurrent(cell, I, H, bias=bias, dtype=torch.float64, **options)
    for w in layer.parameters():
        torch.nn.init.normal_(w, std=0.5)
    shapes = {"input": (T, N, I)} | {unit: (T, N, H) for unit in cell.unit_inputs}
    return layer, {key: torch.randn(shape, dtype=torch.float64, requires_grad=True) for key, shape in shapes.items()}


def call(layer, given, **options):
    inputs = {key: t for key, t in given.items() if key != "input"}
    return layer(given["input"], inputs=inputs or None, **options)


def loop(layer, step, given):
    """Every h, and the last of the other states."""
    w = {key.removesuffix("_l0"): t for key, t in layer.named_parameters()}
    states, outputs = [torch.zeros(N, H, dtype=torch.float64) for _ in layer.cell.states], []
    for t, x in enumerate(given["input"]):
        x = F.linear(x, w["weight_ih"], w.get("bias_ih")).split(H, -1)
        r = F.linear(states[0], w["weight_hh"], w.get("bias_hh")).split(H, -1)
        states = step(x, r, states, w | {key: e[t] for key, e in given.items()})
        outputs.append(states[0])
    return torch.stack(outputs), *states[1:]


def with_gradients(outputs, leaves):
    torch.manual_seed(1)
    return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.randn_like(t) for t in outputs])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_cell_with_norms_follows_its_equations(name, bias):
    layer, given = made(name, bias)
    output, last = call(layer, given)
    ours = (output, *(s[0] for s in last[1:])) if len(layer.cell.states) > 1 else (output,)
    leaves = [*given.values(), *layer.parameters()]
    wanted = loop(layer, CASES[name][1], given)
    assert_same(with_gradients(ours, leaves), with_gradients(wanted, leaves))


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_both_orders_are_right(name):
    layer, given = made(name)
    small = {key: t[:2, :2].detach().requires_grad_() for key, t in given.items()}
    names = [key for key, _ in layer.named_parameters() if key.startswith(("gain", "shift", "bias_hh"))]
    leaves = [*small.values(), *(getattr(layer, key) for key in names)]

    def run(*tensors):
        of_call = dict(zip(small, tensors, strict=False))
        weights = dict(zip(names, tensors[len(small) :], strict=True))
        inputs = {key: t for key, t in of_call.items() if key != "input"}
        return torch.func.functional_call(layer, weights, (of_call["input"],), {"inputs": inputs or None})[0]

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_forms_of_a_batch_give_the_same():
    layer, given = made("layer_norm_lstm", num_layers=2, bidirectional=True, heads=2)
    lengths, x = [6, 4, 1], given["input"]
    output, state = layer(x, lengths=torch.tensor(lengths))
    assert_same(layer(x * torch.ones(T, N, 1).cumsum(0).gt(6), lengths=torch.tensor([0, 0, 0]))[0], 0 * output)
    packed, packed_state = layer(pack_sequence([x[:n, i] for i, n in enumerate(lengths)]))
    wanted = pack_sequence([output[:n, i] for i, n in enumerate(lengths)])
    assert_same([packed.data, packed_state], [wanted.data, state])
    reset = torch.zeros(T, N, dtype=torch.bool)
    reset[3] = True
    assert_same(made_of_halves(layer, x), layer(x, reset=reset)[0])


def made_of_halves(layer, x):
    """The output of each layer where both directions begin anew at step 3."""
    parts = copy.deepcopy(layer)
    parts.num_layers = 1
    parts._suffixes, others = layer._suffixes[:2], layer._suffixes[2:]
    for suffixes in (parts._suffixes, others):
        parts._suffixes = suffixes
        parts.input_size = x.size(-1)
        x = torch.cat([parts(x[:3])[0], parts(x[3:])[0]])
    return x


def test_what_stands_behind_the_end_of_a_row_counts_for_nothing():
    layer, given = made("dreamer_gru")
    lengths, leaves = torch.tensor([6, 2, 0]), [given["input"], *layer.parameters()]
    spoilt = given["input"].detach().clone()
    spoilt[torch.arange(T).unsqueeze(1) >= lengths] = float("nan")
    results = [with_gradients(layer(given["input"], lengths=lengths), leaves)]
    leaves[0] = spoilt.requires_grad_()
    results.append(with_gradients(layer(spoilt, lengths=lengths), leaves))
    assert_same(*results)


def test_a_layer_with_norms_is_a_layer_as_any_other(recwarn):
    torch.manual_seed(0)
    layer = fusedrnn.Recurrent(zoo.layer_norm_lstm, I, H, bias=False)
    x = torch.randn(T, N, I)
    wanted = layer(x)
    assert layer.backend == "reference" and info.serves(layer) == "the reference in PyTorch"
    assert layer.gain_x_l0.eq(1).all() and layer.shift_c_l0.eq(0).all() and not recwarn.list
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    others.append(torch.compile(layer, backend="aot_eager", fullgraph=True))
    for other in (*others, torch.export.export(layer, (x,)).module()):
        assert_same(other(x), wanted, torch.float32)
    rows = torch.func.vmap(lambda x: layer(x)[0], 1, 1)(x)
    assert_same(rows, wanted[0], torch.float32)
    cell = fusedrnn.RecurrentCell(zoo.layer_norm_lstm, I, H, bias=False)
    cell.load_state_dict({key.removesuffix("_l0"): w for key, w in layer.state_dict().items()})
    assert_same(cell(x[0]), [s[0] for s in layer(x[:1])[1]], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_run_in_every_dtype_and_under_autocast(dtype):
    layer = fusedrnn.Recurrent(zoo.layer_norm_gru, I, H, dtype=dtype)
    output, state = layer(torch.randn(T, N, I, dtype=dtype))
    assert output.dtype == state.dtype == dtype and output.isfinite().all()
    if dtype == torch.float32:
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(T, N, I))[0].isfinite().all()


@pytest.mark.parametrize("module, shape", [(fusedrnn.Recurrent, (T, N, I)), (fusedrnn.RecurrentCell, (N, I))])
@pytest.mark.parametrize("dynamo", [False, True])
def test_an_export_to_onnx_is_refused_with_the_reason(module, shape, dynamo):
    layer = module(zoo.dreamer_gru, I, H).eval()
    with pytest.raises((ValueError, RuntimeError), match="ONNX has no operator for the cell dreamer_gru"):
        torch.onnx.export(layer, (torch.zeros(shape),), io.BytesIO(), dynamo=dynamo, verbose=False)


def test_packing_leaves_cells_with_norms_as_they_are():
    model = torch.nn.Sequential(fusedrnn.Recurrent(zoo.dreamer_gru, I, H))
    with pytest.warns(UserWarning, match="dreamer_gru stays as it is: cells with norms are not packed"):
        packed = fusedrnn.optimize_for_inference(model)
    x = torch.randn(T, N, I)
    assert_same(packed(x), model(x), torch.float32)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="a stream runs a recurrent layer"):
        warnings.simplefilter("ignore")
        fusedrnn.Stream(model[0])


def test_the_key_changes_with_what_the_function_takes_from_outside():
    scale = 2.0

    @fusedrnn.cell(gates="a", states="h")
    def scaled(x, r, s):
        return fusedrnn.layer_norm(x).a * scale + r.a

    before = scaled.generate().key
    assert scaled.generate().key == before
    scale = 3.0
    assert scaled.generate().key != before


def test_the_graph_of_a_cell_with_norms_is_printed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cells", "show", "fusedrnn.zoo:dreamer_gru"])
    __main__.main()
    printed = capsys.readouterr().out
    assert "// no kernels: it has a norm over a row. x: r n u gain.r" in printed and "layer_norm(v" in printed
