"""Draws recorded results: how many times faster than each peer, and how near to the machine's GEMM peak.

    python benchmarks/plot.py benchmarks/results/epyc.json --out benchmarks/results

writes speedup.png (the grid), practice.png (all other shapes) and peak.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter  # noqa: E402
from report import CALL_NAMES, at_the_roof, gflops_of  # noqa: E402
from shapes import CALLS, GRID, GRIDS, SHORT  # noqa: E402

NAMES = {
    "torch": "torch.nn",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "loop": "loop over torch.nn's cell",
}
COLOURS = {"torch": "#d1495b", "onnxruntime": "#2e86ab", "openvino": "#8d6a9f", "loop": "#b0a08a"}
COLOURS["fusedrnn"] = "#1b7f5c"
FADED = 0.45  # of bars of those that are faster than we are


def logarithmic(axis) -> None:
    axis.set_major_locator(FixedLocator([0.1, 0.3, 1, 3, 10, 30, 100]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"


def legend(figure, who: list[str]) -> None:
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in who]
    figure.legend(handles, [NAMES.get(name, name) for name in who], loc="outside lower center", ncols=len(who))


def peers_in(results: list[dict]) -> list[str]:
    return [who for who in NAMES if any(who in r["contenders"] for r in results)]


def grid_panels(results: list[dict], draw, title: str):
    """A row for each cell and dtype of the grid; forward on the left, forward+backward on the right."""
    grid = [r for r in results if r["shape"]["source"] == "grid"]
    rows = [(c, d) for c, d in GRIDS if any((r["shape"]["cell"], r["shape"]["dtype"]) == (c, d) for r in grid)]
    if not rows:
        sys.exit("plot: there are no results of the grid with that number of threads")
    size = 11, 1.2 + 1.9 * len(rows)
    figure, panels = pyplot.subplots(
        len(rows), 2, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey="row"
    )
    for (cell, dtype), row in zip(rows, panels, strict=True):
        for call, axes in zip(CALLS, row, strict=True):
            chosen = [r for r in grid if (r["shape"]["cell"], r["shape"]["dtype"], r["call"]) == (cell, dtype, call)]
            draw(axes, [(GRID.index(tuple(r["shape"][n] for n in "TNH")), r) for r in chosen])
            axes.set_title(f"{cell} {SHORT[dtype]}, {CALL_NAMES[call]}", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
    for axes in panels[-1]:
        axes.set_xticks(range(len(GRID)), [f"T {T}\nN {N}\nH {H}" for T, N, H in GRID])
        axes.set_xlim(-0.6, len(GRID) - 0.4)
    figure.suptitle(title, fontsize=11)
    return figure


def speedup(results: list[dict], where: str):
    peers = peers_in([r for r in results if r["shape"]["source"] == "grid" and r["call"] == "forward"])

    def bars(axes, placed):
        axes.set_yscale("log")
        axes.scatter([0, 0], [0.5, 2], s=0)  # so much is always in sight
        for x, result in placed:
            here = [who for who in peers if who in result["contenders"]]
            for k, who in enumerate(here):
                low, middle, high = result["contenders"][who]["speedup"]
                place = x + (k - (len(here) - 1) / 2) * 0.22
                axes.bar(place, middle - 1, 0.2, 1, color=COLOURS[who], alpha=1 if middle >= 1 else FADED)
                axes.plot([place, place], [low, high], color="black", lw=0.7)
                above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
                axes.annotate(number(middle), (place, max(high, 1)), rotation=90, fontsize=6, **above)
        axes.axhline(1, color="black", lw=1)
        logarithmic(axes.yaxis)
        axes.margins(y=0.2)

    figure = grid_panels(results, bars, f"Times as fast as each peer, I = H; {where}")
    legend(figure, peers)
    return figure


def peak(results: list[dict], where: str):
    def dots(axes, placed):
        for x, result in placed:
            shares = {who: gflops_of(result, who) / result["peak"] for who in ("torch", "fusedrnn")}
            axes.plot([x, x], list(shares.values()), color="grey", lw=1.5, zorder=1)
            if result.get("roof"):
                roof = gflops_of(at_the_roof(result)) / result["peak"]
                axes.scatter(x, roof, s=120, color="black", marker="_", lw=1, zorder=2)
            for who, share in shares.items():
                axes.scatter(x, share, s=32, color=COLOURS[who], zorder=2)
        axes.axhline(1, color="black", lw=1)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1))

    title = "Share of this machine's torch.mm peak in the same dtype and with the same threads, I = H; _ is the roof"
    figure = grid_panels(results, dots, f"{title}\n{where}")
    legend(figure, ["fusedrnn", "torch"])
    return figure


def practice(results: list[dict], where: str):
    """All other shapes, by name."""
    chosen = [r for r in results if r["shape"]["source"] != "grid"]
    size = 13, 1.5 + 0.3 * max(1, len(chosen))
    figure, panels = pyplot.subplots(1, 2, figsize=size, layout="constrained")
    for axes, call in zip(panels, CALLS, strict=True):
        place, ticks = 0.0, {}
        for result in (r for r in chosen if r["call"] == call):
            here = [who for who in NAMES if who in result["contenders"]]
            ticks[result["name"]] = place + (len(here) - 1) / 2
            for who in here:
                low, middle, high = result["contenders"][who]["speedup"]
                axes.barh(place, middle - 1, 0.9, 1, color=COLOURS[who], alpha=1 if middle >= 1 else FADED)
                axes.plot([low, high], [place, place], color="black", lw=0.8)
                beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(number(middle), (max(high, 1), place), fontsize=7, **beside)
                place += 1
            place += 0.7
        axes.axvline(1, color="black", lw=1)
        axes.set_xscale("log")
        logarithmic(axes.xaxis)
        axes.margins(x=0.12)
        axes.set_yticks(list(ticks.values()), list(ticks), fontsize=8)
        axes.set_ylim(place - 0.5, -0.9)
        axes.set_title(CALL_NAMES[call], fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(f"Times as fast as each peer; {where}")
    legend(figure, peers_in(chosen))
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a JSON file of bench.py")
    parser.add_argument("--threads", type=int, help="which results (default: those with most threads)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="pictures go here (default: %(default)s)")
    args = parser.parse_args(argv)
    run = json.loads(args.results.read_text())
    threads = args.threads or max((r["threads"] for r in run["results"]), default=1)
    results = [r for r in run["results"] if r["threads"] == threads]
    where = f"{threads} thread{'s' * (threads > 1)} of {run['machine']['cpu']}"
    args.out.mkdir(parents=True, exist_ok=True)
    for draw in (speedup, practice, peak):
        path = args.out / f"{draw.__name__}.png"
        draw(results, where).savefig(path, dpi=120)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
