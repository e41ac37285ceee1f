"""Nested tensors of layout torch.jagged: each row as torch.nn computes it alone, and nested output."""

import pytest
import torch
from tolerances import assert_same
from torch import nn
from twins import arguments, every_sequence, only_on_cpu, pair, tensors

import fusedrnn

pytestmark = pytest.mark.usefixtures("device")
SIZES = [3, 0, 5, 1]


def nested(*rows, **options):
    return torch.nested.nested_tensor(list(rows), layout=torch.jagged, **options)


def rows_of(dtype=torch.float64, sizes=SIZES):
    return [torch.randn(T, 3, dtype=dtype) for T in sizes]


def results(output):
    """Values of nested results, and the states."""
    return [t.values() if t.is_nested else t for t in tensors(output)]


@every_sequence
@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx"])
@pytest.mark.parametrize("options", [
    {}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False},
], ids=str)  # fmt: skip
def test_each_row_is_what_torch_makes_of_it(plain, options, given):
    ours, theirs = pair(plain, 3, 4, **options)
    planes = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    _, states = arguments(plain, N=len(SIZES), layers=planes)
    states = states if isinstance(states, tuple) else (states,)
    rows = rows_of()

    def loss(outs):
        return sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in outs)

    def gradients(outs, module):
        leaves = [*module.parameters(), *rows, *(states if given else ())]
        return torch.autograd.grad(loss(outs), leaves, allow_unused=True, materialize_grads=True)

    for t in (*rows, *states):
        t.requires_grad_()
    x = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    output, final = ours(x, (states if plain is nn.LSTM else states[0]) if given else None)
    assert output.shape[1] == x.shape[1] and output.offsets() is x.offsets()
    results = [output.values(), *(final if plain is nn.LSTM else (final,))]
    expected = row_by_row(theirs, rows, states, given, output.size(2))
    assert_same(results, expected)
    assert_same(gradients(results, ours), gradients(expected, theirs))


def row_by_row(module, rows, states, given, width):
    """The results of torch.nn's module for the rows, one after the other."""
    lstm, batch_dim = isinstance(module, nn.LSTM), 0 if module.batch_first else 1
    outputs, finals = [], []
    for n, row in enumerate(rows):
        hx = tuple(s[:, n : n + 1] for s in states)
        if not len(row):  # torch.nn takes no empty sequence
            outputs.append(row.new_zeros(0, width) + 0 * row.sum())
            finals.append(hx if given else tuple(torch.zeros_like(s) for s in hx))
            continue
        y, state = module(row.unsqueeze(batch_dim), (hx if lstm else hx[0]) if given else None)
        outputs.append(y.squeeze(batch_dim))
        finals.append(state if lstm else (state,))
    return [torch.cat(outputs), *(torch.cat(parts, 1) for parts in zip(*finals, strict=True))]


@every_sequence
@pytest.mark.parametrize("wanted", [True, "all"])
def test_options_of_the_call_are_those_of_lengths(plain, wanted):
    ours, _ = pair(plain, 3, 4, 2, bidirectional=True)
    x, lengths = nested(*rows_of()), torch.tensor(SIZES)
    reset = torch.nested.nested_tensor_from_jagged(torch.rand(sum(SIZES)) < 0.4, x.offsets())
    padded, padded_reset = (t.to_padded_tensor(0, (4, 5, *t.shape[2:])).transpose(0, 1) for t in (x, reset))
    _, state = arguments(plain, N=1, layers=4)
    options = {"reset_state": state, "return_state_sequence": wanted}
    actual = ours(x, reset=reset, **options)
    same = ours(padded, lengths=lengths, reset=padded_reset, **options)
    behind = torch.arange(5) < lengths[:, None]
    same = [t.transpose(0, 1)[behind] if t.shape[:2] == (5, 4) else t for t in tensors(same)]
    assert_same(results(actual), same)
    assert (x + actual[0].sum(-1, keepdim=True)).shape[1] == x.shape[1]


@every_sequence
def test_results_can_be_nested_input_again_and_an_empty_batch_runs(plain):
    ours, _ = pair(plain, 3, 3)
    x = nested(*rows_of(), requires_grad=True)
    y = ours(torch.relu(ours(x)[0]))[0] + x
    (grad,) = torch.autograd.grad(y.values().sum(), x)
    assert grad.shape == x.shape and grad.values().abs().min() > 0
    for offsets in ([0], [0, 0]):
        empty = torch.nested.nested_tensor_from_jagged(torch.zeros(0, 3).double(), torch.tensor(offsets))
        y, state = ours(empty)
        assert y.shape == empty.shape and tensors(state)[0].shape == (1, len(offsets) - 1, 3)


def test_compiled():
    ours, _ = pair(nn.LSTM, 3, 4, 2, bidirectional=True)
    torch._dynamo.reset()
    x = nested(*rows_of())
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_same(results(compiled(x)), results(ours(x)))


def strided(*rows):
    return torch.nested.nested_tensor(list(rows), layout=torch.strided)


def holes():
    starts, lengths = torch.tensor([0, 1]), torch.tensor([2, 3])
    return torch.nested.narrow(torch.zeros(2, 6, 3), 1, starts, lengths, layout=torch.jagged)


X = nested(*rows_of(torch.float32))
FORM = "a nested input must be of layout torch.jagged"
OTHER = "reset must be torch.bool [4, j"
WRONG = {  # name: (input, options, words of the error)
    "strided": (strided(*rows_of()), {}, [FORM, "got torch.float64 nested, of layout torch.strided"]),
    "ragged features": (nested(torch.zeros(2, 3)).transpose(1, 2), {}, [FORM, "got torch.float32 [1, 3, j"]),
    "4-D": (nested(torch.zeros(2, 3, 1)), {}, [FORM, ", 3, 1] on cpu"]),
    "without features": (nested(torch.zeros(2)), {}, [FORM]),
    "with holes": (holes(), {}, [FORM, "contiguous"]),
    "and lengths": (X, {"lengths": torch.tensor(SIZES)}, ["lengths cannot be given together with a nested tensor"]),
    "reset padded": (X, {"reset": torch.zeros(5, 4).bool()}, [OTHER, "got torch.bool [5, 4]"]),
    "reset of other sizes": (
        X,
        {"reset": nested(*(torch.zeros(n + 1).bool() for n in SIZES))},
        [OTHER, "got torch.bool [4, j"],
    ),
    "reset of another dtype": (X, {"reset": X.sum(-1)}, [OTHER, "got torch.float32 [4, j"]),
    "reset strided": (X, {"reset": strided(*rows_of())}, [OTHER, "got torch.float64 nested, of layout torch.strided"]),
    "reset nested alone": (torch.zeros(5, 5, 3), {"reset": X.sum(-1) > 0}, ["[5, 5] on cpu, got torch.bool [4, j"]),
    "input of another size": (nested(torch.zeros(2, 5)), {}, ["Expected 3, got 5"]),
    "input of another dtype": (X.double(), {}, ["RNN input dtype (torch.float64) does not match"]),
    "state of another batch": (X, {"hx": torch.zeros(1, 2, 4)}, ["Expected hidden size (1, 4, 4), got [1, 2, 4]"]),
}


@only_on_cpu
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case, batch_first):
    given, options, words = WRONG[case]
    with pytest.raises((ValueError, RuntimeError)) as error:
        fusedrnn.FusedGRU(3, 4, batch_first=batch_first)(given, **options)
    assert all(word in str(error.value) for word in words), error.value
