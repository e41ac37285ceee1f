"""Times models under torch.compile beside eager ones, in alternation: one step of a layer, and a loop over a cell.

    python benchmarks/compiled.py --seconds 4

An empty operator shows what a compiled call costs before anything is computed.
"""

import argparse
import os
from collections.abc import Callable

import report
import timing
import torch
from torch import Tensor, nn
from tqdm import tqdm

import fusedrnn

STEPS = 20


@torch.library.custom_op("benchmark::nothing", mutates_args=())
def nothing(x: Tensor) -> Tensor:
    return torch.empty_like(x)


nothing.register_fake(torch.empty_like)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nothing(x)


class Loop(nn.Module):
    """A cell, step by step, as users write it."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        outputs = []
        for x_t in x.unbind():
            h, c = self.cell(x_t, (h, c))
            outputs.append(h)
        return torch.stack(outputs)


def inference(model: nn.Module, *inputs: Tensor) -> Callable:
    def call():
        with torch.no_grad():
            return model(*inputs)

    return call


def training(model: nn.Module, *inputs: Tensor) -> Callable:
    def call():
        return torch.autograd.grad(model(*inputs).sum(), list(model.parameters()))

    return call


def groups(H: int) -> dict[str, dict[str, Callable]]:
    x, frames, h = torch.randn(1, 1, H), torch.randn(STEPS, 4, H), torch.zeros(4, H)
    layers = {"fusedrnn": fusedrnn.FusedLSTM(H, H), "torch.nn": nn.LSTM(H, H), "empty operator": Nothing()}
    loops = {"fusedrnn": Loop(fusedrnn.FusedLSTMCell(H, H)), "torch.nn": Loop(nn.LSTMCell(H, H))}

    def both(models: dict[str, nn.Module], of: Callable, *inputs: Tensor) -> dict[str, Callable]:
        eager = {f"{who}, eager": of(model, *inputs) for who, model in models.items()}
        return eager | {f"{who}, compiled": of(torch.compile(model), *inputs) for who, model in models.items()}

    return {
        "LSTM of one step, inference": both(layers, inference, x),
        f"LSTMCell, {STEPS} steps of 4 rows, inference": both(loops, inference, frames, h, h),
        f"LSTMCell, {STEPS} steps of 4 rows, training": both(loops, training, frames, h, h),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128, help="units (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each group (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    machine = report.machine("cpu")
    print(
        f"{machine['cpu']}, {machine['isa']}, {args.threads} of {os.cpu_count()} cores, H={args.hidden}; microseconds"
    )
    with tqdm(groups(args.hidden).items(), dynamic_ncols=True) as bar:
        for name, calls in bar:
            bar.set_description(name)
            for call in calls.values():
                call()
            bar.write(name)
            for who, samples in timing.alternate(calls, args.seconds).items():
                low, middle, high = (1e6 * s for s in timing.quartiles(samples))
                bar.write(f"  {who:<26} {middle:8.1f} [{low:.1f}-{high:.1f}]")


if __name__ == "__main__":
    main()
