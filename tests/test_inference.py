"""Packed weights: every form of weights and batch against float64 layers that hold the same numbers; and Stream."""

import copy
import io
import os
import pickle
import random
import subprocess
import sys

import pytest
import torch
from tolerances import PACKED, distance
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn
from fusedrnn import packing
from fusedrnn.backends import extension

FORMS = list(packing.FORMS)
LAYERS = {"LSTM": fusedrnn.FusedLSTM, "GRU": fusedrnn.FusedGRU, "RNN": fusedrnn.FusedRNN}
CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}

pytestmark = pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="packed weights are for the CPU")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def rounded(layer: nn.Module, form: str) -> nn.Module:
    """The layer in float64, with the numbers that packing keeps of W_ih and W_hh."""
    layer = copy.deepcopy(layer)
    for name, w in layer.named_parameters():
        if name.startswith(("weight_ih", "weight_hh")):
            values, scales = packing.convert(w, form)
            w.copy_(values if scales is None else values * scales.unsqueeze(1))
    return layer.double()


def numbers(result):
    """All tensors in a result, one after the other."""
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for part in result if part is not None for t in numbers(part)]


def assert_near(results, exact, form: str) -> None:
    results, exact = numbers(results), numbers(exact)
    assert len(results) == len(exact)
    for got, wanted in zip(results, exact, strict=True):
        assert distance(got, wanted) <= PACKED[form]


def random_layer(draw: random.Random) -> nn.Module:
    kind, I, H = draw.choice(["LSTM", "GRU", "RNN"]), draw.randint(1, 70), draw.randint(2, 140)
    options = {"num_layers": draw.choice([1, 1, 2, 3]), "bidirectional": draw.random() < 0.4}
    options |= {"bias": draw.random() < 0.8, "batch_first": draw.random() < 0.3}
    options |= {"proj_size": draw.randint(1, H - 1)} if kind == "LSTM" and draw.random() < 0.3 else {}
    options |= {"nonlinearity": "relu"} if kind == "RNN" and draw.random() < 0.5 else {}
    options |= {"zoneout_h": 0.3} if draw.random() < 0.2 else {}
    return LAYERS[kind](I, H, **options).eval()


def random_call(layer: nn.Module, draw: random.Random):
    """What to call it with: the input, and options by name."""
    T, N, given = draw.randint(1, 12), draw.choice([1, 1, 2, 3, 7, 20]), {}
    x, states = torch.randn(T, N, layer.input_size), layer.num_layers * (2 if layer.bidirectional else 1)
    if draw.random() < 0.5:
        h = torch.randn(states, N, layer.proj_size or layer.hidden_size) / 2
        given["hx"] = (h, torch.randn(states, N, layer.hidden_size) / 2) if layer.mode == "LSTM" else h
    if draw.random() < 0.3:
        given["return_state_sequence"] = draw.choice([True, "all"])
    form = draw.choice(["padded", "padded", "lengths", "reset", "packed"])
    lengths = torch.tensor([draw.randint(1, T) for _ in range(N)])
    if form == "packed":
        return pack_padded_sequence(x, lengths, enforce_sorted=False), given
    if form == "lengths":
        given["lengths"] = lengths
    if form == "reset":
        reset = torch.rand(T, N) < 0.3
        given["reset"] = reset.T if layer.batch_first else reset
    return x.transpose(0, 1) if layer.batch_first else x, given


def doubled(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, PackedSequence):
        return PackedSequence(value.data.double(), *value[1:])
    if isinstance(value, dict):
        return {name: doubled(item) for name, item in value.items()}
    return tuple(map(doubled, value)) if isinstance(value, tuple) else value


def test_every_form_of_weights_and_batch_is_as_a_layer_of_the_same_numbers(pytestconfig):
    for seed in range(pytestconfig.getoption("--random-cases")):
        torch.manual_seed(seed)
        draw = random.Random(seed)
        layer, form = random_layer(draw), draw.choice(FORMS)
        x, given = random_call(layer, draw)
        exact = rounded(layer, form)(doubled(x), **doubled(given))
        assert_near(fusedrnn.optimize_for_inference(layer, form)(x, **given), exact, form)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["DEFAULT", "AVX2", "AVX512", "AVX512_VNNI"])
