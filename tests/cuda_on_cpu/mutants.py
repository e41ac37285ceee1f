"""Breaks the CUDA kernels on purpose, one place at a time, and lists the breaks that no test of them notices.

Every barrier, wait, fence, release, buffer switch and bound of csrc/cuda is found by the patterns below and removed or
weakened; so are indices, masks and roundings. All are compiled at once, each behind a switch, and then run on the
emulator by those cases that come by them: under all schedules and, those that survive, under ThreadSanitizer and
AddressSanitizer. Exits with 1 if one survives for no known reason.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from cuda_on_cpu import build, cases, layer  # noqa: E402

TYPES = ("float", "bfloat16")  # whose kernels are run
SECONDS = 900  # for one mutant
FORK = multiprocessing.get_context("fork")

# A statement or an expression, and what comes in its place.
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
    (r"\b(n|j|k|unit|in_plane) < ([\w.]*rows|width|plane_depth)\b", "{1} <= {2}", "one more"),
    (r"\b(n|i) >= (s\.rows|meeting\.pairs\(\))", "{1} > {2}", "one more"),
    (r"\bgroup < tiling\.groups\b", "group <= tiling.groups", "one more"),
    (r"\b[ip] < (?!counter_count)[^;]+(?=; [ip] \+= )", "{0} - 1", "one less"),
    (r"\bleft < Memory::kChunk\b", "false", "a whole chunk"),
    (r"\bt >= 0\b", "true", "a step before the first"),
    (r"\bt < p\.shape\.steps\b", "t <= p.shape.steps", "one more"),
    (r"\bt < p\.batch\.lengths\[n\]", "t <= p.batch.lengths[n]", "one more"),
    (r"\bthere(?= &&)", "true", "rows of the next step"),
    (r"\b(tile|plane) \* s\.hidden\b", "({1} ^ 1) * s.hidden", "another gate"),
    (r"\bQ - 1\b", "G - 1", "another gate"),
    (r"\bplane \* tiling\.out_plane\b", "0", "another gate"),
    (r"\bplane_index(?= \* plane\b|\) \* units\b)", "0", "another gate"),
    (r"\bk / tiling\.plane\b|\bp / pieces % planes\b", "0", "another gate"),
    (r"\b(tile_index|i / tiling\.units\(\)) % M\b", "0", "another gate"),
    (r"\b[mn] \* (tile|kTileRows|groups)\b", "0", "another tile"),
    (r"(?<=, )[gkq](?=, j\)\])", "0", "another gate"),
    (r"\bd(?= \? a\.p\.weights)", "0", "another direction"),
    (r"(?<=unit \+= ).*(?=;)", "0", "units of the first block"),
    (r"walk\.alive\(s, n\)", "true", "a frozen row lives"),
    (r"walk\.next_alive\(s, n\)", "true", "a frozen row lives"),
    (r"walk\.next_alive\(s, n\)", "false", "a row ends"),
    (r"\balive(?= \? )", "true", "a frozen row lives"),
    (r"\breset(?= \? )", "decltype(reset)(nullptr)", "reset to zeros"),
    (r"\*carry = 0;", ";", "a gradient gets past a reset"),
    (r"sum_at_resets\[own\] \+= .*;", ";", "no gradient of a reset state"),
    (r"walk\.masked\(n, [jk], ((?:[^()]|\([^()]*\))*)\)", "{1}", "h is not masked"),
    (r"(?<!S )(?<!\S)\S+ = zone_out\(.*\);", ";", "no zoneout"),
    (r"\bin\.keeps_[hc]\b", "!{0}", "zoneout of other units"),
    (r"\bzone\.share == 1\b", "false", "a state that is kept is rounded"),
    (r"(?<== )lead_past\(.*\)(?=;)", "{0} * 0", "a gradient does not get past the cell"),
    (r"walk\.cut\((?:[^()]|\([^()]*\))*\)", "!{0}", "resets of other rows"),
    (r"device::to_tf32\(x\)", "device::load_as<uint32_t>(&x)", "cut off, not rounded"),
    (r"device::widen\(device::narrow<T>\((state\[0\]|sum\[0\])\)\)", "{1}", "the state is not rounded"),
    (r"\blane / (4|16)\b", "lane / (2 * {1})", "another lane's place"),
    (r"\blane % (4|16)\b", "lane % ({1} / 2)", "another lane's place"),
    (r"\be % 2\b", "0", "another row's sum"),
    (r"\b8 \* half\b", "0", "another unit's weights"),
    (r"\b2 \* i \+ row\b", "2 * i", "another row's operands"),
    (r"\be / 2 \* 8", "0", "another unit's sum"),
    (r"(?<=carry\[p\] = )step(?= \?)", "true", "no first state"),
    (r"\bfirst_unit(?= \+)", "0", "units of the first block"),
    (r"\bfirst_row(?= \+)", "0", "rows of the first replica"),
    (r"(?<=split < )splits\(groups\)", "1", "a part of the sum is lost"),
    (r"\bsplit \* Math::kDepth", "0", "a part of the sum is there twice"),
    (r"\bparts \* Math::kDepth", "Math::kDepth", "a part of the sum is there twice"),
    (r"(?<=\+= )chains\[chain\].*(?=;)", "Sum(0)", "a part of the sum is lost"),
    (r"\bheld\[h\](?=,)", "held[0]", "another piece's weights"),
    (r"(?<=if \()k < depth(?=\) Math|\) \{)", "k <= depth", "one more"),
    (r"(?<== )warp % parts", "0", "another warp's part"),
    (r"\bhas_group(?=\) meeting)", "true", "one more"),
    (r"(?<=return )\(.*(?:packed_rows|shape\.directions).*(?=;)", "static_cast<int32_t>({0})", "32 bits"),
    (r"(?<=\[)\(walk\.d \* .*(?=\] = )", "static_cast<int32_t>({0})", "32 bits"),
    (r"\bs\.(?:next_)?first \+ n(?=\])", "static_cast<int32_t>({0})", "32 bits"),
    (r"\bcounters\[i\] = 0;", ";", "counters are not cleared"),
    (r"a\.dreset_[hc]\[i\] = 0;", ";", "sums are not cleared"),
]

# Mutants that nothing can tell from the kernels: a part of their description, and why.
EQUIVALENT = [
    (
        "a row ends: if (!walk.next_alive(s, n)) last[own] = ",
        "each step puts the state down, then, and the last one that does is the last one",
    ),
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
CASES.append(cases.Case("LSTM", "block", "bfloat16", "lengths", T=5, N=3, H=120))  # more weights than registers hold

SWITCH = """#pragma once
#include <cstdlib>
inline const int active_mutant = std::getenv("MUTANT") ? std::atoi(std::getenv("MUTANT")) : 0;
extern "C" {{
inline bool came_by[{count}];  // which mutants the kernels have come by
}}
inline bool mutant(int number) {{
#ifndef __SANITIZE_THREAD__
  came_by[number] = true;
#endif
  return active_mutant == number;
}}
"""


@dataclass(frozen=True)
class Mutant:
    number: int  # from 1
    file: str
    line: int
    code: str
    begin: int  # in the text of the file
    end: int
    new: str
    what: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.what}: {self.code}"


def find_mutants(csrc: Path) -> list[Mutant]:
    found = []
    for path in sorted((csrc / "cuda").glob("*.cuh")):
        if path.name.startswith("device"):  # the emulator has its own
            continue
        at = 0
        for line, text in enumerate(path.read_text().splitlines(keepends=True), 1):
            code = re.sub(r"//.*", "", text)
            for pattern, new, what in PATTERNS:
                for match in re.finditer(pattern, code):
                    begin, end = at + match.start(), at + match.end()
                    new_code = new.format(match[0], *match.groups())
                    found.append(Mutant(len(found) + 1, path.name, line, code.strip(), begin, end, new_code, what))
            at += len(text)
    return found


def with_switches(text: str, mutants: list[Mutant], begin: int, end: int) -> str:
    """text[begin:end] with all its mutants, each behind its number."""
    out, at = "", begin
    for span in sorted({(m.begin, m.end) for m in mutants}, key=lambda span: (span[0], -span[1])):
        if span[0] < at:
            continue  # inside of the one before: done there
        here = [m for m in mutants if (m.begin, m.end) == span]
        inside = [m for m in mutants if span[0] <= m.begin and m.end <= span[1] and (m.begin, m.end) != span]
        old = with_switches(text, inside, *span)
        if text[span[1] - 1] == ";":
            choices = "".join(f"if (mutant({m.number})) {{ {m.new} }} else " for m in here)
            code = f"{{ {choices}{{ {old} }} }}"
        else:
            code = f"({''.join(f'mutant({m.number}) ? ({m.new}) : ' for m in here)}({old}))"
        out += text[at : span[0]] + code
        at = span[1]
    return out + text[at:end]


def write_mutants(csrc: Path, mutants: list[Mutant]) -> None:
    """Puts all mutants into a copy of csrc."""
    (csrc / "cuda" / "active_mutant.h").write_text(SWITCH.format(count=len(mutants) + 1))
    for name in {m.file for m in mutants}:
        path = csrc / "cuda" / name
        text = path.read_text()
        path.write_text(
            '#include "active_mutant.h"\n' + with_switches(text, [m for m in mutants if m.file == name], 0, len(text))
        )


def as_they_are(library: Path, mutants: list[Mutant]) -> dict[int, list[cases.Case]] | str:
    """The cases that come by each mutant, the quickest first; or what is wrong with the kernels."""
    device, those, seconds = layer.Device(library), {m.number: [] for m in mutants}, {}
    came_by = (ctypes.c_bool * (len(mutants) + 1)).in_dll(device.library, "came_by")
    for case in tqdm(CASES, as_they_are.__name__):
        ctypes.memset(came_by, 0, len(came_by))
        start = time.perf_counter()
        if wrong := cases.run(case, device):
            return f"{case}: {wrong[0]}"
        seconds[case] = time.perf_counter() - start
        for number, found in those.items():
            if came_by[number]:
                found.append(case)
    return {number: sorted(found, key=seconds.get) for number, found in those.items()}


def under_all_schedules(some: list[cases.Case], library: Path) -> str:
    """What betrays the active mutant, or "" if nothing does."""
    device = layer.Device(library)
    for case in some:
        if wrong := cases.run(case, device):
            return wrong[0].splitlines()[0]
    return ""


def under_sanitizers(some: list[cases.Case], library: Path, programs: list[Path]) -> str:
    device = layer.Device(library)
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for case in some:
            if case.N < 20 and case.H < 100:  # ThreadSanitizer takes 1 MB a CUDA thread
                device.resize(case.multiprocessors)
                extension, _ = cases.make_calls(case, device, case.arguments())
                for call in extension.calls:
                    files.append(Path(folder) / str(len(files)))
                    call.write(files[-1])
        for program in programs:
            done = subprocess.run([program, "2", "1", *files], capture_output=True, text=True, env=os.environ | options)
            if done.returncode:
                signs = [s for s in done.stderr.splitlines() if "SUMMARY" in s or "runtime error" in s]
                return signs[0] if signs else done.stderr
    return ""


def apart(number: int, judge, *args):
    """What judge(*args) says of a mutant in a process of its own: one library a process, and kernels may crash."""
    receive, send = FORK.Pipe(duplex=False)

    def work():
        os.environ["MUTANT"] = str(number)
        send.send(judge(*args))

    process = FORK.Process(target=work)
    process.start()
    send.close()
    if not receive.poll(SECONDS):
        process.kill()
        return "it does not end"
    try:
        return receive.recv()
    except EOFError:
        process.join()
        return f"it crashes: exit status {process.exitcode}"


def judge_all(mutants: list[Mutant], those: dict[int, list[cases.Case]], judge, *args) -> list[Mutant]:
    """Says what betrays each in the cases that come by it; returns the survivors."""
    survivors = []
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", 2))) as pool:
        found = pool.map(lambda mutant: apart(mutant.number, judge, those[mutant.number], *args), mutants)
        for mutant, betrayal in zip(mutants, tqdm(found, judge.__name__, len(mutants)), strict=True):
            if betrayal:
                tqdm.write(f"{mutant}\n    {betrayal}")
            else:
                survivors.append(mutant)
    return survivors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose description has all of these")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    arguments = parser.parse_args()
    everything = find_mutants(build.CSRC)
    mutants = [m for m in everything if all(word in str(m) for word in arguments.words)]
    if arguments.list:
        print(*mutants, sep="\n")
        return 0
    torch.set_num_threads(1)  # processes that are forked must find no threads
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder) / "csrc"
        shutil.copytree(build.CSRC, csrc)
        write_mutants(csrc, everything)
        print("compiling", file=sys.stderr)
        library = cases.library(csrc, TYPES)
        those = apart(0, as_they_are, library, everything)
        if isinstance(those, str):
            print(f"the kernels are wrong as they are: {those}")
            return 1
        survivors = judge_all(mutants, those, under_all_schedules, library)
        if survivors:
            print(f"compiling for the sanitizers; {len(survivors)} survive so far", file=sys.stderr)
            programs = [cases.replay(mode, csrc, TYPES) for mode in ("tsan", "asan")]
            survivors = judge_all(survivors, those, under_sanitizers, library, programs)
    reasons = {m: next((why for part, why in EQUIVALENT if part in str(m)), "") for m in survivors}
    for mutant, reason in reasons.items():
        print(f"{mutant}\n    survives: {reason or 'FOR NO KNOWN REASON'}")
    unknown = list(reasons.values()).count("")
    print(f"{len(mutants)} mutants, {len(survivors) - unknown} survive for a known reason, {unknown} for none")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
