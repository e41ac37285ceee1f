"""Walks the first thread's way through a kernel and counts the cycles of its warp.

The warp issues an instruction once the stall count of the one before has passed and the scoreboards that it waits for
are released: both are in the machine code. What an instruction takes that releases a scoreboard is in LATENCY. A branch
on an unknown value goes where the way to the place at which both ways meet is shorter.
"""

from __future__ import annotations

import collections
import re
import struct
from dataclasses import dataclass, field

from .build import Launched
from .cubin import NO_SCOREBOARD, Instruction, Kernel
from .machine import semantics
from .operands import State, read

# Cycles from issue to result at 1.75 GHz, as published for Hopper; L2 and DRAM as global loads meet them.
LATENCY = {"LDS": 29, "LDSM": 33, "LDC": 38, "ULDC": 38, "S2R": 24, "S2UR": 24, "MUFU": 22, "F2F": 20, "I2F": 20}
LATENCY |= {"F2I": 20, "R2UR": 12, "DSETP": 20, "POPC": 15, "CS2R": 15, "DADD": 20, "DFMA": 20, "DMUL": 20}
# A generic load, LD, is of shared memory here: nvcc knows what is in global memory.
LATENCY |= {"LDG": 650, "LD": 35, "ATOM": 700, "ATOMG": 700, "STG": 1, "ST": 1, "STS": 1, "BAR": 1, "SYNCS": 25}
OTHER_LATENCY, OPERAND_READ, TAKEN_BRANCH, BARRIER = 24, 14, 4, 20
L2, L2_STORE, REMOTE_STORE = 263, 300, 220  # a load that hits; a store until all see it; one to another block's memory
WARPS_OF_A_SCHEDULER = 2
TENSOR_CYCLES = 8  # of a scheduler's tensor core, for one HMMA
LONGEST = 2_000_000


@dataclass
class Count:
    instructions: int = 0
    cycles: int = 0
    names: collections.Counter[str] = field(default_factory=collections.Counter)
    waits: collections.Counter[str] = field(default_factory=collections.Counter)  # cycles, by what was waited for

    def add(self, other: Count, times: int = 1) -> None:
        self.instructions += times * other.instructions
        self.cycles += times * other.cycles
        for mine, its in ((self.names, other.names), (self.waits, other.waits)):
            mine.update({key: times * number for key, number in its.items()})

    def number(self, pattern: str) -> int:
        """Of instructions whose name with its modifiers matches."""
        return sum(number for name, number in self.names.items() if re.match(pattern, name))

    def bound(self) -> int:
        """Cycles of as many instructions and tensor products where a scheduler has two warps, without any wait."""
        return WARPS_OF_A_SCHEDULER * max(self.instructions, TENSOR_CYCLES * self.number("HMMA"))


