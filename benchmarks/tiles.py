"""Multiply-adds a cycle of the CPU kernels' register tiles on Arm's and Apple's cores, as llvm-mca models them.

python benchmarks/tiles.py [LLVM_MCA]
"""

import re
import subprocess
import sys

CORES = ["neoverse-n1", "neoverse-v1", "neoverse-n2", "neoverse-v2", "apple-m1"]
TILES = [(6, 2), (6, 3), (1, 2), (1, 4), (2, 2), (2, 4)]  # rows, vectors


def loop(rows: int, vectors: int) -> str:
    """One step over k of multiply_tile() in csrc/cpu/gemm.h, as compilers write it."""
    column, value = rows * vectors, rows * vectors + vectors  # the first register of each
    lines = [f"ldr q{column + v}, [x0, #{16 * v}]" for v in range(vectors)]
    lines += [f"ldr s{value + m}, [x{m + 2}, x1, lsl #2]" for m in range(rows)]
    for m in range(rows):
        for v in range(vectors):
            lines.append(f"fmla v{m * vectors + v}.4s, v{column + v}.4s, v{value + m}.s[0]")
    return "\n".join([*lines, f"add x0, x0, #{16 * vectors}", "add x1, x1, #1", "cmp x1, x9", "b.lt 0", ""])


def multiply_adds(mca: str, core: str, rows: int, vectors: int) -> float | None:
    """A cycle, in vectors; None of a core that this LLVM does not know."""
    command = [mca, "-mtriple=aarch64", f"-mcpu={core}", "-iterations=1000"]
    done = subprocess.run(command, input=loop(rows, vectors), capture_output=True, text=True)
    if done.returncode or "is not a recognized processor" in done.stderr:
        return None
    return rows * vectors * 1000 / int(re.search(r"Total Cycles:\s+(\d+)", done.stdout)[1])


def main() -> None:
    mca = sys.argv[1] if len(sys.argv) > 1 else "llvm-mca"
    print("|", " | ".join(["core", *(f"{rows} × {vectors}" for rows, vectors in TILES)]), "|")
    print("|---" * (len(TILES) + 1) + "|")
    for core in CORES:
        numbers = [multiply_adds(mca, core, *tile) for tile in TILES]
        if None not in numbers:
            print("|", " | ".join([core, *(f"{number:.2f}" for number in numbers)]), "|")


if __name__ == "__main__":
    main()
