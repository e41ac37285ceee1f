"""The generator of cells: every operation, what is saved, what is refused."""

import pytest
import scalar_cells
import torch
import torch.nn.functional as F

from fusedrnn import zoo
from fusedrnn.backends import extension
from fusedrnn.compiler import Cell, cell
from fusedrnn.compiler.graph import Graph

N = 64
needs_compiler = pytest.mark.skipif(not scalar_cells.have_compiler(), reason="no C++ compiler on this machine")

# name: (function of a and b, range of a and b). They lie on a coarse grid: ties and zeros are among them.
OPERATIONS = {
    "add": (lambda a, b: a + b + 1, -2, 2),
    "add with alpha": (lambda a, b: torch.add(a, b, alpha=3), -2, 2),
    "sub": (lambda a, b: (a - b) * (1 - a) - 2 - (0 - b) * -(a - b), -2, 2),
    "mul": (lambda a, b: a * b * 2.5, -2, 2),
    "div": (lambda a, b: a / b, 0.25, 1e4),
    "div by constants": (lambda a, b: a / 3 + b / 4 + 2 / (a + 9), -2, 2),
    "neg": (lambda a, b: -a * -b - (-a), -2, 2),
    "sigmoid": (lambda a, b: torch.sigmoid(a) * b, -20, 20),
    "tanh": (lambda a, b: torch.tanh(a) * b, -6, 6),
    "relu": (lambda a, b: torch.relu(a) * b, -2, 2),
    "exp": (lambda a, b: torch.exp(a) * b, -20, 20),
    "expm1": (lambda a, b: torch.expm1(a) * b, -20, 20),
    "log": (lambda a, b: torch.log(a) * b, 0.25, 1e5),
    "log1p": (lambda a, b: torch.log1p(a) * b, -0.75, 30),
    "logsigmoid": (lambda a, b: F.logsigmoid(a) * b, -30, 30),
    "softplus": (lambda a, b: F.softplus(a) * b, -30, 30),
    "softplus of beta": (lambda a, b: F.softplus(a, beta=2, threshold=5) * b, -30, 30),
    "sqrt": (lambda a, b: torch.sqrt(a) * b, 0.25, 1e4),
    "rsqrt": (lambda a, b: torch.rsqrt(a) * b, 0.25, 1e4),
    "reciprocal": (lambda a, b: torch.reciprocal(a) * b, 0.25, 1e4),
    "abs": (lambda a, b: torch.abs(a) * b, -2, 2),
    "sign": (lambda a, b: torch.sign(a) * b, -2, 2),
    "square": (lambda a, b: torch.square(a) * b, -2, 2),
    "pow": (lambda a, b: a**3 + b**5 + a**0 + b**1, -2, 2),
    "negative pow": (lambda a, b: a**-1 + b**-4 + a**0.5 + b**-0.5, 0.25, 4),
    "minimum": (lambda a, b: torch.minimum(a, b) * a, -2, 2),
    "maximum": (lambda a, b: torch.maximum(a, b) * a, -2, 2),
    "maximum with a constant": (lambda a, b: torch.maximum(a, torch.tensor(0.5, dtype=a.dtype)) * b, -2, 2),
    "clamp": (lambda a, b: torch.clamp(a, -1, 1) * b, -2, 2),
    "clamp below": (lambda a, b: torch.clamp(a, min=-0.5) * b.clamp_min(0.25), -2, 2),
    "clamp above": (lambda a, b: torch.clamp(a, max=0.5) * b.clamp_max(0.25), -2, 2),
    "where lt": (lambda a, b: torch.where(a < b, a * a, b), -2, 2),
    "where le": (lambda a, b: torch.where(a <= 0.5, a * b, 0.0), -2, 2),
    "where gt": (lambda a, b: torch.where(a > b, 1.0, b) * a, -2, 2),
    "where ge": (lambda a, b: torch.where(a >= b, a, -b), -2, 2),
    "where eq": (lambda a, b: torch.where(a == b, a * 3, b), -2, 2),
    "where ne": (lambda a, b: torch.where(a != b, a * 3, b), -2, 2),
    "logical and": (lambda a, b: torch.where((a > 0) & torch.logical_and(b > 0, b < 1), a * b, b), -2, 2),
    "logical or": (lambda a, b: torch.where((a > 0) | torch.logical_or(b > 0, b == -1), a * b, b), -2, 2),
    "logical not": (lambda a, b: torch.where(~(a > 0), a * b, torch.where(torch.logical_not(b > 0), a, b)), -2, 2),
    "logical xor": (lambda a, b: torch.where((a > 0) ^ (b > 0), a * b, a), -2, 2),
    "mask as a number": (lambda a, b: (a > 0) * b + (b > 0).to(a.dtype) * a, -2, 2),
    "masked_fill": (lambda a, b: a.masked_fill(b > 0, 0.5) * b, -2, 2),
    "silu": (lambda a, b: F.silu(a) * b, -20, 20),
    "gelu": (lambda a, b: F.gelu(a, approximate="tanh") * b, -4, 4),
    "hardsigmoid": (lambda a, b: F.hardsigmoid(a) * b, -4, 4),
    "hardtanh": (lambda a, b: F.hardtanh(a) * b + F.relu6(a), -8, 8),
    "leaky_relu": (lambda a, b: F.leaky_relu(a, 0.1) * b, -2, 2),
    "elu": (lambda a, b: F.elu(a, 0.5) * b + F.selu(a) + F.celu(b, 2.0), -20, 20),
    "threshold": (lambda a, b: F.threshold(a, 0.5, 0.25) * b, -2, 2),
    "lerp": (lambda a, b: torch.lerp(a, b, 0.3) + torch.lerp(a, b, torch.sigmoid(a)), -2, 2),
    "addcmul": (lambda a, b: torch.addcmul(a, a, b, value=2) + torch.addcdiv(a, a, b, value=2), 0.25, 2),
    "detach": (lambda a, b: (a + b).detach() * b + (torch.sigmoid(a) - a).detach() + a, -2, 2),
    "constants": (lambda a, b: a * torch.ones_like(a) + torch.full_like(b, 0.5) * b + torch.zeros_like(a), -2, 2),
    "nothing to differentiate": (lambda a, b: torch.sign(a), -2, 2),
}


