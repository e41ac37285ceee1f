"""The modules under autocast: dtypes, values, accuracy, and the number of conversions."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map
from twins import SEQUENCES, TWINS, arguments, every_class, only_on_cpu, outcome, pair, results_and_gradients, tensors

import fusedrnn

pytestmark = pytest.mark.usefixtures("device")


def autocast(dtype=torch.bfloat16):
    return torch.autocast(torch.get_default_device().type, dtype)


def dtypes(nest):
    return [t.dtype for t in tensors(nest)]


CALLS = [*itertools.product(TWINS, ["padded", "unbatched"]), *((plain, "packed") for plain in SEQUENCES)]


OPTIONS = [{}, {"bias": False}, {"bidirectional": True}, {"num_layers": 2}, {"proj_size": 2}]


def options_of(plain):
    """Those that the class has."""
    names = {"bias"} if "Cell" in plain.__name__ else {"bias", "bidirectional", "num_layers"}
    names |= {"proj_size"} if plain is nn.LSTM else set()
    return [options for options in OPTIONS if options.keys() <= names]


def arguments_in(form, plain, options, x_dtype, h_dtype):
    """x and hx, which is None without a dtype."""
    x, h = arguments(plain, layers=2 if {"bidirectional", "num_layers"} & options.keys() else 1)
    if "proj_size" in options:
        h = h[0][..., :2], h[1]
    x, h = x.to(x_dtype), None if h_dtype is None else tree_map(lambda t: t.to(h_dtype), h)
    if form == "unbatched":
        return x.select(-2, 0), None if h is None else tree_map(lambda t: t.select(-2, 0), h)
    if form == "packed":
        x = pack_padded_sequence(x, torch.tensor([5, 3], device="cpu"))
    return x, h


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("plain, form", CALLS, ids=[f"{plain.__name__}-{form}" for plain, form in CALLS])
def test_the_dtypes_of_torch(plain, form, dtype):
    for options in options_of(plain):
        for x_dtype, h_dtype in itertools.product([torch.float32, dtype], [None, torch.float32, dtype]):
            # oneDNN runs a padded LSTM: all dtypes are narrow if x is float32 or the processor supports the narrow one.
            by_onednn = plain is nn.LSTM and form != "packed" and "proj_size" not in options
            if by_onednn and (x_dtype, h_dtype) == (dtype, torch.float32):
                continue
            ours, theirs = pair(plain, 3, 4, dtype=torch.float32, **options)
            x, h = arguments_in(form, plain, options, x_dtype, h_dtype)
            with autocast(dtype):
                expected = outcome(lambda: dtypes(theirs(x, h)))  # noqa: B023
                if expected[0] is RuntimeError and by_onednn:
                    expected = [dtype] * 3
                assert dtypes(ours(x, h)) == expected, (options, x_dtype, h_dtype)


@every_class
def test_values_and_gradients(plain):
    ours, theirs = pair(plain, 3, 4, dtype=torch.float32)
    args = arguments(plain, dtype=torch.float32, grad=True)
    wanted = results_and_gradients(theirs, *args)
    with autocast():
        output = ours(*args)
    for a, b in zip(tree_leaves(output), wanted[0], strict=True):
        assert (a - b).abs().max() < 0.02  # values within 1, eight bits of mantissa
    sum(t.float().sum() for t in tree_leaves(output)).backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.abs().sum() > 0 for t in (*ours.parameters(), args[0]))
    with autocast():
        double = TWINS[plain](3, 4, dtype=torch.float64)(*arguments(plain))
    assert all(t.dtype == torch.float64 for t in tree_leaves(double))


@every_class
def test_a_compiled_module_has_the_same_dtypes(plain):
    ours, _ = pair(plain, 3, 4, dtype=torch.float32)
    args = arguments(plain, dtype=torch.float32)
    torch._dynamo.reset()
    with autocast():
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        assert dtypes(compiled(*args)) == dtypes(ours(*args))


@only_on_cpu
@pytest.mark.parametrize("plain", [nn.LSTMCell, nn.GRUCell], ids=lambda c: c.__name__)
def test_a_loop_carries_its_state_in_float32(plain, device):
    ours, theirs = pair(plain, 16, 16)
    xs = torch.randn(50, 4, 16, dtype=torch.float64)

    def run(module, xs):
        h, outputs = None, []
        for x in xs:
            h = module(x, h)
            outputs.append(tree_leaves(h)[0])
        return torch.stack(outputs)

    exact = run(theirs, xs)
    with autocast():
        errors = [(run(m.float(), xs.float()) - exact).abs().max() for m in (ours, theirs)]
    assert errors[0] <= 0.01 * errors[1]  # torch.nn makes products of eight bits, here all is float32


def test_a_parameter_is_cast_once():
    ours = fusedrnn.FusedRNNCell(3, 4)
    with autocast():
        calls = [ours(torch.randn(2, 3)).grad_fn.next_functions for _ in range(2)]
    casts = [{f for f, _ in inputs if f is not None and f.name() == "ToCopyBackward0"} for inputs in calls]
    assert len(casts[0]) == 4 and casts[0] == casts[1]
