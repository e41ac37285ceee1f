"""The estimates of make gpu-cost: the clock and the way through a few lines of machine code. No nvcc is needed."""

import json
import struct
from pathlib import Path

import pytest
from gpu_cost import cubin, machine, operands, walk
from gpu_cost.build import Launched

FREE = cubin.NO_SCOREBOARD


def kernel(*lines):
    """Of lines of (text, stall, scoreboard set, scoreboards waited for), and of labels."""
    text, words, address = [], b"", 0
    for line in lines:
        if isinstance(line, str):
            text.append(f"{line}:")
            continue
        instruction, stall, sets, waits = line if len(line) > 1 else (*line, 1, FREE, 0)
        text.append(f"        /*{address:04x}*/                   {instruction} ;")
        words += struct.pack("<QQ", 0, (stall | sets << 5 | FREE << 8 | waits << 11) << 41)
        address += cubin.SIZE
    return cubin.Kernel("kernel", cubin.parse("\n".join(text), words), 0x210, [(0, 4), (8, 8)])


def count(steps, *lines, memory=()):
    launch = Launched("kernel", (1, 1, 1), (256, 1, 1), 1, (struct.pack("<I", steps), struct.pack("<Q", 1 << 40)))
    return walk.Program(kernel(*lines)).walk(launch, dict(memory))


LOOP = [
    ("MOV R0, RZ",),
    ".L_x_0",
    ("LDS R2, [R4]", 1, 0, 0),
    ("FADD R2, R2, R2", 4, FREE, 1),
    ("IADD3 R0, R0, 0x1, RZ", 6, FREE, 0),
    ("ISETP.GE.AND P0, PT, R0, c[0x0][0x210], PT", 12, FREE, 0),
    ("@!P0 BRA `(.L_x_0)", 5, FREE, 0),
    ("EXIT",),
]


def test_a_step_is_the_difference_between_two_numbers_of_steps():
    step = count(9, *LOOP)
    step.add(count(8, *LOOP), -1)
    assert step.instructions == 5 and step.waits["shared memory"] == walk.LATENCY["LDS"] - 1
    assert step.cycles == walk.LATENCY["LDS"] + 4 + 6 + 12 + 5 + walk.TAKEN_BRANCH
    assert step.bound() == 10


@pytest.mark.parametrize("guard", ["P1", "!P1"])
def test_a_branch_on_what_nobody_knows_goes_the_shorter_way(guard):
    slow = [("FMUL R1, R1, R1",)] * 7
    unknown = ("MUFU.RCP R1, R3",)
    ways = [unknown, ("FSETP.GT.AND P1, PT, R1, R2, PT",), (f"@{guard} BRA `(.L_x_1)",), *slow, ".L_x_1", ("EXIT",)]
    assert count(1, *ways).instructions == 4
    away = [unknown, ("FSETP.GT.AND P1, PT, R1, R2, PT",), (f"@{guard} BRA `(.L_x_1)",), ".L_x_2", ("EXIT",)]
    assert count(1, *away, ".L_x_1", *slow, ("BRA `(.L_x_2)",)).instructions == 4


def test_memory_with_contents_is_read_and_other_memory_is_unknown():
    code = [
        ("LDC.64 R2, c[0x0][0x218]",),
        ("LDG.E.64 R4, desc[UR4][R2.64+0x8]",),
        ("ISETP.GT.U32.AND P0, PT, R4, 0x6, PT",),
        ("ISETP.GT.AND.EX P0, PT, R5, RZ, PT, P0",),
        ("@P0 EXIT",),
        ("NOP",),
        ("EXIT",),
    ]
    for value, instructions in ((7, 5), (6, 7), (1 << 32, 5), (-1 & 2**64 - 1, 7)):
        memory = {1 << 40: struct.pack("<QQ", 0, value)}
        assert count(1, *code, memory=memory).instructions == instructions


@pytest.mark.parametrize(
    "text, given, result",
    [
        ("IMAD R0, R1, 0x3, R2", {"R1": 5, "R2": 7}, 22),
        ("IMAD R0, R1, RZ, R2", {"R2": 7}, 7),
        ("IADD3 R0, R1, -R2, RZ", {"R1": 5, "R2": 7}, 2**32 - 2),
        ("LEA R0, R1, R2, 0x3", {"R1": 5, "R2": 7}, 47),
        ("LEA.HI.X.SX32 R0, R1, RZ, 0x1, PT", {"R1": 2**32 - 4}, 0),
        ("LOP3.LUT R0, R1, R2, RZ, 0xc0, !PT", {"R1": 12, "R2": 10}, 8),
        ("LOP3.LUT R0, R1, RZ, RZ, 0xc0, !PT", {}, 0),
        ("SHF.R.S32.HI R0, RZ, 0x1f, R1", {"R1": 1 << 31}, 2**32 - 1),
        ("SHF.R.U32.HI R0, RZ, 0x5, R1", {"R1": 64}, 2),
        ("SHF.L.U64.HI R0, R1, 0x4, R2", {"R1": 1 << 31, "R2": 1}, 24),
        ("SEL R0, R1, R2, !PT", {"R2": 3}, 3),
        ("PRMT R0, R1, 0x7610, R2", {"R1": 0x1234, "R2": 0xABCD0000}, 0xABCD1234),
        ("HFMA2.MMA R0, -RZ, RZ, 0, 5.9604644775390625e-08", {}, 1),
        ("P2R R0, PR, R1, 0x5", {"R1": 8, "P0": 0, "P2": 1}, 12),
        ("FADD R0, R1, R2", {"R1": 1, "R2": 1}, None),
        ("MUFU.RCP R0, R1", {"R1": 1}, None),
    ],
)
def test_integers_are_computed(text, given, result):
    (instruction,) = kernel((text,)).code
    state = operands.State(b"", {})
    state.R[0] = 99
    state.R[1:3] = None, None
    for name, value in given.items():
        operands.write(state, name, value)
    machine.semantics(instruction)(state)
    assert state.R[0] == result


def test_the_wait_for_another_block_follows_its_store():
    push = [("STAS.128 [R4.64], R8",), ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3", 1, 0, 0), ("NOP", 1, FREE, 1)]
    assert count(1, *push, ("EXIT",)).waits["exchange"] == walk.REMOTE_STORE - 2
    flag = [("REDG.E.ADD.STRONG.GPU desc[UR4][R2.64], R5",), ("LDG.E.STRONG.GPU R6, desc[UR4][R2.64]", 1, 0, 0)]
    assert count(1, *flag, ("NOP", 1, FREE, 1), ("EXIT",)).waits["exchange"] == walk.L2_STORE + walk.L2 * 3 // 2 - 2


def test_the_committed_estimates_are_of_every_tier():
    rows = json.loads((Path(walk.__file__).parent / "estimates.json").read_text())
    assert {name.split()[0] for name in rows} == {"block", "cluster", "grid", "stepwise"}
    assert all(row["cycles"] > row["instructions"] > 100 and row["local"] == 0 for row in rows.values())
