"""The shapes that are timed, each with a name and its source. T steps, N rows, I inputs, H hidden units."""

import itertools
from dataclasses import dataclass

import torch

SHORT = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}
CALLS = {"forward": "forward", "training": "forward+backward"}  # without gradients; for the input and all parameters


@dataclass(frozen=True)
class Shape:
    cell: str  # LSTM, GRU, RNN (tanh), or the name of a cell module of torch.nn
    T: int
    N: int
    I: int
    H: int
    source: str  # what the shape is taken from
    dtype: str = "float32"
    layers: int = 1
    directions: int = 1
    proj: int = 0
    form: str = "padded"  # how the batch is passed:
    #   packed    a PackedSequence with rows of 10 to T steps
    #   lengths   the same rows, padded: lengths= here; torch.nn packs, runs and pads
    #   reset     episodes end inside the batch: reset= here; a Python loop over the steps with torch.nn
    #   step      one step with a given state: a decoder, an actor, a stream
    quick: bool = False  # part of a --quick run
    loop: bool = False  # also timed against a Python loop over the steps

    @property
    def name(self) -> str:
        parts = [self.cell, SHORT[self.dtype], f"{self.T}x{self.N}x{self.I}x{self.H}"]
        parts += [f"{self.layers}layers"] * (self.layers > 1) + ["bidirectional"] * (self.directions > 1)
        parts += [f"proj{self.proj}"] * (self.proj > 0) + [self.form] * (self.form != "padded")
        return "-".join(parts)

    @property
    def calls(self) -> tuple[str, ...]:
        return {"step": ("forward",), "reset": ("training",), "lengths": ("training",)}.get(self.form, tuple(CALLS))

    @property
    def is_cell_module(self) -> bool:
        return self.cell.endswith("Cell")

    def lengths(self) -> torch.Tensor:
        """[N], evenly spaced from 10 to T in random order; all T unless the form has lengths."""
        if self.form not in ("packed", "lengths"):
            return torch.full((self.N,), self.T)
        order = torch.randperm(self.N, generator=torch.Generator().manual_seed(0))
        return torch.linspace(10, self.T, self.N).round().long()[order]

    @property
    def gates(self) -> int:
        return {"LSTM": 4, "GRU": 3, "RNN": 1}[self.cell.removesuffix("Cell")]

    @property
    def recurrent_weights(self) -> int:
        """Weights that each step of one direction of one layer multiplies by."""
        return self.gates * self.H * (self.proj or self.H) + self.H * self.proj

    def flops(self, call: str) -> float:
        """Operations of the matrix products; backward has two for each one of forward."""
        inputs = [self.I] + [self.directions * (self.proj or self.H)] * (self.layers - 1)
        weights = sum(self.gates * self.H * I + self.recurrent_weights for I in inputs)
        return 2 * int(self.lengths().sum()) * self.directions * weights * (3 if call == "training" else 1)


GRID = [(1, 1, 128), (100, 1, 128), (100, 16, 128), (100, 64, 128), (100, 1, 512)]
GRID += [(100, 32, 512), (100, 64, 512), (50, 64, 1024), (1000, 1, 64)]
GRIDS = [("LSTM", "float32"), ("GRU", "float32"), ("RNN", "float32"), ("LSTM", "bfloat16"), ("GRU", "bfloat16")]


def _cpu():
    for cell, dtype in GRIDS:
        for T, N, H in GRID:
            middle = (T, N, H) == (100, 16, 128)
            yield Shape(cell, T, N, H, H, "grid", dtype, quick=middle, loop=middle and dtype == "float32")
    for T, N, H in [(100, 16, 128), (100, 32, 256)]:
        for options in ({"form": "packed"}, {"directions": 2}, {"proj": H // 2}, {"layers": 2}):
            yield Shape("LSTM", T, N, H, H, "variant", **options, quick=H == 128)
    for dtype in ("float64", "float16"):
        yield Shape("LSTM", 100, 16, 128, 128, "variant", dtype)
    for cell in ("LSTM", "GRU", "LSTMCell"):
        yield Shape(cell, 1, 1, 128, 128, "one step: a decoder or a stream", form="step", quick=True)
    yield Shape("LSTM", 1, 8, 512, 128, "recurrent PPO: CleanRL's Atari agent in 8 environments", form="step")
    yield Shape(
        "LSTM", 128, 2, 512, 128, "recurrent PPO: a minibatch of CleanRL's Atari agent", form="reset", quick=True
    )
    yield Shape("LSTM", 128, 16, 64, 64, "recurrent PPO: low-dimensional observations", form="reset", quick=True)
    yield Shape("LSTM", 200, 64, 128, 128, "sentences of 10 to 200 steps", form="lengths", quick=True)
    yield Shape("LSTM", 96, 32, 64, 256, "character model", layers=2)
    yield Shape("GRU", 50, 50, 128, 128, "character model: the sizes of Karpathy's char-rnn", layers=2)
    yield Shape("LSTM", 192, 64, 40, 40, "forecasting: DeepAR on electricity (Salinas et al. 2017)", layers=3)
    yield Shape("GRU", 2000, 4, 16, 64, "forecasting: a long record from few sensors")
    yield Shape("LSTM", 250, 16, 80, 320, "speech: an acoustic model, 10 s of log-mel at 25 Hz", layers=2, directions=2)
    yield Shape("LSTM", 25, 1, 640, 2048, "speech: an RNN transducer's encoder layer (He et al. 2018)", proj=640)


def _gpu():
    for cell, dtype in itertools.product(("LSTM", "GRU"), ("bfloat16", "float16", "float32")):
        for N, H in itertools.product((1, 8, 32, 128), (128, 256, 512, 1024)):
            yield Shape(cell, 512, N, H, H, "grid", dtype, quick=(N, H) == (32, 512))
        for options in ({"layers": 2}, {"directions": 2}, {"form": "packed"}, {"form": "lengths"}):
            yield Shape(cell, 512, 64, 256, 256, "variant", dtype, **options)
        for N, H in ((16, 64), (8, 128), (64, 256)):
            yield Shape(cell, 512, N, H, H, "recurrent PPO", dtype, form="reset", quick=H == 128)
        yield Shape(cell, 1, 1, 128, 128, "one step: a decoder or a stream", dtype, form="step")


SHAPES = {"cpu": list(_cpu()), "cuda": list(_gpu())}
