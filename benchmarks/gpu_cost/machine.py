"""Executes one thread's integers, addresses and predicates through machine code of sm_80 to sm_90.

What it computes with floats, and what it loads from memory that nobody described, is unknown, None. Opcodes that are
not listed make their result unknown.
"""

from __future__ import annotations

import functools
import itertools
import re
import struct
from collections.abc import Callable

from .cubin import Instruction
from .operands import (
    COMPARE,
    WORD,
    Read,
    State,
    address,
    both,
    is_predicate,
    read,
    read_wide,
    signed,
    table,
    word,
    write,
)

SPECIAL = dict.fromkeys(("SR_TID.X", "SR_TID.Y", "SR_LANEID", "SR_CgaCtaId", "SRZ"), 0)
SPECIAL |= dict.fromkeys(("SR_CTAID.X", "SR_CTAID.Y", "SR_CTAID.Z"), 0)


Run = Callable[[State], None]


def known(compute: Callable[..., int], reads: list[Read]) -> Read:
    def result(state):
        values = [f(state) for f in reads]
        return None if None in values else compute(*values)

    return result


def assign(target: str, result: Read, words: int = 1) -> Run:
    return lambda state: write(state, target, result(state), words)


# Each takes the name's modifiers and the operands.


def add(modifiers, operands):
    targets = [operands[0], *itertools.takewhile(is_predicate, operands[1:])]
    rest = operands[len(targets) :]
    values = [read(text) for text in rest if not is_predicate(text)]
    carries = [read(text) for text in rest if is_predicate(text)]

    def run(state):
        given = [f(state) for f in (*values, *carries)]
        total = None if None in given else sum(map(int, given))
        write(state, targets[0], total)
        for i, carry in enumerate(targets[1:]):
            write(state, carry, None if total is None else (total >> 32) > i)

    return run


def multiply_add(modifiers, operands):
    targets = [operands[0], *itertools.takewhile(is_predicate, operands[1:])]
    a, b, c, *carry = operands[len(targets) :]
    wide, high = "WIDE" in modifiers, "HI" in modifiers
    unsigned = "U32" in modifiers
    factors = [read(a), read(b)]
    addend = read_wide(c) if wide else read(c)
    carry = read(carry[0]) if carry else lambda state: False

    def run(state):
        given = [f(state) for f in (*factors, addend, carry)]
        if (given[0] == 0 or given[1] == 0) and None not in given[2:]:
            given[:2] = [0, 0]
        total = None
        if None not in given:
            x, y = (v & WORD if unsigned else signed(v & WORD) for v in given[:2])
            product = x * y if wide or high else given[0] * given[1]
            total = ((product & ((1 << 64) - 1)) >> 32 if high else product) + given[2] + given[3]
        write(state, targets[0], total, 2 if wide else 1)
        bits = 64 if wide else 32
        for target in targets[1:]:
            write(state, target, None if total is None else total >> bits & 1)

    return run


def shifted_add(modifiers, operands):
    targets = [operands[0], *itertools.takewhile(is_predicate, operands[1:])]
    rest = operands[len(targets) :]
    carry = read(rest.pop()) if is_predicate(rest[-1]) else lambda state: False
    a, b = read(rest[0]), read(rest[1])
    shift = int(rest[-1], 16) & 31
    upper = read(rest[2]) if len(rest) > 3 else None
    high, sign = "HI" in modifiers, "SX32" in modifiers

    def run(state):
        low, base, top, bit = a(state), b(state), upper(state) if upper else 0, carry(state)
        total = None
        if None not in (low, base, top, bit):
            value = signed(low) if sign else low & WORD | (top & WORD) << 32
            value = (value << shift) >> 32 & WORD if high else value << shift & WORD
            total = value + base + bit
        write(state, targets[0], total)
        for target in targets[1:]:
            write(state, target, None if total is None else total >> 32)

    return run


def funnel_shift(modifiers, operands):
    low, count, high = (read(text) for text in operands[1:4])
    kind = modifiers[1]

    def shift(a, s, c):
        value, s = a | c << 32, min(s, 63)
        if modifiers[0] == "L":
            return value << s >> 32 if "HI" in modifiers and kind in ("U64", "S64") else a << min(s, 32)
        if "HI" in modifiers:
            return (signed(c) if kind == "S32" else c) >> min(s, 32)
        return (value - (1 << 64) if kind == "S64" and c >> 31 else value) >> s

    def result(state):
        s, c = count(state), high(state)
        a = 0 if modifiers[0] == "R" and "HI" in modifiers else low(state)
        if modifiers[0] == "L" and "HI" not in modifiers:
            c = 0
        return None if None in (a, s, c) else shift(a & WORD, s, c & WORD)

    return assign(operands[0], result)


