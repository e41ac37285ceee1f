"""The places of csrc/cuda that are broken on purpose: see mutation.py.

Every barrier, wait, fence, release, buffer switch and bound is removed or weakened, so are indices, masks and
roundings. Mutants run on the emulator under all schedules and, those that survive, under ThreadSanitizer and
AddressSanitizer.
"""

from __future__ import annotations

from mutation import Suite

from . import cases, layer

TYPES = ("float", "bfloat16")  # whose kernels are run

# A statement or an expression, and its replacement.
PATTERNS = [
    (r"__syncthreads\(\);", ";", "no barrier"),
    (r"__syncthreads\(\);", "__syncwarp();", "a warp's barrier"),
    (r"device::copy_async_wait<\d>\(\);", ";", "no wait"),
    (r"device::copy_async_wait<(\d)>\(\);", "device::copy_async_wait<{1} + 1>();", "wait for one group less"),
    (r"device::copy_async_commit\(\);", ";", "no commit"),
    (r"device::wait_for\(.*\);", ";", "no wait"),
    (r"device::wait_for\((\w+), (.*)\);", "device::wait_for({1}, {2} - 1);", "wait for one block less"),
    (
        r"device::wait_for\((\w+), (.*)\);",
        "while (int32_t(device::load_relaxed({1}) - {2}) < 0) {{}}",
        "wait without acquire",
    ),
    (r"device::add_release\(.*\);", ";", "no arrival"),
    (r"device::add_release\((.*)\);", "device::add_relaxed({1});", "arrival without release"),
    (r"device::mbarrier_wait\(.*\);", ";", "no wait"),
    (r"device::mbarrier_wait\((.*), (.*)\);", "device::mbarrier_wait({1}, 1 ^ ({2}));", "wait for the other phase"),
    (r"device::mbarrier_init_fence\(\);", ";", "no fence"),
    (r"device::mbarrier_init\((.*), 1\);", "device::mbarrier_init({1}, 2);", "one arrival more"),
    (
        r"device::mbarrier_arrive_expect\((\w+), (.*)\);",
        "device::mbarrier_arrive_expect({1}, {2} - 16);",
        "16 bytes less",
    ),
    (r"device::cluster_arrive\(\);", ";", "no arrival"),
    (r"device::cluster_wait\(\);", ";", "no wait"),
    (r"\bsync_cluster\(\);", ";", "no barrier"),
    (r"(?<=& )1\b", "0", "one buffer or phase"),
    (r"\bcommon\.panel\[([01])\](?=[,;)])", "common.panel[1 ^ {1}]", "the other buffer"),
    (r"launch\.cooperative = .*;", "launch.cooperative = false;", "not cooperative"),
    (r"\b(n|j|j\(p\)|k|unit|in_plane) < ([\w.]*rows|it_\.width\(\)|width|plane_depth)\b", "{1} <= {2}", "one more"),
    (r"\bgroup_? < tiling\.groups\b", "true", "one more"),
    (r"\b[ip] < (?!counter_count)[^;]+(?=; [ip] \+= )", "{0} - 1", "one less"),
    (r"\bleft < kChunk\b", "false", "a whole chunk"),
    (r"\bt < 0\b", "false", "a step before the first"),
    (r"\bt >= p\.shape\.steps\b", "t > p.shape.steps", "one more"),
    (r"\b(s\.t|s\.next\.t) < length\b", "{1} <= length", "one more"),
    (r"!s\.last\b", "true", "a step after the last"),
    (r"\brow\(p\)\.there\b", "true", "rows of the next step"),
    (r"\brow->alive = n < s\.rows\b", "row->alive = true", "rows of the next step"),
    (r"\brow\.alive(?= \?|\))|\bnext\.alive\b", "true", "a frozen row lives"),
    (r"\brow\.goes_on(?= \?|\))", "true", "a row goes on"),
    (r"\brow\.goes_on(?= \?|\))", "false", "a row ends"),
    (r"(?<!>)\brow\.reset(?= &&| \?)", "!{0}", "resets of other rows"),
    (r"\breset_\[slot\] = row_\[slot\]\.reset", "reset_[slot] = false", "a gradient gets past a reset"),
    (r"(?<=from_the_end_ \? )s\.first : s\.next\.first", "s.next.first : s.first", "the mask of another step"),
    (r"\b(record|output) \+= (record|output)_step_;", "{1} += 0;", "the step before"),
    (r"\brow->output \+ output_step_", "row->output", "the step before"),
    (r"\b(tile|plane) \* s\.hidden\b", "({1} ^ 1) * s.hidden", "another gate"),
    (r"\bQ - 1\b", "G - 1", "another gate"),
    (r"\b[gkq] \* (?:a\.)?p\.shape\.hidden\b|\bk \* plane_size\b|\bline % kPlanes \* plane\b", "0", "another gate"),
    (r"\bindex % Stage::kTiles\b|\bi / units % M\b|\bplane_size\.quotient\(k\)", "0", "another gate"),
    (r"\bslice\.quotient\(p\)", "0", "another block"),
    (r"\b(m|n|tile) \* (tile|kTileRows|kGroups|kBiasRow)\b", "0", "another tile"),
    (r"\bgroup < groups(?= \?)|\bblock < tiling\.blocks(?= \?)", "true", "another direction"),
    (r"\bblock % tiling\.blocks \* units\b", "0", "units of the first block"),
    (r"\bstate\.reset(?= \? )", "decltype({0})(nullptr)", "reset to zeros"),
    (r"\bds\[i\] = 0;", ";", "a gradient gets past a reset"),
    (r"dresets\[i\]\[at\] \+= .*;", ";", "no gradient of a reset state"),
    (r"(?:(?<=states\[)|(?<=carry\[)|(?<=dresets\[))i(?=\](?!\.(?:initial|reset) \?))", "0", "another state"),
    (r"\bCell::kReadsH \|\| a\.g\.steps\.h_prev", "bool(a.g.steps.h_prev)", "h is not loaded"),
    (r"\bCell::kReadsH \|\| a\.g\.steps\.h_prev", "Cell::kReadsH", "h is not loaded"),
    (r"\bfixed\.masked\((?:a\.)?p, ((?:[^()]|\([^()]*\))*)\)", "{1}", "h is not masked"),
    (r"\bp\.states\[i\]\.zone(?=\) state)|\bzone(?=\) past)|\bzone(?= \? blend)", "Zone{{}}", "no zoneout"),
    (r"\bin\.keeps >> i & 1|\bin\.keeps(?=\))", "!({0})", "zoneout of other units"),
    (r"\bV\(1\) <= fraction\b", "false", "a state that is kept is rounded"),
    (r"(?<== )zoneout_bypass\(.*\)(?=;)", "{0} * 0", "a gradient does not get past the cell"),
    (r"device::to_tf32\(x\)", "device::load_as<uint32_t>(&x)", "cut off, not rounded"),
    (r"device::widen\(device::narrow<T>\((state\[0\]|h)\)\)", "{1}", "the state is not rounded"),
    (r"\blane / (4|16)\b", "lane / (2 * {1})", "another lane's place"),
    (r"\blane % (4|16)\b", "lane % ({1} / 2)", "another lane's place"),
    (r"\be % 2\b", "0", "another row's sum"),
    (r"\b8 \* half\b", "0", "another unit's weights"),
    (r"\b2 \* i \+ row\b", "2 * i", "another row's operands"),
    (r"\be / 2 \* 8", "0", "another unit's sum"),
    (r"\bstep(?= \? cells)", "true", "no first state"),
    (r"\bfirst_unit(?= \+)", "0", "units of the first block"),
    (r"\bfirst_row(?= \+)", "0", "rows of the first replica"),
    (r"\bcells\.has\(p\)", "true", "units of another block"),
    (r"!real\(p\)", "false", "what is no unit's is multiplied"),
    (r"(?<=split < )kSplits\b", "1", "a part of the sum is lost"),
    (r"\bsplit_? \* Math::kDepth", "0", "a part of the sum is there twice"),
    (r"\bk(?:Step)?Splits \* Math::kDepth", "Math::kDepth", "a part of the sum is there twice"),
    (r"(?<=\+= )chains\[chain\].*(?=;)", "Sum(0)", "a part of the sum is lost"),
    (r"\bheld\[h\](?=,)", "held[0]", "another piece's weights"),
    (r"\bh < count\b", "true", "one more"),
    (r"\bcount < kHeld \?", "true ?", "a part of the sum is lost"),
    (r"(?<=if \()k < depth(?=\) Math|\) \{)", "k <= depth", "one more"),
    (r"\bthreadIdx\.x / 32 % kSplits\b|\bwarp % kStepSplits\b", "0", "another warp's part"),
    (r"\bhas_group_?(?=\) partial)", "true", "one more"),
    (r"(?<=return )\(.*(?:packed_rows|shape\.directions).*(?=;)", "static_cast<int32_t>({0})", "32 bits"),
    (r"(?<=row\.record = )\(.*(?=;)", "static_cast<int32_t>({0})", "32 bits"),
    (r"\bcounters\[i\] = 0;", ";", "counters are not cleared"),
    (r"\bsums\[i\] = 0;", ";", "sums are not cleared"),
]

