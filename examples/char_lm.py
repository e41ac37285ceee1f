"""A character language model on FusedLSTM: trains, generates, and races torch.nn.LSTM from the same weights.

By default it reads the Python standard library's own sources. Ctrl-C saves everything; --resume goes on as if nothing
had happened.

    python examples/char_lm.py
    python examples/char_lm.py --data my_novel.txt --steps 2000 --hidden 512
    python examples/char_lm.py --resume --prompt "class " --temperature 0.5
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import random
import signal
import statistics
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from fusedrnn import FusedLSTM

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
KEPT = ("data", "embedding", "hidden", "layers", "batch", "length", "rate", "seed", "compare")  # a run's own options


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="", help="a text file, or a folder of them (default: the Python standard library)")
    add("--steps", type=int, default=2400, help="training steps in all (default: %(default)s)")
    add("--embedding", type=int, default=64, help="(default: %(default)s)")
    add("--hidden", type=int, default=256, help="(default: %(default)s)")
    add("--layers", type=int, default=2, help="(default: %(default)s)")
    add("--batch", type=int, default=32, help="texts read side by side (default: %(default)s)")
    add("--length", type=int, default=32, help="characters a step from each of them (default: %(default)s)")
    add("--rate", type=float, default=8e-3, help="Adam's learning rate at its peak (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--compare", type=int, default=60, help="steps that torch.nn.LSTM takes as well (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/char_lm"), help="checkpoint and picture go here (default: %(default)s)")
    add("--resume", action="store_true", help="go on with the checkpoint in --out; only --steps may change")
    add("--prompt", default="def ", help="the generated sample begins with this (default: %(default)r)")
    add("--temperature", type=float, default=0.7, help="0 always takes the likeliest character (default: %(default)s)")
    add("--sample", type=int, default=400, help="characters to generate (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in ("steps", "embedding", "hidden", "layers", "batch", "length"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.compare < 0:
        parser.error(f"--compare must not be negative, got {args.compare}")
    if not args.rate > 0:
        parser.error(f"--rate must be above 0, got {args.rate}")
    if args.temperature < 0:
        parser.error(f"--temperature must not be negative, got {args.temperature}")
    return args


class Text:
    """Characters as numbers: ``train`` and ``held_out``, and the way there and back."""

    def __init__(self, data: str):
        if data:
            root = Path(data)
            files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
        else:
            files = sorted(Path(os.__file__).parent.glob("*.py"))
        random.Random(0).shuffle(files)  # else the held-out end of the text were all of one kind
        try:
            text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
        except OSError as error:
            sys.exit(f"char_lm: cannot read --data: {error}")
        if not text.strip():
            sys.exit(f"char_lm: there is no text in {data}")
        common = [character for character, _ in Counter(text).most_common(255)]
        self.alphabet = sorted({*common, UNKNOWN})
        self.checksum = zlib.crc32(text.encode("utf-8", "replace"))
        numbers = self.encode(text)
        self.train, self.held_out = numbers.split([len(text) - len(text) // 20, len(text) // 20])

    def encode(self, text: str) -> Tensor:
        codes = torch.frombuffer(bytearray(text.encode("utf-32-le", "replace")), dtype=torch.int32)
        known = torch.tensor([ord(character) for character in self.alphabet], dtype=torch.int32)
        numbers = torch.searchsorted(known, codes).clamp_(max=len(known) - 1)
        return numbers.where(known[numbers] == codes, self.alphabet.index(UNKNOWN))

    def decode(self, numbers: list[int]) -> str:
        return "".join(self.alphabet[number] for number in numbers)


class CharModel(nn.Module):
    def __init__(self, lstm: type[nn.Module], alphabet: int, embedding: int, hidden: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(alphabet, embedding)
        self.lstm = lstm(embedding, hidden, layers)
        self.linear = nn.Linear(hidden, alphabet)
        for name, parameter in self.lstm.named_parameters():
            gates = parameter.data.chunk(4)  # i, f, g, o
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
                nn.init.constant_(gates[1], float("bias_ih" in name))  # remember at first
            for gate in gates if name.startswith("weight") else ():
                (nn.init.orthogonal_ if "weight_hh" in name else nn.init.xavier_uniform_)(gate)

    def forward(self, characters: Tensor, state=None):
        """characters [T, N] → logits of each one's successor [T, N, alphabet], and the state behind the last."""
        y, state = self.lstm(self.embedding(characters), state)
        return self.linear(y), state


