"""Times cells that users write: compiled, as an eager loop, and beside the built-in layer with as many gates.

python benchmarks/custom_cells.py                  every cell of the zoo, inference and training
python benchmarks/custom_cells.py --only mgu --threads 1 --seconds 3
"""

import argparse
import itertools
import re

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import fusedrnn

SHAPES = [(100, 32, 128), (64, 16, 512)]  # T, N, H
BUILT_IN = {1: fusedrnn.FusedRNN, 2: fusedrnn.FusedGRU, 3: fusedrnn.FusedGRU, 4: fusedrnn.FusedLSTM}  # by gates


@fusedrnn.cell(gates="i f g o", states="h c")
def lstm(x, r, s):
    i, f, g, o = x + r
    c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@fusedrnn.cell(gates="r z n", states="h")
def gru(x, r, s):
    z = torch.sigmoid(x.z + r.z)
    n = torch.tanh(x.n + torch.sigmoid(x.r + r.r) * r.n)
    return n + z * (s.h - n)


@fusedrnn.cell(gates="n", states="h")
def rnn(x, r, s):
    return torch.tanh(x.n + r.n)


CELLS = {cell.name: cell for cell in (lstm, gru, rnn)}
CELLS |= {name: getattr(fusedrnn.zoo, name) for name in fusedrnn.zoo.__all__}


def loop(layer: fusedrnn.Recurrent, x: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """The layer's output as users compute it without fusedrnn: one product for all inputs, then a step at a time."""
    p, cell, H = dict(layer.named_parameters()), layer.cell, layer.hidden_size
    gates_x, states, outputs = F.linear(x, p["weight_ih_l0"], p["bias_ih_l0"]), layer.cell.initial, []
    states = [x.new_full((x.size(1), H), value) for value in states]
    rows = [p[f"{name}_l0"].view(-1, H) for name in (*cell.parameters, *cell.gate_parameters)]
    step = cell.of_vectors(torch.cat(rows) if rows else None)
    for t, gates in enumerate(gates_x):
        r = F.linear(states[0], p["weight_hh_l0"], p["bias_hh_l0"]) if cell.recurrent else None
        states = step(gates, r, *states, inputs=[e[t] for e in inputs.values()])
        outputs.append(states[0])
    return torch.stack(outputs)


def contenders(cell, shape: tuple[int, int, int], training: bool) -> dict:
    T, N, H = shape
    torch.manual_seed(0)
    layer, x = fusedrnn.Recurrent(cell, H, H), torch.randn(T, N, H, requires_grad=training)
    inputs = {name: torch.rand(T, N) for name in cell.inputs} | {name: torch.rand(T, N, H) for name in cell.unit_inputs}
    built_in, gradient = BUILT_IN[len(cell.gates)](H, H), torch.randn(T, N, H)
    calls = {
        "compiled": (layer, lambda: layer(x, inputs=inputs)[0]),
        "loop": (layer, lambda: loop(layer, x, inputs)),
        type(built_in).__name__: (built_in, lambda: built_in(x)[0]),
    }

    def run(module: nn.Module, call):
        if not training:
            with torch.no_grad():
                return call()
        return torch.autograd.grad(call(), [x, *module.parameters()], gradient)

    return {who: lambda pair=pair: run(*pair) for who, pair in calls.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="only cells whose name matches")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="(default: 1 2)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each set of contenders (default: %(default)s)")
    args = parser.parse_args(argv)
    chosen = [cell for name, cell in CELLS.items() if re.search(args.only, name)]
    work = list(itertools.product(args.threads, SHAPES, chosen, (False, True)))
    print("times the speed of the loop, time of the built-in layer = 1; medians and quartiles of rounds")
    for threads, shape, cell, training in tqdm(work, unit="set", dynamic_ncols=True):
        torch.set_num_threads(threads)
        calls = contenders(cell, shape, training)
        for call in calls.values():
            call()
        ours, slow, built_in = timing.alternate(calls, args.seconds).values()
        speedup = timing.quartiles([b / a for a, b in zip(ours, slow, strict=True)])
        cost = timing.quartiles([a / b for a, b in zip(ours, built_in, strict=True)])
        name = f"{cell.name} {'x'.join(map(str, shape))}/{'training' if training else 'inference'}/{threads}"
        values = (f"{middle:.2f} ({low:.2f}-{high:.2f})" for low, middle, high in (speedup, cost))
        tqdm.write(f"{name:44} {'  '.join(f'{v:20}' for v in values)} of {list(calls)[2]}")


if __name__ == "__main__":
    main()
