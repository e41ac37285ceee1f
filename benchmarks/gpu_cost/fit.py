"""Fits the Costs of csrc/cuda/plan.h to the cycles of estimates.json: fixed costs of each tier, and for all tiers the
cost of a pair and of a product. What is got from other blocks and from L2 is in products: exchange and chunk are 0.

    PYTHONPATH=. python -m benchmarks.gpu_cost.fit

Needs the compiled extension, for the plans. To fit measurements instead, give the file cycles that were measured.
"""

import json
import math
import re

import torch

from fusedrnn.backends import extension

from .__main__ import LAUNCH, TARGET
from .build import H100

THREADS, GROUP, TILE_ROWS = 256, 16, 8
ROW = re.compile(r"(\w+) H=(\d+) N=(\d+) (\w+) (bfloat16|float16|tf32) (\w+)")  # of products on tensor cores


TIERS = ("block", "cluster", "grid", "stepwise")


def numbers(tier: str, H: int, N: int, cell: str, dtype: str, backward: bool) -> list[float]:
    """What step_cycles of plan.h multiplies the costs by: one of each tier, pairs, products, stepwise products."""
    value_bytes = 4 if dtype == "tf32" else 2
    planned = extension._C.PlannedPass(cell, backward, (512, N, H, H, 1), value_bytes, dtype == "tf32", H100)
    _, groups, blocks, tiles, *_ = planned.plan(tier)
    gates, stepwise = extension._C.cell_traits(cell)["gates"], tier == "stepwise"
    depth = (gates if backward else 1) * blocks * groups * GROUP
    splits = 1 if groups > 4 else 2 if groups > 2 else 4 if groups > 1 else 8
    products = (1 if backward else gates) * tiles * math.ceil(depth / (32 / value_bytes * splits))
    pairs = math.ceil(groups * GROUP * TILE_ROWS * tiles / THREADS) * (gates + 1)
    return [*(tier == other for other in TIERS), pairs, 0 if stepwise else products, products if stepwise else 0]


def main() -> None:
    passes: dict[str, list] = {"forward": [], "backward": []}
    for name, row in json.loads(TARGET.read_text()).items():
        if match := ROW.fullmatch(name):
            tier, H, N, cell, dtype, way = match.groups()
            given = numbers(tier, int(H), int(N), cell, dtype, way == "backward")
            passes[way].append((given, row["cycles"] - (LAUNCH if tier == "stepwise" else 0)))
    for way, rows in passes.items():
        given = torch.tensor([row[0] for row in rows], dtype=torch.float64)
        cycles = torch.tensor([row[1] for row in rows], dtype=torch.float64)
        weight = 1 / cycles  # relative errors
        cost = torch.linalg.lstsq(given * weight[:, None], (cycles * weight)[:, None]).solution.squeeze(1)
        off = (given @ cost / cycles - 1).abs()
        values = dict(zip((*TIERS, "pair", "product", "stepwise product"), cost.round().tolist(), strict=True))
        print(f"{way}: {values}; off by {off.mean():.0%} on average, {off.max():.0%} at most")


if __name__ == "__main__":
    main()
