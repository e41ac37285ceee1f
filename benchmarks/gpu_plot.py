"""Draws what gpu.py recorded: how many times faster than torch.nn over H, a line for each batch size.

python benchmarks/gpu_plot.py benchmarks/results/gpu.json --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from plot import logarithmic, pyplot
from report import CALL_NAMES
from shapes import CALLS


def speedup(results: list[dict], title: str):
    """A row for each cell and dtype of one layer; forward on the left, forward+backward on the right."""
    times = {}  # (cell, dtype), call, N -> {H: times faster}
    for r in results:
        if r["variant"] == "" and "contenders" in r:
            line = times.setdefault((r["cell"], r["dtype"]), {}).setdefault(r["call"], {}).setdefault(r["N"], {})
            line[r["H"]] = r["contenders"]["torch"]["ms"] / r["contenders"]["fusedrnn"]["ms"]
    if not times:
        raise SystemExit("gpu_plot: there are no results of one layer beside torch.nn")
    rows = sorted({N for calls in times.values() for lines in calls.values() for N in lines})
    colours = dict(zip(rows, pyplot.get_cmap("viridis")([0.9 * k / len(rows) for k in range(len(rows))]), strict=True))
    size = 9, 1 + 2 * len(times)
    figure, panels = pyplot.subplots(len(times), 2, figsize=size, layout="constrained", squeeze=False, sharex=True)
    for (name, calls), row in zip(times.items(), panels, strict=True):
        for call, axes in zip(CALLS, row, strict=True):
            for N, line in sorted(calls.get(call, {}).items()):
                axes.plot(sorted(line), [line[H] for H in sorted(line)], "o-", color=colours[N], ms=3, lw=1)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            logarithmic(axes.yaxis)
            axes.axhline(1, color="black", lw=1)
            axes.grid(alpha=0.3)
            axes.set_title(f"{' '.join(name)}, {CALL_NAMES[call]}", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("H = I")
    handles = [pyplot.Line2D([], [], color=colour, marker="o", ms=3) for colour in colours.values()]
    figure.legend(handles, [f"N {N}" for N in colours], loc="outside lower center", ncols=len(rows))
    figure.suptitle(title, fontsize=11)
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a JSON file of gpu.py")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the picture goes here (default: %(default)s)")
    args = parser.parse_args(argv)
    run = json.loads(args.results.read_text())
    where = run["machine"].get("gpu", "rehearsed on a CPU")
    steps = "/".join(str(T) for T in sorted({r["T"] for r in run["results"] if "T" in r}))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "gpu.png"
    speedup(run["results"], f"Times as fast as torch.nn, {steps} steps; {where}").savefig(path, dpi=120)
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
