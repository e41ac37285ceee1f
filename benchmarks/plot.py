"""Draws recorded results: how many times faster than each peer, and how near to the machine's GEMM peak.

    python benchmarks/plot.py benchmarks/results/xeon.json --out benchmarks/results

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
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator  # noqa: E402
from report import CALL_NAMES, gflops_of  # noqa: E402
from shapes import CALLS, GRIDS, SHORT  # noqa: E402

NAMES = {
    "torch": "torch.nn",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "loop": "loop over torch.nn's cell",
}
COLOURS = {
    "torch": "#d1495b",
    "onnxruntime": "#2e86ab",
    "openvino": "#8d6a9f",
    "loop": "#b0a08a",
    "fusedrnn": "#1b7f5c",
}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def size_of(result: dict) -> str:
    s = result["shape"]
    return f"{s['T']} × {s['N']} × {s['H']}"


def bars(axes, results: list[dict], label) -> None:
    """A row for each result, in it a bar for each peer: times as fast as it, with the quartiles of the rounds."""
    ticks = []
    place = 0.0
    for result in results:
        peers = [who for who in NAMES if who in result["contenders"]]
        for k, who in enumerate(peers):
            low, middle, high = result["contenders"][who]["speedup"]
            y = place + k
            axes.barh(y, middle - 1, left=1, height=0.9, color=COLOURS[who], alpha=1 if middle >= 1 else 0.6)
            axes.plot([low, high], [y, y], color="black", lw=0.8)
            axes.annotate(
                f"{middle:.2f}" if middle < 9.95 else f"{middle:.0f}",
                (max(high, 1), y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
        ticks.append((place + (len(peers) - 1) / 2, label(result)))
        place += len(peers) + 0.7
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks], fontsize=7.5)
    axes.set_ylim(place - 0.5, -0.9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(x=0.15)


def legend(figure, who: list[str]) -> None:
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in who]
    figure.legend(handles, [NAMES.get(name, name) for name in who], loc="outside lower center", ncols=len(who))


def grid_panels(results: list[dict], draw, title: str):
    """Two rows, forward and forward+backward; a column for each cell and dtype of the grid."""
    grid = [r for r in results if r["shape"]["source"] == "grid"]
    columns = [(c, d) for c, d in GRIDS if any((r["shape"]["cell"], r["shape"]["dtype"]) == (c, d) for r in grid)]
    if not columns:
        sys.exit("plot: there are no results of the grid with that number of threads")
    figure, panels = pyplot.subplots(
        2, len(columns), figsize=(1.2 + 2.9 * len(columns), 8.5), layout="constrained", squeeze=False, sharex="row"
    )
    for row, call in zip(panels, CALLS, strict=True):
        for axes, (cell, dtype) in zip(row, columns, strict=True):
            wanted = (cell, dtype, call)
            draw(axes, [r for r in grid if (r["shape"]["cell"], r["shape"]["dtype"], r["call"]) == wanted])
            axes.set_title(f"{cell} {SHORT[dtype]} {CALL_NAMES[call]}", fontsize=10)
    figure.suptitle(title)
    return figure


def peers_in(results: list[dict]) -> list[str]:
    return [who for who in NAMES if any(who in r["contenders"] for r in results)]


def speedup(results: list[dict], where: str):
    figure = grid_panels(
        results, lambda axes, r: bars(axes, r, size_of), f"Times as fast as each peer (T × N × I=H), {where}"
    )
    legend(figure, peers_in([r for r in results if r["shape"]["source"] == "grid"]))
    return figure


def practice(results: list[dict], where: str):
    chosen = [r for r in results if r["shape"]["source"] != "grid"]
    figure, panels = pyplot.subplots(
        1, 2, figsize=(13, 1.5 + 0.33 * max(1, len(chosen))), layout="constrained", squeeze=False
    )
    for axes, call in zip(panels[0], CALLS, strict=True):
        bars(axes, [r for r in chosen if r["call"] == call], lambda r: r["name"])
        axes.set_title(CALL_NAMES[call], fontsize=10)
    figure.suptitle(f"Times as fast as each peer, {where}")
    legend(figure, peers_in(chosen))
    return figure


def peak(results: list[dict], where: str):
    def dumbbells(axes, chosen):
        for y, result in enumerate(chosen):
            shares = {who: 100 * gflops_of(result, who) / result["peak"] for who in ("torch", "fusedrnn")}
            axes.plot(list(shares.values()), [y, y], color="grey", lw=1.5, zorder=1)
            for who, value in shares.items():
                axes.scatter(value, y, s=36, color=COLOURS[who], zorder=2)
        axes.axvline(100, color="black", lw=1)
        axes.set_yticks(range(len(chosen)), [size_of(r) for r in chosen], fontsize=7.5)
        axes.set_ylim(len(chosen) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
        axes.grid(alpha=0.3)

    figure = grid_panels(
        results, dumbbells, f"Share of this machine's torch.mm peak, same dtype and threads (T × N × I=H), {where}"
    )
    legend(figure, ["fusedrnn", "torch"])
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
        draw(results, where).savefig(path, dpi=110)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