class Clock:
    def __init__(self) -> None:
        self.now = 0
        self.released = [(0, "")] * 6  # of each scoreboard: when, and by what
        self.copied: list[int] = []  # when each group of asynchronous copies is there
        self.copying = self.stored = self.pushed = self.seen = 0
        self.waits: collections.Counter[str] = collections.Counter()

    def wait_until(self, time: int, what: str) -> None:
        if time > self.now:
            self.waits[what] += time - self.now
            self.now = time

    def issue(self, i: Instruction, runs: bool) -> None:
        for board in range(6):
            if i.waits >> board & 1:
                self.wait_until(*self.released[board])
        if runs:
            self._memory(i)
        if i.sets != NO_SCOREBOARD and runs:
            self.released[i.sets] = max(self.released[i.sets], (self._ready(i), what(i)))
        if i.reads != NO_SCOREBOARD and runs:
            self.released[i.reads] = max(self.released[i.reads], (self.now + OPERAND_READ, "operands"))
        self.now += max(1, i.stall)

    def _memory(self, i: Instruction) -> None:
        shared_by_all = ".GPU" in i.name or ".SYS" in i.name
        if i.opcode in ("BAR", "UCGABAR_WAIT"):
            self.wait_until(self.now + BARRIER, "barrier")
        elif i.opcode == "STAS":
            self.pushed = self.now + REMOTE_STORE
        elif i.opcode in ("STG", "ST"):
            self.stored = self.now + L2_STORE
            if shared_by_all:
                self.seen = self.stored
        elif i.opcode in ("RED", "REDG", "ATOM", "ATOMG") and shared_by_all:
            self.seen = self.now + L2_STORE
        elif i.opcode == "MEMBAR" and shared_by_all:
            self.wait_until(self.stored, "exchange")
        elif i.opcode == "LDGSTS":
            self.copying = self.now + L2
        elif i.opcode == "LDGDEPBAR":
            self.copied.append(self.copying)
        elif i.opcode == "DEPBAR" and self.copied:
            left = int(i.operands[-1], 16) if len(i.operands) > 1 else 0
            done = self.copied[: len(self.copied) - left]
            self.wait_until(max(done, default=0), "copies")

    def _ready(self, i: Instruction) -> int:
        latency = LATENCY.get(i.opcode, OTHER_LATENCY)
        if i.opcode == "SYNCS" and "TRYWAIT" in i.name:
            return max(self.now + latency, self.pushed)
        if i.opcode in ("LDG", "LD") and (".GPU" in i.name or ".SYS" in i.name):  # polled: half a poll too late
            return max(self.now + L2, self.seen + L2 * 3 // 2)
        return self.now + latency


def what(i: Instruction) -> str:
    if "TRYWAIT" in i.name or (i.opcode in ("LDG", "LD") and (".GPU" in i.name or ".SYS" in i.name)):
        return "exchange"
    return {"LDG": "loads", "LD": "shared memory", "LDS": "shared memory", "LDSM": "shared memory"}.get(
        i.opcode, i.opcode
    )


class Program:
    """A kernel's code, made ready to be walked through."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.run = [semantics(i) for i in kernel.code]
        self.guards = [read(i.guard) if i.guard else None for i in kernel.code]
        self.conditions = [
            [read(text) for text in i.operands if re.fullmatch(r"!?U?P(\d|T)", text)] if i.opcode == "BRA" else []
            for i in kernel.code
        ]
        self._shorter: dict[int, bool] = {}

    def _next(self, index: int) -> list[int]:
        i = self.kernel.code[index]
        following = index + 1 if index + 1 < len(self.kernel.code) else None
        if i.opcode in ("EXIT", "RET", "BPT") and not i.guard:
            return []
        if i.opcode == "BRA" and i.target is not None:
            always = not i.guard and not self.conditions[index]
            return [i.target] if always or following is None else [following, i.target]
        return [] if following is None else [following]

    def _distances(self, start: int) -> dict[int, int]:
        distance, queue = {start: 0}, collections.deque([start])
        while queue:
            at = queue.popleft()
            for after in self._next(at):
                if after not in distance:
                    distance[after] = distance[at] + 1
                    queue.append(after)
        return distance

    def _takes_unknown(self, index: int) -> bool:
        """Is the way over the target of this branch the shorter one?"""
        if index not in self._shorter:
            target = self.kernel.code[index].target
            assert target is not None
            near, far = self._distances(index + 1), self._distances(target)
            meet = min((near[at] + far[at], near[at], at) for at in near.keys() & far.keys())[2] if near and far else 0
            self._shorter[index] = far[meet] < near[meet]
        return self._shorter[index]

    def _branches(self, index: int, runs: bool | None, state: State) -> bool:
        # taken if the lanes of the warp disagree: a branch between them, a loop over the different values
        if re.search(r"\.DIV|\.U\.ANY", self.kernel.code[index].name):
            return False
        truths = [runs, *(condition(state) for condition in self.conditions[index])]
        return False if False in truths else True if None not in truths else self._takes_unknown(index)

    def walk(self, launch: Launched, memory: dict[int, bytes]) -> Count:
        bank = bytearray(1 << 12)
        bank[:24] = struct.pack("<6I", *launch.block, *launch.grid)
        for (offset, size), data in zip(self.kernel.parameters, launch.arguments, strict=True):
            at = self.kernel.parameters_at + offset
            bank[at : at + size] = data
        state, clock, count = State(bytes(bank), memory), Clock(), Count()
        index, calls, code = 0, [], self.kernel.code
        while True:
            i, guard = code[index], self.guards[index]
            runs = True if guard is None else guard(state)
            clock.issue(i, runs is not False)
            count.instructions += 1
            count.names[i.name] += 1
            if count.instructions > LONGEST:
                raise RuntimeError(f"the way through {self.kernel.name} does not end")
            index += 1
            if i.opcode == "BRA":
                if self._branches(index - 1, runs, state):
                    index = i.target
                    clock.now += TAKEN_BRANCH
            elif runs is not False:
                if i.opcode == "CALL":
                    calls.append(index)
                    index = i.target
                elif i.opcode == "RET":
                    index = calls.pop()
                elif i.opcode == "EXIT" and runs:
                    break
                elif (run := self.run[index - 1]) is not None:
                    run(state)
        count.cycles, count.waits = clock.now, clock.waits
        return count
