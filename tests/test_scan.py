"""The compiled scan against the reference: outputs and all gradients."""

import itertools

import pytest
import torch

from fusedrnn import reference, scan

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-5}  # relative to the largest element


def make_layer(mode, D, T, N, I, H, P, bias, dtype, packed=None, lengths=None, reset=False, reset_state=False):
    torch.manual_seed(0)
    G = scan.GATES[mode]

    def leaf(*size):
        return torch.randn(*size, dtype=torch.float64).mul(0.5).to(dtype).requires_grad_()

    weights = []
    for _ in range(D):
        weights += [leaf(G * H, I), leaf(G * H, P)]
        weights += [leaf(G * H), leaf(G * H)] if bias else []
        weights += [leaf(P, H)] if P != H else []
    N = packed[0] if packed else N
    shape = (sum(packed),) if packed else (T, N)
    lstm = mode == "LSTM"
    return (
        mode, leaf(*shape, I), leaf(D, N, P), leaf(D, N, H) if lstm else None, weights,
        torch.tensor(packed) if packed else None, torch.tensor(lengths) if lengths else None,
        torch.rand(shape) < 0.3 if reset else None, leaf(D, N, P) if reset_state else None,
        leaf(D, N, H) if reset_state and lstm else None,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", list(scan.GATES))
def test_outputs_and_gradients_equal_the_reference(mode, dtype):
    batches = [(None, None), ([4, 2, 2, 1], None), (None, [0, 5, 3, 2, 1, 5, 4])]
    cases = itertools.product((1, 2), (19, 70), (True, False), batches, (0, 1, 2), (False, True))
    for D, H, bias, (packed, lengths), reset, projected in cases:
        if projected and mode != "LSTM":
            continue
        args = make_layer(
            mode, D, 5, 7, 11, H, 8 if projected else H, bias, dtype, packed, lengths, reset > 0, reset > 1
        )
        inputs = [t for t in (*args[1:4], *args[8:], *args[4]) if t is not None]
        ours, theirs = scan.scan(*args, c_sequence=True), reference.scan(*args)
        grads = [torch.randn_like(t) for t in theirs if t is not None]
        found = [
            torch.autograd.grad([t for t in out if t is not None], inputs, grads, allow_unused=True)
            for out in (ours, theirs)
        ]
        for a, b in zip([*ours, *found[0]], [*theirs, *found[1]], strict=True):
            if a is None and b is None:
                continue
            b = torch.zeros_like(a) if b is None else b
            assert (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max() + 1e-30


def test_the_compiled_extension_is_in_use():
    assert scan.extension_error is None


@pytest.mark.parametrize("mode", list(scan.GATES))
@pytest.mark.parametrize(
    "options", [{}, {"packed": [4, 2, 2, 1]}, {"lengths": [3, 0, 5], "reset": True, "reset_state": True}]
)
def test_operators_pass_opcheck_and_gradients_of_both_orders(mode, options):
    args = make_layer(mode, 2, 5, 3, 5, 6, 6, True, torch.float64, **options)
    mode, x, h0, c0, weights, *masks = args
    torch.library.opcheck(scan.scan_forward, (mode, True, True, x, h0, c0, *masks, weights))

    def run(x, h0, *weights):
        return [t for t in scan.scan(mode, x, h0, c0, weights, *masks) if t is not None]

    assert torch.autograd.gradcheck(run, (x, h0, *weights))
    assert torch.autograd.gradgradcheck(run, (x, h0, *weights))
