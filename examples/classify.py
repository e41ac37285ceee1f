"""Text classification with a recurrent network over packed sequences of any length.

By default: which package of Python's standard library are these lines from? No file of the library is on both sides
of a split. With --csv: the user's rows of label, title, text (the form in which AG News comes).

    python examples/classify.py
    python examples/classify.py --cell gru --layers 2 --one-direction
    python examples/classify.py --csv train.csv --test-csv test.csv --epochs 3
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from tqdm import tqdm

from fusedrnn import FusedGRU, FusedLSTM, FusedRNN

CELLS = {"lstm": FusedLSTM, "gru": FusedGRU, "rnn": FusedRNN}
PACKAGES = ("asyncio", "email", "encodings", "importlib", "multiprocessing", "xml")
MOST = 500_000  # characters of a package
CUTS = 3  # times that each source is cut, at other places, to train on
HEADERS = ("label", "class", "class index", "category", "topic")
Example = tuple[str, str]  # label, text


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--csv", type=Path, help="rows of label, title, text to train on (default: pieces of the standard library)")
    add("--test-csv", type=Path, help="rows to test on (default: a tenth of --csv)")
    add("--cell", choices=CELLS, default="lstm", help="(default: %(default)s)")
    add("--layers", type=int, default=1, help="(default: %(default)s)")
    add("--one-direction", action="store_true", help="read forwards only (default: in both directions)")
    add("--embedding", type=int, default=64, help="(default: %(default)s)")
    add("--hidden", type=int, default=64, help="in each direction (default: %(default)s)")
    add("--dropout", type=float, default=0.3, help="(default: %(default)s)")
    add("--vocabulary", type=int, default=20000, help="at most so many different words (default: %(default)s)")
    add("--length", type=int, default=200, help="of each text, the first so many words (default: %(default)s)")
    add("--epochs", type=int, default=6, help="(default: %(default)s)")
    add("--batch", type=int, default=32, help="(default: %(default)s)")
    add("--rate", type=float, default=3e-3, help="AdamW's learning rate at its peak (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--out", type=Path, default=Path("runs/classify"), help="the picture goes here (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in ("layers", "embedding", "hidden", "vocabulary", "length", "epochs", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not 0 <= args.dropout < 1:
        parser.error(f"--dropout must be from 0 to below 1, got {args.dropout}")
    if not args.rate > 0:
        parser.error(f"--rate must be above 0, got {args.rate}")
    if args.test_csv and not args.csv:
        parser.error("--test-csv needs --csv")
    return args


def pieces(source: str, chance: random.Random) -> Iterator[str]:
    """The text, cut into pieces of 5 to 40 lines; empty ones do not count."""
    lines = [line for line in source.splitlines() if line.strip()]
    while lines:
        count = chance.randint(5, 40)
        yield "\n".join(lines[:count])
        lines = lines[count:]


def library(chance: random.Random) -> tuple[list[Example], list[Example], list[Example]]:
    """train, validation, test: of each package, whole files that make up 15 % of its text test, 15 % validate."""
    root, parts = Path(os.__file__).parent, ([], [], [])
    for package in PACKAGES:
        files = sorted(path for path in (root / package).rglob("*.py") if "test" not in path.relative_to(root).parts)
        chance.shuffle(files)
        sources = [path.read_text(encoding="utf-8") for path in files]
        while sum(map(len, sources)) > MOST:
            sources.pop()
        enough = 0.15 * sum(map(len, sources))
        for part in (2, 1):
            size = 0
            while sources and size < enough:
                source = sources.pop()
                size += len(source)
                parts[part].extend((package, piece) for piece in pieces(source, chance))
        for source in sources * CUTS:
            parts[0].extend((package, piece) for piece in pieces(source, chance))
    if not all(parts):
        sys.exit(f"classify: the sources of the standard library are not in {root}; give --csv")
    return parts


def read_csv(path: Path) -> list[Example]:
    """Rows of label, title, text or label, text. Quoted fields may hold commas, doubled quotes and ends of lines."""
    examples = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if len(row) == 1:
                    sys.exit(
                        f"classify: {path}, line {reader.line_num}: wanted label, title, text, got only {row[0]!r}"
                    )
                if row and not (reader.line_num == 1 and row[0].strip().lower() in HEADERS):
                    examples.append((row[0].strip(), " ".join(row[1:]).replace("\\", " ")))  # AG News: \ ends a line
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        sys.exit(f"classify: cannot read {path}: {error}")
    if not examples:
        sys.exit(f"classify: there are no rows in {path}")
    return examples


def user_data(args: argparse.Namespace, chance: random.Random) -> tuple[list[Example], list[Example], list[Example]]:
    train = read_csv(args.csv)
    chance.shuffle(train)
    tenth = max(1, len(train) // 10)
    test = read_csv(args.test_csv) if args.test_csv else [train.pop() for _ in range(min(tenth, len(train)))]
    validation = [train.pop() for _ in range(min(tenth, len(train)))]
    labels = {label for label, _ in train}
    if len(labels) < 2:
        sys.exit(f"classify: there must be two different labels to learn, {args.csv} has {len(labels)}")
    for label, text in validation + test:
        if label not in labels:
            sys.exit(f"classify: nothing to train on has the label {label!r} of {text[:40]!r}")
    return train, validation, test


def words(text: str) -> list[str]:
    """Words without case, underscores between them; digits and signs one by one."""
    return re.findall(r"[^\W\d_]+|\d|[^\w\s]", text.lower())


class Data:
    """Examples as numbers, 0 for a word that is not in the vocabulary."""

    def __init__(self, examples: list[Example], classes: list[str], vocabulary: dict[str, int], length: int):
        self.labels = torch.tensor([classes.index(label) for label, _ in examples])
        self.texts = [
            torch.tensor([vocabulary.get(word, 0) for word in words(text)[:length]] or [0]) for _, text in examples
        ]

    def batches(self, size: int, shuffle: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """texts [T, N], their lengths [N], unsorted, and labels [N]"""
        order = torch.randperm(len(self.texts)) if shuffle else torch.arange(len(self.texts))
        for rows in order.split(size):
            texts = [self.texts[n] for n in rows]
            yield pad_sequence(texts), torch.tensor([len(text) for text in texts]), self.labels[rows]


class Classifier(nn.Module):
    def __init__(self, args: argparse.Namespace, vocabulary: int, classes: int):
        super().__init__()
        both = not args.one_direction
        self.embedding = nn.Embedding(vocabulary, args.embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)  # with std=1, five points of test accuracy less
        between = args.dropout if args.layers > 1 else 0.0
        self.rnn = CELLS[args.cell](args.embedding, args.hidden, args.layers, bidirectional=both, dropout=between)
        self.dropout = nn.Dropout(args.dropout)
        self.linear = nn.Linear(args.hidden * (2 if both else 1), classes)

    def forward(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """texts [T, N], lengths [N] → logits [N, classes]"""
        if self.training:  # a word here and there is unknown, or names would be learned by heart
            texts = texts.masked_fill(torch.rand(texts.shape) < self.dropout.p, 0)
        x = self.dropout(self.embedding(texts))
        y, _ = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
        y, _ = pad_packed_sequence(y)  # zero behind the ends
        return self.linear(self.dropout(y.sum(0) / lengths[:, None]))


@torch.no_grad()
def confusion(model: Classifier, data: Data, classes: int, batch: int) -> Tensor:
    """[classes, classes] counts: row = the label, column = what the model says"""
    model.eval()
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for texts, lengths, labels in data.batches(batch, shuffle=False):
        counts += (labels * classes + model(texts, lengths).argmax(1)).bincount(minlength=classes**2).view_as(counts)
    return counts


def accuracy(counts: Tensor) -> float:
    return (counts.trace() / counts.sum()).item()


def fit(model: Classifier, train: Data, validation: Data, classes: int, args: argparse.Namespace) -> list[dict]:
    """Leaves the model as it was after the epoch that was best on the validation texts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate)
    steps = args.epochs * -(-len(train.texts) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, total_steps=max(steps, 2), pct_start=0.1)
    epochs, best = [], None
    with tqdm(total=steps, unit="step") as bar:
        for epoch in range(1, args.epochs + 1):
            model.train()
            start, seen, total, right = time.perf_counter(), 0, 0.0, 0
            for texts, lengths, labels in train.batches(args.batch, shuffle=True):
                logits = model(texts, lengths)
                loss = F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                seen += int(lengths.sum())
                total += loss.item() * len(labels)
                right += int((logits.argmax(1) == labels).sum())
                bar.update()
            rate = seen / (time.perf_counter() - start)
            found = {"loss": total / len(train.texts), "train": right / len(train.texts), "rate": rate}
            found["validation"] = accuracy(confusion(model, validation, classes, args.batch))
            if not epochs or found["validation"] > max(e["validation"] for e in epochs):
                best = copy.deepcopy(model.state_dict())
            epochs.append(found)
            bar.write(
                f"epoch {epoch:2}: loss {found['loss']:.3f}, accuracy {found['train']:.1%} in training, "
                f"{found['validation']:.1%} in validation, {rate:,.0f} words/s"
            )
    model.load_state_dict(best)
    return epochs