LESS_EXACT = {"hardsigmoid": 1e-7}  # torch's derivative of doubles multiplies by 1/6 as a float


def cell_of(function) -> Cell:
    @cell(gates="a b", states="h", recurrent="")
    def one_operation(x, r, s):
        return function(x.a, x.b)

    return one_operation


@pytest.fixture(scope="module")
def operations():
    cells = {name: cell_of(function) for name, (function, _, _) in OPERATIONS.items()}
    return cells, scalar_cells.Compiled(list(cells.values()))


def assert_near(actual, wanted, relative, what):
    least = 1e-2 if relative < 1e-10 else wanted.abs().max()  # in float 1 - y has few digits
    scale = wanted.abs().clamp(min=least)
    error = ((actual - wanted).abs() / scale).masked_fill(actual == wanted, 0)
    assert error.max() <= relative, f"{what}: {error.max():.1e}"


def assert_runs_as_the_function(compiled, cell, kind, x, r, s, ds, relative):
    new, dx, dr, dstates = scalar_cells.expected(cell, x, r, s, ds)
    states, dprev, planes = compiled.run(cell, kind, x, r, s, ds)
    generated = compiled.generated[cell]
    assert_near(states, new, relative, "states")
    G = len(cell.gates)
    for i, wanted in enumerate(dx):
        assert_near(planes[i if i < G else generated.grads + i - G], wanted, relative, f"dx[{i}]")
    for i, wanted in enumerate(dr):
        assert_near(planes[generated.recurrent_grads[i]], wanted, relative, f"dr[{i}]")
    for i, wanted in enumerate(dstates):
        assert_near(dprev[i], wanted, relative, f"ds[{i}]")


