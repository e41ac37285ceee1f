"""Layers whose recurrent weight is block-diagonal: against a loop over the heads, and against the dense weight."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_same
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from fusedrnn import zoo

T, N, I, H = 7, 3, 5, 12


@fusedrnn.cell(gates="a b c", states="h", recurrent="c a")
def partly_recurrent(x, r, s):
    return torch.tanh(x.a + r.a) * torch.sigmoid(x.b) + torch.sigmoid(x.c) * r.c


def of_own_head(h, w, b, heads):
    """Each gate's recurrent part."""
    w = w.unflatten(0, (-1, heads, H // heads))
    r = torch.einsum("nku,gkvu->ngkv", h.unflatten(1, (heads, -1)), w)
    return (r.flatten(2) + b.unflatten(0, (-1, H))).unbind(1)


def slstm_without_stabiliser(x, r, h, c, n):
    i, f, z, o = (a + b for a, b in zip(x, r, strict=True))
    i, f, o = torch.exp(i), torch.sigmoid(f), torch.sigmoid(o)
    c, n = f * c + i * torch.tanh(z), f * n + i
    return o * c / n, c, n


def partly_recurrent_by_hand(x, r, h):
    return (torch.tanh(x[0] + r[0]) * torch.sigmoid(x[1]) + torch.sigmoid(x[2]) * r[1],)


CASES = {"slstm": (zoo.slstm, slstm_without_stabiliser, 3), "partly": (partly_recurrent, partly_recurrent_by_hand, 1)}


def loop(layer, step, states, x):
    """Every h, and the last states."""
    w_ih, w_hh, b_ih, b_hh = layer.parameters()
    states, outputs = [x.new_zeros(N, H) for _ in range(states)], []
    for x_t in x:
        gates = F.linear(x_t, w_ih, b_ih).chunk(len(layer.cell.gates), -1)
        states = step(gates, of_own_head(states[0], w_hh, b_hh, layer.heads), *states)
        outputs.append(states[0])
    return torch.stack(outputs), *states[1:]


def with_gradients(outputs, leaves):
    torch.manual_seed(1)
    return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.randn_like(t) for t in outputs])]


@pytest.mark.parametrize("heads", [1, 2, 4, H])
@pytest.mark.parametrize("name", CASES)
def test_each_unit_sees_its_own_head_only(name, heads):
    cell, step, states = CASES[name]
    layer = fusedrnn.Recurrent(cell, I, H, heads=heads, dtype=torch.float64)
    assert layer.weight_hh_l0.shape == (len(cell.recurrent) * H, H // heads) and layer.backend == "compiled"
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    output, last = layer(x)
    if name == "slstm":
        _, c, n, m = last
        ours = (output, c[0] * m[0].exp(), n[0] * m[0].exp())
    else:
        ours = (output,)
    leaves = [x, *layer.parameters()]
    assert_same(with_gradients(ours, leaves), with_gradients(loop(layer, step, states, x), leaves))


def test_slstm_keeps_large_exponents_from_overflowing():
    layer = fusedrnn.Recurrent(zoo.slstm, I, H, heads=3, dtype=torch.float64)
    layer.bias_ih_l0.data[:H] = 5000
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    results = with_gradients([layer(x)[0]], [x, *layer.parameters()])
    assert all(t.isfinite().all() for t in results)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_both_orders_are_right(name):
    layer = fusedrnn.Recurrent(CASES[name][0], 2, 4, heads=2, dtype=torch.float64)
    x, names = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True), [n for n, _ in layer.named_parameters()]

    def run(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(run, (x, *layer.parameters()))


def dense(layer, cls, **options):
    """A layer of one head with the same blocks among zeros."""
    other = cls(layer.cell, layer.input_size, H, **options)
    weights = layer.state_dict()
    for name, w in weights.items():
        if name.startswith("weight_hh"):
            gates = w.unflatten(0, (-1, layer.heads, H // layer.heads))
            weights[name] = torch.cat([torch.block_diag(*gate) for gate in gates])
    other.load_state_dict(weights)
    return other


def of_blocks(t, layer):
    """The elements of a dense gradient that are parameters."""
    blocks = t.unflatten(1, (layer.heads, -1)).unflatten(0, (-1, layer.heads, H // layer.heads))
    return torch.stack([blocks[:, k, :, k] for k in range(layer.heads)], 1).flatten(0, 2)


CALLS = {
    "plain": {},
    "lengths and reset": {"lengths": torch.tensor([7, 4, 0]), "reset": torch.rand(T, N) < 0.3},
    "packed": None,
}
NOISE = {
    "none": {},
    "all": {"zoneout": {"h": 0.2}, "recurrent_dropout": 0.3, "weight_drop": 0.4, "dropout": 0.1, "recompute": True},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("noise", NOISE)
def test_options_are_those_of_the_dense_weight(call, noise):
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64, **NOISE[noise]}
    layer = fusedrnn.Recurrent(zoo.slstm, I, H, heads=3, **options)
    results = []
    for module in (layer, dense(layer, fusedrnn.Recurrent, **options)):
        torch.manual_seed(2)
        x = torch.randn(T, N, I, dtype=torch.float64)
        if CALLS[call] is None:
            output, states = module(pack_padded_sequence(x, [7, 4, 2]))
            output = output.data
        else:
            output, states = module(x, **CALLS[call])
        grads = with_gradients([output, *states], list(module.parameters()))
        results.append([of_blocks(t, layer) if t.shape == (4 * H, H) and module is not layer else t for t in grads])
    assert_same(*results)


def test_a_cell_for_one_step_takes_heads():
    layer = fusedrnn.Recurrent(zoo.slstm, I, H, heads=4, dtype=torch.float64)
    cell = fusedrnn.RecurrentCell(zoo.slstm, I, H, heads=4, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in layer.state_dict().items()})
    x, states = torch.randn(T, N, I, dtype=torch.float64), None
    for x_t in x:
        states = cell(x_t, states)
    assert_same(states, [s[0] for s in layer(x)[1]])


def test_a_layer_with_heads_can_be_copied_compiled_exported_and_packed():
    layer, x = fusedrnn.Recurrent(zoo.peephole_lstm, I, H, heads=4), torch.randn(T, N, I)
    wanted = layer(x)
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fusedrnn.optimize_for_inference(layer)]
    others += [torch.compile(layer, backend="aot_eager"), torch.export.export(layer, (x,)).module()]
    for other in others:
        assert_same(other(x), wanted, torch.float32)
    assert "heads=4" in repr(layer) and "heads=4" in repr(fusedrnn.RecurrentCell(zoo.slstm, I, H, heads=4))


@pytest.mark.parametrize("module", [fusedrnn.Recurrent, fusedrnn.RecurrentCell])
@pytest.mark.parametrize(
    "heads, said",
    [
        (5, "heads must divide hidden_size, got 5 heads of 12 units"),
        (24, "heads must divide hidden_size, got 24 heads of 12 units"),
        (0, "heads must be greater than zero"),
        (-2, "heads must be greater than zero"),
        (2.0, "heads should be of type int, got: float"),
        (True, "heads should be of type int, got: bool"),
    ],
)
def test_wrong_heads_are_refused(module, heads, said):
    with pytest.raises((ValueError, TypeError), match=said):
        module(zoo.slstm, I, H, heads=heads)


def test_heads_without_a_recurrent_weight_are_refused():
    with pytest.raises(ValueError, match="heads divide weight_hh, which min_gru does not have"):
        fusedrnn.Recurrent(zoo.min_gru, I, H, heads=2)
