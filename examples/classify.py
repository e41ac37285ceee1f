"""Text classification with a recurrent network over packed sequences of any length.

By default: which package of Python's standard library are these lines from? No file of the library is on both sides
of the split. With --csv: the user's rows of label, title, text (the form in which AG News comes); a fifth is held out.

    python examples/classify.py
    python examples/classify.py --csv train.csv --cell gru --layers 2
"""

import argparse
import csv
import itertools
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from experiment import descend, describe, heat_map, label, one_cycle, options, picture, progress, start
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from fusedrnn import FusedGRU, FusedLSTM, FusedRNN

CELLS = {"lstm": FusedLSTM, "gru": FusedGRU, "rnn": FusedRNN}
PACKAGES = ("asyncio", "email", "encodings", "importlib", "multiprocessing", "xml")
WORD = r"[^\W\d_]+|\d|[^\w\s]"  # digits and punctuation one by one


def parse(argv: list[str] | None) -> argparse.Namespace:
    numbers = {"layers": (1, ""), "hidden": (64, "units in each direction"), "batch": (32, ""), "epochs": (6, "")}
    parser = options(__doc__, "runs/classify", **numbers, rate=(3e-3, "AdamW's learning rate at its peak"))
    parser.add_argument("--csv", type=Path, help="rows of label, title, text (default: pieces of the standard library)")
    parser.add_argument("--cell", choices=CELLS, default="lstm", help="(default: %(default)s)")
    return start(parser, argv)


def pieces(source: str) -> list[str]:
    """The text, cut at random into pieces of 20 lines on average; empty lines do not count."""
    lines = [line for line in source.splitlines() if line.strip()]
    cuts = sorted(random.sample(range(len(lines)), len(lines) // 20))
    return ["\n".join(lines[i:j]) for i, j in itertools.pairwise([0, *cuts, len(lines)]) if i < j]


def library() -> tuple[list[tuple], list[tuple]]:
    """Pieces to train on and to test on. A fifth of the files are for the test; the others are cut three times."""
    root, train, test = Path(os.__file__).parent, [], []
    for package in PACKAGES:
        files = sorted(path for path in (root / package).rglob("*.py") if "test" not in path.relative_to(root).parts)
        sources = [path.read_text(encoding="utf-8") for path in random.sample(files, min(len(files), 30))]
        split = -(-len(sources) // 5)
        test += [(package, piece) for source in sources[:split] for piece in pieces(source)]
        train += [(package, piece) for source in 3 * sources[split:] for piece in pieces(source)]
    return train, test


def read_csv(path: Path) -> tuple[list[tuple], list[tuple]]:
    """Rows of label, title, text or label, text. Quoted fields may hold commas, doubled quotes and ends of lines."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row and row[0].lower() not in ("label", "class index")]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        sys.exit(f"cannot read {path}: {error}")
    random.shuffle(rows)
    rows = [(row[0].strip(), " ".join(row[1:]).replace("\\", " ")) for row in rows]  # AG News: \ ends a line
    return rows[len(rows) // 5 + 1 :], rows[: len(rows) // 5 + 1]


def collate(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """texts [T, N], their lengths [N], unsorted, and labels [N]"""
    texts, labels = zip(*examples, strict=True)
    return pad_sequence(texts), torch.tensor([len(text) for text in texts]), torch.tensor(labels)


class Classifier(nn.Module):
    def __init__(self, args: argparse.Namespace, vocabulary: int, classes: int):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(vocabulary, args.hidden), nn.Dropout(0.3)
        nn.init.normal_(self.embedding.weight, std=0.1)  # torch's std of 1 overfits
        self.rnn = CELLS[args.cell](args.hidden, args.hidden, args.layers, bidirectional=True)
        self.linear = nn.Linear(2 * args.hidden, classes)

    def forward(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """texts [T, N], lengths [N] → logits [N, classes]"""
        if self.training:  # random words become unknown ones, lest names be learned by heart
            texts = texts.masked_fill(torch.rand(texts.shape) < self.dropout.p, 0)
        packed = pack_padded_sequence(self.dropout(self.embedding(texts)), lengths, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.rnn(packed)[0])  # zero in the padding
        return self.linear(self.dropout(y.sum(0) / lengths[:, None]))


@torch.no_grad()
def confusion(model: Classifier, test: DataLoader) -> Tensor:
    """[classes, classes] numbers of texts: row = the label, column = what the model says"""
    classes = model.linear.out_features
    counts = torch.zeros(classes**2)
    for texts, lengths, labels in test:
        counts += (labels * classes + model.eval()(texts, lengths).argmax(1)).bincount(minlength=classes**2)
    return counts.view(classes, classes)


def fit(model: Classifier, train: DataLoader, test: DataLoader, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Percentages of right answers in training and in the test, for every epoch"""
    optimizer, schedule = one_cycle(model, args.rate, args.epochs * len(train))
    accuracies = []
    for epoch in range(1, args.epochs + 1):
        right = 0
        for texts, lengths, labels in progress(train, "step", desc=f"epoch {epoch}"):
            logits = model.train()(texts, lengths)
            descend(F.cross_entropy(logits, labels), optimizer, schedule)
            right += int((logits.argmax(1) == labels).sum())
        counts = confusion(model, test)
        accuracies.append((100 * right / len(train.dataset), 100 * float(counts.trace() / counts.sum())))
        print("epoch {}: {:.1f}% right in training, {:.1f}% in the test".format(epoch, *accuracies[-1]))
    return accuracies


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    parts = read_csv(args.csv) if args.csv else library()
    classes = sorted({label for part in parts for label, _ in part})
    if len(classes) < 2:
        sys.exit(f"classify: there must be two different labels at least, got {classes} (--csv {args.csv})")
    parts = [[(re.findall(WORD, text.lower())[:200], label) for label, text in part] for part in parts]
    counts = Counter(word for text, _ in parts[0] for word in text)
    numbers = {word: number for number, word in enumerate((word for word in counts if counts[word] > 2), 1)}

    def encode(words: list[str], label: str) -> tuple[Tensor, int]:
        return torch.tensor([numbers.get(word, 0) for word in words] or [0]), classes.index(label)

    examples = ([encode(*example) for example in part] for part in parts)
    train, test = (DataLoader(part, args.batch, shuffle=True, collate_fn=collate) for part in examples)
    model = Classifier(args, len(numbers) + 1, len(classes))
    print(f"{len(parts[0]):,} texts to train on, {len(parts[1]):,} to test, of {', '.join(classes)}; {describe(model)}")
    accuracies, counts = fit(model, train, test, args), confusion(model, test)
    majority = 100 * float(counts.sum(1).max() / counts.sum())
    print(f"Test accuracy {accuracies[-1][1]:.1f}%; always saying the commonest class would reach {majority:.1f}%")
    with picture(args.out / "learning.png") as (left, right):
        left.plot(range(1, args.epochs + 1), accuracies, marker="o", label=["training", "test"])
        left.axhline(majority, color="gray", ls="--", label="always the commonest class")
        label(left, "Learning curve", "epoch", "accuracy, %")
        heat_map(right, counts / counts.sum(1, keepdim=True), "Test texts", ("predicted", classes), ("label", classes))


if __name__ == "__main__":
    main()
