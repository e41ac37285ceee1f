"""Cells of operations at random, in layers with options at random: the compiled kernels against the cell's own
function, step by step. Each of the six cells gets a tenth of --random-cases."""

from unittest import mock

import pytest
import scalar_cells
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import RATIO, distance, floor
from torch.utils._pytree import tree_leaves

import fusedrnn
from fusedrnn.backends import compiled, extension

pytestmark = [
    pytest.mark.skipif(extension._C is None, reason="the compiled extension is missing"),
    pytest.mark.skipif(not scalar_cells.have_compiler(), reason="no C++ compiler on this machine"),
]
# In float32, operations without jumps only: a state may be rounded to either side of one.
CELLS = {
    **{f"float64 {seed}": (scalar_cells.random_cell(seed), torch.float64) for seed in (0, 5, 12)},
    **{f"float32 {seed}": (scalar_cells.random_cell(seed, scalar_cells.SMOOTH), torch.float32) for seed in (2, 4, 7)},
}
OPTIONS = {
    "layers": st.integers(1, 3),
    "bidirectional": st.booleans(),
    "T": st.sampled_from([3, 1, 2, 6, 0]),
    "N": st.sampled_from([2, 1, 5, 9]),
    "I": st.sampled_from([3, 1, 8, 17]),
    "H": st.sampled_from([3, 1, 8, 17, 33]),
    "heads": st.sampled_from([1, 3]),  # where they divide H
    "bias": st.booleans(),
    "hx": st.booleans(),
    "lengths": st.none() | st.lists(st.integers(0, 6), min_size=9, max_size=9),  # T at most, N of them
    "reset": st.sampled_from([None, "zeros", "states"]),
    "sequences": st.sampled_from([False, True, "all"]),
    "recompute": st.booleans(),
    "zoneout": st.booleans(),
    "threads": st.sampled_from([1, 2]),
    "seed": st.integers(0, 2**32 - 1),
}


@pytest.fixture(scope="module", autouse=True)
def cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDRNN_CACHE", str(scalar_cells.ROOT / "build/cells"))
        yield


class Case:
    """A layer and the arguments of a call, of numbers that the dtype has."""

    def __init__(self, cell, dtype, drawn):
        self.cell, self.dtype, self.drawn = cell, dtype, drawn
        torch.manual_seed(drawn["seed"])
        T, N, H = drawn["T"], drawn["N"], drawn["H"]
        same = {"num_layers": drawn["layers"], "bidirectional": drawn["bidirectional"], "bias": drawn["bias"]}
        same["heads"] = drawn["heads"] if cell.recurrent and H % drawn["heads"] == 0 else 1
        zoneout = dict.fromkeys(cell.states, 0.3) if drawn["zoneout"] else None
        self.layer = fusedrnn.Recurrent(
            cell, drawn["I"], H, **same, zoneout=zoneout, recompute=drawn["recompute"], dtype=dtype
        )
        planes = drawn["layers"] * (1 + drawn["bidirectional"])
        self.tensors = {"input": torch.randn(T, N, drawn["I"], dtype=dtype)}
        self.tensors |= {name: torch.rand(T, N, dtype=dtype) for name in cell.inputs}
        self.tensors |= {name: torch.randn(T, N, H, dtype=dtype) for name in cell.unit_inputs}
        for kind, wanted in (("hx", drawn["hx"]), ("reset", drawn["reset"] == "states")):
            for name in cell.states if wanted else ():
                self.tensors[f"{kind} {name}"] = torch.rand(planes, N, H, dtype=dtype) * 2 - 1
        self.options = {"return_state_sequence": drawn["sequences"]}
        if drawn["lengths"]:
            self.options["lengths"] = torch.tensor([min(length, T) for length in drawn["lengths"][:N]])
        if drawn["reset"]:
            self.options["reset"] = torch.rand(T, N) < 0.4

    def states(self, kind, leaves):
        states = tuple(leaves[name] for name in leaves if name.startswith(f"{kind} "))
        return None if not states else states if len(states) > 1 else states[0]

    def run(self, kernels, dtype=None, nudge=0.0, seed=0):
        """All outputs and all gradients, computed in dtype, of numbers each moved by +-nudge of itself."""
        dtype = dtype or self.dtype
        torch.manual_seed(seed)

        def leaf(t):
            t = t.detach().to(dtype, copy=True)
            return t.mul_(1 + nudge * torch.randn_like(t).sign()).requires_grad_()

        leaves = {name: leaf(t) for name, t in self.tensors.items()}
        weights = {name: leaf(w) for name, w in self.layer.named_parameters()}
        inputs = {name: leaves[name] for name in (*self.cell.inputs, *self.cell.unit_inputs)}
        options = self.options | {"inputs": inputs, "reset_state": self.states("reset", leaves)}
        arguments = (leaves["input"], self.states("hx", leaves))
        torch.manual_seed(self.drawn["seed"])
        with mock.patch.object(compiled, "is_compiled", compiled.is_compiled if kernels else lambda *_: False):
            outputs = tree_leaves(torch.func.functional_call(self.layer, weights, arguments, options))
        outputs = [t for t in outputs if t is not None]
        return [*outputs, *gradients(outputs, [*leaves.values(), *weights.values()])]


def gradients(outputs, leaves):
    """Zeros where there is none."""
    torch.manual_seed(1)
    pairs = [(t, torch.randn(t.shape).to(t.dtype)) for t in outputs]
    pairs = [(t, g) for t, g in pairs if t.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in leaves]
    grads = torch.autograd.grad([t for t, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]


def assert_kernels_are_exact(case):
    exact = case.run(kernels=False, dtype=torch.float64)
    ours = case.run(kernels=True)
    if case.dtype == torch.float64:
        for place, (a, b) in enumerate(zip(ours, exact, strict=True)):
            assert distance(a, b) <= 1e-9, f"result {place} is off by {distance(a, b):.2g}"
        return
    theirs = case.run(kernels=False)
    eps = torch.finfo(case.dtype).eps
    nudged = [case.run(kernels=False, dtype=torch.float64, nudge=eps, seed=seed) for seed in range(4)]
    for place, (truth, a, b, *near) in enumerate(zip(exact, ours, theirs, *nudged, strict=True)):
        allowed = RATIO * distance(b, truth) + floor(case.dtype, max(distance(t, truth) for t in near))
        assert distance(a, truth) <= allowed, f"result {place} is off by {distance(a, truth):.2g}, not {allowed:.2g}"


def test_the_cells_have_all_that_a_cell_may_have():
    cells = [cell for cell, _ in CELLS.values()]
    assert {len(cell.gates) for cell in cells} == {1, 2, 3, 4, 5}
    assert {len(cell.states) for cell in cells} == {1, 2, 3, 4}
    for names in ("parameters", "gate_parameters", "inputs", "unit_inputs"):
        assert {bool(getattr(cell, names)) for cell in cells} == {True, False}
    assert {len(cell.recurrent) < len(cell.gates) for cell in cells} == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_a_call_equals_the_function_in_a_loop(name, pytestconfig):
    cell, dtype = CELLS[name]

    count = pytestconfig.getoption("--random-cases") // 10 or 1

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.fixed_dictionaries(OPTIONS))
    def agrees(drawn):
        torch.set_num_threads(drawn["threads"])
        case = Case(cell, dtype, drawn)
        assert case.layer.backend == "compiled"
        assert_kernels_are_exact(case)

    agrees()
