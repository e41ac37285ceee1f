"""Any module on any input does what torch.nn does: outputs and every gradient, in every dtype."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from tolerances import RATIO, assert_same, distance, floor
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map
from twins import SEQUENCES, TWINS, only_on_cpu, results_and_gradients, tensors

pytestmark = pytest.mark.usefixtures("device")
FORMS = ["padded", "packed", "packed unsorted", "packed by hand", "unbatched"]


@st.composite
def cases(draw):
    """A class of torch.nn, how to build it, the arguments of a call, and which of them get a gradient."""
    plain = draw(st.sampled_from(SEQUENCES))
    I, H = draw(st.integers(1, 20)), draw(st.sampled_from([2, 3, 5, 8, 16, 17, 19, 33, 40]))
    layers, directions = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    options = {
        "input_size": I,
        "hidden_size": H,
        "num_layers": layers,
        "bidirectional": directions == 2,
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
    }
    if plain is nn.LSTM and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, H - 1))
    if plain is nn.RNN:
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))

    form, T = draw(st.sampled_from(FORMS)), draw(st.integers(1, 8))
    N = 1 if form == "unbatched" else draw(st.integers(1, 9))
    torch.manual_seed(draw(st.integers(0, 999)))
    if form == "unbatched":
        x = torch.randn(T, I)
    elif form == "padded":
        x = torch.randn(*((N, T) if options["batch_first"] else (T, N)), I)
    else:
        lengths = draw(st.lists(st.integers(1, T), min_size=N, max_size=N))
        unsorted = form == "packed unsorted"
        lengths = lengths if unsorted else sorted(lengths, reverse=True)
        x = pack_padded_sequence(torch.randn(max(lengths), N, I), lengths, enforce_sorted=not unsorted)
        if form == "packed by hand":
            x = PackedSequence(x.data, x.batch_sizes)
    args = [x]
    if draw(st.booleans()):
        rows = () if form == "unbatched" else (N,)
        sizes = [options.get("proj_size", H), H] if plain is nn.LSTM else [H]
        states = tuple(torch.randn(layers * directions, *rows, size) for size in sizes)
        args.append(states if plain is nn.LSTM else states[0])
    wants = draw(st.one_of(st.just(None), st.lists(st.booleans(), min_size=40, max_size=40)))
    return plain, options, args, wants


def run(cls, case, dtype, computed_in=None, nudge=0.0, seed=0):
    """Outputs and gradients, of numbers that are representable in dtype, each then moved by +-nudge of itself."""
    plain, options, args, wants = case
    computed_in = computed_in or dtype
    torch.manual_seed(0)
    module = cls(**options).to(dtype).to(computed_in)
    floating = set(map(id, tensors(args)))
    args = tree_map(lambda t: t.to(dtype).to(computed_in, copy=True) if id(t) in floating else t, args)
    leaves = [*module.parameters(), *tensors(args)]
    torch.manual_seed(seed)
    for leaf, want in zip(leaves, wants or [True] * len(leaves), strict=False):
        if nudge:
            leaf.data.mul_(1 + nudge * torch.randn_like(leaf).sign())
        leaf.requires_grad_(want)
    if not any(leaf.requires_grad for leaf in leaves):
        return tensors(module(*args))
    return tree_leaves(results_and_gradients(module, *args, inputs=tensors(args)))


@pytest.mark.slow
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(cases())
def test_any_call_agrees_with_torch_in_every_dtype(case):
    torch.set_num_threads(1)  # for sizes like these a second thread costs more than it brings
    plain = case[0]
    assert_same(run(TWINS[plain], case, torch.float64), run(plain, case, torch.float64))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if plain is nn.RNN and case[1]["nonlinearity"] == "relu" and dtype != torch.float32:
            continue  # its gradient jumps where a state, rounded to few bits, crosses zero
        exact = run(plain, case, dtype, torch.float64)
        nudged = [run(plain, case, dtype, torch.float64, torch.finfo(dtype).eps, seed) for seed in range(4)]
        results = run(TWINS[plain], case, dtype), run(plain, case, dtype)
        for place, (truth, ours, theirs, *near) in enumerate(zip(exact, *results, *nudged, strict=True)):
            assert (ours is None) == (theirs is None)
            if truth is not None:
                sensitivity = max(distance(t, truth) for t in near)
                allowed = RATIO * distance(theirs, truth) + floor(dtype, sensitivity)
                assert distance(ours, truth) <= allowed, f"result {place} of {dtype}"


@pytest.mark.slow
@only_on_cpu
@pytest.mark.parametrize(
    "plain, T, N, sizes",
    [
        (nn.LSTM, 25, 1, {"input_size": 640, "hidden_size": 2048, "proj_size": 640}),
        (nn.RNN, 40, 16, {"input_size": 1024, "hidden_size": 1024}),
        (nn.GRU, 20, 7, {"input_size": 700, "hidden_size": 1024}),
        (nn.LSTM, 2000, 2, {"input_size": 16, "hidden_size": 64}),
    ],
)
def test_long_sums_and_long_sequences_are_as_exact_as_those_of_torch(plain, T, N, sizes):
    torch.manual_seed(0)
    case = plain, sizes, [torch.randn(T, N, sizes["input_size"])], None
    exact = run(plain, case, torch.float32, torch.float64)
    ours, theirs = (
        max(distance(t, truth) for t, truth in zip(run(cls, case, torch.float32), exact, strict=True))
        for cls in (TWINS[plain], plain)
    )
    assert ours <= max(RATIO * theirs, floor(torch.float32, 0))
