"""Unusual tensors as every argument: what torch.nn computes is computed, everything else is an error.

A crash or a hang is a failure like others: cases run in processes forked from one that has imported torch, those of a
kind and class together, or each in its own with ``python tests/test_hostile_tensors.py --apart [kind ...]``.
"""

import collections
import copy
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import SAME, distance
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from twins import TWINS, pair, tensors

import fusedrnn

SECONDS = 60  # for the cases of one process
I, H, N, T = 3, 4, 2, 5


def half(t):
    return t / 2 if t.is_floating_point() else t


def doubled(t):
    return t * 2 if t.is_floating_point() else t


class Wrapper(torch.Tensor):
    """Has no memory; its values come out when an operation of the dispatcher asks, as of quantised weights."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda t: half(t.inner) if isinstance(t, cls) else t, (args, kwargs or {}))
        return func(*args, **kwargs)


class Halved(torch.Tensor):
    """Its memory holds twice its values, and its operations know."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func in (torch.Tensor.shape.__get__, torch.Tensor.device.__get__, torch.Tensor.dtype.__get__):
                return func(*args)
            args, kwargs = tree_map(
                lambda t: half(t.as_subclass(torch.Tensor)) if isinstance(t, cls) else t, (args, kwargs or {})
            )
            return func(*args, **kwargs)


class Named(torch.Tensor):
    """A subclass that changes nothing."""


