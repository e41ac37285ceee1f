"""The compiled scan against the reference: outputs and all gradients."""

import itertools
import math
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from tolerances import IN_A_16_BIT_TYPE, SAME, SATURATED, distance, sigmoid_bound, tanh_bound
from torch import nn
from twins import TWINS, only_on_cpu

from fusedrnn import scan
from fusedrnn.backends import extension, reference
from fusedrnn.inputs import WEIGHTS, ScanInputs

pytestmark = pytest.mark.usefixtures("device")


class Sizes(NamedTuple):
    """Of a layer. A packed batch determines T and N; without a projection P is None."""

    D: int = 1
    T: int | None = None
    N: int | None = None
    I: int = 20
    H: int = 6
    P: int | None = None


class Batch(NamedTuple):
    packed: list[int] | None = None  # batch_sizes
    lengths: list[int] | None = None
    reset: bool = False
    reset_state: bool = False


def make_layer(mode, dtype, bias=True, **options):
    """options: fields of Sizes and of Batch"""
    torch.manual_seed(0)
    batch = Batch(**{name: options.pop(name) for name in Batch._fields if name in options})
    D, T, N, I, H, P = Sizes(**options)
    G, P = extension.cell_traits(mode).gates, P or H

    def leaf(*size):
        return torch.randn(*size, dtype=torch.float64).mul(0.5).to(dtype).requires_grad_()

    shape, widths = (T, N), (P, H) if mode == "LSTM" else (P,)
    if batch.packed:
        shape, N = (sum(batch.packed),), batch.packed[0]
    sizes = {"w_ih": (G * H, I), "w_hh": (G * H, P), "b_ih": (G * H,), "b_hh": (G * H,), "w_hr": (P, H)}
    absent = {"b_ih": not bias, "b_hh": not bias, "w_hr": P == H}
    return ScanInputs(
        leaf(*shape, I), [leaf(D, N, width) for width in widths],
        **{name: [leaf(*size) for _ in range(D)] for name, size in sizes.items() if not absent.get(name)},
        reset_states=[leaf(D, N, width) for width in widths] if batch.reset_state else [],
        batch_sizes=torch.tensor(batch.packed, device="cpu") if batch.packed else None,
        lengths=torch.tensor(batch.lengths) if batch.lengths else None,
        reset=torch.rand(shape) < 0.3 if batch.reset else None,
    )  # fmt: skip


def as_argument(field):
    """Of an operator."""
    return list(field) if isinstance(field, tuple) else field


def outputs_of(results):
    return [t for kind in results for t in kind if t is not None]