# Mutants that nothing can tell from the kernels: a part of their description, and why.
EQUIVALENT = [
    (
        "no barrier: if (tier == Tier::kCluster) sync_cluster();",
        "a block waits for all that is pushed to it before its last product, so nothing comes after it has left",
    ),
]

# each makes other parts of the kernels work
CASES = [
    cases.Case(mode, tier, dtype, batch, D, T=5, N=N, H=H, multiprocessors=multiprocessors)
    for mode, dtype, batch, D, N, H, multiprocessors in [
        ("LSTM", "bfloat16", "lengths reset", 2, 5, 20, 132),
        ("LSTM", "float32", "lengths reset masks far", 2, 5, 20, 132),
        ("LSTM", "float32", "kept", 1, 5, 20, 132),
        ("LSTM", "bfloat16", "lengths reset shares", 1, 9, 37, 132),
        ("GRU", "tf32", "packed reset", 2, 9, 37, 132),
        ("RNN_TANH", "bfloat16", "reset", 1, 33, 70, 9),
        ("GRU", "bfloat16", "reset", 1, 9, 150, 132),
        ("GRU", "bfloat16", "padded", 1, 32, 32, 132),  # nothing is padded
    ]
    for tier in ("stepwise", "block", "cluster", "grid")
    if not (tier == "block" and H > 100)
] + [
    cases.Case("LSTM", "stepwise", dtype, batch, 2, N=9, H=37, P=P)
    for dtype in ("bfloat16", "float32")
    for batch, P in (("lengths reset shares far", 19), ("packed reset masks", 9))
]
CASES.append(cases.Case("LSTM", "stepwise", "float32", "reset", absent="dh_n dc_steps"))
CASES.append(cases.Case("LSTM", "block", "bfloat16", "lengths", T=5, N=3, H=120))  # more weights than registers hold


def record(case: cases.Case, device: layer.Device) -> list[layer.Call]:
    if case.N >= 20 or case.H >= 100:  # ThreadSanitizer takes 1 MB a CUDA thread
        return []
    device.resize(case.multiprocessors)
    return cases.make_calls(case, device)[0]


SUITE = Suite(
    name="csrc/cuda",
    # the emulator has its own device*.cuh
    patterns=dict.fromkeys(("timeline.h", "cuda/[!d]*.cuh", "cuda/d[!e]*.cuh"), PATTERNS),
    equivalent=EQUIVALENT,
    cases=CASES,
    library=lambda csrc: cases.library(csrc, TYPES),
    open=layer.Device,
    run=cases.run,
    replays=lambda csrc: [[cases.replay(mode, csrc, TYPES), "2", "1"] for mode in ("tsan", "asan")],
    record=record,
    seconds=900,
)
