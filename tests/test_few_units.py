"""Layers of few units and many rows run PyTorch's operations, with all features of the package's layers."""

import pytest
import torch
from tolerances import assert_same
from torch.utils._pytree import tree_leaves
from twins import arguments, every_class, only_on_cpu, pair, results_and_gradients

from fusedrnn import scan
from fusedrnn.backends import reference

ROWS = scan.MANY_ROWS


@pytest.fixture
def calls(monkeypatch):
    """How often PyTorch's layer is used."""
    results = []
    layer = reference.torch_layer
    monkeypatch.setattr(reference, "torch_layer", lambda *args: results.append(args) or layer(*args))
    return results


@only_on_cpu
@every_class
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_are_those_of_torch(device, plain, bias, calls):
    options = {} if "Cell" in plain.__name__ else {"num_layers": 2, "bidirectional": True}
    ours, theirs = pair(plain, 3, 1, bias=bias, **options)
    args = arguments(plain, 3, 1, N=ROWS, T=4, layers=4, grad=True)
    inputs = tree_leaves(args)
    assert_same(*(results_and_gradients(m, *args, inputs=inputs) for m in (ours, theirs)))
    assert len(calls) == options.get("num_layers", 1)


@only_on_cpu
@every_class
def test_anything_else_is_done_by_the_kernels(device, plain, calls):
    ours, _ = pair(plain, 3, 1)
    few_rows = arguments(plain, 3, 1, N=ROWS - 1)
    many = arguments(plain, 3, 1, N=ROWS)
    ours(*few_rows)
    pair(plain, 3, 4)[0](*arguments(plain, 3, 4, N=ROWS))
    torch.func.vmap(lambda x: tree_leaves(ours(x, many[1]))[0])(many[0].unsqueeze(0))
    if "Cell" not in plain.__name__:
        ours(*many, lengths=torch.full((ROWS,), 5))
        ours(*many, return_state_sequence="all")
    assert not calls
