"""Runs generated structs alone, without drivers: forward and backward of n units, as numbers and as vectors."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import torch
import torch.nn.functional as F

from fusedrnn.compiler import Cell, cell
from fusedrnn.compiler.groups import Gates

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
LANES = 32  # at least as many numbers as two vectors hold
HEAD = """
#include "cpu/isa.h"
#define FUSEDRNN_ISA alone
#define FUSEDRNN_VECTOR_BYTES {bytes}
#include "cells.h"
#include "cpu/functions.h"
#include "functions.h"
namespace fusedrnn {{
template <class Cell, class V, class S, int kLanes>
void run(int64_t n, const S* x, const S* r, S* s, S* ds, S* dgates, S* saved) {{
  constexpr int G = Cell::kGates, R = Cell::kRecurrent, K = Cell::kStates, U = Cell::kVectors + Cell::kInputs;
  for (int64_t j = 0; j < n; j += kLanes) {{
    auto load = [&](const S* p) {{
      if constexpr (std::is_same_v<S, V>) return *p; else return V::load(p);
    }};
    auto store = [&](V v, S* p) {{
      if constexpr (std::is_same_v<S, V>) *p = v; else v.store(p);
    }};
    V xs[G + U], rs[R + 1], ss[K], keep[Cell::kSaved], prev[K + U], dss[K], planes[Cell::kGrads + U];
    for (int i = 0; i < G + U; ++i) xs[i] = load(x + i * n + j);
    for (int i = 0; i < R; ++i) rs[i] = load(r + i * n + j);
    for (int i = 0; i < K; ++i) ss[i] = prev[i] = load(s + i * n + j), dss[i] = load(ds + i * n + j);
    for (int i = 0; i < U; ++i) prev[K + i] = xs[G + i];
    if (!Cell::kReadsH) ss[0] = prev[0] = V(7);  // whoever reads it nevertheless is seen
    Cell::forward(xs, rs, ss, keep);
    Cell::backward(keep, prev, dss, planes);
    for (int i = 0; i < K; ++i) store(ss[i], s + i * n + j), store(dss[i], ds + i * n + j);
    for (int i = 0; i < Cell::kGrads + U; ++i) store(planes[i], dgates + i * n + j);
    for (int i = 0; i < Cell::kSaved; ++i) store(keep[i], saved + i * n + j);
  }}
}}
"""
EXPORT = """
extern "C" void {key}_{kind}(int64_t n, const {S}* x, const {S}* r, {S}* s, {S}* ds, {S}* d, {S}* saved) {{
  fusedrnn::run<fusedrnn::{struct}, {V}, {S}, {lanes}>(n, x, r, s, ds, d, saved);
}}
"""
KINDS = {
    "number": ("double", "double", "1"),
    "vector": ("fusedrnn::alone::Vec2<double>", "double", "fusedrnn::alone::Vec2<double>::kLanes"),
    "float": ("fusedrnn::alone::Vec<float>", "float", "fusedrnn::alone::Vec<float>::kLanes"),
}


class Compiled:
    """The structs of some cells in one library."""

    def __init__(self, cells: list[Cell], kinds=tuple(KINDS), march: str = "x86-64-v3", vector_bytes: int = 32):
        self.generated = {cell: cell.generate() for cell in cells}
        text = HEAD.format(bytes=vector_bytes)
        exports = ""
        for i, g in enumerate(self.generated.values()):
            struct = f"Cell{i}"
            text += g.text.replace(f"struct {g.struct} {{", f"struct {struct} {{")
            for kind in kinds:
                V, S, lanes = KINDS[kind]
                exports += EXPORT.format(key=g.key, kind=kind, S=S, V=V, lanes=lanes, struct=struct)
        self.library = ctypes.CDLL(compile_library(text + "}\n" + exports, ["-march=" + march]))

    def run(self, cell: Cell, kind: str, x, r, s, ds):
        """The new states [S, n], their gradients before the step, and all planes of dgates."""
        g = self.generated[cell]
        dtype = torch.float32 if kind == "float" else torch.float64
        n = x.shape[1]
        assert n % LANES == 0
        x, r, s, ds = (t.to(dtype).contiguous().clone() for t in (x, r, s, ds))
        extra = cell.vectors + len(cell.inputs) + len(cell.unit_inputs)
        planes = torch.full((g.grads + extra, n), float("nan"), dtype=dtype)
        saved = torch.full((g.saved, n), float("nan"), dtype=dtype)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, r, s, ds, planes, saved)]
        getattr(self.library, f"{g.key}_{kind}")(ctypes.c_int64(n), *pointers)
        return s.double(), ds.double(), planes.double()


SMOOTH = [
    lambda a, b, c: a + b,
    lambda a, b, c: a - b,
    lambda a, b, c: 0.5 - a,
    lambda a, b, c: a * b,
    lambda a, b, c: torch.sigmoid(a) * b,
    lambda a, b, c: torch.sigmoid(a),
    lambda a, b, c: torch.tanh(a),
    lambda a, b, c: torch.tanh(a) / (1 + b * b),
    lambda a, b, c: torch.exp(torch.tanh(a)),
    lambda a, b, c: F.softplus(a) - F.logsigmoid(b),
    lambda a, b, c: torch.log1p(a * a) * c,
    lambda a, b, c: torch.sqrt(a * a + 1),
    lambda a, b, c: F.elu(a),
    lambda a, b, c: F.silu(a),
    lambda a, b, c: a,
]
KINKED = [  # their values or derivatives jump, so that a rounding may change a result by more than itself
    lambda a, b, c: torch.rsqrt(a.abs() + 1) * b,
    lambda a, b, c: torch.maximum(a, b),
    lambda a, b, c: torch.where(a < b, c, a * c),
    lambda a, b, c: torch.where((a > 0) & ~(b > c), a, b.detach()),
    lambda a, b, c: torch.clamp(a, -1, 0.5) * b,
]


def random_cell(seed: int, operations=(*SMOOTH, *KINKED)) -> Cell:
    """A cell of a few operations at random on all that it is given, and what it returns last bounded."""
    rng = random.Random(seed)
    gates = "a b c d e"[: 2 * rng.randint(1, 5) - 1]
    states = "h k l m"[: 2 * rng.randint(1, 4) - 1]
    names = {
        "recurrent": " ".join(gate for gate in gates.split() if rng.random() < 0.7),
        "parameters": "u v"[: rng.choice([0, 1, 3])],
        "gate_parameters": rng.choice(["", "gain"]),
        "inputs": rng.choice(["", "score"]),
        "unit_inputs": rng.choice(["", "gap"]),
    }
    steps = [(rng.choice(operations), rng.random(), rng.random(), rng.random()) for _ in range(rng.randint(4, 24))]

    @cell(gates, states, **names)
    def random_operations(x, r, s, *others):
        pool = [*(value for group in (x, r, s) for value in group)]
        for group in others:
            for value in group:
                pool.extend(value * x if isinstance(value, Gates) else [value])
        for operation, *places in steps:
            pool.append(operation(*(pool[int(place * len(pool))] for place in places)))
        return tuple(torch.tanh(value) for value in pool[-len(s) :])

    return random_operations


def compile_library(text: str, flags: list[str]) -> str:
    compiler = os.environ.get("CXX") or "g++"
    key = hashlib.sha256((text + "".join(flags) + "".join(p.read_text() for p in sorted(CSRC.rglob("*.h")))).encode())
    folder = ROOT / "build/scalar_cells"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{key.hexdigest()[:24]}.so"
    if not made.exists():
        source, part = made.with_suffix(f".{os.getpid()}.cpp"), made.with_suffix(f".{os.getpid()}.part")
        source.write_text(text)
        command = [*compiler.split(), "-std=c++20", "-O1", "-Wno-psabi", "-fPIC", "-shared", *flags]
        done = subprocess.run([*command, "-I", str(CSRC), str(source), "-o", str(part)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:4000]
        os.replace(part, made)
        source.unlink()
    return str(made)


def have_compiler() -> bool:
    return shutil.which((os.environ.get("CXX") or "g++").split()[0]) is not None


def random_arguments(cell: Cell, n: int):
    """x, r, s and ds for :meth:`Compiled.run`."""
    extra = cell.vectors + len(cell.inputs) + len(cell.unit_inputs)
    counts = len(cell.gates) + extra, len(cell.recurrent), len(cell.states), len(cell.states)
    return [torch.randn(count, n, dtype=torch.float64) for count in counts]


def expected(cell: Cell, x, r, s, ds):
    """The same as Compiled.run, of the cell's function in PyTorch, differentiated by autograd."""
    leaves = [t.clone().requires_grad_() for t in (*x, *r, *s)]
    G, R = len(cell.gates), len(cell.recurrent)
    gates, vectors, inputs = leaves[:G], leaves[G : G + cell.vectors], leaves[G + cell.vectors : len(x)]
    recurrent, states = leaves[len(x) : len(x) + R], leaves[len(x) + R :]
    returned = cell.function(*cell.arguments(gates, recurrent, states, vectors, inputs))
    new = returned if isinstance(returned, (tuple, list)) else [returned]
    new = [t.expand_as(s[0]) for t in new]
    depending = [(t, d) for t, d in zip(new, ds, strict=True) if t.requires_grad]
    grads = [None] * len(leaves)
    if depending:
        grads = torch.autograd.grad([t for t, _ in depending], leaves, [d for _, d in depending], allow_unused=True)
    grads = [torch.zeros_like(s[0]) if g is None else g for g in grads]
    return torch.stack(new).detach(), grads[: len(x)], grads[len(x) : len(x) + R], grads[len(x) + R :]