def scaled(inputs, factor):
    """The same with smaller weights."""
    weights = {name: [(w.detach() * factor).requires_grad_() for w in getattr(inputs, name)] for name in WEIGHTS}
    return inputs._replace(**weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", list(reference.CELLS))
def test_outputs_and_gradients_equal_the_reference(mode, dtype):
    batches = [(None, None), ([4, 2, 2, 1], None), (None, [0, 5, 3, 2, 1, 5, 4])]
    cases = itertools.product((1, 2), (19, 70), (True, False), batches, (0, 1, 2), (False, True))
    for D, H, bias, (packed, lengths), reset, projected in cases:
        if projected and mode != "LSTM":
            continue
        batch = {"packed": packed, "lengths": lengths, "reset": reset > 0, "reset_state": reset > 1}
        inputs = make_layer(mode, dtype, bias, D=D, T=5, N=7, I=11, H=H, P=8 if projected else H, **batch)
        assert_equals_the_reference(mode, inputs)


def assert_equals_the_reference(mode, inputs):
    leaves, dtype = inputs.differentiable(), inputs.x.dtype
    exact = [t.detach().double().requires_grad_() for t in leaves]
    ours = outputs_of(scan.scan(mode, inputs, True))
    theirs = outputs_of(reference.scan(mode, inputs.with_differentiable(exact)))
    if inputs.one_step:
        del theirs[len(inputs.initial)]  # the last h is that of the only step
    grads = [torch.randn_like(t) for t in ours]
    ours += torch.autograd.grad(ours, leaves, grads, allow_unused=True)
    theirs += torch.autograd.grad(theirs, exact, [g.double() for g in grads], allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        if a is None and b is None:
            continue
        b = torch.zeros_like(a) if b is None else b
        assert distance(a, b) <= (SAME[dtype] if dtype in SAME else IN_A_16_BIT_TYPE["bfloat16"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", list(reference.CELLS))
def test_input_that_is_projected_already_equals_the_reference(mode, dtype):
    batches = [(None, None), ([4, 2, 2, 1], None), (None, [0, 5, 3, 2, 1, 5, 4])]
    G = extension.cell_traits(mode).gates
    for (D, H, bias), (packed, lengths) in itertools.product([(1, 70, True), (2, 19, False)], batches):
        batch = {"packed": packed, "lengths": lengths, "reset": True}
        inputs = make_layer(mode, dtype, bias, D=D, T=5, N=7, I=D * G * H, H=H, **batch)
        assert_equals_the_reference(mode, scaled(inputs, H**-0.5)._replace(w_ih=[], b_ih=[]))
    one_step = make_layer(mode, dtype, D=1, T=1, N=7, I=G * H, H=H)
    one_step = one_step._replace(x=one_step.x[0], initial=[s[0] for s in one_step.initial], w_ih=[], b_ih=[])
    assert_equals_the_reference(mode, one_step)


# Two threads split the rows of the first four layers and the units of the others (csrc/README.md says when). One has
# more rows than its input is projected for at a time.
SHARED = {
    "rows": dict(D=1, T=5, N=33, H=70),
    "rows of unequal length": dict(D=1, N=40, H=70, packed=[40, 40, 11, 2, 2, 1]),
    "rows that end and restart": dict(
        D=1, T=5, N=7, H=150, lengths=[0, 5, 3, 2, 1, 5, 4], reset=True, reset_state=True
    ),
    "directions": dict(D=2, T=5, N=9, H=70),
    "several chunks of an odd number of rows": dict(D=1, T=41, N=33, H=70),
    "units of one row": dict(D=1, T=20, N=1, I=21, H=301),
    "units of a large layer": dict(D=1, T=7, N=33, H=600),
    "units of rows that end and restart": dict(
        D=1, T=4, N=4, H=600, lengths=[0, 4, 3, 4], reset=True, reset_state=True
    ),
    "units of packed rows": dict(D=1, N=7, H=600, packed=[7, 5, 5, 1]),
    "units and columns of a projection": dict(D=1, T=20, N=1, H=600, P=100, reset=True),
}
SHARED_BY = [(name, mode) for name in SHARED for mode in reference.CELLS if mode == "LSTM" or "P" not in SHARED[name]]


@only_on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name, mode", SHARED_BY)
def test_results_do_not_depend_on_the_number_of_threads(mode, name, dtype):
    inputs = scaled(make_layer(mode, dtype, **SHARED[name]), SHARED[name]["H"] ** -0.5)
    leaves = inputs.differentiable()

    def run(scan_, times=1):
        out = outputs_of(scan_(mode, inputs))
        torch.manual_seed(1)
        grads = [torch.randn_like(t) for t in out]
        results = [torch.autograd.grad(out, leaves, grads, retain_graph=True, allow_unused=True) for _ in range(times)]
        return [[*out, *grads] for grads in results]

    def run_with(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return run(lambda *args: scan.scan(*args, sequences=True), times=2)
        finally:
            torch.set_num_threads(before)

    alone, again = run_with(1)
    for other in (again, *run_with(2), *run_with(3)):
        for a, b in zip(alone, other, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    if dtype == torch.float32:
        for a, b in zip(alone, run(reference.scan)[0], strict=True):
            if a is not None and b is not None:
                assert distance(a, b) <= SAME[dtype]


@only_on_cpu
@pytest.mark.parametrize("H", [70, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", list(reference.CELLS))
def test_results_of_a_row_do_not_depend_on_how_many_threads_or_rows_there_are(mode, dtype, H):
    """Weights of bfloat16 are kept in another form for few rows."""
    T, N = 15, 8
    inputs = scaled(make_layer(mode, dtype, T=T, N=N, H=H), H**-0.5)
    whole = scan.scan(mode, inputs)[0][0]
    for begin, end in ((0, 1), (1, 3), (3, 6), (0, 7)):
        rows = slice(begin, end)
        some = inputs._replace(x=inputs.x[:, rows], initial=[s[:, rows] for s in inputs.initial])
        assert torch.equal(scan.scan(mode, some)[0][0], whole[:, rows])


@pytest.mark.slow
@only_on_cpu
@pytest.mark.parametrize("isa", ["DEFAULT", "AVX2", "AVX512", "AVX512_BF16"])
def test_other_instruction_sets_pass_the_tests_that_meet_their_differences(isa):
    if isa == extension._C.cpu_capability():
        pytest.skip(f"{isa} is what all other tests run on")

    def run(*command):
        command = [sys.executable, *command]
        return subprocess.run(command, env={**os.environ, "FUSEDRNN_ISA": isa}, capture_output=True, text=True)

    if "is not supported on this CPU" in run("-m", "fusedrnn.info").stdout:
        pytest.skip(f"this processor has no {isa}")
    done = run("-m", "pytest", "-q", "-x", __file__, "-k", "threads or activations")
    assert done.returncode == 0, done.stdout


def activation(name, x):
    """tanh or sigmoid of x as the kernels make it: an RNN's whole step; what a GRU keeps of h = 1 where its candidate
    is 0."""
    mode, h0, w_ih = {"tanh": ("RNN_TANH", 0.0, [1.0]), "sigmoid": ("GRU", 1.0, [0.0, 1.0, 0.0])}[name]
    return gated(mode, h0, w_ih, x)


def gated(mode, h0, w_ih, x):
    w_ih = torch.as_tensor(w_ih, dtype=x.dtype).unsqueeze(1)
    h0 = torch.full((1, x.numel(), 1), h0, dtype=x.dtype)
    inputs = ScanInputs(x.view(1, -1, 1), [h0], [w_ih], [torch.zeros(len(w_ih), 1, dtype=x.dtype)])
    return extension.scan(mode, False, False, inputs)[0].view(-1)


@only_on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_are_off_by_no_more_than_they_say(dtype):
    x = torch.cat([torch.linspace(-s, s, 20001, dtype=dtype) for s in (1e-3, 1, 12, 85)])
    for name, bound in (("tanh", tanh_bound), ("sigmoid", sigmoid_bound)):
        exact = getattr(x.double(), name)()
        assert ((activation(name, x).double() - exact).abs() <= bound(x, exact)).all()
    w_ih = torch.zeros(3, dtype=dtype)
    w_ih.view(torch.int32 if dtype == torch.float32 else torch.int64)[1] = -1  # a NaN of which every bit is set
    assert gated("GRU", 1.0, w_ih, torch.ones(1, dtype=dtype)).isnan().all()


@only_on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_activations_reach_their_limits_exactly_and_stay_there(name, dtype):
    """That of a sigmoid, 0, where its values are less than the least normal number or soon will be."""
    least, low, high = {
        ("tanh", torch.float32): (-1, 9.02, 9.02),
        ("tanh", torch.float64): (-1, 19.1, 19.1),
        ("sigmoid", torch.float32): (0, 88.4, 17.4),
        ("sigmoid", torch.float64): (0, 709.5, 37.5),
    }[name, dtype]

    def beyond(limit):
        huge = torch.tensor([1e30, torch.finfo(dtype).max], dtype=dtype)
        return torch.cat([torch.linspace(limit, 1000, 100001, dtype=dtype), huge])

    assert (activation(name, beyond(high)) == 1).all()
    assert (activation(name, -beyond(low)) == least).all()


@only_on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_activations_are_monotone(name, dtype, pytestconfig):
    """Some numbers of every size, and all that lie next to each other where something changes in how they are made."""
    bits, step = {torch.float32: (torch.int32, 1), torch.float64: (torch.int64, 1 << 29)}[dtype]
    step *= pytestconfig.getoption("--float-step")
    bound = {"tanh": tanh_bound, "sigmoid": sigmoid_bound}[name]
    least, most = torch.tensor([1e-30, 1000.0], dtype=dtype).view(bits).tolist()
    assert (activation(name, torch.tensor([-1e-30, 0, 1e-30], dtype=dtype)).diff() >= 0).all()
    for begin in range(least, most, step << 20):  # each with the first of the next
        positive = torch.arange(begin, min(begin + (step << 20), most) + 1, step, dtype=bits).view(dtype)
        for x in (positive, -positive):
            y, exact = activation(name, x), getattr(x.double(), name)()
            assert (y.diff() * x[0].sign() >= 0).all()
            assert ((y.double() - exact).abs() <= bound(x, exact))[x.abs() <= 85].all()
    points = [k * math.log(2) / 4 for k in range(1, 520)]  # where the range reduction of exp(x) and exp(-2 x) changes
    points += [2.0**k * m for k in range(-9, 7) for m in (0.6, 0.8, 1)]
    around = torch.arange(-500, 501, dtype=bits)
    positive = (torch.tensor(points, dtype=dtype).view(bits).unsqueeze(1) + around).view(dtype)
    for x in (positive, -positive.flip(1)):
        assert (activation(name, x.flatten()).view_as(x).diff(dim=1) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_saturated_units_give_what_torch_gives(cls, dtype):
    """A gate that is shut lets nothing of any state through, but NaN of an infinite one, and no gradient back."""
    plain = cls(1, 1).to(dtype)
    for w in plain.parameters():
        w.data.fill_(1)
    layer = TWINS[cls](1, 1).to(dtype)
    layer.load_state_dict(plain.state_dict())

    def run(module, x, state):
        x, state = torch.full((1, 1, 1), x, dtype=dtype, requires_grad=True), torch.full((1, 1, 1), state, dtype=dtype)
        y, *_ = module(x, (torch.full_like(state, 0.5), state) if cls is nn.LSTM else state)
        return y, *torch.autograd.grad(y.sum(), [x, *module.parameters()])

    huge = torch.finfo(dtype).max / 2
    for x in (1e4, -1e4, 1e30, -1e30, torch.inf, -torch.inf):
        for state in (0.0, 1.0, -1.0, huge, torch.inf, torch.nan):
            for a, b in zip(run(layer, x, state), run(plain, x, state), strict=True):
                same = torch.allclose(a, b, rtol=SATURATED[dtype], atol=0, equal_nan=True)
                assert same, f"x {x}, state {state}: {a}, {b}"


@only_on_cpu
def test_the_compiled_extension_is_in_use():
    assert extension.extension_error is None


BATCHES = [{}, {"packed": [4, 2, 2, 1]}, {"lengths": [3, 0, 5], "reset": True, "reset_state": True}]


@pytest.mark.parametrize("options", BATCHES)
@pytest.mark.parametrize("mode", list(reference.CELLS))
@pytest.mark.slow
def test_operators_pass_opcheck_and_gradients_of_both_orders(mode, options):
    inputs = make_layer(mode, torch.float64, **{"D": 2, "T": 5, "N": 3, "I": 2, "H": 3} | options)
    torch.library.opcheck(torch.ops.fusedrnn.scan_forward, (mode, True, True, *map(as_argument, inputs)))

    def run(*tensors):
        return outputs_of(scan.scan(mode, inputs.with_differentiable(tensors)))

    assert torch.autograd.gradcheck(run, inputs.differentiable())
    assert torch.autograd.gradgradcheck(run, inputs.differentiable())


MANY_ROWS = [
    {},
    {"T": 3, "N": 1100},
    {"T": 1, "N": 2100},
    {"T": 200, "H": 40},
    {"lengths": [300] * 3 + [170], "reset": True},
    {"packed": [7] * 150 + [3] * 100 + [1] * 50},
]


@pytest.mark.parametrize("mode, batch", [*itertools.product(["LSTM", "GRU"], MANY_ROWS), ("LSTM", {"P": 5})])
def test_gradients_of_more_rows_than_the_kernels_hand_out_at_a_time(mode, batch):
    """No row at a chunk boundary is lost or counted twice, and no sum is restarted."""
    options = {"D": 2, "T": 300, "N": 4, "I": 3, "H": 6, **batch}
    inputs = scaled(make_layer(mode, torch.float64, **options), (6 / options["H"]) ** 0.5)

    def run(scan_, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs.differentiable()]
        y = scan_(mode, inputs.with_differentiable(leaves))[0][0]
        torch.manual_seed(1)
        dy = torch.randn(y.shape, dtype=torch.float64, device="cpu")
        return torch.autograd.grad(y, leaves, dy.to(y))

    exact = run(reference.scan, torch.float64)
    for a, b in zip(run(scan.scan, torch.float64), exact, strict=True):
        assert distance(a, b) <= SAME[torch.float64]
    if mode == "LSTM":  # a GRU with such weights amplifies the rounding of h
        for a, b in zip(run(scan.scan, torch.bfloat16), exact, strict=True):
            assert distance(a, b) <= IN_A_16_BIT_TYPE["bfloat16"]
