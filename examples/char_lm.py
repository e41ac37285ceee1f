"""A character language model on FusedLSTM: trains, generates, and races torch.nn.LSTM from the same weights.

By default it reads the sources of Python's standard library. Ctrl-C saves everything; --resume continues exactly there.

    python examples/char_lm.py
    python examples/char_lm.py --data my_novel.txt --steps 2000 --hidden 512
    python examples/char_lm.py --resume --prompt "class " --temperature 0.5
"""

import argparse
import math
import statistics
import sys
import time
import zlib
from collections import Counter

import torch
import torch.nn.functional as F
from experiment import interruptible, label, options, picture, read_text, resumable, save_checkpoint
from torch import Tensor, nn
from tqdm import tqdm

from fusedrnn import FusedLSTM

RACE = 60  # steps that both models take, in turn
KEPT = ("data", "embedding", "hidden", "layers", "batch", "length", "rate", "seed")  # options of a run that is resumed


def parse(argv: list[str] | None) -> tuple:
    """The options, and the checkpoint to continue from or None."""
    sizes = {"embedding": (64, ""), "hidden": (256, ""), "layers": (2, ""), "batch": (32, "texts read side by side")}
    sizes |= {"length": (32, "characters per step from each"), "rate": (8e-3, "Adam's learning rate at its peak")}
    parser = options(__doc__, "runs/char_lm", steps=(2400, "training steps in all"), **sizes)
    parser.add_argument("--data", default="", help="a text file or a folder of them (default: the standard library)")
    parser.add_argument("--prompt", default="def ", help="beginning of the generated sample (default: %(default)r)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: the likeliest character (default: 0.7)")
    parser.add_argument("--sample", type=int, default=400, help="characters to generate (default: %(default)s)")
    return resumable(parser, argv)


class CharModel(nn.Module):
    def __init__(self, lstm: type[nn.Module], alphabet: int, args: argparse.Namespace):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(alphabet, args.embedding), nn.Linear(args.hidden, alphabet)
        self.lstm = lstm(args.embedding, args.hidden, args.layers)
        for k in range(args.layers):
            getattr(self.lstm, f"bias_ih_l{k}").data.chunk(4)[1].fill_(1.0)  # of the forget gate: remember at first

    def forward(self, characters: Tensor, state=None):
        """characters [T, N] → logits of each one's successor [T, N, alphabet], and the last state."""
        y, state = self.lstm(self.embedding(characters), state)
        return self.linear(y), state