def show(counts: Tensor, classes: list[str]) -> None:
    """The confusion matrix with each class's recall and precision."""
    width = max(10, *(len(name) + 2 for name in classes))
    print("\nRows: where it is from. Columns: what the network says.")
    print(" " * width + "".join(f"{name:>{width}}" for name in classes) + f"{'recall':>{width}}")
    for name, row, own in zip(classes, counts.tolist(), counts.diag().tolist(), strict=True):
        print(f"{name:{width}}" + "".join(f"{n:>{width}}" for n in row) + f"{own / max(sum(row), 1):>{width}.1%}")
    precision = counts.diag() / counts.sum(0).clamp(min=1)
    print(f"{'precision':{width}}" + "".join(f"{p:>{width}.1%}" for p in precision.tolist()))


def draw(path: Path, epochs: list[dict], counts: Tensor, classes: list[str], majority: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in ("train", "validation"):
        left.plot(range(1, len(epochs) + 1), [100 * epoch[name] for epoch in epochs], marker="o", ms=4, label=name)
    left.axhline(100 * majority, color="gray", ls="--", label="always the commonest class")
    left.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 101), title="Learning curve")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    left.legend()
    share = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    right.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    for row, column in torch.cartesian_prod(*2 * [torch.arange(len(classes))]).tolist() if len(classes) <= 12 else []:
        value = share[row, column].item()
        right.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if value > 50 else "black")
    right.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    right.set_yticks(range(len(classes)), classes)
    right.set(
        xlabel="what the network says",
        ylabel="label",
        title=f"Test texts, % of each label: {accuracy(counts):.1%} right",
    )
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    chance = random.Random(args.seed)
    parts = user_data(args, chance) if args.csv else library(chance)
    classes = sorted({label for label, _ in parts[0]})
    counts = Counter(word for _, text in parts[0] for word in words(text)[: args.length])
    known = [word for word, count in counts.most_common(args.vocabulary) if count > 2]
    vocabulary = {word: number for number, word in enumerate(known, 1)}
    train, validation, test = (Data(part, classes, vocabulary, args.length) for part in parts)

    torch.manual_seed(args.seed)
    model = Classifier(args, len(vocabulary) + 1, len(classes))
    print(f"{len(classes)} classes: {', '.join(classes[:12])}{', ...' if len(classes) > 12 else ''}")
    print(f"{len(parts[0]):,} texts to train on, {len(parts[1]):,} to validate, {len(parts[2]):,} to test")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {torch.get_num_threads()} threads\n{model.rnn}")
    epochs = fit(model, train, validation, len(classes), args)

    counts = confusion(model, test, len(classes), args.batch)
    commonest = train.labels.bincount(minlength=len(classes)).argmax()
    majority = (test.labels == commonest).double().mean().item()
    show(counts, classes)
    print(f"\nTest accuracy {accuracy(counts):.1%}; always saying {classes[commonest]!r} would reach {majority:.1%}")
    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.out / "learning.png", epochs, counts, classes, majority)
    print(f"Learning curve: {args.out / 'learning.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
