"""FusedLSTM, FusedGRU and FusedRNN: nn.LSTM, nn.GRU and nn.RNN on the fused scan, and what those cannot do."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import stack

# torch.nn.LSTM itself is no base class: the compiler refuses to trace whatever derives from it.


class _Batch(NamedTuple):
    """The input as the stack takes it, and how to give results back in the form in which the input came."""

    x: Tensor  # [T, N, I], packed [R, I]
    rows: int  # N
    batch_sizes: Tensor | None = None
    order: Tensor | None = None  # packed: row n of the batch is row order[n] of the states given
    back: Tensor | None = None  # and the other way round
    batched: bool = True
    batch_first: bool = False

    def sequence(self, y: Tensor | None):
        """A result of every step."""
        if y is None:
            return None
        if self.batch_sizes is not None:
            return PackedSequence(y, self.batch_sizes, self.order, self.back)
        if not self.batched:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    def take_state(self, s: Tensor) -> Tensor:
        s = s if self.batched else s.unsqueeze(1)
        return s if self.order is None else s.index_select(1, self.order)

    def give_state(self, s: Tensor) -> Tensor:
        s = s if self.batched else s.squeeze(1)
        return s if self.back is None else s.index_select(1, self.back)


class _Recurrent(nn.RNNBase):
    """What the three modules share. Whatever does not fit is handed to torch.nn's own forward, which says why."""

    torch_class: type[nn.RNNBase]

    def flatten_parameters(self) -> None:
        """Does nothing: the weights are taken as they are, in every call anew."""

    def forward(self, input, hx=None, *, lengths=None, reset=None, reset_state=None, return_state_sequence=False):
        lstm = self.mode == "LSTM"
        batch = self._batch(input)
        if batch is None:
            return self._torch_forward(input, hx)
        x, rows = batch.x, batch.rows
        weights = [getattr(self, name) for name in self._flat_weights_names]
        layers = self.num_layers
        h_shape = (layers * (2 if self.bidirectional else 1), rows, self.proj_size or self.hidden_size)
        c_shape = (*h_shape[:2], self.hidden_size) if lstm else None
        if hx is None:
            h0 = x.new_zeros(h_shape)
            c0 = (h0 if c_shape == h_shape else x.new_zeros(c_shape)) if lstm else None
        else:
            found = self._states(hx, batch)
            if found is None:
                return self._torch_forward(input, hx)
            h0, c0 = found
        w = weights[0]
        if not (
            x.size(-1) == self.input_size
            and (x.dtype == h0.dtype == w.dtype or torch.is_autocast_enabled(x.device.type))
            and x.device == h0.device == w.device
            and h0.shape == h_shape
            and (c0 is None or c0 is h0 or (c0.shape == c_shape and c0.dtype == h0.dtype and c0.device == h0.device))
        ):
            return self._torch_forward(input, hx)
        reset_h = reset_c = None
        if lengths is not None or reset is not None or reset_state is not None:
            x, lengths = _check_lengths(lengths, batch)
            reset = _check_reset(reset, reset_state, batch)
            if reset_state is not None:
                reset_h, reset_c = self._reset_states(reset_state, batch, h_shape, c_shape, h0)
        c_sequences = 0
        if return_state_sequence:
            c_sequences = layers if return_state_sequence == "all" else 1
        y, h_n, c_n, sequences = stack.run(
            self.mode, x, h0, c0, weights, layers, self.dropout if self.training else 0.0,
            batch.batch_sizes, lengths, reset, reset_h, reset_c, c_sequences,
        )  # fmt: skip
        output, h_n = batch.sequence(y), batch.give_state(h_n)
        state = (h_n, batch.give_state(c_n)) if lstm else h_n
        if not return_state_sequence:
            return output, state
        if return_state_sequence == "all":
            return output, state, [(batch.sequence(h), batch.sequence(c)) for h, c in sequences]
        return output, state, batch.sequence(sequences[-1][1])

    def _batch(self, input) -> _Batch | None:
        if isinstance(input, PackedSequence):
            x, batch_sizes, order, back = input
            if x.dim() != 2:
                return None
            rows = order.numel() if order is not None else int(batch_sizes[0]) if batch_sizes.numel() else 0
            return _Batch(x, rows, batch_sizes, order, back)
        if input.dim() == 3:
            x = input.transpose(0, 1) if self.batch_first else input
            return _Batch(x, x.size(1), batch_first=self.batch_first)
        return _Batch(input.unsqueeze(1), 1, batched=False) if input.dim() == 2 else None

    def _states(self, hx, batch: _Batch) -> tuple[Tensor, Tensor | None] | None:
        """h0 and c0 in the order of the batch, None where hx has not the form it should have."""
        if self.mode == "LSTM":
            if not isinstance(hx, (tuple, list)) or len(hx) != 2:
                return None
            h, c = hx
        else:
            h, c = hx, None
        dims = 3 if batch.batched else 2
        if not isinstance(h, Tensor) or h.dim() != dims or (c is not None and c.dim() != dims):
            return None
        if batch.order is not None and (h.size(1) != batch.rows or c is not None and c.size(1) != batch.rows):
            return None
        return batch.take_state(h), None if c is None else batch.take_state(c)

    def _reset_states(self, reset_state, batch: _Batch, h_shape, c_shape, h0: Tensor):
        """reset_state in full size, in the order of the batch."""
        lstm = self.mode == "LSTM"
        if lstm != isinstance(reset_state, (tuple, list)) or lstm and len(reset_state) != 2:
            wanted = "a pair of tensors (h, c)" if lstm else "one tensor"
            raise ValueError(f"reset_state must be {wanted}, got {_describe(reset_state)}")
        found = []
        for name, s, shape in zip("hc", reset_state if lstm else (reset_state,), (h_shape, c_shape), strict=False):
            shape = shape if batch.batched else (shape[0], shape[2])
            if s.dtype != h0.dtype and not torch.is_autocast_enabled(h0.device.type) or s.device != h0.device:
                raise ValueError(f"reset_state's {name} must be {h0.dtype} on {h0.device}, got {_describe(s)}")
            try:
                s = s.expand(shape)
            except RuntimeError:
                raise ValueError(f"reset_state's {name} must broadcast to {shape}, got {_describe(s)}") from None
            found.append(batch.take_state(s))
        return found if lstm else (*found, None)

    def _torch_forward(self, input, hx):
        """torch.nn's own opinion of arguments that do not fit: its message, or what it makes of them."""
        return self.torch_class.forward(self, input, hx)


