"""The options and the call that FusedLSTM, FusedGRU and FusedRNN share."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from . import stack, twin
from .batch import Batch, CallOptions, fits, make_batch
from .choice import Call, Layers, cudnn_serves, has_kernels, torch_serves
from .noise import Noise, check_option

T = TypeVar("T")
State = TypeVar("State")  # h, or (h, c)
Steps = TypeVar("Steps")  # c after every step, or None where there is no c
PackedSteps = TypeVar("PackedSteps")  # the same for a packed input


def self_contained(cls: type[T]) -> type[T]:
    """Copies what cls inherits from DropIn into its ``__dict__``, which some clients copy from nn.LSTM."""
    for name, item in vars(DropIn).items():
        if not name.startswith("__") and name not in vars(cls):
            setattr(cls, name, item)
    return cls


class DropIn(nn.RNNBase, Generic[State, Steps, PackedSteps]):
    """What the three modules share. Invalid arguments are passed to ``torch_class``, which reports the error.

    No super(): the methods serve classes that do not derive from this one, see :func:`self_contained`.
    """

    torch_class: type[nn.RNNBase]

    # Options that torch.nn does not have. The defaults are class attributes: a converted module has none of that name.
    # (0, not 0.0: the compiler makes a float class attribute an input of the graph.)
    recurrent_dropout: float = 0
    zoneout_h: float = 0
    zoneout_c: float = 0
    weight_drop: float = 0
    forget_bias: float | None = None
    recompute: bool = False

    def __init__(self, mode: str, *arguments: Any, **options: Any) -> None:
        for name, value in options.items():
            check_option(name, value)
            if value != getattr(self, name):
                setattr(self, name, value)
        nn.RNNBase.__init__(self, mode, *arguments)

    def extra_repr(self) -> str:
        options = {name: getattr(self, name) for name in (*twin.REGULARISERS, "forget_bias", "recompute")}
        return nn.RNNBase.extra_repr(self) + "".join(f", {name}={value}" for name, value in options.items() if value)

    def flatten_parameters(self) -> None:
        """Does nothing where there are kernels only: they read the weights in every call, and keep no packed copy."""
        parameters = list(self.parameters(recurse=False))
        if any(p.is_cuda for p in parameters) or not all(map(has_kernels, parameters)):
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

    # No bare * before the options: the older exporter of torch.onnx passes defaults by position.
    def forward(self, input, hx=None, lengths=None, reset=None, reset_state=None, return_state_sequence=False):
        batch = make_batch(input, self.batch_first)
        plain = batch is not None and _is_plain(batch, lengths, reset, reset_state, return_state_sequence)
        if plain and (torch_serves(batch.x) or self._cudnn_serves(batch, hx)) and not twin.rates(self):
            return self.torch_class.forward(self, input, hx)
        parameters = self._parameters  # fast path: nn.Module's getattr takes four times as long
        weights = [parameters[name] if name in parameters else getattr(self, name) for name in self._flat_weights_names]
        initial = None if batch is None else self._states(hx, batch, weights[0])
        if initial is None:
            asked = CallOptions(lengths, reset, reset_state, return_state_sequence)
            return self._ask_torch(input, hx, batch, **asked._asdict())
        options = self._module_options(batch, len(initial))
        if not plain:
            asked = CallOptions(lengths, reset, reset_state, return_state_sequence)
            options = asked.add_to(options, batch, initial, self.num_layers)
        kinds = stack.KINDS[self.bias, self.proj_size > 0]
        y, last, sequences = stack.run(self.mode, batch.x, initial, (weights, kinds), self.num_layers, options)
        output, state = batch.give_sequence(y), batch.give_state(last[0])
        if len(last) > 1:
            state = state, batch.give_state(last[1])
        if not return_state_sequence:
            return output, state
        sequences = [tuple(map(batch.give_sequence, (*steps, None)[:2])) for steps in sequences]
        return output, state, sequences if return_state_sequence == "all" else sequences[-1][1]

    def _cudnn_serves(self, batch: Batch, hx) -> bool:
        x = batch.x
        if not x.is_cuda or type(x) is not Tensor or torch.compiler.is_compiling():
            return False
        tensors = (x, *tree_leaves(hx), *self._parameters.values())
        differentiable = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
        if differentiable and not self.training:  # cuDNN keeps nothing for the backward pass in eval()
            return False
        H, D, packed = self.hidden_size, 1 + self.bidirectional, batch.batch_sizes is not None
        steps = len(batch.batch_sizes) if packed else x.shape[0]
        layers = Layers(self.mode, H, self.proj_size or H, self.num_layers, D)
        return cudnn_serves(layers, Call(steps, batch.rows, x.shape[-1], packed, differentiable), x)

    def _module_options(self, batch: Batch, states: int) -> stack.Options:
        """The options of the module, without those of the call."""
        # The dropout of a single layer is not read: the compiler makes every float that is read an input of the graph.
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        plain_input = batch.batch_sizes is None
        options = stack.PLAIN if plain_input and not dropout else stack.Options(dropout, batch.batch_sizes)
        if self.recurrent_dropout or self.zoneout_h or self.zoneout_c or self.weight_drop:
            zoneout = (self.zoneout_h, self.zoneout_c)[:states]
            noise = Noise(self.recurrent_dropout, zoneout, self.weight_drop, self.training)
            options = options._replace(noise=noise)
        return options._replace(recompute=True) if self.recompute else options

    def _states(self, hx, batch: Batch, w) -> list[Tensor] | None:
        """The initial states in the order of the batch; None if arguments and parameters do not match."""
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
        """torch.nn's result for invalid arguments: nearly always its error."""
        given = {name: value for name, value in options.items() if value is not None and value is not False}
        leaf = twin.leaf(self, input, hx, given)
        if leaf is not None:
            return leaf
        nested = batch is not None and batch.nested is not None
        if nested:  # torch.nn would report the nested input instead of the invalid argument
            input = batch.x.transpose(0, 1) if self.batch_first else batch.x
        result = self.torch_class.forward(self, input, hx)
        if given or nested or twin.rates(self):
            raise ValueError(
                "lengths, reset, state sequences, nested input and regularised cells need input, hx and parameters of "
                "one dtype and device"
            )
        return result


def _is_plain(batch: Batch, lengths, reset, reset_state, return_state_sequence) -> bool:
    """Is this a call that torch.nn knows?"""
    nothing = lengths is None and reset is None and reset_state is None and not return_state_sequence
    return nothing and batch.nested is None
