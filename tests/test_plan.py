"""csrc/cuda/plan.h as a table: which kernel runs a layer on which GPU. No GPU is needed: a device is three numbers.

``python tests/test_plan.py > tests/plans.txt`` writes the table of estimates anew, after a change of the model.
"""

import itertools
from pathlib import Path

import pytest

from fusedrnn.backends import extension, reference

# multiprocessors, shared memory of a block, compute capability
H100, H200 = (132, 232448, 90), (132, 232448, 90)
A100, L4, RTX_4090, SMALL = (108, 166912, 80), (58, 101376, 89), (128, 101376, 89), (20, 101376, 86)
B200 = (148, 232448, 100)
DEVICES = {"H100": H100, "H200": H200, "A100": A100, "L4": L4, "RTX 4090": RTX_4090, "B200": B200, "small": SMALL}
TABLE = Path(__file__).parent / "plans.txt"
TILE_ROWS, GROUP = 8, 16


DEFAULTS = {
    "mode": "LSTM",
    "backward": False,
    "T": 512,
    "N": 16,
    "H": 256,
    "P": None,
    "D": 1,
    "bytes": 2,
    "tf32": False,
}


def planned(device, **layer):
    values = DEFAULTS | layer
    values["P"] = values["P"] or values["H"]
    sizes = tuple(values[name] for name in "TNHPD")
    return extension._C.PlannedPass(values["mode"], values["backward"], sizes, values["bytes"], values["tf32"], device)


def plan(device, forced="", **layer):
    chosen = planned(device, **layer).plan(forced)
    return dict(zip(["tier", "groups", "blocks", "row_tiles", "replicas", "shared_bytes"], chosen, strict=True))


def table():
    """Of bfloat16 LSTMs: of each plan the tier, blocks x groups of units x tiles of rows, and each tier's estimate."""
    yield "Estimated microseconds a step, forward and backward, of T=512; in brackets what is chosen; - does not fit."
    yield f"{'':22}{'T=4':>10}{'T=512':>10}   {'block':15}{'cluster':15}{'grid':15}stepwise"
    for name, H, N in itertools.product(DEVICES, (64, 128, 256, 512, 1024, 2048), (1, 16, 128, 1024)):
        if name == "small":
            continue
        passes = [planned(DEVICES[name], H=H, N=N, backward=backward) for backward in (False, True)]
        estimates = [one.estimates() for one in passes]
        chosen = passes[0].plan("")
        few = plan(DEVICES[name], H=H, N=N, T=4)["tier"]
        tiers = []
        for tier in ("block", "cluster", "grid", "stepwise"):
            both = "  ".join(f"{given[tier] / 512:.2f}" if tier in given else "-" for given in estimates)
            tiers.append(f"[{both}]" if tier == chosen[0] else f" {both}")
        yield f"{name:9}H={H:<5}N={N:<5}{few:>10}{chosen[0]:>10}   {''.join(f'{text:15}' for text in tiers)}".rstrip()


def test_the_table_of_plans():
    assert TABLE.read_text() == "".join(f"{line}\n" for line in table())


@pytest.mark.parametrize(
    "device, given, tier",
    [
        (H100, {"H": 64}, "block"),
        (H100, {"H": 128}, "cluster"),
        (H100, {"H": 256}, "cluster"),
        (H100, {"H": 512}, "cluster"),
        (H100, {"H": 1024, "N": 16}, "grid"),
        (H100, {"H": 1024, "N": 64}, "grid"),
        (H100, {"H": 1024, "N": 256}, "stepwise"),
        (H100, {"H": 2048}, "stepwise"),
        (H100, {"H": 512, "bytes": 4, "tf32": True}, "grid"),
        (H100, {"H": 64, "bytes": 8}, "cluster"),
        (H100, {"H": 256, "mode": "GRU"}, "cluster"),
        (H100, {"H": 256, "T": 1}, "cluster"),
        (H100, {"H": 256, "P": 64}, "stepwise"),
        (A100, {"H": 64}, "block"),
        (A100, {"H": 256}, "grid"),
        (H100, {"H": 64, "N": 1024}, "block"),
        (L4, {"H": 64}, "block"),
        (L4, {"H": 1024}, "stepwise"),
    ],
)
def test_the_tier_of(device, given, tier):
    assert plan(device, **given)["tier"] == tier


def test_the_fastest_plan_is_taken_and_after_it_failed_the_next():
    one = planned(H100, H=64)
    fastest = sorted(one.estimates(), key=one.estimates().get)
    assert len(fastest) == 4 and one.plan("")[0] == fastest[0]
    assert one.tried("") == fastest[: fastest.index("stepwise") + 1]
    assert one.tried("grid") == ["grid"]


def test_as_many_clusters_run_at_once_as_the_device_says():
    asked = (*H100, 132, 66, 33, 15, 7)  # of 1, 2, 4, 8 and 16 blocks
    H512 = {"H": 512, "N": 64, "T": 1000}
    assert planned(asked, **H512).plan("cluster")[:3] == planned(H100, **H512).plan("cluster")[:3] == ("cluster", 2, 16)
    one_wave, two_waves = (planned(gpu, **H512).estimates()["cluster"] for gpu in (H100, asked))
    assert two_waves == pytest.approx(2 * one_wave, rel=0.02)
    none = (*H100, 132, 0, 0, 0, 0)
    assert "cluster" not in planned(none, **H512).estimates() and plan(none, H=256)["tier"] == "grid"
    smaller = (*H100, 132, 66, 33, 16, 0)
    assert plan(smaller, H=256)["tier"] == "cluster" and plan(smaller, H=256)["blocks"] == 8


@pytest.mark.parametrize("name", DEVICES)
def test_a_plan_is_never_more_than_the_device_holds(name):
    device = multiprocessors, shared_bytes, capability = DEVICES[name]
    sizes = itertools.product(
        reference.CELLS, (1, 19, 128, 200, 640, 1024, 3000), (1, 8, 9, 100, 5000), (1, 2), (2, 4, 8)
    )
    for (mode, H, N, D, bytes), backward in itertools.product(sizes, (False, True)):
        p = plan(device, mode=mode, H=H, N=N, D=D, bytes=bytes, backward=backward)
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
            plan(device, mode=mode, bytes=bytes)


def test_the_number_of_steps_is_in_no_grid():
    for H, N, backward in itertools.product((64, 256, 1024, 3000), (1, 64), (False, True)):
        assert plan(H100, H=H, N=N, backward=backward, T=2**40) == plan(H100, H=H, N=N, backward=backward, T=2**20)


def test_a_batch_beyond_every_grid_is_an_error_and_not_a_launch():
    with pytest.raises(ValueError, match="cannot run a batch of 3000000 rows"):
        plan(H100, N=3_000_000)


if __name__ == "__main__":
    print(*table(), sep="\n")
