"""Draws results of bench.py on the grid: speedup.png, how many times faster than others, and peak.png, how near to the
machine's peak.

    python benchmarks/plot.py benchmarks/results/epyc.json --out benchmarks/results
"""

import argparse
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from report import gflops_of
from shapes import CALLS, SHORT

NAMES = {"torch": "torch.nn", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "loop": "Python loop"}
COLOURS = dict(zip(["fusedrnn", *NAMES], ["#1b7f5c", "#d1495b", "#2e86ab", "#8d6a9f", "#b0a08a"], strict=True))


def speedup(axes, x: int, result: dict) -> None:
    """A bar for each other contender: how many times faster fusedrnn is."""
    others = [who for who in NAMES if who in result["contenders"]]
    for k, who in enumerate(others):
        low, middle, high = result["contenders"][who]["speedup"]
        place = x + (k - (len(others) - 1) / 2) * 0.22
        axes.bar(place, middle - 1, 0.2, 1, color=COLOURS[who], alpha=1 if middle >= 1 else 0.45)
        axes.plot([place, place], [low, high], color="black", lw=0.7)
        label = {"text": f"{middle:.2f}" if middle < 9.95 else f"{middle:.0f}", "rotation": 90, "fontsize": 6}
        above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(xy=(place, max(high, 1)), **label, **above)


def peak(axes, x: int, result: dict) -> None:
    """The shares of torch.mm's speed that fusedrnn and torch.nn reach, and that the roofline allows."""
    shares = {who: gflops_of(result, who) / result["peak"] for who in ("torch", "fusedrnn")}
    axes.plot([x, x], list(shares.values()), color="grey", lw=1.5, zorder=1)
    if result["roofline"]:
        axes.scatter(x, result["gflop"] / result["roofline"] * 1e3 / result["peak"], s=120, color="black", marker="_")
    for who, share in shares.items():
        axes.scatter(x, share, s=32, color=COLOURS[who], zorder=2)


def axes_of_speedups(axes) -> None:
    axes.scatter([0, 0], [0.5, 2], s=0)  # this range is always visible
    axes.set(yscale="log", yticks=[0.1, 0.3, 1, 3, 10, 30, 100])
    axes.minorticks_off()
    axes.margins(y=0.2)
    axes.yaxis.set_major_formatter("{x:g}×")


def axes_of_peaks(axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(bottom=0)


def contenders_of(results: list[dict]) -> list[str]:
    present = {who for r in results for who in r["contenders"]}
    return [name for name in NAMES if name in present]


def legend(figure, names: list[str]) -> None:
    handles = [Patch(color=COLOURS[name], label=NAMES.get(name, name)) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names))


def figure_of(results: list[dict], draw, title: str):
    """A row of panels for each cell and dtype of the grid: forward on the left, forward+backward on the right."""
    panels = list(dict.fromkeys((r["shape"]["cell"], r["shape"]["dtype"]) for r in results))
    sizes = list(dict.fromkeys(tuple(r["shape"][n] for n in "TNH") for r in results))
    figure = Figure(figsize=(11 + max(0, len(sizes) - 9), 1.2 + 1.9 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 2, sharex=True, sharey="row", squeeze=False)
    for (cell, dtype), row in zip(panels, grid, strict=True):
        for call, axes in zip(CALLS, row, strict=True):
            for r in results:
                if (r["shape"]["cell"], r["shape"]["dtype"], r["call"]) == (cell, dtype, call):
                    draw(axes, sizes.index(tuple(r["shape"][n] for n in "TNH")), r)
            axes.axhline(1, color="black", lw=1)
            axes_of_speedups(axes) if draw is speedup else axes_of_peaks(axes)
            axes.set_title(f"{cell} {SHORT[dtype]}, {CALLS[call]}", fontsize=9)
            axes.set_xticks(range(len(sizes)), [f"T {T}\nN {N}\nH {H}" for T, N, H in sizes])
            axes.tick_params(labelsize=8)
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
    legend(figure, contenders_of(results) if draw is speedup else ["fusedrnn", "torch"])
    figure.suptitle(title, fontsize=11)
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a JSON file of bench.py")
    parser.add_argument("--threads", type=int, help="which results (default: those with most threads)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="pictures go here (default: %(default)s)")
    args = parser.parse_args(argv)
    run = json.loads(args.results.read_text())
    threads = args.threads or max((r["threads"] for r in run["results"]), default=1)
    results = [r for r in run["results"] if r["threads"] == threads and r["shape"]["source"] == "grid"]
    if not results:
        sys.exit("plot: there are no results of the grid with that number of threads")
    where = run["machine"].get("gpu") or f"{threads} thread{'s' * (threads > 1)} of {run['machine']['cpu']}"
    share = "Share of torch.mm's speed in the same dtype and with the same threads, I = H; _ is the roofline"
    args.out.mkdir(parents=True, exist_ok=True)
    for draw, what in (speedup, "Times as fast as others, I = H"), (peak, share):
        figure_of(results, draw, f"{what}\n{where}").savefig(args.out / f"{draw.__name__}.png", dpi=120)
        print(args.out / f"{draw.__name__}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
