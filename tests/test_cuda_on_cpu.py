"""The CUDA kernels, run without a GPU by the emulator in cuda_on_cpu: right, and the same bits under every schedule."""

import itertools
import multiprocessing
import os
import subprocess
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from cuda_on_cpu import build, cases, layer
from tolerances import EXACT, distance

MODES = list(layer.BUILT_IN)
TIERS = ["stepwise", "block", "cluster", "grid"]
DTYPES = ["float64", "float32", "tf32", "bfloat16", "float16"]
BATCHES = ["padded", "packed", "lengths", "reset", "lengths reset", "packed reset"]
BATCHES += ["masks", "lengths reset masks", "packed shares"]  # of regularised cells

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_tier = pytest.mark.parametrize("tier", TIERS)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(build.missing()), reason=build.missing())]

device = None  # of a worker process: one library a process


def open_device(library):
    global device
    torch.set_num_threads(1)
    device = layer.Device(library)


def run(case):
    return cases.run(case, device)


@pytest.fixture(scope="module")
def pool():
    """Runs cases in other processes, where a kernel may crash."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, open_device, (cases.library(),)) as executor:
        yield executor


def complaints(pool, some_cases):
    results = pool.map(run, some_cases, chunksize=2)
    return {str(case): wrong for case, wrong in zip(some_cases, results, strict=True) if wrong}


@every_dtype
@every_tier
@pytest.mark.parametrize("mode", MODES)
def test_every_layer_is_right_under_every_schedule(pool, mode, tier, dtype):
    some = [cases.Case(mode, tier, dtype, batch, D) for batch, D in itertools.product(BATCHES, (1, 2))]
    assert complaints(pool, some) == {}


@every_dtype
def test_projections(pool, dtype):
    some = [cases.Case("LSTM", "stepwise", dtype, batch, D, P=9) for batch, D in itertools.product(BATCHES, (1, 2))]
    some.append(cases.Case("LSTM", "stepwise", dtype, "lengths reset shares", N=19, H=37, P=35))
    assert complaints(pool, some) == {}


@every_tier
@pytest.mark.parametrize("mode", sorted(layer.CELLS.keys() - layer.BUILT_IN.keys()))
def test_cells_of_three_and_four_states(pool, mode, tier):
    some = [cases.Case(mode, tier, "float64", batch, D) for batch, D in itertools.product(BATCHES, (1, 2))]
    some.append(cases.Case(mode, tier, "float64", absent="dh_n dc_steps ds2_n ds3_steps"))
    some += [cases.Case(mode, tier, "float64", "kept"), cases.Case(mode, tier, "float64", "reset", 2, T=0)]
    if mode == "THREE_STATES" and tier == "stepwise":
        some += [cases.Case(mode, tier, "float64", batch, D, P=9) for batch, D in itertools.product(BATCHES, (1, 2))]
    assert complaints(pool, some) == {}


@every_dtype
@every_tier
def test_plans_of_many_units_rows_and_blocks(pool, tier, dtype):
    """Where a block owns several groups of units, a replica several tiles of rows, and replicas wait for their turn."""
    narrower = {"float64": 5, "float32": 2, "tf32": 2}.get(dtype, 1)  # its replicas are
    widest = 64 if (tier, dtype) == ("block", "float64") else 100
    some = [
        cases.Case(
            mode,
            tier,
            dtype,
            "lengths reset",
            D,
            T=3,
            N=N,
            H=min(H, widest),
            multiprocessors=multiprocessors * narrower,
        )
        for mode, D, N, H, multiprocessors in [
            ("LSTM", 1, 33, 53, 132),
            ("LSTM", 2, 19, 37, 8),
            ("GRU", 1, 9, 70, 4),
            ("GRU", 2, 33, 37, 8),
            ("RNN_TANH", 1, 65, 70, 9),
            ("RNN_TANH", 1, 3, 100, 132),
        ]
    ]
    if tier == "block":  # with more weights of a warp than its registers hold
        H = {"float64": 60, "float32": 80, "tf32": 80}.get(dtype, 120)
        some.append(cases.Case("LSTM", tier, dtype, "lengths reset", T=3, N=3, H=H))
    assert complaints(pool, some) == {}


@every_tier
def test_the_smallest_and_the_longest(pool, tier):
    fewest = 17 if tier in ("cluster", "grid") else 1  # units: those tiers are for more than one block
    some = [
        cases.Case("LSTM", tier, "float64", T=1, N=1, I=1, H=fewest),
        cases.Case("GRU", tier, "bfloat16", D=2, T=2, N=1, H=fewest + 15),
        cases.Case("LSTM", tier, "bfloat16", "lengths", T=37, N=3, H=33),
        cases.Case("LSTM", tier, "float32", bias=False, absent="dh_n dc_n dc_steps"),
        cases.Case("LSTM", tier, "float64", "reset", D=2, absent="dy dc_n"),
        cases.Case("GRU", tier, "float64", "packed", bias=False, absent="dy"),
        cases.Case("LSTM", tier, "float32", "kept"),
        cases.Case("GRU", tier, "bfloat16", "lengths kept", D=2),
    ]
    assert complaints(pool, some) == {}


@every_tier
def test_nothing_to_do(pool, tier):
    some = [
        cases.Case(mode, tier, dtype, batch, D=2, **sizes)
        for mode, dtype in [("LSTM", "float64"), ("GRU", "bfloat16")]
        for batch, sizes in [("padded", {"N": 0}), ("lengths reset", {"T": 0}), ("packed fewer reset masks", {"N": 6})]
    ]
    assert complaints(pool, some) == {}


def test_more_steps_than_a_grid_has_blocks():
    device, case = layer.Device(cases.library()), cases.Case("GRU", "block", "float64", T=66_000, N=1, I=1, H=1)
    device.schedule("round-robin", 1)
    given = case.given()
    ours = layer.Layer(device, case.mode, given, case.tier)
    forward = ours.forward()
    dx = ours.backward(forward, {"dy": torch.ones_like(forward.arrays["y"])})["dx"]
    weights = [given[f"{kind}0"] for kind in ("w_ih", "w_hh", "b_ih", "b_hh")]
    y, _ = torch.gru(given["x"], given["h0"], weights, True, 1, 0.0, False, False, False)
    (expected,) = torch.autograd.grad(y.sum(), given["x"])
    assert distance(forward.arrays["y"], y) <= EXACT[case.dtype] and distance(dx, expected) <= EXACT[case.dtype]


@pytest.mark.parametrize(
    "capability, taken, tier", [(90, 0, "cluster"), (90, 131, "stepwise"), (80, 0, "grid"), (80, 130, "stepwise")]
)
def test_where_there_is_no_room_now_another_tier_takes_the_layer(capability, taken, tier):
    device, case = layer.Device(cases.library()), cases.Case("LSTM", "", "float64", H=53, N=9)
    device.resize(shared_bytes=101376, capability=capability, taken=taken)
    calls, wrong = cases.make_calls(case, device)
    assert not wrong
    assert [call.plan.split(",")[0] for call in calls] == [tier] * 2


@pytest.mark.parametrize("tier", ["cluster", "grid"])
def test_a_tier_that_was_named_and_has_no_room_now_is_an_error(tier):
    device, case = layer.Device(cases.library()), cases.Case("LSTM", tier, "float64", H=53, N=9)
    device.resize(taken=131)
    with pytest.raises(layer.EmulatorError, match=f"error -1 .{tier}"):
        cases.make_calls(case, device)


@every_tier
def test_indices_beyond_32_bits_and_arrays_that_are_not_aligned(pool, tier):
    some = [
        cases.Case("LSTM", tier, "float64", "lengths reset masks far", D=2),
        cases.Case("GRU", tier, "bfloat16", "reset masks far", D=2, H=33),
        cases.Case("RNN_RELU", tier, "float32", "lengths far"),
    ]
    if tier == "stepwise":
        some.append(cases.Case("LSTM", tier, "float16", "lengths reset masks far", D=2, P=9))
    assert complaints(pool, some) == {}


@every_dtype
def test_the_plans_own_choice(pool, dtype):
    some = [cases.Case(mode, "", dtype, "lengths reset", 2, T=5, N=9, H=37) for mode in MODES]
    assert complaints(pool, some) == {}


# ---- sanitizers: a program of its own replays calls that were recorded here, of one type: each takes minutes to
# compile. make mutants does it for another, too.

SANITIZED = "bfloat16"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Files of calls, few enough and small enough: ThreadSanitizer takes 1 MB a CUDA thread."""
    folder = tmp_path_factory.mktemp("calls")
    recorder = layer.Device(cases.library())
    some = [
        cases.Case(mode, tier, SANITIZED, batch, T=4, N=3, H=H)
        for tier in TIERS
        for mode, batch, H in [("LSTM", "lengths reset", 20), ("LSTM", "padded", 33), ("GRU", "packed masks", 33)]
    ]
    some += [cases.Case("LSTM", "stepwise", SANITIZED, "packed reset masks", N=9, P=9)]
    some += [cases.Case("RNN_TANH", tier, SANITIZED, "reset", N=13, H=37, multiprocessors=3) for tier in TIERS]
    files = []
    for case in some:
        recorder.resize(case.multiprocessors)
        calls, wrong = cases.make_calls(case, recorder)
        assert not wrong
        for call in calls:
            files.append(folder / f"{len(files)}-{case.mode}-{case.tier}-{case.dtype}-{case.batch.replace(' ', '-')}")
            call.write(files[-1])
    return files


@pytest.mark.parametrize("policy", ["random", "priority"])  # which run few blocks at a time
@pytest.mark.parametrize("mode", ["asan", "tsan"])
def test_sanitizers_find_nothing(recorded, mode, policy):
    program = cases.replay(mode, types=(SANITIZED,))
    halves = [recorded[::2], recorded[1::2]]
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    runs = [
        subprocess.Popen(
            [program, str(layer.POLICIES.index(policy)), "1", *half],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **options},
        )
        for half in halves
    ]
    assert [(run.communicate()[1], run.returncode) for run in runs] == [("", 0)] * 2