def train_step(model: nn.Module, optimizer: torch.optim.Adam, past: dict, window: Tensor, rate: float) -> None:
    """Truncated backpropagation: the state continues from window to window, the gradient does not."""
    start, at = time.perf_counter(), len(past["bits"]) + 1
    optimizer.param_groups[0]["lr"] = rate * min(at / 100, math.sqrt(100 / at))
    logits, state = model(window[:-1], past["state"])
    loss = F.cross_entropy(logits.flatten(0, 1), window[1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    past["state"] = tuple(s.detach() for s in state)
    past["bits"].append(loss.item() / math.log(2))
    past["seconds"].append(time.perf_counter() - start)


def train(runs: dict[str, tuple], rows: Tensor, args: argparse.Namespace, save) -> bool:
    """False if it was interrupted; runs: model, optimizer and past of each LSTM."""
    past = runs["FusedLSTM"][2]
    with tqdm(total=args.steps, initial=len(past["bits"]), unit="step") as bar, interruptible() as interrupted:
        while (step := len(past["bits"])) < args.steps and not interrupted:
            t = step % ((len(rows) - 1) // args.length) * args.length
            for model, optimizer, record in list(runs.values())[: 2 if step < RACE else 1][:: 1 if step % 2 else -1]:
                record["state"] = record["state"] if t else None  # None at the beginning of the text
                train_step(model, optimizer, record, rows[t : t + args.length + 1], args.rate)
            bar.set_postfix_str(f"{past['bits'][-1]:.3f} bits")
            bar.update()
            if step % 100 == 99:
                save()
        save()
    return not interrupted


@torch.no_grad()
def held_out_bits(model: nn.Module, rows: Tensor, length: int) -> float:
    """Bits per character on text that was never trained on."""
    total, state = 0.0, None
    for t in range(0, len(rows) - 1, length):
        logits, state = model(rows[t : t + length + 1][:-1], state)
        total += F.cross_entropy(logits.flatten(0, 1), rows[t + 1 : t + length + 1].flatten(), reduction="sum").item()
    return total / rows[1:].numel() / math.log(2)


@torch.no_grad()
def generate(model: nn.Module, prompt: Tensor, count: int, temperature: float) -> list[int]:
    (logits, state), numbers = model(prompt[:, None]), []
    for _ in range(count):
        last = logits[-1, 0, 1:] / max(temperature, 1e-6)  # never the character 0, which stands for unknown ones
        numbers.append(1 + int(torch.multinomial(torch.softmax(last - last.max(), 0), 1)))
        logits, state = model(torch.tensor([numbers[-1:]]), state)
    return numbers


def show(args: argparse.Namespace, ours: dict, theirs: dict, bits: float) -> None:
    """Prints how the race of both ended, and draws it beside the whole training."""
    both = len(theirs["bits"])
    speeds = [args.batch * args.length / statistics.median(past["seconds"][:both]) for past in (ours, theirs)]
    gap = max(abs(a - b) for a, b in zip(ours["bits"], theirs["bits"], strict=False))
    print(f"held out: {bits:.4f} bits per character after {len(ours['bits'])} steps; {speeds[0]:,.0f} characters/s")
    print(f"torch.nn.LSTM: {speeds[1]:,.0f} characters/s, 1 / {speeds[0] / speeds[1]:.2f} of that")
    print(f"the losses of the {both} steps of both differ by at most {gap:.1e} bits")
    with picture(args.out / "loss.png") as (left, right):
        left.plot(ours["bits"][:both], lw=5, alpha=0.4, label=f"FusedLSTM: {speeds[0]:,.0f} characters/s")
        left.plot(theirs["bits"], lw=1, color="black", label=f"torch.nn.LSTM: {speeds[1]:,.0f} characters/s")
        right.plot(ours["bits"], lw=0.7, label="FusedLSTM, training")
        right.axhline(bits, color="gray", ls="--", label=f"in the end, held-out text: {bits:.3f}")
        for axes, title in (left, "The same weights and text"), (right, "The whole training"):
            label(axes, title, "step", "bits per character")


def main(argv: list[str] | None = None) -> int:
    args, saved = parse(argv)
    text = read_text(args.data)
    checksum = zlib.crc32(text.encode("utf-8", "replace"))
    if saved and saved["checksum"] != checksum:
        sys.exit(f"char_lm: {args.out} was trained on another text than {args.data or 'this standard library'}")
    alphabet = ["\N{REPLACEMENT CHARACTER}", *sorted(c for c, _ in Counter(text).most_common(255))]
    places = {character: number for number, character in enumerate(alphabet)}
    numbers = torch.tensor([places.get(character, 0) for character in text])
    parts = numbers[len(numbers) // 20 :], numbers[: len(numbers) // 20][:200_000]
    rows, held_out = (p[: len(p) // args.batch * args.batch].view(args.batch, -1).t().contiguous() for p in parts)
    if len(rows) <= args.length or len(held_out) < 2:
        sys.exit(f"char_lm: {len(text)} characters are too few for --batch {args.batch} and --length {args.length}")
    torch.manual_seed(args.seed)
    runs, first = {}, None
    for name, lstm in {"FusedLSTM": FusedLSTM, "torch.nn.LSTM": nn.LSTM}.items():
        model, past = CharModel(lstm, len(alphabet), args), {"state": None, "bits": [], "seconds": []}
        first = first or model
        runs[name] = model, torch.optim.Adam(model.parameters()), past
        model.load_state_dict(saved["runs"][name]["model"] if saved else first.state_dict())
        if saved:
            runs[name][1].load_state_dict(saved["runs"][name]["optimizer"])
            past.update(saved["runs"][name]["past"])
    print(f"{rows.numel():,} characters to train on, {held_out.numel():,} held out, of {len(alphabet)} kinds")
    print(f"{sum(p.numel() for p in first.parameters()):,} parameters, {torch.get_num_threads()} threads", flush=True)

    def save() -> None:
        states = {n: {"model": m.state_dict(), "optimizer": o.state_dict(), "past": p} for n, (m, o, p) in runs.items()}
        kept = {name: getattr(args, name) for name in KEPT}
        save_checkpoint(args.out / "checkpoint.pt", {"options": kept, "checksum": checksum, "runs": states})

    ours, theirs = (past for _, _, past in runs.values())
    if not train(runs, rows, args, save):
        print(f"Interrupted after step {len(ours['bits'])}. To go on: --resume --out {args.out}")
        return 130
    prompt = torch.tensor([places.get(character, 0) for character in args.prompt or "\n"])
    sample = generate(first, prompt, args.sample, args.temperature)
    print(f"\n{args.prompt}{''.join(alphabet[n] for n in sample)}\n")
    show(args, ours, theirs, held_out_bits(first, held_out, args.length))
    return 0


if __name__ == "__main__":
    sys.exit(main())