def test_blocks_packed_here_are_read_by_every_instruction_set(isa, tmp_path):
    """The same bytes on each, also where one writes what another reads."""
    x, layer = torch.randn(5, 7, 33), fusedrnn.FusedGRU(33, 90)
    results = {}
    for form in FORMS:
        packed = fusedrnn.optimize_for_inference(layer, form)
        results[form] = packed(x)[0]
        torch.save((packed, x), tmp_path / form)
    script = (
        "import sys, torch, fusedrnn\n"
        "for path in sys.argv[1:]:\n"
        "    packed, x = torch.load(path, weights_only=False)\n"
        "    with torch.no_grad(): torch.save(packed(x)[0], path + '.y')\n"
    )
    paths = [str(tmp_path / form) for form in FORMS]
    environment = {**os.environ, "FUSEDRNN_ISA": isa}
    done = subprocess.run([sys.executable, "-c", script, *paths], env=environment, capture_output=True, text=True)
    if "is not supported on this CPU" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stderr
    for form, path in zip(FORMS, paths, strict=True):
        assert distance(torch.load(path + ".y"), results[form]) <= PACKED[form]
    if isa != "DEFAULT":
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", "same_numbers or exact"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rows", [1, 2, 5, 13])
def test_int8_is_exact_where_nothing_is_rounded(kind, rows):
    """Inputs of whole multiples of their largest one's 127th part, and no state before the only step."""
    layer = LAYERS[kind](37, 100)
    x = torch.randint(-126, 127, (1, rows, 37)).float()
    x[..., 0] = 127
    exact = rounded(layer, "int8")(x.double() / 127)
    assert_near(fusedrnn.optimize_for_inference(layer, "int8")(x / 127), exact, "float32")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_of_torch_nn_becomes_a_packed_one(kind, form):
    cell, x, h = CELLS[kind](9, 21), torch.randn(4, 9), torch.randn(4, 21)
    hx = (h, torch.randn(4, 21)) if kind == "LSTM" else h
    packed = fusedrnn.optimize_for_inference(cell, form)
    for arguments in [(x, hx), (x,), (x[0],)]:
        assert_near(packed(*arguments), rounded(cell, form)(*doubled(arguments)), form)


