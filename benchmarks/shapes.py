"""The shapes that are timed, each with a name and its source. Alphabet: T steps, N rows, I input, H hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SHORT = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Shape:
    cell: str  # LSTM, GRU, RNN (tanh), or the name of a cell module of torch.nn
    T: int
    N: int
    I: int
    H: int
    source: str  # where it comes from
    dtype: str = "float32"
    layers: int = 1
    directions: int = 1
    proj: int = 0
    form: str = "padded"  # how the batch comes and what is asked of it:
    #   packed    a PackedSequence with rows of 10 to T steps
    #   lengths   the same rows, padded: torch.nn packs, runs and pads, ours takes lengths=
    #   reset     episodes end inside the batch: torch.nn steps in a Python loop, ours takes reset=
    #   step      one step with a given state: a decoder, an actor, a stream
    quick: bool = False  # also in a --quick run
    loop: bool = False  # also against a Python loop over torch.nn's cell

    @property
    def name(self) -> str:
        parts = [self.cell, SHORT[self.dtype], f"{self.T}x{self.N}x{self.I}x{self.H}"]
        parts += [f"{self.layers}layers"] * (self.layers > 1) + ["bidirectional"] * (self.directions > 1)
        parts += [f"proj{self.proj}"] * (self.proj > 0) + [self.form] * (self.form != "padded")
        return "-".join(parts)

    @property
    def is_cell_module(self) -> bool:
        return self.cell.endswith("Cell")

    @property
    def gates(self) -> int:
        return GATES[self.cell.removesuffix("Cell")]

    @property
    def nears_peak(self) -> bool:
        """Large enough to be asked which share of the processor's peak it reaches."""
        return self.dtype == "float32" and self.source == "grid" and self.N >= 32 and self.H >= 512

    def lengths(self) -> torch.Tensor:
        """[N], evenly spread over 10 to T, in no order; all T where the form knows no lengths."""
        if self.form not in ("packed", "lengths"):
            return torch.full((self.N,), self.T)
        order = torch.randperm(self.N, generator=torch.Generator().manual_seed(0))
        return torch.linspace(10, self.T, self.N).round().long()[order]

    @property
    def rows(self) -> int:
        """R: those of all steps."""
        return int(self.lengths().sum())

    @property
    def recurrent_weights(self) -> int:
        """How many numbers every step of one direction of one layer is multiplied by."""
        return self.gates * self.H * (self.proj or self.H) + self.H * self.proj

    def flops(self, call: str) -> float:
        """Of the GEMMs, which is nearly all; backward has two for each one of forward."""
        inputs = [self.I] + [self.directions * (self.proj or self.H)] * (self.layers - 1)
        weights = sum(self.gates * self.H * I + self.recurrent_weights for I in inputs)
        return 2 * self.rows * self.directions * weights * (3 if call == "training" else 1)


CALLS = ("forward", "training")  # no gradient; forward and backward, with respect to input and parameters

GRID = [(1, 1, 128), (100, 1, 128), (100, 16, 128), (100, 64, 128), (100, 1, 512)]
GRID += [(100, 32, 512), (100, 64, 512), (50, 64, 1024), (1000, 1, 64)]
GRIDS = [("LSTM", "float32"), ("GRU", "float32"), ("RNN", "float32"), ("LSTM", "bfloat16"), ("GRU", "bfloat16")]


def _grid():
    for cell, dtype in GRIDS:
        for T, N, H in GRID:
            middle = (T, N, H) == (100, 16, 128)
            yield Shape(cell, T, N, H, H, "grid", dtype, quick=middle, loop=middle and dtype == "float32")


def _variants():
    """What torch.nn runs as a loop of small operations: too common to be slow."""
    for T, N, H in [(100, 16, 128), (100, 32, 256)]:
        for options in ({"form": "packed"}, {"directions": 2}, {"proj": H // 2}, {"layers": 2}):
            yield Shape("LSTM", T, N, H, H, "variant", **options, quick=H == 128)
    for dtype in ("float64", "float16"):
        yield Shape("LSTM", 100, 16, 128, 128, "variant", dtype)


def _one_step():
    for cell in ("LSTM", "GRU", "LSTMCell"):
        yield Shape(cell, 1, 1, 128, 128, "one step: a decoder or a stream", form="step", quick=True)


def _practice():
    ppo = "recurrent PPO: {} (the Atari agent of CleanRL, ppo_atari_lstm.py)"
    yield Shape("LSTM", 1, 8, 512, 128, ppo.format("8 environments act"), form="step")
    yield Shape("LSTM", 128, 2, 512, 128, ppo.format("one minibatch learns"), form="reset", quick=True)
    yield Shape("LSTM", 128, 16, 64, 64, "recurrent PPO: low-dimensional observations", form="reset", quick=True)
    yield Shape("LSTM", 200, 64, 128, 128, "sentences of 10 to 200 steps", form="lengths", quick=True)
    yield Shape("LSTM", 96, 32, 64, 256, "character model: the defaults of examples/char_lm.py", layers=2)
    yield Shape("GRU", 50, 50, 128, 128, "character model: the sizes of Karpathy's char-rnn", layers=2)
    yield Shape("LSTM", 192, 64, 40, 40, "forecasting: DeepAR on electricity (Salinas et al. 2017)", layers=3)
    yield Shape("GRU", 2000, 4, 16, 64, "forecasting: a long record from few sensors")
    yield Shape("LSTM", 250, 16, 80, 320, "speech: an acoustic model, 10 s of log-mel at 25 Hz", layers=2, directions=2)
    transducer = "speech: an RNN transducer's encoder layer, streaming (He et al. 2018)"
    yield Shape("LSTM", 25, 1, 640, 2048, transducer, proj=640)


SHAPES = [*_grid(), *_variants(), *_one_step(), *_practice()]
