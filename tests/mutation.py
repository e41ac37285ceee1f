"""Breaks the kernels on purpose, one place at a time, and lists the breaks that no case notices.

Every place in csrc that one of a suite's patterns finds is removed or weakened. All mutants of a suite are compiled
at once, each behind a switch, and then run by those cases that come by them; those that survive without a known reason
also under sanitizers. Exits with 1 if one is left. The suites are cpu_alone/mutants.py and cuda_on_cpu/mutants.py.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

CSRC = Path(__file__).parent.parent / "csrc"
SUITES = ("cpu_alone", "cuda_on_cpu")
FORK = multiprocessing.get_context("fork")

SWITCH = """#pragma once
#include <cstdlib>
inline const int active_mutant = std::getenv("MUTANT") ? std::atoi(std::getenv("MUTANT")) : 0;
extern "C" {{
inline bool watches_mutants = active_mutant == 0;
inline bool came_by[{count}];  // which mutants the kernels have come by
}}
#ifdef AT_MUTANT
void AT_MUTANT(int number);
#endif
inline bool mutant(int number) {{
#ifndef __SANITIZE_THREAD__
  if (__builtin_expect(watches_mutants, false)) {{
    if (!came_by[number]) came_by[number] = true;
#ifdef AT_MUTANT
    AT_MUTANT(number);
#endif
  }}
#endif
  return active_mutant == number;
}}
"""


@dataclass(frozen=True)
class Suite:
    name: str
    # by glob of csrc: a pattern of a statement or an expression, its replacement, a description
    patterns: dict[str, list[tuple[str, str, str]]]
    equivalent: list[tuple[str, str]]  # part of the description of mutants that nothing can tell from the kernels; why
    cases: list
    library: Callable[[Path], Path]  # compiles a csrc
    open: Callable[[Path], object]  # the device in a library
    run: Callable[[object, object], list[str]]  # case, device: what is wrong
    replays: Callable[[Path], list[list]]  # compiles a csrc for sanitizers: commands that want names of files
    record: Callable[[object, object], list]  # case, device: calls for a replay
    seconds: int  # for one mutant
    prepare: Callable[[object], object] = lambda case: None  # once for all mutants
    left_out: str = r"(?!)"  # lines without mutants
    smaller: list[tuple[str, str]] = field(default_factory=list)  # other replacements, so that cases can be small

    def sources(self, csrc: Path) -> list[Path]:
        return sorted({path for glob in self.patterns for path in csrc.glob(glob)})


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


def find_mutants(suite: Suite, csrc: Path) -> list[Mutant]:
    mutants = []
    for path in suite.sources(csrc):
        name, at, new_here = path.relative_to(csrc).as_posix(), 0, set()
        patterns = [one for glob, some in suite.patterns.items() if path in csrc.glob(glob) for one in some]
        lines = path.read_text().splitlines(keepends=True)
        for line, (text, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True), 1):
            code = "" if re.search(suite.left_out, text) else re.sub(r"//.*", "", text)
            whole = code.strip() + (" " + following.strip() if re.search(r"[{),]\s*$", code) else "")
            for pattern, new, what in patterns:
                for match in re.finditer(pattern, code):
                    begin, end = (at + i for i in match.span("at" if "at" in match.groupdict() else 0))
                    new_code = new.format(match[0], *match.groups())
                    if new_code != match[0] and (begin, end, new_code) not in new_here:
                        new_here.add((begin, end, new_code))
                        mutants.append(Mutant(len(mutants) + 1, name, line, whole, begin, end, new_code, what))
            at += len(text)
    return mutants


def without_a_place(suite: Suite, csrc: Path) -> list[str]:
    """Patterns that no longer match anything."""
    stale = {pattern for some in suite.patterns.values() for pattern, *_ in some}
    for path in suite.sources(csrc):
        lines = [re.sub(r"//.*", "", text) for text in path.read_text().splitlines()]
        code = [text for text in lines if not re.search(suite.left_out, text)]
        stale -= {pattern for pattern in stale if any(re.search(pattern, text) for text in code)}
    return sorted(stale)


def with_switches(text: str, mutants: list[Mutant], begin: int, end: int) -> str:
    """text[begin:end] with all its mutants, each behind its number."""
    out, at = "", begin
    for span in sorted({(m.begin, m.end) for m in mutants}, key=lambda span: (span[0], -span[1])):
        if span[0] < at:  # inside of the one before: done there
            if span[1] > at:
                raise ValueError(f"two mutants overlap at {text[span[0] : span[1]]!r}")
            continue
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


def write_mutants(suite: Suite, csrc: Path, mutants: list[Mutant]) -> None:
    """Puts all mutants into a copy of csrc."""
    (csrc / "active_mutant.h").write_text(SWITCH.format(count=len(mutants) + 1))
    for name in {m.file for m in mutants}:
        path = csrc / name
        text = path.read_text()
        path.write_text(
            '#include "active_mutant.h"\n' + with_switches(text, [m for m in mutants if m.file == name], 0, len(text))
        )


def make_smaller(suite: Suite, csrc: Path) -> None:
    texts = {path: path.read_text() for path in suite.sources(csrc)}
    for old, new in suite.smaller:
        if not any(re.search(old, text) for text in texts.values()):
            raise ValueError(f"{suite.name}: csrc has no {old}")
        texts = {path: re.sub(old, new, text) for path, text in texts.items()}
    for path, text in texts.items():
        path.write_text(text)


def as_they_are(suite: Suite, library: Path, mutants: list[Mutant]) -> dict[int, list] | str:
    """The cases that execute each mutant, the fastest first; or what is wrong with the kernels."""
    device, those, seconds = suite.open(library), {m.number: [] for m in mutants}, {}
    came_by = (ctypes.c_bool * (len(mutants) + 1)).in_dll(device.library, "came_by")
    for case in tqdm(suite.cases, as_they_are.__name__):
        ctypes.memset(came_by, 0, len(came_by))
        start = time.perf_counter()
        if wrong := suite.run(case, device):
            return f"{case}: {wrong[0]}"
        seconds[case] = time.perf_counter() - start
        for number, cases in those.items():
            if came_by[number]:
                cases.append(case)
    return {number: sorted(cases, key=seconds.get) for number, cases in those.items()}


def in_its_cases(suite: Suite, some: list, library: Path) -> str:
    """How the active mutant was detected, or ""."""
    device = suite.open(library)
    for case in some:
        if wrong := suite.run(case, device):
            return wrong[0].splitlines()[0]
    return ""


def under_sanitizers(suite: Suite, some: list, library: Path, replays: list[list]) -> str:
    device = suite.open(library)
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for call in (call for case in some for call in suite.record(case, device)):
            files.append(Path(folder) / str(len(files)))
            call.write(files[-1])
        for replay in replays:
            done = subprocess.run([*replay, *files], capture_output=True, text=True, env=os.environ | options)
            if done.returncode:
                signs = [s for s in done.stderr.splitlines() if "SUMMARY" in s or "runtime error" in s]
                return signs[0] if signs else done.stderr
    return ""


def apart(suite: Suite, number: int, judge, *args):
    """The result of judge(suite, *args) for a mutant in a separate process, since kernels may crash."""
    receive, send = FORK.Pipe(duplex=False)

    def work():
        os.environ["MUTANT"] = str(number)
        send.send(judge(suite, *args))

    process = FORK.Process(target=work)
    process.start()
    send.close()
    if not receive.poll(suite.seconds if number else None):
        process.kill()
        return "it does not end"
    try:
        return receive.recv()
    except EOFError:
        process.join()
        return f"it crashes: exit status {process.exitcode}"


def judge_all(suite: Suite, mutants: list[Mutant], those: dict[int, list], judge, *args) -> list[Mutant]:
    """Prints how each is detected in the cases that execute it; returns the survivors."""
    survivors = []
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", 2))) as pool:
        verdicts = pool.map(lambda mutant: apart(suite, mutant.number, judge, those[mutant.number], *args), mutants)
        for mutant, betrayal in zip(mutants, tqdm(verdicts, judge.__name__, len(mutants)), strict=True):
            if betrayal:
                tqdm.write(f"{mutant}\n    {betrayal}")
            else:
                survivors.append(mutant)
    return survivors


def compile_suite(suite: Suite, csrc: Path, everything: list[Mutant]):
    """The kernels with all mutants, in one library"""
    shutil.copytree(CSRC, csrc)
    write_mutants(suite, csrc, everything)
    make_smaller(suite, csrc)
    print(f"{suite.name}: compiling", file=sys.stderr)
    library = suite.library(csrc)
    for case in suite.cases:
        suite.prepare(case)
    return library


def judge_suite(suite: Suite, everything: list[Mutant], mutants: list[Mutant]) -> int:
    """Returns the number of those that survive for no known reason."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder) / "csrc"
        library = compile_suite(suite, csrc, everything)
        cases = apart(suite, 0, as_they_are, library, everything)
        if isinstance(cases, str):
            print(f"{suite.name}: the kernels are wrong as they are: {cases}")
            return 1
        survivors = judge_all(suite, mutants, cases, in_its_cases, library)
        reasons = {m: next((why for part, why in suite.equivalent if part in str(m)), "") for m in survivors}
        unknown = [m for m, reason in reasons.items() if not reason]
        if unknown:
            print(f"compiling for the sanitizers; {len(unknown)} survive for no known reason so far", file=sys.stderr)
            unknown = judge_all(suite, unknown, cases, under_sanitizers, library, suite.replays(csrc))
    report(survivors, reasons, unknown, cases)
    known = sum(map(bool, reasons.values()))
    print(f"{suite.name}: {len(mutants)} mutants, {known} survive for a known reason, {len(unknown)} for none")
    return len(unknown)


def report(survivors: list[Mutant], reasons: dict[Mutant, str], unknown: list[Mutant], cases) -> None:
    for mutant in survivors:
        if reasons[mutant] or mutant in unknown:
            unreached = "" if cases[mutant.number] else " (no case executes it)"
            print(f"{mutant}\n    survives{unreached}: {reasons[mutant] or 'FOR NO KNOWN REASON'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose description has all of these")
    parser.add_argument("--suite", choices=SUITES, action="append", help="only this one")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no threads may exist when processes are forked
    unknown = 0
    for name in arguments.suite or SUITES:
        suite = importlib.import_module(f"{name}.mutants").SUITE
        everything = find_mutants(suite, CSRC)
        mutants = [m for m in everything if all(word in str(m) for word in arguments.words)]
        if arguments.list:
            print(*mutants, sep="\n")
            continue
        for pattern in without_a_place(suite, CSRC):
            print(f"{suite.name}: no longer matches anything: {pattern}")
            unknown += 1
        if mutants:
            unknown += judge_suite(suite, everything, mutants)
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
