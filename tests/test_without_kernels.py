"""Where there are no kernels, torch.nn serves what it can do, and the reference the rest."""

import pytest
import torch
from tolerances import assert_same
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves
from twins import arguments, every_class, every_sequence, only_on_cpu, pair, results_and_gradients, tensors

from fusedrnn import info
from fusedrnn.backends import extension, reference

pytestmark = only_on_cpu
SEQUENCE = {"num_layers": 2, "bidirectional": True, "dropout": 0.5}


@pytest.fixture(autouse=True)
def no_kernels(device, monkeypatch):
    monkeypatch.setattr(extension, "_C", None)


@pytest.fixture
def calls(monkeypatch):
    """Each layer that the reference runs."""
    found = []
    run = reference.scan
    monkeypatch.setattr(reference, "scan", lambda *args: found.append(args) or run(*args))
    return found


@every_class
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("state", [True, False])
def test_a_plain_call_is_bitwise_that_of_torch(device, plain, bias, state, calls):
    options = {} if "Cell" in plain.__name__ else SEQUENCE
    both = pair(plain, 3, 4, bias=bias, **options)
    args = arguments(plain, 3, 4, layers=4, grad=True)[: 1 + state]
    made = []
    for module in both:
        torch.manual_seed(3)  # of dropout
        made.append(results_and_gradients(module, *args, inputs=tree_leaves(args)))
    for a, b in zip(tree_leaves(made[0]), tree_leaves(made[1]), strict=True):
        assert torch.equal(a, b)
    assert not calls


@every_sequence
@pytest.mark.parametrize("form", ["packed", "unbatched", "batch_first", "proj_size"])
def test_every_form_of_torch_is_left_to_torch(device, plain, form, calls):
    options = {"batch_first": {"batch_first": True}, "proj_size": {"proj_size": 2}}.get(form, {})
    if form == "proj_size" and plain is not torch.nn.LSTM:
        options = {}
    ours, theirs = pair(plain, 3, 4, **options)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    x = {"packed": pack_sequence([x[:2, 0], x[:, 1]], enforce_sorted=False), "unbatched": x[:, 0]}.get(form, x)
    for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        assert torch.equal(a, b)
    assert not calls


@every_sequence
def test_what_torch_cannot_do_is_left_to_the_reference(device, plain, calls):
    ours, theirs = pair(plain, 3, 4)
    x, state = arguments(plain, 3, 4)
    for options in ({"lengths": torch.tensor([5, 5])}, {"reset": torch.zeros(5, 2, dtype=torch.bool)}):
        assert_same(tensors(ours(x, state, **options)), tensors(theirs(x, state)))
    ours(x, state, return_state_sequence=True)
    ours(x[:0], state)
    torch.func.vmap(lambda x: tree_leaves(ours(x, state))[0])(x.unsqueeze(0))
    ours.zoneout_h = 0.5
    ours(x, state)
    assert len(calls) == 6


def test_a_changed_weight_is_seen(device):
    ours, theirs = pair(torch.nn.GRU, 3, 4)
    x, _ = arguments(torch.nn.GRU)
    changed = {"weight_hh_l0": torch.zeros_like(ours.weight_hh_l0)}
    theirs.load_state_dict(theirs.state_dict() | changed)
    assert torch.equal(torch.func.functional_call(ours, changed, x)[0], theirs(x)[0])


def test_info_says_which_serves_a_module(device, monkeypatch):
    ours, _ = pair(torch.nn.LSTM, 3, 4)
    assert info.serves(ours) == "torch.nn; what it cannot do, the reference in PyTorch"
    ours.zoneout_h = 0.5
    assert info.serves(ours) == "the reference in PyTorch"
    monkeypatch.undo()
    assert info.serves(ours) == "the CPU kernels"
