"""A character language model on FusedLSTM: trains, generates, and races torch.nn.LSTM from the same weights.

By default it reads the sources of Python's standard library. Ctrl-C saves everything; --resume continues exactly there.

    python examples/char_lm.py --data my_novel.txt --steps 2000 --hidden 512
    python examples/char_lm.py --resume --prompt "class "
"""

import argparse
import math
import statistics
import sys
import time
import zlib

import experiment
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedrnn import FusedLSTM, optimize_for_inference

TEMPERATURE = 0.7  # of the sample
RACE = 60  # steps that both models take, in turn
KEPT = ("data", "embedding", "hidden", "layers", "batch", "length", "rate", "seed")  # options of a run that is resumed


class CharModel(nn.Module):
    """A model of characters as bytes of UTF-8, with its optimizer and the course of its training."""

    def __init__(self, lstm: type[nn.Module], args: argparse.Namespace):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(256, args.embedding), nn.Linear(args.hidden, 256)
        self.lstm = lstm(args.embedding, args.hidden, args.layers)
        for k in range(args.layers):
            getattr(self.lstm, f"bias_ih_l{k}").data.chunk(4)[1].fill_(1.0)  # of the forget gate: remember at first
        self.optimizer = torch.optim.Adam(self.parameters())
        self.past = {"state": None, "bits": [], "seconds": []}

    def forward(self, characters: Tensor, state=None):
        """characters [T, N] → logits of each one's successor [T, N, 256], and the last state."""
        y, state = self.lstm(self.embedding(characters), state)
        return self.linear(y), state

    def step(self, window: Tensor, rate: float) -> None:
        """Truncated backpropagation: the state continues from window to window, the gradient does not."""
        start, at = time.perf_counter(), len(self.past["bits"]) + 1
        self.optimizer.param_groups[0]["lr"] = rate * min(at / 100, math.sqrt(100 / at))
        logits, state = self(window[:-1], self.past["state"])
        loss = experiment.descend(F.cross_entropy(logits.flatten(0, 1), window[1:].flatten()), self.optimizer)
        self.past["state"] = tuple(s.detach() for s in state)
        self.past["bits"].append(loss / math.log(2))
        self.past["seconds"].append(time.perf_counter() - start)


