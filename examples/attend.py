"""An attention decoder on FusedLSTMCell: dates as people write them, translated to ISO 8601.

A bidirectional FusedGRU reads "Friday, 3rd July 1998" letter by letter. For each character of 1998-07-03, the decoder
looks at the letters that matter now and takes one step of its cell: the core of Show, Attend and Tell (Xu et al.,
2015), with the additive attention of Bahdanau et al. (2015). A fifth of all dates is never trained on.

    python examples/attend.py
    python examples/attend.py --date "the 3rd of July 98" --date "Jul 3 1998"
"""

from __future__ import annotations

import argparse
import calendar
import random
import statistics
import sys
import time
from datetime import date, timedelta
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from fusedrnn import FusedGRU, FusedLSTMCell

FIRST, DAYS = date(1969, 1, 1), 36525  # one hundred years: those that two digits can tell apart (POSIX)
LETTERS = "".join(map(chr, range(32, 127)))  # printable ASCII; 0 is what stands behind the end
OUTPUT = "0123456789-"  # and one more number to begin with


def ordinal(day: int) -> str:
    return f"{day}{'th' if 10 < day < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def month(d: date) -> str:
    return calendar.month_name[d.month]


FORMATS = {
    "day month year": lambda d: f"{d.day} {month(d)} {d.year}",
    "month day, year": lambda d: f"{month(d)} {d.day}, {d.year}",
    "ordinal of month": lambda d: f"the {ordinal(d.day)} of {month(d)} {d.year}",
    "month ordinal 'yy": lambda d: f"{month(d)} {ordinal(d.day)} '{d:%y}",
    "weekday first": lambda d: f"{calendar.day_name[d.weekday()]}, {ordinal(d.day)} {month(d)} {d.year}",
    "short weekday": lambda d: f"{calendar.day_abbr[d.weekday()]} {calendar.month_abbr[d.month]} {d.day} {d.year}",
    "day-mon-yy": lambda d: f"{d.day:02}-{calendar.month_abbr[d.month]}-{d:%y}",
    "year, mon day": lambda d: f"{d.year}, {calendar.month_abbr[d.month]} {d.day}",
    "d.m.yyyy": lambda d: f"{d.day}.{d.month}.{d.year}",
    "dd.mm.yy": lambda d: f"{d:%d.%m.%y}",
    "m/d/yyyy": lambda d: f"{d.month}/{d.day}/{d.year}",
    "mm/dd/yy": lambda d: f"{d:%m/%d/%y}",
    "yyyymmdd": lambda d: f"{d:%Y%m%d}",
}


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--date", action="append", default=[], help="translate this after training; may be repeated")
    add("--steps", type=int, default=500, help="training steps (default: %(default)s)")
    add("--batch", type=int, default=128, help="(default: %(default)s)")
    add("--embedding", type=int, default=32, help="(default: %(default)s)")
    add(
        "--hidden",
        type=int,
        default=96,
        help="of the encoder, in each direction, and the decoder (default: %(default)s)",
    )
    add("--rate", type=float, default=5e-3, help="Adam's learning rate at its peak (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--out", type=Path, default=Path("runs/attend"), help="the pictures go here (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in ("steps", "batch", "embedding", "hidden"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not args.rate > 0:
        parser.error(f"--rate must be above 0, got {args.rate}")
    for text in args.date:
        if not text or not set(text) <= set(LETTERS):
            parser.error(f"--date must be of printable ASCII characters, got {text!r}")
    return args


def split_dates(chance: random.Random) -> tuple[list[date], list[date]]:
    """Every day of the hundred years, to train on and held out"""
    days = [FIRST + timedelta(days=n) for n in range(DAYS)]
    chance.shuffle(days)
    return days[DAYS // 5 :], days[: DAYS // 5]


def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
    """texts [T, N] and their lengths [N]"""
    numbers = [torch.tensor([LETTERS.index(letter) + 1 for letter in text]) for text in texts]
    return pad_sequence(numbers), torch.tensor([len(text) for text in texts])


def encode_iso(days: list[date]) -> Tensor:
    """[10, N]"""
    return torch.tensor([[OUTPUT.index(character) for character in day.isoformat()] for day in days]).t()


def some(days: list[date], count: int, chance: random.Random) -> tuple[list[date], list[str]]:
    """Some of the days, each in one of the formats"""
    chosen, formats = chance.choices(days, k=count), chance.choices(list(FORMATS.values()), k=count)
    return chosen, [form(day) for form, day in zip(formats, chosen, strict=True)]


class Translator(nn.Module):
    def __init__(self, embedding: int, hidden: int):
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS) + 1, embedding)
        self.encoder = FusedGRU(embedding, hidden, bidirectional=True)
        self.keys = nn.Linear(2 * hidden, hidden)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.begin = nn.Linear(2 * hidden, 2 * hidden)
        self.written = nn.Embedding(len(OUTPUT) + 1, embedding)
        self.cell = FusedLSTMCell(embedding + 2 * hidden, hidden)
        self.linear = nn.Linear(3 * hidden, len(OUTPUT))

    def forward(self, texts: Tensor, lengths: Tensor, iso: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """texts [T, N], lengths [N] → logits [10, N, 11] and the attention [10, T, N] that each was made with.

        The decoder reads what it should have written (iso [10, N]) or, without it, what it wrote.
        """
        notes, _ = self.encoder(self.letters(texts), lengths=lengths)  # [T, N, 2H]
        keys = self.keys(notes)
        behind = torch.arange(len(texts))[:, None] >= lengths
        h, c = torch.tanh(self.begin(notes.sum(0) / lengths[:, None])).chunk(2, dim=-1)
        last = torch.full_like(lengths, len(OUTPUT))
        logits, looks = [], []
        for step in range(len("yyyy-mm-dd")):
            scores = self.score(torch.tanh(keys + self.query(h))).squeeze(-1)
            look = scores.masked_fill(behind, -torch.inf).softmax(0)  # [T, N]
            seen = torch.einsum("tn,tnj->nj", look, notes)
            h, c = self.cell(torch.cat([self.written(last), seen], -1), (h, c))
            logits.append(self.linear(torch.cat([h, seen], -1)))
            looks.append(look)
            last = logits[-1].argmax(-1) if iso is None else iso[step]
        return torch.stack(logits), torch.stack(looks)


@torch.no_grad()
def translate(model: Translator, texts: list[str]) -> tuple[list[str], Tensor]:
    """ISO dates as the model writes them, and its attention [10, T, N]"""
    logits, looks = model(*encode(texts))
    return ["".join(OUTPUT[number] for number in row) for row in logits.argmax(-1).t().tolist()], looks


def train(model: Translator, days: list[date], args: argparse.Namespace, chance: random.Random) -> tuple[list, float]:
    """Cross-entropies of all steps, and dates per second"""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, total_steps=max(args.steps, 2), pct_start=0.1)
    losses, seconds = [], []
    with tqdm(total=args.steps, unit="step") as bar:
        for _ in range(args.steps):
            chosen, texts = some(days, args.batch, chance)
            iso = encode_iso(chosen)
            letters, lengths = encode(texts)
            start = time.perf_counter()
            logits, _ = model(letters, lengths, iso)
            loss = F.cross_entropy(logits.flatten(0, 1), iso.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            seconds.append(time.perf_counter() - start)
            losses.append(loss.item())
            bar.set_postfix_str(f"loss {losses[-1]:.4f}")
            bar.update()
    return losses, args.batch / statistics.median(seconds)


def test(model: Translator, days: list[date], chance: random.Random, each: int = 500) -> float:
    """Prints what part of the dates is right in every character, for each format; returns it for all."""
    right = {}
    print(f"\n{'held-out dates':20}{'exact':>8}   {'for instance':34}{'translation'}")
    for name, form in FORMATS.items():
        chosen = chance.sample(days, each)
        found, _ = translate(model, [form(day) for day in chosen])
        right[name] = statistics.mean(iso == day.isoformat() for iso, day in zip(found, chosen, strict=True))
        print(f"{name:20}{right[name]:>8.1%}   {form(chosen[0]):34}{found[0]}")
    return statistics.mean(right.values())


def draw(path: Path, text: str, iso: str, look: Tensor, losses: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 4.5), layout="constrained", gridspec_kw={"width_ratios": [3, 2]}
    )
    left.imshow(look.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    left.set_xticks(range(len(text)), text)
    left.set_yticks(range(len(iso)), iso)
    left.tick_params(length=0)
    left.set(
        xlabel="what is read", ylabel="what is written, top to bottom", title=f"Where the decoder looks: {text} → {iso}"
    )
    right.semilogy(range(1, len(losses) + 1), losses)
    right.set(xlabel="step", ylabel="cross-entropy a character", title="Training")
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    chance = random.Random(args.seed)
    training, held_out = split_dates(chance)
    torch.manual_seed(args.seed)
    model = Translator(args.embedding, args.hidden)
    print(f"{len(training):,} dates to train on, {len(held_out):,} held out, {len(FORMATS)} ways to write them")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {torch.get_num_threads()} threads")
    losses, rate = train(model, training, args, chance)
    exact = test(model, held_out, chance)
    print(f"\n{exact:.2%} of the held-out dates are exactly right; trained on {rate:,.0f} dates/s")
    for text in args.date:
        print(f"{text!r} is {translate(model, [text])[0][0]}")
    text = args.date[0] if args.date else FORMATS["weekday first"](chance.choice(held_out))
    (iso,), looks = translate(model, [text])
    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.out / "attention.png", text, iso, looks[:, :, 0], losses)
    print(f"Attention over {text!r}: {args.out / 'attention.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