@pytest.mark.parametrize("form", FORMS)
def test_a_cell_that_a_user_wrote_is_packed_with_its_vectors(form):
    layer = fusedrnn.Recurrent(fusedrnn.zoo.peephole_lstm, 5, 40, num_layers=2, bidirectional=True)
    x = torch.randn(6, 3, 5)
    assert_near(fusedrnn.optimize_for_inference(layer, form)(x), rounded(layer, form)(x.double()), form)


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_layer_survives_every_way_of_keeping_it(form):
    model = nn.Sequential(nn.Linear(6, 8), nn.GRU(8, 12, num_layers=2))
    packed, x = fusedrnn.optimize_for_inference(model, form), torch.randn(4, 2, 6)
    wanted = packed(x)[0]
    buffer = io.BytesIO()
    torch.save(packed.state_dict(), buffer)
    buffer.seek(0)
    fresh = fusedrnn.optimize_for_inference(nn.Sequential(nn.Linear(6, 8), nn.GRU(8, 12, num_layers=2)), form)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    for copied in (fresh, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(copied(x)[0], wanted)


def test_everything_else_of_a_model_is_copied_and_shared_layers_stay_shared():
    gru = nn.GRU(4, 4)
    model = nn.ModuleDict({"a": gru, "b": gru, "linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    packed = fusedrnn.optimize_for_inference(model)
    assert packed["a"] is packed["b"] and isinstance(model["a"], nn.GRU)
    assert torch.equal(packed["linear"].weight, model["linear"].weight)
    assert packed["linear"].weight is not model["linear"].weight


@pytest.mark.parametrize("form, most", list(zip(FORMS, [1.0, 0.5, 0.5, 0.26], strict=True)))
def test_a_packed_model_takes_the_memory_of_its_form(form, most):
    layer = nn.LSTM(512, 512, bias=False)
    packed = fusedrnn.optimize_for_inference(layer, form)
    assert not list(packed.parameters())
    biases = 2 * 4 * 4 * 512 + 128  # as zeros, and the header
    assert sum(b.nbytes for b in packed.buffers()) - biases <= most * sum(w.nbytes for w in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_of_16_bits_are_computed_in_float32_and_given_back(dtype):
    layer, x = nn.LSTM(8, 16).to(dtype), torch.randn(5, 2, 8).to(dtype)
    h = torch.randn(1, 2, 16).to(dtype)
    packed = fusedrnn.optimize_for_inference(layer, "float32")
    y, (h_n, c_n) = packed(x, (h, h))
    exact = layer.double()(x.double(), (h.double(), h.double()))
    assert {y.dtype, h_n.dtype, c_n.dtype} == {dtype}
    assert distance(y, exact[0]) <= 2 * torch.finfo(dtype).eps


def test_under_autocast_a_packed_layer_remains_float32():
    packed, x = fusedrnn.optimize_for_inference(nn.GRU(8, 16)), torch.randn(5, 2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(packed(x)[0], packed(x.clone())[0]) and packed(x)[0].dtype is torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_compiled_and_exported_a_layer_is_one_operator_with_its_weights_as_constants(form):
    packed, x = fusedrnn.optimize_for_inference(nn.LSTM(8, 16, proj_size=4), form), torch.randn(5, 2, 8)
    wanted = packed(x)[0]
    assert torch.equal(torch.compile(packed, fullgraph=True)(x)[0], wanted)
    program = torch.export.export(packed, (x,))
    calls = [node for node in program.graph.nodes if node.target is torch.ops.fusedrnn.scan_forward.default]
    assert len(calls) == 1 and not list(program.parameters())
    assert torch.equal(program.module()(x)[0], wanted)
    traced = torch.jit.trace(packed, (x,))
    assert torch.equal(traced(x)[0], wanted)


def test_weights_that_int8_or_float16_cannot_hold_are_named():
    for value, form in [(float("nan"), "int8"), (float("inf"), "int8"), (1e5, "float16")]:
        model = nn.Sequential(nn.GRU(3, 4, num_layers=2))
        model[0].weight_hh_l1[2, 1] = value
        with pytest.raises(ValueError, match=f"0: weight_hh_l1 .* {form}"):
            fusedrnn.optimize_for_inference(model, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stay_in_their_row(form, value):
    packed, x = fusedrnn.optimize_for_inference(nn.LSTM(20, 30), form), torch.randn(6, 5, 20)
    wanted = packed(x)[0]
    x[2, 3, 7] = value
    y = packed(x)[0]
    others = [0, 1, 2, 4]
    assert torch.equal(y[:, others], wanted[:, others]) and torch.equal(y[:2], wanted[:2])
    if value != value or form == "int8":
        assert y[2:, 3].isnan().all()


def gradients_of_input(packed):
    with torch.enable_grad():
        packed(torch.randn(2, 2, 3, requires_grad=True))


WRONG = {
    "packed weights are for inference": (RuntimeError, gradients_of_input),
    "input_size. Expected 3, got 4": (RuntimeError, lambda packed: packed(torch.randn(2, 2, 4))),
    "Expected hidden state h": (RuntimeError, lambda packed: packed(torch.randn(2, 2, 3), torch.randn(1, 3, 4))),
    "takes float32": (ValueError, lambda packed: packed(torch.randn(2, 2, 3).double())),
    "is packed already, as int8": (ValueError, fusedrnn.optimize_for_inference),
    "must be one of float32": (ValueError, lambda packed: fusedrnn.optimize_for_inference(nn.GRU(3, 4), "int4")),
    "must be float32, bfloat16": (ValueError, lambda _: fusedrnn.optimize_for_inference(nn.GRU(3, 4).double())),
    "packed as float32, those of this layer as int8": (
        RuntimeError,
        lambda packed: packed.load_state_dict(fusedrnn.optimize_for_inference(nn.GRU(3, 4)).state_dict()),
    ),
    "not packed; load them": (RuntimeError, lambda packed: packed.load_state_dict(nn.GRU(3, 4).state_dict())),
    "size mismatch": (
        RuntimeError,
        lambda packed: packed.load_state_dict(fusedrnn.optimize_for_inference(nn.GRU(3, 80), "int8").state_dict()),
    ),
    "without transforms": (RuntimeError, lambda packed: torch.func.vmap(packed)(torch.randn(2, 2, 2, 3))),
    "one direction": (ValueError, lambda _: fusedrnn.Stream(nn.GRU(3, 4, bidirectional=True))),
    "rows must be a positive": (ValueError, lambda packed: fusedrnn.Stream(packed, rows=0)),
    r"a stream takes float32 \[1, 3\]": (ValueError, lambda packed: fusedrnn.Stream(packed)(torch.randn(2, 3))),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_a_packed_layer_cannot_do_is_said(message):
    error, call = WRONG[message]
    with pytest.raises(error, match=message):
        call(fusedrnn.optimize_for_inference(nn.GRU(3, 4), "int8"))


@pytest.mark.parametrize("change, message", [((0, 1), "no packed weights"), ((8, 7), "another version of fusedrnn")])
def test_bytes_that_are_no_block_of_this_version_are_refused(change, message):
    packed = fusedrnn.optimize_for_inference(nn.GRU(3, 4))
    at, value = change
    packed.packed_l0[at] = value
    with pytest.raises(ValueError, match=message):
        packed(torch.randn(2, 2, 3))


def test_a_block_that_was_cut_is_refused():
    packed = fusedrnn.optimize_for_inference(nn.GRU(3, 4))
    packed.packed_l0 = packed.packed_l0[:-64].clone()
    with pytest.raises(ValueError, match="of these sizes have"):
        packed(torch.randn(2, 2, 3))


@pytest.mark.parametrize("form", ["float32", "int8"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"proj_size": 7}, {"zoneout_h": 0.25}])
def test_a_stream_gives_what_the_layer_gives_for_all_steps(form, options):
    layer = fusedrnn.FusedLSTM(11, 24, **options).eval()
    packed, x = fusedrnn.optimize_for_inference(layer, form), torch.randn(9, 3, 11)
    stream = fusedrnn.Stream(packed, rows=3)
    y, state = packed(x)
    outputs = torch.stack([stream(frame) for frame in x])
    assert_near([outputs, stream.state], [y, state], "float32")
    half = packed(x[:5])[1]
    stream.state = half
    assert_near([stream(frame) for frame in x[5:]], list(y[5:]), "float32")


def test_a_stream_begins_anew_in_the_rows_that_are_reset():
    stream, x = fusedrnn.Stream(nn.GRU(4, 6), rows=3), torch.randn(3, 4)
    first = stream(x)
    second = stream(x)
    stream.reset(torch.tensor([False, True, False]))
    stream.state = torch.where(torch.tensor([True, False, True]).view(1, 3, 1), first[None], stream.state)
    again = stream(x)
    assert torch.equal(again[[0, 2]], second[[0, 2]]) and torch.equal(again[1], first[1])
    stream.reset()
    assert torch.equal(stream(x), first)


def test_outputs_of_a_stream_are_kept_by_whoever_has_them():
    stream, x = fusedrnn.Stream(nn.GRU(4, 6)), torch.randn(1, 4)
    outputs = [stream(x) for _ in range(4)]
    kept = [t.clone() for t in outputs]
    stream(x)
    assert all(torch.equal(a, b) for a, b in zip(outputs, kept, strict=True))


def test_without_kernels_nothing_can_be_packed(monkeypatch):
    monkeypatch.setattr(extension, "_C", None)
    monkeypatch.setattr(extension, "extension_error", "they were not built")
    with pytest.raises(RuntimeError, match="they were not built"):
        fusedrnn.optimize_for_inference(nn.GRU(3, 4))
