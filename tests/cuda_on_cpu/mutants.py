"""Breaks the CUDA kernels on purpose, one place at a time, and lists the breaks that no test of them notices.

Every barrier, wait, fence, release, buffer switch and bound of csrc/cuda is found by the patterns below and removed or
weakened; so are indices, masks and roundings. A mutant is run on the emulator: first under all schedules, then, if it
survives, under ThreadSanitizer and AddressSanitizer. Exits with 1 if one survives for no known reason.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from cuda_on_cpu import build, cases, layer  # noqa: E402

TYPES = {"product.cuh": ("float", "bfloat16")}  # whose kernels are run, by the file that is broken
OTHERWISE = ("bfloat16",)
SECONDS = 600  # for one mutant
FORK = multiprocessing.get_context("fork")

# what a pattern finds, and what comes in its place
PATTERNS = [
    (r"__syncthreads\(\);", ";", "no barrier"),
    (r"__syncthreads\(\);", "__syncwarp();", "a warp's barrier"),
    (r"device::copy_async_wait<\d>\(\);", ";", "no wait"),
    (r"device::copy_async_wait<(\d)>\(\);", "device::copy_async_wait<{0} + 1>();", "one group less"),
    (r"device::copy_async_commit\(\);", ";", "no commit"),
    (r"device::wait_for\(.*\);", ";", "no wait"),
    (r"device::wait_for\((\w+), (.*)\);", "device::wait_for({0}, {1} - 1);", "one block less"),
    (
        r"device::wait_for\((\w+), (.*)\);",
        "while (int32_t(device::load_relaxed({0}) - {1}) < 0) {{}}",
        "wait without acquire",
    ),
    (r"device::add_release\(.*\);", ";", "no arrival"),
    (r"device::add_release\((.*)\);", "device::add_relaxed({0});", "arrival without release"),
    (r"device::mbarrier_wait\(.*\);", ";", "no wait"),
    (r"device::mbarrier_wait\((.*), (.*)\);", "device::mbarrier_wait({0}, 1 ^ ({1}));", "the other phase"),
    (r"device::mbarrier_init_fence\(\);", ";", "no fence"),
    (r"device::mbarrier_init\((.*), 1\);", "device::mbarrier_init({0}, 2);", "one arrival more"),
    (
        r"device::mbarrier_arrive_expect\((\w+), (.*)\);",
        "device::mbarrier_arrive_expect({0}, {1} - 16);",
        "16 bytes less",
    ),
    (r"device::cluster_arrive\(\);", ";", "no arrival"),
    (r"device::cluster_wait\(\);", ";", "no wait"),
    (r"(?<!void )\bsync_cluster\(\);", ";", "no barrier"),
    (r"& 1\b", "& 0", "one buffer or phase"),
    (r"cooperative = .*;", "cooperative = false;", "not cooperative"),
    (r"\b(n|j|k|unit|in_plane) < ([\w.]*rows|width|plane_depth)\b", "{0} <= {1}", "one more"),
    (r"\b(tile|plane) \* (s\.hidden)", "({0} ^ 1) * {1}", "another gate"),
    (r"\? g : Q - 1", "? g : G - 1", "another gate"),
    (r"\? carry->h : ", "? S(0) : ", "the state is lost"),
    (r"walk\.alive\(s, n\)", "true", "a frozen row lives"),
    (r"walk\.cut\(", "!walk.cut(", "resets of other rows"),
    (r"device::to_tf32\(x\)", "device::load_as<uint32_t>(&x)", "cut off, not rounded"),
    (r"device::widen\(device::narrow<T>\((state\[0\]|sum\[0\])\)\)", "{0}", "the state is not rounded"),
    (r"\blane / 4\b", "lane / 8", "another lane's place"),
    (r"\blane % 4\b", "lane % 2", "another lane's place"),
    (r"\be / 2 \* 8", "0", "another unit's sum"),
    (r"\bcarry\[p\] = step \? ", "carry[p] = true ? ", "no first state"),
    (r"first_unit \+", "", "units of the first block"),
    (r"first_row \+", "", "rows of the first replica"),
    (r"% tiling\.depth", "% (tiling.depth - 1)", "a wrong column"),
    (r"split < splits\(groups\)", "split < 1", "a part is lost"),
    (r"\bcounters\[i\] = 0;", ";", "counters are not cleared"),
    (r"dreset_[hc]\[i\] = 0;", ";", "sums are not cleared"),
]

# Mutants that change nothing: a part of their description, and why.
EQUIVALENT: list[tuple[str, str]] = []

# each shape makes another part of the kernels work
CASES = [
    cases.Case(mode, tier, dtype, batch, D, T=5, N=N, H=H, multiprocessors=multiprocessors)
    for tier in ("stepwise", "block", "cluster", "grid")
    for mode, dtype, batch, D, N, H, multiprocessors in [
        ("LSTM", "bfloat16", "lengths reset", 1, 9, 37, 132),
        ("LSTM", "bfloat16", "lengths reset", 2, 5, 20, 132),
        ("LSTM", "float32", "lengths reset", 1, 5, 20, 132),
        ("GRU", "tf32", "packed reset", 2, 9, 37, 132),
        ("RNN_TANH", "bfloat16", "reset", 1, 33, 70, 9),
        ("GRU", "bfloat16", "reset", 1, 9, 150, 132),
    ]
    if not (tier == "block" and H > 100)
] + [cases.Case("LSTM", "stepwise", dtype, "lengths reset", 2, N=9, H=37, P=19) for dtype in ("bfloat16", "float32")]


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    code: str
    begin: int  # in the text of the file
    end: int
    new: str
    what: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.what}: {self.code}"

    def write(self, csrc: Path) -> None:
        path = csrc / "cuda" / self.file
        text = path.read_text()
        path.write_text(text[: self.begin] + self.new + text[self.end :])


def find_mutants() -> list[Mutant]:
    found = []
    for path in sorted((build.CSRC / "cuda").glob("*.cuh")):
        if path.name.startswith("device"):  # the emulator has its own
            continue
        at = 0
        for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
            code = re.sub(r"//.*", "", line)
            for pattern, new, what in PATTERNS:
                for match in re.finditer(pattern, code):
                    begin, end = at + match.start(), at + match.end()
                    replacement = new.format(*match.groups())
                    found.append(Mutant(path.name, number, code.strip(), begin, end, replacement, what))
            at += len(line)
    return found


def judge(csrc: Path, types: tuple[str, ...]) -> str:
    """What betrays the kernels in csrc, or "" if nothing does."""
    try:
        device = layer.Device(cases.library(csrc, types))
    except RuntimeError as error:
        return f"does not compile: {str(error)[-200:]}"
    some = [case for case in CASES if case.dtype in types or "float" in types]
    for case in some:
        wrong = cases.run(case, device)
        if wrong:
            return wrong[0].splitlines()[0]
    files = []
    for case in some:
        if case.N < 20 and case.H < 100:  # ThreadSanitizer takes 1 MB a CUDA thread
            device.resize(case.multiprocessors)
            extension, _ = cases.make_calls(case, device, case.arguments())
            for call in extension.calls:
                files.append(csrc / f"call-{len(files)}")
                call.write(files[-1])
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    for mode in ("tsan", "asan"):
        program = cases.replay(mode, csrc, types)
        done = subprocess.run([program, "2", "1", *files], capture_output=True, text=True, env=os.environ | options)
        if done.returncode:
            return next((s for s in done.stderr.splitlines() if "SUMMARY" in s or "runtime error" in s), "sanitizer")
    return ""


def fate(mutant: Mutant) -> str:
    """What betrays a mutant, or "" if nothing does."""
    with tempfile.TemporaryDirectory(dir=build.BUILD) as folder:
        csrc, objects = Path(folder) / "csrc", Path(folder) / "build"
        shutil.copytree(build.CSRC, csrc)
        mutant.write(csrc)
        objects.mkdir()
        for path in build.BUILD.glob("*-*.o"):
            os.link(path, objects / path.name)
        receive, send = FORK.Pipe(duplex=False)

        def work():
            build.BUILD = objects
            send.send(judge(csrc, TYPES.get(mutant.file, OTHERWISE)))

        process = FORK.Process(target=work)  # one library a process, and kernels may crash
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose description has all of these")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    arguments = parser.parse_args()
    mutants = [m for m in find_mutants() if all(word in str(m) for word in arguments.words)]
    if arguments.list:
        print(*mutants, sep="\n")
        return 0
    torch.set_num_threads(1)  # processes that are forked must find no threads
    cases.library(build.CSRC, OTHERWISE)  # what no mutant changes is in the cache from here on
    survivors, known = [], []
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", 2))) as pool:
        for mutant, betrayal in zip(mutants, tqdm(pool.map(fate, mutants), total=len(mutants)), strict=True):
            reason = next((why for part, why in EQUIVALENT if part in str(mutant)), None)
            tqdm.write(f"{mutant}\n    {betrayal or 'SURVIVES' + (f': {reason}' if reason else '')}")
            if not betrayal:
                (known if reason else survivors).append(mutant)
    print(f"{len(mutants)} mutants, {len(known)} survive for a known reason, {len(survivors)} for none")
    print(*survivors, sep="\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
