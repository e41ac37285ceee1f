"""What the examples share: options, checkpoints, a training step, a progress bar and a picture of two panels."""

import argparse
import contextlib
import itertools
import os
import pickle
import random
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm


def count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def options(description: str, out: str, **numbers: tuple) -> argparse.ArgumentParser:
    """A parser with --seed, --out and these numbers, each given as (default, help): integers of at least 1, floats
    above 0."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, text) in numbers.items():
        kind = count if isinstance(default, int) else positive
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)".strip())
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(out), help="results go here (default: %(default)s)")
    return parser


def start(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options, and all random numbers seeded"""
    args = parser.parse_args(argv)
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    return args


def resumable(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple:
    """The options, and the checkpoint to continue from or None. A run never overwrites the checkpoint of another one.
    With --resume, the options saved in the checkpoint apply; asking for others is an error."""
    parser.add_argument("--resume", action="store_true", help="continue from --out, with its options and a new --steps")
    args = start(parser, argv)
    checkpoint = args.out / "checkpoint.pt"
    if args.resume:
        try:
            saved = torch.load(checkpoint)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            parser.error(f"--resume cannot read {checkpoint}: {error}")
        args = parser.parse_args(argv, argparse.Namespace(**saved["options"]))  # these replace the defaults
        torch.manual_seed(args.seed)
        for name, value in saved["options"].items():
            if getattr(args, name) != value:
                parser.error(f"--resume with --{name} {getattr(args, name)}, but {checkpoint} has {name} {value}")
        return args, saved
    if checkpoint.exists():
        others = (args.out.with_name(f"{args.out.name}-{n}") for n in itertools.count(2))
        args.out = next(path for path in others if not (path / "checkpoint.pt").exists())
        print(f"{checkpoint} exists and is kept; this run goes to {args.out} (--resume continues the old one)")
    return args, None


def save_checkpoint(path: Path, content: dict) -> None:
    """Writes beside the old checkpoint, then replaces it, so that there is a complete one at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def read_text(data: str) -> str:
    """A text file, all files of a folder, or, for "", of Python's standard library, in an order that never changes."""
    root = Path(data or os.__file__)
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    if not data:
        files = sorted(root.parent.glob("*.py"))
    random.Random(0).shuffle(files)  # otherwise the end of the text, which is held out, is all of one kind
    try:
        text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    except OSError as error:
        sys.exit(f"cannot read --data: {error}")
    return text if text.strip() else sys.exit(f"there is no text in {data}")


@contextlib.contextmanager
def interruptible() -> Iterator[list]:
    """A list that is no longer empty after the first Ctrl-C; the second one interrupts as usual."""
    interrupted = []
    previous = signal.signal(signal.SIGINT, lambda *_: interrupted.append(signal.signal(signal.SIGINT, previous)))
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def progress(steps: Iterable, unit: str, **more) -> tqdm:
    """A bar over the steps; `bar.set_postfix_str` shows the loss."""
    return tqdm(steps, unit=unit, dynamic_ncols=True, **more)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, schedule=None, norm: float = 1.0) -> float:
    """One step of the optimizer, with the gradient clipped to this norm, and of the schedule; the loss as a number."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)
    optimizer.step()
    if schedule:
        schedule.step()
    return loss.item()


def one_cycle(model: nn.Module, rate: float, steps: int) -> tuple:
    """AdamW, and a schedule that raises its rate for a tenth of the steps and lowers it for the others."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2), pct_start=0.1)


def describe(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,} parameters, {torch.get_num_threads()} threads"


@contextlib.contextmanager
def picture(path: Path) -> Iterator[tuple]:
    """Two panels side by side, saved at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    yield figure.subplots(1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"Picture: {path}")


def label(axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend()


def heat_map(axes, values: Tensor, title: str, x: tuple[str, Iterable[str]], y: tuple[str, Iterable[str]]) -> None:
    """values [y, x], from 0 to 1; x and y: the name of the axis, and of each place on it"""
    axes.imshow(values.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(values.shape[1]), x[1], rotation=0 if max(map(len, x[1])) == 1 else 20)
    axes.set_yticks(range(values.shape[0]), y[1])
    axes.set(title=title, xlabel=x[0], ylabel=y[0])