def set_predicate(modifiers, operands):
    compare, how = COMPARE[modifiers[0]], next(m for m in modifiers if m in ("AND", "OR", "XOR"))
    unsigned, extended = "U32" in modifiers, "EX" in modifiers
    a, b, given = (read(text) for text in operands[2:5])
    lower = read(operands[5]) if extended else None

    def run(state):
        x, y, result = a(state), b(state), None
        if x is not None and y is not None:
            x, y = (v & WORD if unsigned else signed(v & WORD) for v in (x, y))
            result = compare(x, y)
            if extended:
                if x == y:
                    result = lower(state)
                elif modifiers[0] in ("LE", "GE"):
                    result = x < y if modifiers[0] == "LE" else x > y
        before = given(state)
        write(state, operands[0], both(result, before, how))
        write(state, operands[1], both(None if result is None else not result, before, how))

    return run


def set_float_predicate(modifiers, operands, double=False):
    compare, how = COMPARE[modifiers[0]], next(m for m in modifiers if m in ("AND", "OR", "XOR"))
    a, b, given = (
        (read_wide if double else read)(operands[2]),
        (read_wide if double else read)(operands[3]),
        operands[4],
    )
    given = read(given)
    form = ("<Q", "<d") if double else ("<I", "<f")

    def run(state):
        values = [f(state) for f in (a, b)]
        result = None
        if None not in values:
            numbers = [struct.unpack(form[1], struct.pack(form[0], v))[0] for v in values]
            result = compare(*numbers)
        before = given(state)
        write(state, operands[0], both(result, before, how))
        write(state, operands[1], both(None if result is None else not result, before, how))

    return run


def logic(modifiers, operands):
    target = operands[1] if is_predicate(operands[0]) else operands[0]
    first = 2 if is_predicate(operands[0]) else 1
    reads, lut = [read(text) for text in operands[first : first + 3]], int(operands[first + 3], 16)

    def run(state):
        value = table(lut, *(f(state) for f in reads))
        write(state, target, value)
        if first == 2:
            write(state, operands[0], None if value is None else value != 0)

    return run


def predicate_logic(modifiers, operands):
    reads, luts = [read(text) for text in operands[2:5]], [int(text, 16) for text in operands[5:7]]

    def run(state):
        values = [None if (v := f(state)) is None else WORD * v for f in reads]
        for target, lut in zip(operands, luts, strict=False):
            write(state, target, table(lut, *values))

    return run


def select(modifiers, operands):
    a, b, which = (read(text) for text in operands[1:4])

    def result(state):
        choice = which(state)
        if choice is None:
            return x if (x := a(state)) == b(state) else None
        return a(state) if choice else b(state)

    return assign(operands[0], result)


def minimum(modifiers, operands):
    def choose(a, b, least):
        a, b = (v & WORD if "U32" in modifiers else signed(v & WORD) for v in (a, b))
        return (min if least else max)(a, b) & WORD

    return assign(operands[0], known(choose, [read(text) for text in operands[1:4]]))


def permute(modifiers, operands):
    def choose(a, selector, c):
        data, result = (a & WORD) | (c & WORD) << 32, 0
        for i in range(4):
            nibble = selector >> 4 * i & 15
            byte = data >> 8 * (nibble & 7) & 255
            result |= (255 * (byte >> 7) if nibble & 8 else byte) << 8 * i
        return result

    return assign(operands[0], known(choose, [read(text) for text in operands[1:4]]))


def half_constants(modifiers, operands):
    """HFMA2 of zeros and two constants: how compilers make a word on another pipe."""
    if len(operands) < 5 or not {operands[1].lstrip("-"), operands[2].lstrip("-")} & {"RZ"}:
        return assign(operands[0], lambda state: None)
    try:
        high, low = (struct.unpack("<H", struct.pack("<e", float(text)))[0] for text in operands[3:5])
    except (ValueError, OverflowError):
        return assign(operands[0], lambda state: None)
    return assign(operands[0], lambda state: high << 16 | low)


