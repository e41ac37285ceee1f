"""A cell of one's own: written in Python, compiled by fusedrnn, trained on text beside an LSTM.

The cell keeps two memories that forget at different rates, and mixes them by a gate. It has as many gates as an LSTM.
The same cell as a loop of PyTorch's operations shows what compiling it gains.

    python examples/custom_cell.py --steps 600 --hidden 256
"""

import math
import statistics
import sys
import time

import experiment
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusedrnn

LOOPS = 5  # steps that are timed as a loop


@fusedrnn.cell(gates="f m g o", states="h fast slow", parameters={"rate": -3.0})
def two_memories(x, r, s, p):
    f, m, g, o = x + r
    f, m, g = torch.sigmoid(f), torch.sigmoid(m), torch.tanh(g)
    fast = f * s.fast + (1 - f) * g
    slow = s.slow + torch.sigmoid(p.rate) * (g - s.slow)  # forgets at a rate of its own, learned for each unit
    return torch.sigmoid(o) * torch.tanh(m * fast + (1 - m) * slow), fast, slow


class Model(nn.Module):
    def __init__(self, layer: nn.Module, width: int, hidden: int):
        super().__init__()
        self.embedding, self.layer, self.linear = nn.Embedding(256, width), layer, nn.Linear(hidden, 256)

    def forward(self, characters: Tensor) -> Tensor:
        return self.linear(self.layer(self.embedding(characters))[0])


class Loop(nn.Module):
    """A Recurrent's computation, as users write it without fusedrnn."""

    def __init__(self, layer: fusedrnn.Recurrent):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        w, cell = self.layer, self.layer.cell
        gates_x = F.linear(x, w.weight_ih_l0, w.bias_ih_l0)
        states, outputs = [x.new_zeros(x.size(1), w.hidden_size) for _ in cell.states], []
        for gates in gates_x:
            r = F.linear(states[0], w.weight_hh_l0, w.bias_hh_l0)
            states = cell.reference(gates, r, *states, vectors=w.rate_l0.unsqueeze(0))
            outputs.append(states[0])
        return torch.stack(outputs), states


def step(model: Model, optimizer: torch.optim.Optimizer, window: Tensor) -> tuple[float, float]:
    """One step of training: bits per character, and seconds"""
    start = time.perf_counter()
    loss = F.cross_entropy(model(window[:-1]).flatten(0, 1), window[1:].flatten())
    bits = experiment.descend(loss, optimizer) / math.log(2)
    return bits, time.perf_counter() - start


def train(models: dict[str, Model], rows: Tensor, args) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """All models by turns, on the same text. Returns bits and seconds of each step."""
    optimizers = {name: torch.optim.Adam(model.parameters(), args.rate) for name, model in models.items()}
    bits, seconds = {name: [] for name in models}, {name: [] for name in models}
    with experiment.interruptible() as interrupted:
        for i in (bar := experiment.progress(range(args.steps), "step")):
            at = i * args.length % (len(rows) - args.length - 1)
            for name in list(models)[:: 1 if i % 2 else -1]:
                result = step(models[name], optimizers[name], rows[at : at + args.length + 1])
                bits[name].append(result[0]), seconds[name].append(result[1])
            bar.set_postfix_str(", ".join(f"{name} {b[-1]:.3f} bits" for name, b in bits.items()))
            if interrupted:
                break
    return bits, seconds


def time_loop(model: Model, rows: Tensor, args) -> float:
    """Seconds of a step of training where the cell is a loop"""
    loop = Model(Loop(model.layer), args.embedding, args.hidden)
    loop.load_state_dict({k.replace("layer.", "layer.layer."): v for k, v in model.state_dict().items()})
    optimizer = torch.optim.Adam(loop.parameters(), 1e-9)  # the weights stay as they are
    return statistics.median(step(loop, optimizer, rows[: args.length + 1])[1] for _ in range(LOOPS))


def show(args, bits: dict[str, list[float]], speeds: dict[str, float]) -> None:
    for name, speed in speeds.items():
        ends = f"{statistics.mean(bits[name][-20:]):.3f} bits in the end; " if name in bits else ""
        print(f"{name}: {ends}{speed:,.0f} characters/s in training")
    with experiment.picture(args.out / "custom_cell.png") as (left, right):
        for name, values in bits.items():
            left.plot(values, lw=0.8, label=name)
        experiment.label(left, "Training", "step", "bits per character")
        right.barh(list(speeds), list(speeds.values()), color=["C0", "C1", "gray"])
        right.set(title="Speed of training", xlabel="characters/s")


def main(argv: list[str] | None = None) -> int:
    sizes = {"embedding": (64, ""), "hidden": (256, ""), "batch": (32, "texts read side by side")}
    sizes |= {"length": (64, "characters per step from each"), "rate": (4e-3, "Adam's learning rate")}
    sizes |= {"steps": (300, "training steps")}
    parser = experiment.options(__doc__, "runs/custom_cell", **sizes)
    parser.add_argument("--data", default="", help="a text file or a folder of them (default: the standard library)")
    args = experiment.start(parser, argv)
    text = experiment.read_text(args.data).encode(errors="replace")
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    rows = rows[: len(rows) // args.batch * args.batch].view(args.batch, -1).t().contiguous()
    if len(rows) <= args.length + 1:
        sys.exit(f"custom_cell: {len(text)} characters are too few for --batch {args.batch} and --length {args.length}")
    layer = fusedrnn.Recurrent(two_memories, args.embedding, args.hidden)
    print(f"{two_memories} is {layer.backend}", flush=True)
    models = {"two_memories": Model(layer, args.embedding, args.hidden)}
    models["LSTM"] = Model(fusedrnn.FusedLSTM(args.embedding, args.hidden), args.embedding, args.hidden)
    print(experiment.describe(models["two_memories"]), flush=True)
    bits, seconds = train(models, rows, args)
    if not bits["LSTM"]:
        return 130
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    medians["two_memories as a loop"] = time_loop(models["two_memories"], rows, args)
    show(args, bits, {name: args.batch * args.length / s for name, s in medians.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