@needs_compiler
@pytest.mark.parametrize("kind, relative", [("number", 1e-12), ("vector", 1e-12), ("float", 2e-5)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_and_its_derivative_are_torch_s(operations, name, kind, relative):
    cells, compiled = operations
    _, low, high = OPERATIONS[name]
    torch.manual_seed(0)
    x = torch.rand(2, N, dtype=torch.float64) * (high - low) + low
    x = torch.where(torch.rand_like(x) < 0.5, (x * 4).round() / 4, x).float().double()  # a number of either type
    ds = torch.randn(1, N, dtype=torch.float64)
    nothing = torch.zeros(0, N, dtype=torch.float64)
    s = torch.zeros(1, N, dtype=torch.float64)
    relative = max(relative, LESS_EXACT.get(name, 0))
    assert_runs_as_the_function(compiled, cells[name], kind, x, nothing, s, ds, relative)


@pytest.fixture(scope="module")
def random_cells():
    cells = [scalar_cells.random_cell(seed) for seed in range(40)]
    return cells, scalar_cells.Compiled(cells, ("number", "vector"))


@needs_compiler
@pytest.mark.parametrize("kind", ["number", "vector"])
@pytest.mark.parametrize("index", range(40))
def test_random_cells_run_as_their_functions(random_cells, index, kind):
    cells, compiled = random_cells
    torch.manual_seed(index)
    arguments = scalar_cells.random_arguments(cells[index], N)
    assert_runs_as_the_function(compiled, cells[index], kind, *arguments, 1e-11)


ZOO = [known for known in (getattr(zoo, name) for name in zoo.__all__) if known.generate().struct]  # without norms


@pytest.fixture(scope="module")
def compiled_zoo():
    return scalar_cells.Compiled([*ZOO, *BUILT_IN])


@needs_compiler
@pytest.mark.parametrize("kind, relative", [("number", 1e-12), ("vector", 1e-12), ("float", 1e-5)])
@pytest.mark.parametrize("known", ZOO, ids=lambda known: known.name)
def test_the_zoo_runs_as_its_functions(compiled_zoo, known, kind, relative):
    torch.manual_seed(0)
    x, r, s, ds = scalar_cells.random_arguments(known, N)
    if known is zoo.slstm:
        s[2] = s[2].abs() + 0.5  # n, a sum of exponentials
    assert_runs_as_the_function(compiled_zoo, known, kind, x, r, s, ds, relative)


@cell(gates="i f g o", states="h c")
def lstm(x, r, s):
    i, f = torch.sigmoid(x.i + r.i), torch.sigmoid(x.f + r.f)
    g = torch.tanh(x.g + r.g)
    o = torch.sigmoid(x.o + r.o)
    c = f * s.c + i * g
    return o * torch.tanh(c), c


@cell(gates="r z n", states="h")
def gru(x, r, s):
    reset, update = torch.sigmoid(x.r + r.r), torch.sigmoid(x.z + r.z)
    n = torch.tanh(x.n + reset * r.n)
    return n + update * (s.h - n)


@cell(gates="n", states="h")
def rnn_tanh(x, r, s):
    return torch.tanh(x.n + r.n)


@cell(gates="n", states="h")
def rnn_relu(x, r, s):
    return torch.relu(x.n + r.n)


def make(op, *args):
    return args[0].graph.make(op, *args)


CHOICE = "where(lt(x[0], x[1]), x[0], x[1])"
SIMPLER = {
    "adding zero": (lambda x, y, m: x + 0, "x[0]"),
    "subtracting zero": (lambda x, y, m: x - 0, "x[0]"),
    "subtracting from zero": (lambda x, y, m: x.graph.const(0) - x, "neg(x[0])"),
    "times one": (lambda x, y, m: x * 1 / 1, "x[0]"),
    "times minus one": (lambda x, y, m: x * -1, "neg(x[0])"),
    "a negative factor": (lambda x, y, m: -x * y, "neg(mul(x[0], x[1]))"),
    "two negative factors": (lambda x, y, m: -x * -y, "mul(x[0], x[1])"),
    "a negative dividend": (lambda x, y, m: -x / y, "neg(div(x[0], x[1]))"),
    "adding what is negative": (lambda x, y, m: x + -y, "sub(x[0], x[1])"),
    "adding to what is negative": (lambda x, y, m: -x + y, "sub(x[1], x[0])"),
    "subtracting what is negative": (lambda x, y, m: x - -y, "add(x[0], x[1])"),
    "a negative difference": (lambda x, y, m: -(x - y), "sub(x[1], x[0])"),
    "twice negative": (lambda x, y, m: make("neg", -x), "x[0]"),
    "the same sum": (lambda x, y, m: (x + y) - (y + x), "sub(add(x[0], x[1]), add(x[0], x[1]))"),
    "a power of two": (lambda x, y, m: x / 4, "mul(x[0], 0.25)"),
    "not a power of two": (lambda x, y, m: x / 3, "div(x[0], 3.0)"),
    "constants": (lambda x, y, m: x * (x.graph.const(2) + 3), "mul(x[0], 5.0)"),
    "what has no value": (lambda x, y, m: make("log", x.graph.const(-1)), "log(-1.0)"),
    "twice not": (lambda x, y, m: make("not", make("not", m)), "lt(x[0], x[1])"),
    "the other choice": (lambda x, y, m: make("where", make("not", m), x, y), "where(lt(x[0], x[1]), x[1], x[0])"),
    "no choice": (lambda x, y, m: make("where", m, y, y), "x[1]"),
    "two halves": (lambda x, y, m: make("where", m, x, 0) + make("where", m, 0, y), CHOICE),
    "two halves, the second first": (lambda x, y, m: make("where", m, 0, y) + make("where", m, x, 0), CHOICE),
}


@pytest.mark.parametrize("what", SIMPLER)
def test_what_is_exact_is_simplified(what):
    graph = Graph()
    x, y = graph.leaf("x", 0), graph.leaf("x", 1)
    function, simpler = SIMPLER[what]
    assert repr(function(x, y, graph.make("lt", x, y))) == simpler


BUILT_IN = {lstm: "LSTM", gru: "GRU", rnn_tanh: "RNN_TANH", rnn_relu: "RNN_RELU"}


@pytest.mark.parametrize("generated, name", BUILT_IN.items(), ids=BUILT_IN.values())
def test_a_generated_cell_saves_what_the_one_written_by_hand_does(generated, name):
    theirs = extension.cell_traits(name)
    ours = generated.generate()
    assert (ours.saved, ours.grads) == (theirs.saved, theirs.grads)


@pytest.mark.parametrize(
    "function, recurrent, planes",
    [
        (lambda x, r, s: torch.tanh(x.a + r.a) * (x.b + r.b) * (x.c + r.c), "a b c", (0, 1, 2)),
        (lambda x, r, s: torch.tanh(x.a + r.c) * x.b + x.c, "c", (3,)),
        (lambda x, r, s: torch.tanh(x.a + r.a + r.b) * x.b * x.c, "a b", (0, 3)),
        (lambda x, r, s: torch.tanh(x.a + r.b + r.c) * x.b * x.c, "b c", (3, 4)),
        (lambda x, r, s: torch.tanh(s.h), "a c", (0, 2)),
    ],
)
def test_no_two_recurrent_gates_share_a_plane_of_gradients(function, recurrent, planes):
    generated = cell(gates="a b c", states="h", recurrent=recurrent)(function).generate()
    assert (generated.recurrent_grads, generated.grads) == (planes, max(2, *planes) + 1)


def test_what_is_not_needed_is_not_saved():
    @cell(gates="a b", states="h", recurrent="")
    def linear(x, r, s):
        return x.a + 2 * s.h - x.b

    generated = linear.generate()
    assert generated.saved == 1 and "saved[0] = x[0]" in generated.text  # the drivers need one
    assert "const V*, const V*, V* ds, V* dgates" in generated.text


def test_a_mask_is_no_value_to_save():
    @cell(gates="a b", states="h", recurrent="")
    def chosen(x, r, s):
        return torch.where(x.a < x.b, s.h, s.h * 2)

    assert chosen.generate().saved == 2


def test_what_costs_little_is_computed_again():
    @cell(gates="a", states="h", recurrent="")
    def again(x, r, s):
        y = torch.tanh(x.a)
        return (y * y) * (1 - y) * torch.exp(y) * s.h

    assert again.generate().saved == 1


def test_a_state_that_another_reads_is_read_before_it_changes():
    @cell(gates="a", states="h k l", recurrent="")
    def rotating(x, r, s):
        return s.k + x.a, s.l, s.h

    compiled = scalar_cells.Compiled([rotating], ["number"])
    torch.manual_seed(0)
    assert_runs_as_the_function(compiled, rotating, "number", *scalar_cells.random_arguments(rotating, N), 1e-14)


def test_names_of_cpp_can_be_variables():
    @cell(gates="a", states="h", recurrent="")
    def int_(x, r, s):
        new, V, ds, saved, größe = x.a * 2, x.a * 3, x.a + 1, s.h * 2, s.h * 5
        double = new + V + ds + saved + größe
        return double * double

    compiled = scalar_cells.Compiled([int_], ["number"])
    assert_runs_as_the_function(compiled, int_, "number", *scalar_cells.random_arguments(int_, N), 1e-13)