def _describe(value) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} on {value.device}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else repr(value)


def _check_lengths(lengths: Tensor | None, batch: _Batch) -> tuple[Tensor, Tensor | None]:
    """The input without what stands behind the ends (it may be NaN), and lengths [N]."""
    x = batch.x
    if lengths is None:
        return x, None
    if batch.batch_sizes is not None:
        raise ValueError("lengths cannot be given together with a PackedSequence, which has its own")
    wanted = (batch.rows,) if batch.batched else ()
    if not (
        isinstance(lengths, Tensor)
        and lengths.dtype == torch.int64
        and lengths.shape == wanted
        and lengths.device == x.device
    ):
        raise ValueError(f"lengths must be torch.int64 {list(wanted)} on {x.device}, got {_describe(lengths)}")
    lengths, T = lengths.reshape(batch.rows), x.size(0)
    if _can_look_at(lengths):
        if lengths.numel() and not (0 <= lengths.min() and lengths.max() <= T):
            raise ValueError(f"lengths must be between 0 and {T}, the steps of the input, got {lengths.tolist()}")
    else:
        lengths = lengths.clamp(0, T)
    behind = torch.arange(T, device=x.device).unsqueeze(1) >= lengths
    return x.masked_fill(behind.unsqueeze(2), 0), lengths


def _can_look_at(t: Tensor) -> bool:
    """Can values be looked at without waiting for a device or breaking a graph?"""
    return (
        type(t) is Tensor
        and t.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
    )