class Trainer:
    """One model on its way through the text, with all that a checkpoint must hold."""

    def __init__(self, model: CharModel, args: argparse.Namespace):
        self.model, self.args = model, args
        self.optimizer = torch.optim.Adam(model.parameters(), lr=args.rate)
        self.state: tuple[Tensor, Tensor] | None = None
        self.losses: list[float] = []  # bits per character, one a step
        self.seconds: list[float] = []

    def step(self, window: Tensor) -> None:
        """Truncated backpropagation: the state goes on from window to window, the gradient does not."""
        start = time.perf_counter()
        at = len(self.losses) + 1
        for group in self.optimizer.param_groups:  # up, then down, whatever --steps is: more may be added later
            group["lr"] = self.args.rate * min(at / 100, math.sqrt(100 / at))
        logits, state = self.model(window[:-1], self.state)
        loss = F.cross_entropy(logits.flatten(0, 1), window[1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.state = tuple(s.detach() for s in state)
        self.losses.append(loss.item() / math.log(2))
        self.seconds.append(time.perf_counter() - start)

    def rate(self) -> float:
        """Characters per second, of the median step; only those that both models took in turns count."""
        return self.args.batch * self.args.length / statistics.median(self.seconds[: self.args.compare or None])

    def state_dict(self) -> dict:
        own = {name: getattr(self, name) for name in ("state", "losses", "seconds")}
        return own | {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, saved: dict) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state, self.losses, self.seconds = saved["state"], saved["losses"], saved["seconds"]


@torch.no_grad()
def held_out_bits(model: CharModel, numbers: Tensor, batch: int, length: int) -> float:
    """Bits per character on text that was never trained on (its first 200,000 characters)."""
    streams = side_by_side(numbers[:200_000], batch)
    total, state = 0.0, None
    for t in range(0, len(streams) - 1, length):
        window = streams[t : t + length + 1]
        logits, state = model(window[:-1], state)
        total += F.cross_entropy(logits.flatten(0, 1), window[1:].flatten(), reduction="sum").item()
    return total / (len(streams) - 1) / batch / math.log(2)


def side_by_side(numbers: Tensor, batch: int) -> Tensor:
    """[characters] → [T, N]: N texts read in parallel."""
    return numbers[: len(numbers) // batch * batch].view(batch, -1).t().contiguous()


@torch.no_grad()
def generate(model: CharModel, text: Text, prompt: str, count: int, temperature: float) -> str:
    logits, state = model(text.encode(prompt or "\n").unsqueeze(1))
    numbers = []
    for _ in range(count):
        last = logits[-1, 0]
        last[text.alphabet.index(UNKNOWN)] = -math.inf
        if temperature == 0:
            numbers.append(int(last.argmax()))
        else:
            numbers.append(int(torch.multinomial(torch.softmax(last / temperature, 0), 1)))
        logits, state = model(torch.tensor([[numbers[-1]]]), state)
    return prompt + text.decode(numbers)


def save(path: Path, args: argparse.Namespace, text: Text, trainers: dict[str, Trainer]) -> None:
    """Writes beside the old checkpoint and then replaces it: there is a whole one at every moment."""
    content = {name: getattr(args, name) for name in KEPT}
    content["checksum"] = text.checksum
    content |= {"trainers": {name: trainer.state_dict() for name, trainer in trainers.items()}}
    torch.save(content, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def draw(path: Path, trainers: dict[str, Trainer], bits: float) -> None:
    """The race of both models beside the whole training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    race = min(len(trainer.losses) for trainer in trainers.values())
    styles = ({"lw": 5, "alpha": 0.4}, {"lw": 1, "color": "black"})[: len(trainers)]
    for (name, trainer), style in zip(trainers.items(), styles, strict=True):
        label = f"{name}: {trainer.rate():,.0f} characters/s"
        left.plot(range(1, race + 1), trainer.losses[:race], label=label, **style)
    left.set(title="Same seed, same text")
    left.legend()
    whole = next(iter(trainers.values())).losses
    right.plot(range(1, len(whole) + 1), whole, lw=0.7, label="FusedLSTM, training")
    right.axhline(bits, color="gray", ls="--", label=f"in the end, held-out text: {bits:.3f}")
    right.set(title="The whole training")
    right.legend()
    for axes in (left, right):
        axes.set(xlabel="step", ylabel="bits per character")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    checkpoint, saved = args.out / "checkpoint.pt", None
    if args.resume:
        if not checkpoint.exists():
            sys.exit(f"char_lm: --resume, but there is no {checkpoint}")
        try:
            saved = torch.load(checkpoint)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            sys.exit(f"char_lm: cannot read {checkpoint}: {error}")
        vars(args).update({name: saved[name] for name in KEPT})
    text = Text(args.data)
    if saved and saved["checksum"] != text.checksum:
        sys.exit(f"char_lm: the text is not the one that {checkpoint} was trained on")
    train = side_by_side(text.train, args.batch)
    windows = (len(train) - 1) // args.length
    if windows < 1 or len(text.held_out) < 2 * args.batch:
        needed = max((args.length + 1) * args.batch * 20 // 19, 40 * args.batch) + 20
        sys.exit(f"char_lm: the text is too short for --batch and --length: these need about {needed} characters")

    torch.manual_seed(args.seed)
    trainers = {}
    for lstm in (FusedLSTM, nn.LSTM) if args.compare else (FusedLSTM,):
        model = CharModel(lstm, len(text.alphabet), args.embedding, args.hidden, args.layers)
        if trainers:
            model.load_state_dict(trainers["FusedLSTM"].model.state_dict())
        trainers["FusedLSTM" if lstm is FusedLSTM else "torch.nn.LSTM"] = Trainer(model, args)
    if saved:
        for name, trainer in trainers.items():
            trainer.load_state_dict(saved["trainers"][name])
    args.out.mkdir(parents=True, exist_ok=True)
    fused = trainers["FusedLSTM"]
    kinds = len(text.alphabet)
    print(f"{len(text.train):,} characters to train on, {len(text.held_out):,} held out, of {kinds} kinds")
    print(f"{sum(p.numel() for p in fused.model.parameters()):,} parameters, {torch.get_num_threads()} threads")

    if saved:
        print(f"Going on after step {len(fused.losses)}, with the options of {checkpoint}")

    interrupted = []
    previous = signal.signal(signal.SIGINT, lambda *_: interrupted.append(signal.signal(signal.SIGINT, previous)))
    with tqdm(total=args.steps, initial=len(fused.losses), unit="step") as bar:
        while len(fused.losses) < args.steps and not interrupted:
            step = len(fused.losses)
            t = step % windows * args.length
            if t == 0:
                for trainer in trainers.values():
                    trainer.state = None  # from the top of the text
            for trainer in list(trainers.values())[:: 1 if step % 2 else -1]:  # neither always goes first
                if trainer is fused or step < args.compare:
                    trainer.step(train[t : t + args.length + 1])
            bar.set_postfix_str(f"{fused.losses[-1]:.3f} bits")
            bar.update()
            if step % 100 == 99:
                save(checkpoint, args, text, trainers)
    save(checkpoint, args, text, trainers)
    signal.signal(signal.SIGINT, previous)
    if interrupted:
        print(f"Interrupted after step {len(fused.losses)}; all is in {checkpoint}. To go on, add --resume")
        return 130

    bits = held_out_bits(fused.model, text.held_out, args.batch, args.length)
    print(f"\n{generate(fused.model, text, args.prompt, args.sample, args.temperature)}\n")
    print(f"held out: {bits:.4f} bits per character after {len(fused.losses)} steps")
    for name, trainer in trainers.items():
        print(f"{name}: {trainer.rate():,.0f} characters per second")
    if args.compare:
        theirs = trainers["torch.nn.LSTM"]
        both = len(theirs.losses)  # rounding differences grow with every step, as in any training
        gap = max(abs(a - b) for a, b in zip(fused.losses[:both], theirs.losses, strict=True))
        ratio = fused.rate() / theirs.rate()
        print(f"{ratio:.2f} times as fast; the losses of the {both} steps of both differ by at most {gap:.1e} bits")
    draw(args.out / "loss.png", trainers, bits)
    print(f"Loss curves: {args.out / 'loss.png'}   Checkpoint: {checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