def load_constant(modifiers, operands):
    size = 8 if "64" in modifiers else 1 if "U8" in modifiers else 2 if "U16" in modifiers else 4
    match = re.fullmatch(r"c\[0x0\]\[(?:(U?R\w+)\+?)?(0x[0-9a-f]+)?\]", operands[1])
    if not match:  # another bank
        return assign(operands[0], lambda state: None, max(size // 4, 1))
    base, offset = read(match[1] or "RZ"), int(match[2] or "0", 16)
    result = known(lambda at: at, [base])

    def run(state):
        at = result(state)
        value = None if at is None else word(state.bank, at + offset, size)
        write(state, operands[0], value, max(size // 4, 1))

    return run


def load_global(modifiers, operands):
    size = next((int(m) // 8 for m in modifiers if m in ("64", "128")), 4)
    size = 1 if {"U8", "S8"} & set(modifiers) else 2 if {"U16", "S16"} & set(modifiers) else size
    targets = list(itertools.takewhile(lambda text: "[" not in text, operands))
    at = address(operands[len(targets)])
    return assign(targets[-1], lambda state: state.load(at(state), size), max(size // 4, 1))


def special(modifiers, operands):
    value = SPECIAL.get(operands[1])
    return assign(operands[0], lambda state: value, 1 if "32" in modifiers else 2 if operands[1] == "SRZ" else 1)


def copy(modifiers, operands):
    return assign(operands[0], read(operands[1]))


def vote(modifiers, operands):
    """Of a warp whose lanes agree."""
    *targets, voted = operands
    value = read(voted)

    def run(state):
        for target in targets:
            write(
                state,
                target,
                known(int, [value])(state) if is_predicate(target) else known(WORD.__mul__, [value])(state),
            )

    return run


def pack_predicates(modifiers, operands):
    """P2R R1, PR, R2, mask: the masked predicates, one a bit, over the other bits of R2."""
    other, mask = read(operands[2]), int(operands[3], 16)
    kind = "UP" if operands[1] == "UPR" else "P"

    def result(state):
        chosen = [i for i in range(7) if mask >> i & 1]
        values = [getattr(state, kind)[i] for i in chosen]
        kept = 0 if mask == 0x7F else other(state)
        if None in values or kept is None:
            return None
        return kept & ~mask | sum(1 << i for i, value in zip(chosen, values, strict=True) if value)

    return assign(operands[0], result)


def unpack_predicates(modifiers, operands):
    value, mask = read(operands[1]), int(operands[2], 16)

    def run(state):
        bits = value(state)
        for i in range(7):
            if mask >> i & 1:
                state.P[i] = None if bits is None else bool(bits >> i & 1)

    return run


def unary(compute):
    return lambda modifiers, operands: assign(operands[0], known(compute, [read(operands[1])]))


SEMANTICS = {
    "IADD3": add,
    "VIADD": add,
    "IADD": add,
    "IMAD": multiply_add,
    "LEA": shifted_add,
    "SHF": funnel_shift,
    "ISETP": set_predicate,
    "FSETP": set_float_predicate,
    "DSETP": functools.partial(set_float_predicate, double=True),
    "LOP3": logic,
    "PLOP3": predicate_logic,
    "SEL": select,
    "FSEL": select,
    "VIMNMX": minimum,
    "IMNMX": minimum,
    "PRMT": permute,
    "HFMA2": half_constants,
    "LDC": load_constant,
    "LDG": load_global,
    "LD": load_global,
    "S2R": special,
    "CS2R": special,
    "MOV": copy,
    "R2UR": copy,
    "VOTE": vote,
    "SHFL": lambda modifiers, operands: copy(modifiers, operands[1:3]),
    "P2R": pack_predicates,
    "P2UR": pack_predicates,
    "R2P": unpack_predicates,
    "IABS": unary(lambda v: abs(signed(v & WORD))),
    "POPC": unary(lambda v: (v & WORD).bit_count()),
    "FLO": unary(lambda v: (v & WORD).bit_length() - 1),
    "BREV": unary(lambda v: int(f"{v & WORD:032b}"[::-1], 2)),
    "ELECT": lambda modifiers, operands: (
        lambda state: [write(state, text, True if is_predicate(text) else 0) for text in operands]
    ),
}
UNIFORM = {"S2UR": "S2R", "VOTEU": "VOTE", "UP2UR": "P2UR"}
NO_RESULT = re.compile(r"ST|RED|BAR|BRA|BS|CALL|RET|EXIT|NOP|WARPSYNC|MEMBAR|CCTL|DEPBAR|LDGDEP|UCGA|FENCE|BPT|BREAK")
WIDTHS = {"HMMA": 4, "LDSM": 4, "DMMA": 4, "DADD": 2, "DFMA": 2, "DMUL": 2}


def semantics(instruction: Instruction) -> Run | None:
    """What it does to the state; None for nothing."""
    opcode, *modifiers = instruction.name.split(".")
    base = UNIFORM.get(opcode, opcode)
    if base not in SEMANTICS and base.startswith("U"):
        base = base[1:]
    operands = list(instruction.operands)
    if base in SEMANTICS:
        return SEMANTICS[base](modifiers, operands)
    if NO_RESULT.match(opcode) or not operands:
        return None
    wide = next((int(m) // 32 for m in modifiers if m in ("64", "128")), 1)
    wide = max(wide, WIDTHS.get(opcode, 1))

    def forget(state):
        write(state, operands[0], None, wide)
        if opcode == "SYNCS" and len(operands) > 1:
            write(state, operands[0], None)

    return forget
