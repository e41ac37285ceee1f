"""csrc/cuda/plan.h as a table: which kernel runs a layer on which GPU. No GPU is needed: a device is three numbers."""

import itertools

import pytest

from fusedrnn.backends import extension, reference

# multiprocessors, shared memory of a block, compute capability
H100, H200 = (132, 232448, 90), (132, 232448, 90)
A100, L4, RTX_4090, SMALL = (108, 166912, 80), (58, 101376, 89), (128, 101376, 89), (20, 101376, 86)
DEVICES = {"H100": H100, "H200": H200, "A100": A100, "L4": L4, "RTX 4090": RTX_4090, "small": SMALL}
TILE_ROWS, GROUP = 8, 16


def plan(device, mode="LSTM", H=256, N=16, T=512, D=1, bytes=2, backward=False, P=None, forced=""):
    found = extension._C.plan(mode, backward, (T, N, H, H if P is None else P, D), bytes, device, forced)
    return dict(zip(["tier", "groups", "blocks", "row_tiles", "replicas", "shared_bytes"], found, strict=True))


@pytest.mark.parametrize(
    "device, given, tier",
    [
        (H100, {"H": 64}, "block"),
        (H100, {"H": 128}, "block"),
        (H100, {"H": 256}, "cluster"),
        (H100, {"H": 512}, "cluster"),
        (H100, {"H": 1024, "N": 16}, "grid"),
        (H100, {"H": 1024, "N": 64}, "grid"),
        (H100, {"H": 1024, "N": 256}, "stepwise"),
        (H100, {"H": 2048}, "stepwise"),
        (H100, {"H": 128, "bytes": 4}, "cluster"),
        (H100, {"H": 512, "bytes": 4}, "grid"),
        (H100, {"H": 64, "bytes": 8}, "block"),
        (H100, {"H": 256, "mode": "GRU"}, "cluster"),
        (H100, {"H": 256, "T": 1}, "stepwise"),
        (H100, {"H": 256, "P": 64}, "stepwise"),
        (A100, {"H": 64}, "block"),
        (A100, {"H": 256}, "grid"),
        (A100, {"H": 512}, "grid"),
        (L4, {"H": 64}, "block"),
        (L4, {"H": 256}, "grid"),
        (L4, {"H": 1024}, "stepwise"),
        (RTX_4090, {"H": 512, "N": 8}, "grid"),
    ],
)
def test_the_tier_of(device, given, tier):
    assert plan(device, **given)["tier"] == tier


@pytest.mark.parametrize("name", DEVICES)
def test_a_plan_is_never_more_than_the_device_holds(name):
    device = multiprocessors, shared_bytes, capability = DEVICES[name]
    sizes = itertools.product(
        reference.CELLS, (1, 19, 128, 200, 640, 1024, 3000), (1, 8, 9, 100, 5000), (1, 2), (2, 4, 8)
    )
    for (mode, H, N, D, bytes), backward in itertools.product(sizes, (False, True)):
        p = plan(device, mode, H, N, D=D, bytes=bytes, backward=backward)
        assert p["shared_bytes"] <= shared_bytes
        assert p["blocks"] * p["groups"] * GROUP >= H and p["replicas"] * p["row_tiles"] * TILE_ROWS >= N
        if p["tier"] == "block":
            assert p["blocks"] == 1
        elif p["tier"] == "cluster":
            assert capability >= 90 and p["blocks"] in (2, 4, 8, 16)
        elif p["tier"] == "grid":
            assert p["blocks"] * p["replicas"] * D <= multiprocessors


@pytest.mark.parametrize("bytes, many", [(2, 300), (4, 150)])
def test_more_rows_take_wider_replicas_only_where_multiprocessors_run_out(bytes, many):
    assert plan(H100, H=512, N=8, bytes=bytes)["row_tiles"] == 1
    assert plan(A100, H=256, N=32, bytes=bytes)["row_tiles"] == 1
    assert plan(A100, H=256, N=many, bytes=bytes)["row_tiles"] == 4


@pytest.mark.parametrize("tier", ["block", "cluster", "grid", "stepwise"])
def test_a_forced_tier_is_taken(tier):
    assert plan(H100, H=64, forced=tier)["tier"] == tier


@pytest.mark.parametrize("device, tier, H", [(H100, "block", 2048), (A100, "cluster", 256), (L4, "grid", 4096)])
def test_a_forced_tier_that_the_device_cannot_hold_is_an_error(device, tier, H):
    with pytest.raises(ValueError, match=f"FUSEDRNN_PLAN={tier}: this layer does not fit this device"):
        plan(device, H=H, forced=tier)


def test_a_tier_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="FUSEDRNN_PLAN=fast is none of block, cluster, grid, stepwise"):
        plan(H100, forced="fast")


def test_too_little_shared_memory_is_an_error_and_not_a_launch():
    for device, mode, bytes in itertools.product([(132, 16384, 90), (58, 0, 80)], ["LSTM", "GRU"], [2, 4, 8]):
        with pytest.raises(ValueError, match=f"a device with {device[1]} bytes of shared memory a block cannot run"):
            plan(device, mode, bytes=bytes)


def test_the_number_of_steps_is_in_no_grid():
    for H, N, backward in itertools.product((64, 256, 1024, 3000), (1, 64), (False, True)):
        assert plan(H100, H=H, N=N, backward=backward, T=2**40) == plan(H100, H=H, N=N, backward=backward, T=4)


def test_a_batch_beyond_every_grid_is_an_error_and_not_a_launch():
    with pytest.raises(ValueError, match="cannot run a batch of 3000000 rows"):
        plan(H100, N=3_000_000)
