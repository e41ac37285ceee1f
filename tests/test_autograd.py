"""What autograd sees of a layer: one node, made in C++, that asks Python where it must."""

import pytest
import torch
from tolerances import assert_same
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from twins import SEQUENCES, TWINS, arguments, every_class

import fusedrnn

pytestmark = pytest.mark.usefixtures("device")


class Own(Exception):
    pass


def fail(*args):
    raise Own("from Python")


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_some_are_those_of_all(plain, dtype):
    module = TWINS[plain](3, 4, dtype=dtype)
    args = arguments(plain, dtype=dtype, grad=True)
    leaves = [*tree_leaves(args), *module.parameters()]
    for output in range(len(tree_leaves(module(*args)))):

        def loss(output=output):
            return tree_leaves(module(*args))[output].square().sum()

        wanted = torch.autograd.grad(loss(), leaves, allow_unused=True)
        for leaf, grad in zip(leaves, wanted, strict=True):
            (found,) = torch.autograd.grad(loss(), leaf, allow_unused=True)
            assert torch.equal(found, grad)
        for leaf, grad in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(False)
            found = torch.autograd.grad(loss(), [other for other in leaves if other is not leaf])
            leaf.requires_grad_()
            assert all(map(torch.equal, found, [g for g in wanted if g is not grad]))


def test_errors_of_python_arrive_as_they_are(monkeypatch):
    module, x = fusedrnn.FusedLSTM(3, 4, recompute=True), torch.randn(5, 2, 3)
    with pytest.raises(Own), saved_tensors_hooks(fail, fail):
        module(x)
    with saved_tensors_hooks(lambda t: t, fail):
        y = module(x)[0]
    with pytest.raises(Own):
        y.sum().backward()
    monkeypatch.setattr("fusedrnn.backends.reference.gradients", fail)
    with pytest.raises(Own, match="from Python"):
        module(x)[0].sum().backward(create_graph=True)


def test_what_was_kept_is_guarded():
    module, x = fusedrnn.FusedLSTM(3, 4), torch.randn(5, 2, 3)
    y = module(x)[0].sum()
    y.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        y.backward()
    y = module(x)[0].sum()
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@every_class
def test_batched_gradients_are_those_of_one_after_the_other(plain):
    module = TWINS[plain](3, 4, dtype=torch.float64)
    args = arguments(plain, grad=True)
    leaves, y = [*tree_leaves(args), *module.parameters()], tree_leaves(module(*args))[0]
    dys = torch.randn(3, *y.shape, dtype=y.dtype)
    found = torch.autograd.grad(y, leaves, dys, retain_graph=True, is_grads_batched=True, allow_unused=True)
    one_by_one = [torch.autograd.grad(y, leaves, dy, retain_graph=True) for dy in dys]
    assert_same(list(found), [torch.stack(grads) for grads in zip(*one_by_one, strict=True)])
    assert not any(grad.requires_grad for grad in found)


@every_class
def test_tangents_of_incoming_gradients_are_led_on(plain):
    module = TWINS[plain](3, 4, dtype=torch.float64)
    args = arguments(plain, grad=True)
    leaves, y = [*tree_leaves(args), *module.parameters()], tree_leaves(module(*args))[0]
    dy, tangent = torch.randn_like(y), torch.randn_like(y)
    wanted = [torch.autograd.grad(y, leaves, t, retain_graph=True, allow_unused=True) for t in (dy, tangent)]
    with forward_ad.dual_level():
        found = torch.autograd.grad(y, leaves, forward_ad.make_dual(dy, tangent), allow_unused=True)
        found = zip(*(forward_ad.unpack_dual(grad) for grad in found), strict=True)
        assert_same(list(found), wanted)


def eager(monkeypatch):
    pass


def by_operators(monkeypatch):
    monkeypatch.setattr("fusedrnn.backends.extension.scan", lambda *args: None)


def by_reference(monkeypatch):
    by_operators(monkeypatch)
    monkeypatch.setattr("fusedrnn.scan._use_reference", lambda *args: True)


@pytest.mark.parametrize("plain", [plain for plain in TWINS if plain not in SEQUENCES], ids=lambda c: c.__name__)
@pytest.mark.parametrize("way", [eager, by_operators, by_reference])
def test_the_step_of_a_cell_may_be_changed_in_place(plain, way, monkeypatch):
    module, args = TWINS[plain](3, 4, dtype=torch.float64), arguments(plain, grad=True)
    leaves = [*tree_leaves(args), *module.parameters()]
    wanted = torch.autograd.grad(sum(3 * t.sum() for t in tree_leaves(module(*args))), leaves)
    way(monkeypatch)
    output = tree_leaves(module(*args))
    for t in output:
        t.mul_(3)
    assert_same(torch.autograd.grad(sum(t.sum() for t in output), leaves), wanted)
