"""Kernels of a cubin: their code, as nvdisasm prints it, with the control fields of each instruction, and where their
parameters lie in the constant bank."""

from __future__ import annotations

import functools
import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SIZE = 16  # bytes of an instruction
NO_SCOREBOARD = 7


class Instruction(NamedTuple):
    address: int
    guard: str  # the predicate it runs under: "!P0", or ""
    name: str  # with its modifiers: "IMAD.WIDE.U32"
    operands: tuple[str, ...]
    target: int | None  # an index, of a branch
    stall: int  # cycles until the warp's next instruction
    sets: int  # the scoreboard that its result releases, or NO_SCOREBOARD
    reads: int  # the scoreboard that is released once its operands are read, or NO_SCOREBOARD
    waits: int  # a bit for each scoreboard

    @property
    def opcode(self) -> str:
        return self.name.partition(".")[0]


@dataclass
class Kernel:
    name: str
    code: list[Instruction]
    parameters_at: int  # in constant bank 0
    parameters: list[tuple[int, int]]  # offset and size of each


class Cubin:
    """Read as an ELF file of 64 bits; https://docs.nvidia.com/cuda/cuda-binary-utilities describes the rest."""

    def __init__(self, path: Path, nvdisasm: str):
        self.path, self.nvdisasm = path, nvdisasm
        data = path.read_bytes()
        at, size, count, names_index = struct.unpack_from("<Q10xHHH", data, 40)
        headers = [struct.unpack_from("<IIQQQQII", data, at + i * size) for i in range(count)]
        names = data[headers[names_index][4] :]
        self.sections, self._symbols = {}, {}
        for name_at, kind, _, _, offset, length, link, _ in headers:
            self.sections[_string(names, name_at)] = data[offset : offset + length]
            if kind == 2:  # the symbols
                strings = data[headers[link][4] :]
                for number in range(length // 24):
                    (symbol,) = struct.unpack_from("<I", data, offset + number * 24)
                    self._symbols[_string(strings, symbol)] = number

    def __contains__(self, name: str) -> bool:
        return ".text." + name in self.sections

    @functools.cache  # noqa: B019  a cubin lives as long as the process
    def kernel(self, name: str) -> Kernel:
        parameters_at, parameters = self._parameters(name)
        command = [self.nvdisasm, "-c", "-fun", str(self._symbols[name]), str(self.path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return Kernel(name, parse(text, self.sections[".text." + name]), parameters_at, parameters)

    def _parameters(self, name: str) -> tuple[int, list[tuple[int, int]]]:
        info, at, bank, found = self.sections[".nv.info." + name], 0, 0, {}
        while at < len(info):
            form, attribute, value = struct.unpack_from("<BBH", info, at)
            at += 4
            if form != 4:  # the value is all there is
                continue
            if attribute == 0x17:
                _, ordinal, offset, rest = struct.unpack_from("<IHHI", info, at)
                found[ordinal] = offset, rest >> 18
            elif attribute == 0x0A:
                _, bank, _ = struct.unpack_from("<IHH", info, at)
            at += value
        return bank, [found[i] for i in range(len(found))]


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def parse(text: str, words: bytes) -> list[Instruction]:
    """The instructions of a listing; words: their encoding, 16 bytes each."""
    labels, lines = {}, []
    for line in text.splitlines():
        if match := re.match(r"\s*(\.L\w+|\$?[\w$]+):", line):
            labels[match[1]] = len(lines)
        elif match := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+) )?\s*([\w.]+)\s*(.*?)\s*;", line):
            lines.append(match)
    code = []
    for index, (address, guard, name, rest) in enumerate(match.groups() for match in lines):
        (high,) = struct.unpack_from("<Q", words, index * SIZE + 8)
        control = high >> 41
        label = re.search(r"`\((\S+)\)", rest)
        target = labels.get(label[1]) if label else None
        operands = tuple(part.strip() for part in rest.split(",")) if rest else ()
        code.append(
            Instruction(
                int(address, 16),
                guard or "",
                name,
                operands,
                target,
                control & 15,
                control >> 5 & 7,
                control >> 8 & 7,
                control >> 11 & 63,
            )
        )
    return code
