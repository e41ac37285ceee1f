"""What FusedLSTM, FusedGRU and FusedRNN share: the options and the call."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar, overload

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import stack, twin
from .batch import Batch, fits, make_batch, take_lengths, take_reset, take_reset_state
from .noise import Noise
from .scan import has_kernels, torch_serves

T = TypeVar("T")
State = TypeVar("State")  # h, or (h, c)
Steps = TypeVar("Steps")  # c after every step, or None where there is no c
PackedSteps = TypeVar("PackedSteps")  # the same for a packed input


def self_contained(cls: type[T]) -> type[T]:
    """Puts what cls inherits from Recurrent into its own dict, which some clients copy, as they can that of nn.LSTM."""
    for name, item in vars(Recurrent).items():
        if not name.startswith("__") and name not in vars(cls):
            setattr(cls, name, item)
    return cls


class Recurrent(nn.RNNBase, Generic[State, Steps, PackedSteps]):
    """What the three modules share. Arguments that do not fit go to ``torch_class``, which says why.

    No super(): the methods serve classes that do not derive from this one, see :func:`self_contained`.
    """

    torch_class: type[nn.RNNBase]

    # What torch.nn does not have. The defaults stand on the class: a converted module has no attributes of that name.
    # (0, not 0.0: the compiler takes a float on a class for an input of the graph.)
    recurrent_dropout: float = 0
    zoneout_h: float = 0
    zoneout_c: float = 0
    weight_drop: float = 0
    forget_bias: float | None = None
    recompute: bool = False

    def __init__(self, mode: str, *arguments: Any, **options: Any) -> None:
        for name, value in options.items():
            _check_option(name, value)
            if value != getattr(self, name):
                setattr(self, name, value)
        nn.RNNBase.__init__(self, mode, *arguments)

    def extra_repr(self) -> str:
        own = {name: getattr(self, name) for name in (*twin.REGULARISERS, "forget_bias", "recompute")}
        return nn.RNNBase.extra_repr(self) + "".join(f", {name}={value}" for name, value in own.items() if value)

    def flatten_parameters(self) -> None:
        """Does nothing where there are kernels: the weights are taken as they are, anew in every call."""
        if not all(has_kernels(p) for p in self.parameters(recurse=False)):
            nn.RNNBase.flatten_parameters(self)

    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: State | None = None,
        return_state_sequence: Literal[False] = False,
    ) -> tuple[Tensor, State]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: State | None = None,
        *,
        reset: Tensor | PackedSequence | None = None,
        reset_state: State | None = None,
        return_state_sequence: Literal[False] = False,
    ) -> tuple[PackedSequence, State]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: State | None = None,
        return_state_sequence: Literal[True],
    ) -> tuple[Tensor, State, Steps]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: State | None = None,
        *,
        reset: Tensor | PackedSequence | None = None,
        reset_state: State | None = None,
        return_state_sequence: Literal[True],
    ) -> tuple[PackedSequence, State, PackedSteps]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: State | None = None,
        return_state_sequence: Literal["all"],
    ) -> tuple[Tensor, State, list[tuple[Tensor, Steps]]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: State | None = None,
        *,
        reset: Tensor | PackedSequence | None = None,
        reset_state: State | None = None,
        return_state_sequence: Literal["all"],
    ) -> tuple[PackedSequence, State, list[tuple[PackedSequence, PackedSteps]]]: ...

    # No bare * before the options: the older exporter of torch.onnx passes defaults by place.
    def forward(self, input, hx=None, lengths=None, reset=None, reset_state=None, return_state_sequence=False):
        batch = make_batch(input, self.batch_first)
        plain = lengths is None and reset is None and reset_state is None and not return_state_sequence
        regularised = self.recurrent_dropout or self.zoneout_h or self.zoneout_c or self.weight_drop
        if plain and batch is not None and torch_serves(batch.x) and batch.nested is None and not regularised:
            return self.torch_class.forward(self, input, hx)
        parameters = self._parameters  # fast path: nn.Module's getattr takes four times as long
        weights = [parameters[name] if name in parameters else getattr(self, name) for name in self._flat_weights_names]
        initial = None if batch is None else self._states(hx, batch, weights[0])
        if initial is None:
            return self._ask_torch(
                input, hx, batch, lengths=lengths, reset=reset, reset_state=reset_state,
                return_state_sequence=return_state_sequence,
            )  # fmt: skip
        layers = self.num_layers
        dropout = self.dropout if self.training and layers > 1 else 0.0  # a graph takes what is read for an input
        plain_input = batch.batch_sizes is None
        options = stack.PLAIN if plain_input and not dropout else stack.Options(dropout, batch.batch_sizes)
        if not plain or batch.nested is not None:
            options = self._options(options, batch, initial, lengths, reset, reset_state, return_state_sequence)
        if regularised:
            zoneout = (self.zoneout_h, self.zoneout_c)[: len(initial)]
            noise = Noise(self.recurrent_dropout, zoneout, self.weight_drop, self.training)
            options = options._replace(noise=noise)
        if self.recompute:
            options = options._replace(recompute=True)
        kinds = stack.KINDS[self.bias, self.proj_size > 0]
        y, last, sequences = stack.run(self.mode, batch.x, initial, weights, kinds, layers, options)
        output, state = batch.give_sequence(y), batch.give_state(last[0])
        if len(last) > 1:
            state = state, batch.give_state(last[1])
        if not return_state_sequence:
            return output, state
        sequences = [tuple(map(batch.give_sequence, (*steps, None)[:2])) for steps in sequences]
        return output, state, sequences if return_state_sequence == "all" else sequences[-1][1]

    def _options(self, options, batch: Batch, initial, lengths, reset, reset_state, return_state_sequence):
        """With what the call asks for beyond torch.nn."""
        lengths = batch.lengths if lengths is None else take_lengths(lengths, batch)
        reset_states = ()
        if reset_state is not None:
            if reset is None:
                raise ValueError("reset_state is given without reset, which says where it is to be taken")
            names = "a tensor" if len(initial) == 1 else "a pair (h, c)"
            reset_states = take_reset_state(reset_state, batch, initial, names)
        if reset is not None:
            reset = take_reset(reset, batch)
        if return_state_sequence not in (False, True, "all"):
            raise ValueError(f"return_state_sequence must be False, True or 'all', got {return_state_sequence!r}")
        sequences = self.num_layers if return_state_sequence == "all" else int(return_state_sequence)
        return options._replace(lengths=lengths, reset=reset, reset_states=reset_states, sequences=sequences)

    def _states(self, hx, batch: Batch, w) -> list[Tensor] | None:
        """The initial states in the order of the batch; None where arguments and parameters do not fit each other."""
        x, lstm = batch.x, self.mode == "LSTM"
        layers, hidden = self.num_layers * (2 if self.bidirectional else 1), self.hidden_size
        projected = self.proj_size or hidden
        if x.shape[-1] != self.input_size or not fits(x, x.shape, w):
            return None
        if hx is None:
            h0 = x.new_zeros(layers, batch.rows, projected)
            if not lstm:
                return [h0]
            return [h0, h0 if projected == hidden else x.new_zeros(layers, batch.rows, hidden)]
        size = (layers, batch.rows) if batch.batched else (layers,)
        if not lstm:
            return [batch.take_state(hx)] if fits(hx, (*size, projected), w) else None
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            return None
        h0, c0 = hx
        fit = fits(h0, (*size, projected), w) and fits(c0, (*size, hidden), w)
        return [batch.take_state(h0), batch.take_state(c0)] if fit else None

    def _ask_torch(self, input, hx, batch: Batch | None, **options):
        """What torch.nn makes of arguments that do not fit: nearly always an error, with its message."""
        given = {name: value for name, value in options.items() if value is not None and value is not False}
        leaf = twin.leaf(self, input, hx, given)
        if leaf is not None:
            return leaf
        nested = batch is not None and batch.nested is not None
        if nested:  # torch.nn would not get as far as to what does not fit
            input = batch.x.transpose(0, 1) if self.batch_first else batch.x
        result = self.torch_class.forward(self, input, hx)
        if given or nested or twin.rates(self):
            raise ValueError(
                "lengths, reset, state sequences, nested input and regularised cells need input, hx and parameters of "
                "one dtype and device"
            )
        return result


def _check_option(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "recompute":
        good, wanted = isinstance(value, bool), "True or False"
    elif name == "forget_bias":
        good, wanted = number or value is None, "a number or None"
    else:
        good, wanted = number and 0 <= value <= 1, "a probability in range [0, 1]"
    if not good:
        raise ValueError(f"{name} should be {wanted}, got {value!r}")