def _check_reset(reset, reset_state, batch: _Batch) -> Tensor | None:
    """The mask [T, N], packed [R]."""
    if reset is None:
        if reset_state is not None:
            raise ValueError("reset_state is given, but no reset that says when it is to be taken")
        return None
    x = batch.x
    if isinstance(reset, PackedSequence):
        if batch.batch_sizes is None or not torch.equal(reset.batch_sizes, batch.batch_sizes):
            raise ValueError("reset can be a PackedSequence only beside an input packed with the same batch_sizes")
        reset = reset.data
    if batch.batch_sizes is not None or not batch.batched:
        wanted = (x.size(0),)
    else:
        wanted = (x.size(1), x.size(0)) if batch.batch_first else (x.size(0), x.size(1))
    if not (
        isinstance(reset, Tensor) and reset.dtype == torch.bool and reset.shape == wanted and reset.device == x.device
    ):
        raise ValueError(f"reset must be torch.bool {list(wanted)} on {x.device}, got {_describe(reset)}")
    if not batch.batched:
        return reset.unsqueeze(1)
    return reset.transpose(0, 1) if batch.batch_first else reset


def episode_starts(dones: Tensor, batch_first: bool = False, first: bool | Tensor = False) -> Tensor:
    """Turns "the episode was over after this step" into the ``reset`` of the steps that follow.

    Args:
        dones: [T, N] ([N, T] if ``batch_first``, or [T]), bool or numbers of which any but 0 mean yes.
        batch_first: whether the steps are the second dimension.
        first: whether the first step begins an episode: bool, or [N] (usually the last ``dones`` of the chunk before).

    Returns:
        bool, in the shape of ``dones``: true at step t where it was true at t - 1.

    Example::

        >>> output, hx = lstm(observations, hx, reset=fusedrnn.episode_starts(dones, first=dones_before))
    """
    dim = 1 if batch_first and dones.dim() > 1 else 0
    starts = dones.bool().roll(1, dim)
    if dones.size(dim):
        starts.select(dim, 0).copy_(torch.as_tensor(first, device=dones.device))
    return starts


_OPTIONS = """
    Options of the call, by keyword only, beyond those of torch.nn:
        - **lengths** (N), int64 on the input's device: row n ends after ``lengths[n]`` steps, in any order, 0 allowed.
          What the input holds behind the end has no influence, be it NaN; outputs there are zero, the final states are
          those at each row's own end, and the reverse direction starts there. The same as pack, run and pad. Values
          outside of 0 to T are an error; where looking at them would wait for a device or break a graph they are
          clamped. Unbatched: a tensor without dimensions. Not for a PackedSequence, which has its own lengths.
        - **reset** (T, N), bool ((N, T) if ``batch_first``, (T) unbatched, packed: a PackedSequence with the same
          batch_sizes or a tensor in the order of ``input.data``): where true, the row's state is replaced by
          ``reset_state`` before this step, in every layer. It is selected, never multiplied, so not even a NaN gets
          across. The reverse direction is cut at the same place: it starts anew on the step before. See
          :func:`fusedrnn.episode_starts`.
        - **reset_state**, like ``hx`` or broadcastable to it; zeros by default. Differentiable.
        - **return_state_sequence**: True returns a third result, the last layer's cell state after every step, shaped
          like the output but with H instead of P features; None if there is no cell state, as the output then is the
          state already. ``"all"`` returns in its place a list with (h, c) after every step for each layer.
"""
_COMMON = """
    Beside the options below, everything is as in torch.nn: arguments, parameters, their names and initialisation,
    errors. Inputs may have no steps, and rows no length: then the final state is the initial one.
"""


class FusedLSTM(_Recurrent):
    torch_class = nn.LSTM
    check_forward_args = nn.LSTM.check_forward_args
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)


class FusedGRU(_Recurrent):
    torch_class = nn.GRU

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)


class FusedRNN(_Recurrent):
    torch_class = nn.RNN

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
        if nonlinearity not in modes:
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(modes[nonlinearity], *args, **kwargs)
        self.nonlinearity = nonlinearity