def train(models: dict[str, CharModel], rows: Tensor, args: argparse.Namespace, save) -> None:
    """Until it is interrupted: of FusedLSTM to the end, of torch.nn.LSTM as long as they race"""
    bits = models["FusedLSTM"].past["bits"]
    steps = range(len(bits), args.steps)
    with experiment.interruptible() as interrupted:
        for step in (bar := experiment.progress(steps, "step", initial=steps.start, total=args.steps)):
            t = step % ((len(rows) - 1) // args.length) * args.length
            for model in list(models.values())[: 2 if step < RACE else 1][:: 1 if step % 2 else -1]:
                model.past["state"] = model.past["state"] if t else None  # None at the beginning of the text
                model.step(rows[t : t + args.length + 1], args.rate)
            bar.set_postfix_str(f"{bits[-1]:.3f} bits")
            if step % 100 == 99 or interrupted or step == steps[-1]:
                save()
            if interrupted:
                break


@torch.no_grad()
def held_out_bits(model: CharModel, rows: Tensor) -> float:
    """Bits per character on text that was never trained on"""
    return F.cross_entropy(model(rows[:-1])[0].flatten(0, 1), rows[1:].flatten()).item() / math.log(2)


@torch.no_grad()
def generate(model: CharModel, prompt: str, count: int) -> str:
    numbers, state = list(prompt.encode() or b"\n"), None
    given = torch.tensor(numbers)[:, None]
    for _ in range(count):
        logits, state = model(given, state)
        given = torch.multinomial((logits[-1:, 0] / TEMPERATURE).softmax(-1), 1)
        numbers.append(int(given))
    return bytes(numbers).decode(errors="replace")


def show(args: argparse.Namespace, ours: dict, theirs: dict, bits: float) -> None:
    """Prints how the race of both ended, and draws it beside the whole training."""
    both = len(theirs["bits"])
    speeds = [args.batch * args.length / statistics.median(past["seconds"][:both]) for past in (ours, theirs)]
    gap = max(abs(a - b) for a, b in zip(ours["bits"], theirs["bits"], strict=False))
    print(f"held out: {bits:.4f} bits per character after {len(ours['bits'])} steps; {speeds[0]:,.0f} characters/s")
    print(f"torch.nn.LSTM: {speeds[1]:,.0f}; the losses of the {both} steps of both differ by at most {gap:.1e} bits")
    with experiment.picture(args.out / "loss.png") as (left, right):
        left.plot(ours["bits"][:both], lw=5, alpha=0.4, label=f"FusedLSTM: {speeds[0]:,.0f} characters/s")
        left.plot(theirs["bits"], lw=1, color="black", label=f"torch.nn.LSTM: {speeds[1]:,.0f} characters/s")
        right.plot(ours["bits"], lw=0.7, label="FusedLSTM, training")
        right.axhline(bits, color="gray", ls="--", label=f"in the end, held-out text: {bits:.3f}")
        for axes, title in (left, "The same weights and text"), (right, "The whole training"):
            experiment.label(axes, title, "step", "bits per character")


def main(argv: list[str] | None = None) -> int:
    sizes = {"embedding": (64, ""), "hidden": (256, ""), "layers": (2, ""), "batch": (32, "texts read side by side")}
    sizes |= {"length": (32, "characters per step from each"), "rate": (8e-3, "Adam's learning rate at its peak")}
    sizes |= {"steps": (2400, "training steps in all"), "sample": (400, "characters to generate")}
    parser = experiment.options(__doc__, "runs/char_lm", **sizes)
    parser.add_argument("--data", default="", help="a text file or a folder of them (default: the standard library)")
    parser.add_argument("--prompt", default="def ", help="beginning of the generated sample (default: %(default)r)")
    args, saved = experiment.resumable(parser, argv)
    text = experiment.read_text(args.data).encode(errors="replace")
    if saved and saved["checksum"] != zlib.crc32(text):
        sys.exit(f"char_lm: {args.out} was trained on another text than {args.data or 'this standard library'}")
    numbers = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    parts = numbers[len(numbers) // 20 :], numbers[: len(numbers) // 20][:100_000]
    rows, held_out = (p[: len(p) // args.batch * args.batch].view(args.batch, -1).t().contiguous() for p in parts)
    if len(rows) <= args.length or len(held_out) < 2:
        sys.exit(f"char_lm: {len(text)} characters are too few for --batch {args.batch} and --length {args.length}")
    models = {"FusedLSTM": CharModel(FusedLSTM, args), "torch.nn.LSTM": CharModel(nn.LSTM, args)}
    first = models["FusedLSTM"]
    for name, model in models.items():
        model.load_state_dict(saved["runs"][name]["model"] if saved else first.state_dict())
        if saved:
            model.optimizer.load_state_dict(saved["runs"][name]["optimizer"])
            model.past = saved["runs"][name]["past"]
    print(f"{rows.numel():,} characters to train on, {held_out.numel():,} held out")
    print(experiment.describe(first), flush=True)

    def save() -> None:
        runs = {}
        for name, m in models.items():
            runs[name] = {"model": m.state_dict(), "optimizer": m.optimizer.state_dict(), "past": m.past}
        content = {"options": {name: getattr(args, name) for name in KEPT}, "checksum": zlib.crc32(text), "runs": runs}
        experiment.save_checkpoint(args.out / "checkpoint.pt", content)

    train(models, rows, args, save)
    if (done := len(first.past["bits"])) < args.steps:
        print(f"Interrupted after step {done}. To go on: --resume --out {args.out}")
        return 130
    print(f"\n{generate(first, args.prompt, args.sample)}\n")
    show(args, *(model.past for model in models.values()), held_out_bits(first, held_out))
    print(f"with int8 weights: {held_out_bits(optimize_for_inference(first, 'int8'), held_out):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