class Silent(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl


def distributed(t):
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    return DTensor.from_local(t, init_device_mesh("cpu", (1,)), [Replicate()])


fake_mode = None


def fake(t):
    global fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake_mode = fake_mode or FakeTensorMode()
    return fake_mode.from_tensor(t)


def shrunk(t, share):
    t.untyped_storage().resize_(int(t.untyped_storage().nbytes() * share))
    return t


def inference(t):
    with torch.inference_mode():
        return t.clone()


def negated(t):
    return torch.complex(torch.zeros_like(t), -t).conj().imag if t.is_floating_point() else torch._neg_view(-t)


LATE = "freed between forward and backward"
KINDS = {  # how it is made from a plain tensor
    "wrapper": lambda t: Wrapper(doubled(t)),
    "subclass with operations": lambda t: doubled(t).as_subclass(Halved),
    "subclass": lambda t: t.as_subclass(Named),
    "subclass without torch function": lambda t: t.as_subclass(Silent),
    "distributed": distributed,
    "fake": fake,
    "functional": torch._to_functional_tensor,
    "zero": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "sparse": torch.Tensor.to_sparse,
    "sparse by rows": lambda t: t.to_sparse_csr(),
    "mkldnn": torch.Tensor.to_mkldnn,
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.01, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor(list(t), layout=torch.strided),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "negated": lambda t: torch._neg_view(-t),
    "part of a conjugated": negated,
    "without memory": lambda t: shrunk(t.clone(), 0),
    "with too little memory": lambda t: shrunk(t.clone(), 0.5),
    LATE: lambda t: shrunk(t, 0),
    "meta": lambda t: t.to("meta"),
    "inference": inference,
    "copied when written": torch._lazy_clone,
}
SINGLE = {"mkldnn", "quantised"}  # of float32 only
# Computed in every place; as in torch.nn, apart from internal errors for zero and functional tensors beside others.
COMPUTED = {
    "wrapper",
    "subclass",
    "subclass without torch function",
    "functional",
    "zero",
    "negated",
    "part of a conjugated",
    "copied when written",
}
# An error in every place. torch.nn may crash or read out of bounds, and runs nested input of equal lengths.
REFUSED = {"without memory", "with too little memory", LATE, "nested", "jagged", "quantised", "mkldnn"}
# Computed, or an error since autograd cannot save it. torch.nn saves fewer of the parameters.
EITHER = {"inference"}
# For all others torch.nn is asked: autograd for one takes memory of gradients as it is, whatever their class.

OPTIONS = ["lengths", "reset", "reset_state"]
PLACES = ["input", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "output", "gradient", "all", *OPTIONS]


def cases():
    for kind in KINDS:
        for plain in TWINS:
            for place in PLACES:
                if place == "c0" and "LSTM" not in plain.__name__ or place in OPTIONS and "Cell" in plain.__name__:
                    continue
                if (
                    place == "output"
                    and (kind != LATE or "Cell" in plain.__name__)
                    or kind == LATE
                    and place == "gradient"
                ):
                    continue
                yield kind, place, plain.__name__


class Given:
    """Makes tensors, and applies `change` to the one in `place`."""

    def __init__(self, change, place, dtype):
        self.change, self.place, self.dtype = change, place, dtype
        self.late = []  # tensors that are changed between forward and backward

    def new(self, *size):
        return torch.randn(*size, dtype=torch.float64).to(self.dtype)

    def __call__(self, t, *places):
        if self.place not in places:
            return t
        if self.change is KINDS[LATE]:
            self.late.append(t)
            return t
        return self.change(t)

    def parameters(self, module):
        for name in [name for name, _ in module.named_parameters()]:
            if self.place == "all" or name.startswith(self.place):
                if self.change is KINDS[LATE]:
                    self.late.append(module._parameters[name])
                else:
                    setattr(module, name, self.change(module._parameters.pop(name).detach()))

    def options(self, states):
        if self.place not in OPTIONS:
            return {}
        state = [self(self.new(1, N, H), "reset_state") for _ in states]
        return {
            "lengths": self(torch.tensor([5, 3]), "lengths"),
            "reset": self(torch.rand(T, N) < 0.4, "reset"),
            "reset_state": tuple(state) if len(state) > 1 else state[0],
        }


def call(module, plain, change, place, dtype):
    """Outputs and gradients, with ``change`` applied to the tensor in ``place``."""
    cell, lstm = "Cell" in plain.__name__, "LSTM" in plain.__name__
    torch.manual_seed(1)
    given = Given(change, place, dtype)
    new = given.new
    x = given(new(N, I) if cell else new(T, N, I), "input", "all")
    states = [given(new(N, H) if cell else new(1, N, H), name, "all") for name in (["h0", "c0"] if lstm else ["h0"])]
    given.parameters(module)
    output = tensors(module(x, tuple(states) if lstm else states[0], **given.options(states)))
    y = output[0]
    leaves, dy = list(module.parameters()), new(*y.shape)
    given(y, "output")
    for t in given.late:
        change(t.detach())
    if place == "gradient" or given.late:
        return output, torch.autograd.grad(y, leaves, given(dy, "gradient"))
    loss = sum(t.sum() for t in output)
    return output, torch.autograd.grad(loss, leaves) if leaves and loss.requires_grad else ()


def values(results):
    """Plain tensors, or the type and shape of a tensor without values."""

    def value(t):
        if type(t).__name__ == "FakeTensor" or t.is_meta:
            return type(t).__name__, tuple(t.shape), t.dtype
        if type(t).__name__ == "DTensor":
            t = t.full_tensor()
        if torch._is_functional_tensor(t):
            torch._sync(t)
            t = torch._from_functional_tensor(t)
        return torch.tensor(t.tolist(), dtype=torch.float64)

    return [value(t) for t in tree_leaves(results) if t is not None]


def outcome(run):
    try:
        return values(run())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def difference(ours, wanted, dtype):
    """ "same", or how the first value differs."""
    if len(ours) != len(wanted):
        return f"{len(ours)} results instead of {len(wanted)}"
    for a, b in zip(ours, wanted, strict=True):
        if isinstance(a, tuple) or isinstance(b, tuple):
            if a != b:
                return f"{a} instead of {b}"
        elif not distance(a, b) <= SAME[dtype]:
            return f"off by {distance(a, b):.2g}"
    return "same"


def can_be_made(change, place, dtype):
    try:
        change(torch.ones(2, 3, dtype={"lengths": torch.int64, "reset": torch.bool}.get(place, dtype)))
    except Exception:
        return False
    return True


def must_be_refused(kind, place):
    return kind in REFUSED or kind == "meta" and place != "all"


def may_be_refused(kind, place):
    return kind in EITHER or place in OPTIONS and kind not in COMPUTED


def judge(kind, place, name):
    """ "same", "refused" or "cannot be made", otherwise what is wrong."""
    plain, change = getattr(nn, name), KINDS[kind]
    dtype = torch.float32 if kind in SINGLE else torch.float64
    if not can_be_made(change, place, dtype):
        return "cannot be made"

    def outcome_of(module, change=change):
        return outcome(lambda: call(module, plain, change, place, dtype))

    ours, theirs = pair(plain, I, H, dtype=dtype)
    copy_of_ours = copy.deepcopy(ours)
    result = outcome_of(ours)
    refused = isinstance(result, str)
    if kind == LATE and hasattr(copy_of_ours, "recompute"):
        copy_of_ours.recompute = True
        refused = refused and isinstance(outcome_of(copy_of_ours), str)
    if must_be_refused(kind, place):
        return "refused" if refused else f"computed {result}"
    wanted = outcome_of(copy_of_ours, torch.zeros_like if kind == "zero" else torch.clone)
    if place not in OPTIONS and kind not in COMPUTED | EITHER:
        wanted = outcome_of(theirs)
        if isinstance(wanted, str):
            return "refused" if refused else f"computed, but torch.nn gives {wanted}"
    if refused:
        return "refused" if may_be_refused(kind, place) else f"gave {result}"
    return difference(result, wanted, dtype)


def run(group):
    """Judges the cases in a separate process and prints each verdict."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        for case in group:
            torch.manual_seed(0)
            os.write(write, judge(*case)[:1000].replace("\n", " ").encode() + b"\n")
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    for case, verdict in itertools.zip_longest(group, said, fillvalue=f"died of {status}"):
        print(*case, verdict, sep="\t", flush=True)


def run_all(apart, kinds):
    torch.set_num_threads(1)
    with torch.no_grad():  # triggers the lazy imports of PyTorch before the process forks
        judge("subclass", "input", "LSTM")
    chosen = [case for case in cases() if not kinds or case[0] in kinds]
    for _, group in itertools.groupby(chosen, key=(lambda case: case) if apart else (lambda case: case[::2])):
        run(list(group))


@pytest.fixture(scope="module")
def verdicts():
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    path = os.pathsep.join([str(Path(fusedrnn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True
    )
    actual = collections.defaultdict(dict)
    for line in done.stdout.splitlines():
        kind, place, name, verdict = line.split("\t")
        actual[kind][place, name] = verdict
    return actual


@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_computes_is_computed_and_the_rest_is_refused(kind, verdicts):
    assert verdicts[kind].keys() == {case[1:] for case in cases() if case[0] == kind}
    good = ("same", "refused", "cannot be made")
    assert {case: verdict for case, verdict in verdicts[kind].items() if verdict not in good} == {}


if __name__ == "__main__":
    run_all("--apart" in sys.argv, [kind for kind in sys.argv[1:] if kind in KINDS])
