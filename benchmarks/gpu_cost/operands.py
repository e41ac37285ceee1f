"""A thread's registers, and the operands of its instructions: None is a value that nobody knows."""

from __future__ import annotations

import functools
import itertools
import operator
import re
import struct
from collections.abc import Callable
from typing import Any

Value = int | None
WORD = 0xFFFFFFFF


class State:
    def __init__(self, bank: bytes, memory: dict[int, bytes]):
        # Zero, not unknown: predicates are packed into bits of a register one by one.
        self.R: list[Value] = [0] * 256
        self.UR: list[Value] = [0] * 256
        self.P: list[bool | None] = [None] * 7 + [True]
        self.UP: list[bool | None] = [None] * 7 + [True]
        self.bank = bank.ljust(1 << 12, b"\0")
        self.memory = memory  # by its first address

    def load(self, address: Value, size: int) -> Value:
        for start, data in self.memory.items():
            if address is not None and start <= address <= start + len(data) - size:
                return int.from_bytes(data[address - start : address - start + size], "little")
        return None


def signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def register(text: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(U?[RP])(\d+|Z|T)", text)
    if not match:
        return None
    return match[1], int(match[2]) if match[2].isdigit() else 255 if match[2] == "Z" else 7


Read = Callable[[State], Any]


def read(text: str) -> Read:
    """What an operand is worth: a word, or of a predicate a truth value."""
    text = text.removesuffix(".reuse")
    if text[0] in "-~!" and not re.match(r"-[\d.]", text):
        inner, sign = read(text[1:]), text[0]

        def changed(state):
            value = inner(state)
            if value is None:
                return None
            return not value if sign == "!" else WORD - value if sign == "~" else (1 << 32) - value

        return changed
    if found := register(re.sub(r"(\.\w+)+$", "", text)):
        kind, number = found
        return lambda state: getattr(state, kind)[number]
    if match := re.fullmatch(r"c\[0x0\]\[(?:(U?R\w+)\+?)?(-?0x[0-9a-f]+)?\]", text):
        base, offset = read(match[1] or "RZ"), int(match[2] or "0", 16)
        return lambda state: None if (at := base(state)) is None else word(state.bank, at + offset)
    if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", text):
        constant = int(text, 0) & WORD
        return lambda state: constant
    try:
        bits = struct.unpack("<I", struct.pack("<f", float(text.replace("QNAN", "nan").replace("INF", "inf"))))[0]
    except ValueError:
        return lambda state: None
    return lambda state: bits


def word(bank: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(bank[at : at + size], "little")


def read_wide(text: str) -> Read:
    """Of 64 bits: a register and the next, or a constant."""
    text = text.removesuffix(".reuse").removesuffix(".64")
    if (found := register(text)) and found[1] != 255:
        kind, number = found

        def pair(state):
            low, high = getattr(state, kind)[number], getattr(state, kind)[number + 1]
            return None if low is None or high is None else low | high << 32

        return pair
    if match := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", text):
        return lambda state: word(state.bank, int(match[1], 16), 8)
    return read(text)


def write(state: State, text: str, value: Any, words: int = 1) -> None:
    found = register(text)
    if found is None or found[1] == 255 or (found[0] in ("P", "UP") and found[1] == 7):
        return
    kind, number = found
    if kind in ("P", "UP"):
        getattr(state, kind)[number] = None if value is None else bool(value)
        return
    for i in range(words):
        getattr(state, kind)[number + i] = None if value is None else value >> 32 * i & WORD


def is_predicate(text: str) -> bool:
    return bool(re.fullmatch(r"!?U?P(\d|T)", text))


def address(text: str) -> Read:
    """Of desc[UR4][R2.64+0x10], [R2+UR4+0x10]."""
    parts = re.split(r"\+(?!-)|(?=-0x)|\+(?=-)", re.findall(r"\[([^\]]*)\]", text)[-1])
    reads = [(read_wide if part.endswith(".64") else read)(part) for part in parts if part]
    wide = 1 << 64 if ".64" in text else 1 << 32

    def total(state):
        values = [f(state) for f in reads]
        if None in values:
            return None
        return sum(signed(v) if i and v < 1 << 32 else v for i, v in enumerate(values)) % wide

    return total


def both(a: bool | None, b: bool | None, how: str) -> bool | None:
    if how == "XOR":
        return None if a is None or b is None else a != b
    decides = how == "OR"
    if a is decides or b is decides:
        return decides
    return None if a is None or b is None else not decides


COMPARE = {"EQ": operator.eq, "NE": operator.ne, "LT": operator.lt, "LE": operator.le, "GT": operator.gt}
COMPARE |= {"GE": operator.ge, "NEU": operator.ne, "GTU": operator.gt, "GEU": operator.ge, "LTU": operator.lt}


def table(lut: int, *inputs: Value) -> int | None:
    """Bitwise; an unknown input does not matter where all its values give the same."""
    options = [(0, WORD) if v is None else (v,) for v in inputs]
    results = set()
    for a, b, c in itertools.product(*options):
        results.add(_bitwise(lut, a & WORD, b & WORD, c & WORD))
    return results.pop() if len(results) == 1 else None


@functools.lru_cache(1 << 16)
def _bitwise(lut: int, a: int, b: int, c: int) -> int:
    result = 0
    for index in range(8):
        if lut >> index & 1:
            x = a if index & 4 else ~a
            y = b if index & 2 else ~b
            z = c if index & 1 else ~c
            result |= x & y & z
    return result & WORD
