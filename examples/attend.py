"""An attention decoder on FusedLSTMCell: dates as people write them, translated to ISO 8601.

A bidirectional FusedGRU reads "Friday, 3rd July 1998" letter by letter. For each character of 1998-07-03, the decoder
looks at the letters that matter now and takes one step of its cell: the core of Show, Attend and Tell (Xu et al.,
2015), with the additive attention of Bahdanau et al. (2015). A fifth of all dates is held out.

    python examples/attend.py
    python examples/attend.py --date "the 3rd of July 98" --date "Jul 3 1998"
"""

import argparse
import random
import statistics
from datetime import date, timedelta

import torch
import torch.nn.functional as F
from experiment import descend, describe, heat_map, label, one_cycle, options, picture, progress, start
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fusedrnn import FusedGRU, FusedLSTMCell

DAYS = [date(1969, 1, 1) + timedelta(days=n) for n in range(36525)]  # the century that two digits mean (POSIX)
LETTERS = "".join(map(chr, range(32, 127)))  # printable ASCII; 0 is padding
OUTPUT = "0123456789-"  # and one more number, which starts the decoder


def ordinal(day: int) -> str:
    return f"{day}{'th' if 10 < day < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


FORMATS = {
    "day month year": lambda d: f"{d.day} {d:%B %Y}",
    "ordinal of month": lambda d: f"the {ordinal(d.day)} of {d:%B %Y}",
    "month ordinal 'yy": lambda d: f"{d:%B} {ordinal(d.day)} '{d:%y}",
    "weekday first": lambda d: f"{d:%A}, {ordinal(d.day)} {d:%B %Y}",
    "d.m.yyyy": lambda d: f"{d.day}.{d.month}.{d.year}",
    "mm/dd/yy": lambda d: f"{d:%m/%d/%y}",
    "yyyymmdd": lambda d: f"{d:%Y%m%d}",
}


def printable(text: str) -> str:
    if not text or not set(text) <= set(LETTERS):
        raise argparse.ArgumentTypeError(f"must consist of printable ASCII characters, got {text!r}")
    return text


def parse(argv: list[str] | None) -> argparse.Namespace:
    numbers = {"steps": (500, "training steps"), "batch": (128, "dates a step"), "embedding": (32, "")}
    numbers |= {"hidden": (96, "units of the decoder"), "rate": (5e-3, "AdamW's learning rate at its peak")}
    parser = options(__doc__, "runs/attend", **numbers)
    parser.add_argument("--date", type=printable, action="append", default=[], help="translate this after training")
    return start(parser, argv)


def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
    """texts [T, N] and their lengths [N]"""
    numbers = [torch.tensor([LETTERS.index(letter) + 1 for letter in text]) for text in texts]
    return pad_sequence(numbers), torch.tensor([len(text) for text in texts])


def encode_iso(days: list[date]) -> Tensor:  # [10, N]
    return torch.tensor([[OUTPUT.index(character) for character in day.isoformat()] for day in days]).t()


class Translator(nn.Module):
    def __init__(self, embedding: int, hidden: int):
        super().__init__()
        self.letters, self.written = nn.Embedding(len(LETTERS) + 1, embedding), nn.Embedding(len(OUTPUT) + 1, embedding)
        self.encoder = FusedGRU(embedding, hidden, bidirectional=True)
        self.keys, self.query = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.first_state = nn.Linear(2 * hidden, 2 * hidden)
        self.cell = FusedLSTMCell(embedding + 2 * hidden, hidden)
        self.linear = nn.Linear(3 * hidden, len(OUTPUT))

    def forward(self, texts: Tensor, lengths: Tensor, iso: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """texts [T, N], lengths [N] → logits [10, N, 11] and the attention [10, T, N] that each was made with.

        The decoder reads the correct previous character (iso [10, N]) or, without it, the one that it wrote.
        """
        encoded, _ = self.encoder(self.letters(texts), lengths=lengths)  # [T, N, 2H]
        keys = self.keys(encoded)
        padding = torch.arange(len(texts))[:, None] >= lengths
        h, c = torch.tanh(self.first_state(encoded.sum(0) / lengths[:, None])).chunk(2, dim=-1)
        last = torch.full_like(lengths, len(OUTPUT))
        logits, attention = [], []
        for step in range(len("yyyy-mm-dd")):
            scores = self.score(torch.tanh(keys + self.query(h))).squeeze(-1)
            attention.append(scores.masked_fill(padding, -torch.inf).softmax(0))  # [T, N]
            context = torch.einsum("tn,tnj->nj", attention[-1], encoded)
            h, c = self.cell(torch.cat([self.written(last), context], -1), (h, c))
            logits.append(self.linear(torch.cat([h, context], -1)))
            last = logits[-1].argmax(-1) if iso is None else iso[step]
        return torch.stack(logits), torch.stack(attention)


@torch.no_grad()
def translate(model: Translator, texts: list[str]) -> tuple[list[str], Tensor]:
    """ISO dates as the model writes them, and its attention [10, T, N]"""
    logits, attention = model(*encode(texts))
    return ["".join(OUTPUT[number] for number in row) for row in logits.argmax(-1).t().tolist()], attention


def test(model: Translator, days: list[date]) -> None:
    """Prints, for each format, the fraction of 500 dates that is right in every character."""
    right = {}
    print(f"\n{'held-out dates':20}{'exact':>8}   {'for instance':34}{'translation'}")
    for name, form in FORMATS.items():
        chosen = random.sample(days, 500)
        written, _ = translate(model, [form(day) for day in chosen])
        right[name] = statistics.mean(iso == day.isoformat() for iso, day in zip(written, chosen, strict=True))
        print(f"{name:20}{right[name]:>8.1%}   {form(chosen[0]):34}{written[0]}")
    print(f"\n{statistics.mean(right.values()):.2%} of the held-out dates are exactly right")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    days = random.sample(DAYS, len(DAYS))
    training, held_out = days[len(DAYS) // 5 :], days[: len(DAYS) // 5]
    model, losses = Translator(args.embedding, args.hidden), []
    print(f"{len(training):,} dates to train on, {len(held_out):,} held out; {describe(model)}")
    optimizer, schedule = one_cycle(model, args.rate, args.steps)
    for _ in (bar := progress(range(args.steps), "step")):
        chosen, formats = (random.choices(pool, k=args.batch) for pool in (training, list(FORMATS.values())))
        iso = encode_iso(chosen)
        logits, _ = model(*encode([form(day) for form, day in zip(formats, chosen, strict=True)]), iso)
        losses.append(descend(F.cross_entropy(logits.flatten(0, 1), iso.flatten()), optimizer, schedule))
        bar.set_postfix_str(f"loss {losses[-1]:.4f}")
    test(model, held_out)
    texts = args.date or [FORMATS["weekday first"](random.choice(held_out))]
    for text in texts:
        print(f"{text!r} is {translate(model, [text])[0][0]}")
    with picture(args.out / "attention.png") as (left, right):
        (iso,), attention = translate(model, texts[:1])
        heat_map(left, attention[:, :, 0], "Attention of the decoder", ("read", texts[0]), ("written", iso))
        right.semilogy(losses, label="training")
        label(right, "Training", "step", "cross-entropy per character")


if __name__ == "__main__":
    main()
