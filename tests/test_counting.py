"""FLOP counters and profilers on a layer."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from twins import TWINS, arguments, every_class, only_on_cpu, pair, tensors

import fusedrnn

WANTED = {  # which of x, states and parameters need gradients
    "all": lambda name: True,
    "x and states": lambda name: name in "xh",
    "states and parameters": lambda name: name != "x",
    "states and w_hh": lambda name: name == "h" or "weight_hh" in name,
    "states and w_ih": lambda name: name == "h" or "weight_ih" in name,
}


def flops(module, x, h, wanted):
    """Forward, and in a backward pass to those that are wanted."""
    named = [("x", x), *(("h", s) for s in tree_leaves(h)), *module.named_parameters()]
    for name, t in named:
        t.requires_grad_(wanted(name))
    with FlopCounterMode(display=False) as forward:
        output = module(x, h)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(sum(t.sum() for t in tensors(output)), [t for _, t in named if t.requires_grad])
    return forward.get_total_flops(), backward.get_total_flops()


@every_class
@pytest.mark.parametrize("wanted", WANTED)
def test_as_many_operations_are_counted_as_with_torch(plain, wanted):
    options = {} if "Cell" in plain.__name__ else {"bidirectional": True, "num_layers": 2}
    ours, theirs = pair(plain, 3, 5, **options)
    x, h = arguments(plain, H=5, layers=4)
    results = flops(ours, x, h, WANTED[wanted])
    assert results == flops(theirs, x, h, WANTED[wanted]) and min(results) > 0


def test_operations_of_a_projection_are_counted():
    ours, theirs = pair(nn.LSTM, 3, 5, proj_size=2)
    x, h = torch.randn(4, 2, 3, dtype=torch.float64), [torch.randn(1, 2, n, dtype=torch.float64) for n in (2, 5)]
    for wanted in (WANTED["all"], lambda name: name in ("h", "weight_hr_l0")):
        assert flops(ours, x, h, wanted) == flops(theirs, x, h, wanted)


def test_gates_that_are_made_again_are_counted_again():
    module, (x, h) = fusedrnn.FusedGRU(3, 4, dtype=torch.float64), arguments(nn.GRU)
    forward, backward = flops(module, x, h, WANTED["all"])
    module.recompute = True
    assert flops(module, x, h, WANTED["all"]) == (forward, backward + forward)


@every_class
@only_on_cpu
def test_a_profiler_sees_one_event_of_a_layer_and_one_of_its_gradients(plain, device):
    module, args = TWINS[plain](3, 4), arguments(plain, dtype=torch.float32)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        sum(t.sum() for t in tree_leaves(module(*args))).backward()
    name = "fusedrnn::" + getattr(module, "mode", plain.__name__.removesuffix("Cell")).lower()
    name += "_tanh" if name == "fusedrnn::rnn" else ""
    forward, backward = ([event for event in seen.events() if event.name == n] for n in (name, name + "_backward"))
    assert len(forward) == len(backward) == 1
    for event in forward + backward:
        assert event.input_shapes[:2] == [list(args[0].shape), list(tree_leaves(args)[1].shape)]
    (node,) = [e for e in seen.events() if "evaluate_function" in e.name and "fusedrnn::Scan" in e.name]
    assert forward[0].sequence_nr == node.sequence_nr
