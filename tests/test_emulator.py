"""The emulator that runs CUDA kernels on the CPU: correct kernels pass every schedule, faulty ones are detected."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from cuda_on_cpu import build
from cuda_on_cpu.layer import POLICIES

SCHEDULES = 10
FEATURES = build.EMULATOR / "features"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(build.missing()), reason=build.missing())]

RIGHT = [
    "block_barrier", "warp_barrier", "warp_shuffles", "copies", "flags", "grid_barrier", "pushes", "mma_bfloat16",
    "mma_float16", "mma_tf32", "within_bounds", "matrix_without_conflicts",
]  # fmt: skip

# reported under every schedule
WRONG = {
    "block_barrier_missing": "wrong",
    "warp_barrier_missing": "wrong",
    "copies_wait_for_too_few": "wrong",
    "copies_without_barrier": "wrong",
    "flags_without_wait": "wrong",
    "matrix_with_conflicts": "wrong",
    "divergent_barrier": "divergent __syncthreads",
    "early_exit": "before __syncthreads|while others of its block wait",
    "partial_warp": "does not name all lanes",
    "divergent_warp": "divergent warp",
    "misaligned_copy": "misaligned",
    "abandoned_copy": "copies on their way",
    "deadlock": "deadlock",
    "pushes_before_start": "before that block has started",
    "pushes_after_exit": "after that block has left",
    "pushes_of_more_than_announced": "deadlock",
    "pushes_without_fence": "without mbarrier_init_fence",
    "carved_too_much": "more shared memory is carved",
    "refuse_shared_memory": "240000 bytes of shared memory",
    "refuse_cooperative": "133 cooperative blocks, 132 fit",
    "refuse_cluster_on_sm_80": "clusters of 2",
}

# reported under some policies only, which is why there are several
SEEN_BY = {
    "flags_without_cooperation": ("deadlock", ["random", "priority"]),
    "grid_barrier_without_cooperation": ("without a cooperative launch", ["random", "priority"]),
    "pushes_without_wait": ("wrong|more arrivals", POLICIES),
    "pushes_into_one_buffer": ("wrong", ["random", "priority"]),
    "pushes_too_far_ahead": ("deadlock", ["reverse", "priority"]),
}


@pytest.fixture(scope="module")
def features():
    kernels = tuple(sorted(FEATURES.glob("*.cu")))
    return lambda mode="plain": build.build("features", kernels, (FEATURES / "main.cpp",), mode)


def outcomes(program: Path, feature: str, policy: str, schedules: int = SCHEDULES) -> list[str]:
    """One per schedule: the report, or the message of the sanitizer or watchdog that ended the program."""
    done = subprocess.run(
        [program, feature, str(POLICIES.index(policy)), str(schedules)],
        capture_output=True,
        text=True,
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"},
    )
    if done.returncode:
        return [done.stderr]
    return [report for report in done.stdout.splitlines() if not report.startswith("  ")]


def test_every_feature_is_tested(features):
    names = subprocess.run([features()], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(names) == sorted([*RIGHT, *WRONG, *SEEN_BY, "overrun", "plain_spin"])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("feature", RIGHT)
def test_a_right_kernel_is_right_under_every_schedule(features, feature, policy):
    assert outcomes(features(), feature, policy) == ["right"] * SCHEDULES


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("feature", WRONG)
def test_a_wrong_kernel_is_found_out_under_every_schedule(features, feature, policy):
    results = outcomes(features(), feature, policy)
    assert len(results) == SCHEDULES
    assert [report for report in results if not re.search(WRONG[feature], report)] == []


@pytest.mark.parametrize("feature", SEEN_BY)
def test_some_mistakes_show_under_some_policies_only(features, feature):
    sign, policies = SEEN_BY[feature]
    assert policies == [p for p in POLICIES if re.search(sign, "\n".join(outcomes(features(), feature, p)))]


def test_a_deadlock_is_reported_with_the_places_of_those_who_wait(features):
    program = features()
    done = subprocess.run([program, "deadlock", "0", "1"], capture_output=True, text=True, check=True)
    line = next(
        i for i, text in enumerate((FEATURES / "grid.cu").read_text().splitlines(), 1) if "while (load_acq" in text
    )
    assert f"32 threads of block (1,0,0) polling a flag at grid.cu:{line}" in done.stdout


def test_a_thread_that_spins_on_plain_memory_is_aborted(features):
    assert "it spins on plain memory" in outcomes(features(), "plain_spin", "round-robin", 1)[0]


def test_address_sanitizer_sees_an_overrun_into_the_next_array(features):
    assert outcomes(features(), "overrun", "random", 1) == ["right"]  # by its values alone it is not seen
    assert "use-after-poison" in outcomes(features("asan"), "overrun", "random", 1)[0]


@pytest.mark.parametrize("mode", ["asan", "tsan"])
def test_the_sanitizers_find_nothing_in_right_kernels(features, mode):
    results = {feature: outcomes(features(mode), feature, "priority", 3) for feature in RIGHT}
    assert results == {feature: ["right"] * 3 for feature in RIGHT}


@pytest.mark.parametrize(
    "feature", ["block_barrier_missing", "warp_barrier_missing", "copies_without_barrier", "flags_without_wait"]
)
def test_thread_sanitizer_needs_no_lucky_schedule(features, feature):
    assert "data race" in outcomes(features("tsan"), feature, "round-robin", 1)[0]
