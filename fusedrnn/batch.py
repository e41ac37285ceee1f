"""The forms of a batch of sequences (padded, batch first, unbatched, packed, nested) and their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class Batch:
    """An input in the layout of the stack, and the conversion of results back to the caller's."""

    batch_sizes = None
    order = None  # packed: row n is row order[n] of the caller's states
    back = None  # the inverse permutation
    batched = True
    batch_first = False
    nested = None  # the input, where it is a nested tensor
    lengths = None  # nested: [N]
    behind = None  # [T, N]: what stands behind the ends of rows, where lengths were given

    def __init__(self, x: Tensor, rows: int):
        self.x = x  # [T, N, I], packed [R, I]
        self.rows = rows  # N

    def take_state(self, s: Tensor) -> Tensor:
        """The caller's state as [L*D, N, P]."""
        s = s if self.batched else s.unsqueeze(1)
        return s if self.order is None else s.index_select(1, self.order)

    def give_state(self, s: Tensor) -> Tensor:
        s = s if self.batched else s.squeeze(1)
        return s if self.back is None else s.index_select(1, self.back)

    def give_sequence(self, y: Tensor | None):
        """A result of every step, in the caller's form."""
        if y is None:
            return None
        if self.batch_sizes is not None:
            return PackedSequence(y, self.batch_sizes, self.order, self.back)
        if self.nested is not None:
            return self._nest(y)
        if not self.batched:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    def _nest(self, y: Tensor) -> Tensor:
        """[N, j1, D*P] with the offsets object of the input, so that both have the same ragged size."""
        offsets, total, (T, N) = self.nested.offsets(), self.nested.values().size(0), y.shape[:2]
        row = torch.arange(N, device=y.device).repeat_interleave(self.lengths, output_size=total)
        step = torch.arange(total, device=y.device) - offsets.index_select(0, row)
        values = y.flatten(0, 1).index_select(0, step * N + row)
        return torch.nested.nested_tensor_from_jagged(values, offsets, max_seqlen=T)


def make_batch(input: Tensor | PackedSequence, batch_first: bool) -> Batch | None:
    """None if the input is not a valid batch of sequences."""
    if not isinstance(input, Tensor):
        return _make_packed(input) if isinstance(input, PackedSequence) else None
    if input.is_nested:
        return _make_nested(input)
    dims = input.dim()
    if dims == 3:
        x = input.transpose(0, 1) if batch_first else input
        batch = Batch(x, x.shape[1])
        batch.batch_first = batch_first
        return batch
    if dims == 2:
        batch = Batch(input.unsqueeze(1), 1)
        batch.batched = False
        return batch
    return None


def _make_packed(input: PackedSequence) -> Batch | None:
    x, batch_sizes, order, back = input
    if x.dim() != 2 or batch_sizes.dtype != torch.int64:
        return None
    sizes = batch_sizes.tolist()
    first = sizes[0] if sizes else 0
    rows = first if order is None else order.numel()
    if sum(sizes) != x.size(0) or first > rows or sizes != sorted(sizes, reverse=True):
        return None
    if order is None and sizes and torch._C._get_tracing_state() is not None:
        rows = batch_sizes[0]  # a number would become a constant of the trace
    batch = Batch(x, rows)
    batch.batch_sizes, batch.order, batch.back = batch_sizes, order, back
    return batch


def _make_nested(input: Tensor) -> Batch:
    """[N, j1, I] whatever batch_first says: the ragged dimension cannot come first."""
    if input.layout != torch.jagged or input.dim() != 3 or input._ragged_idx != 1 or input.lengths() is not None:
        raise ValueError(
            "a nested input must be of layout torch.jagged, [N, ragged steps, features] and contiguous, "
            f"got {describe(input)}"
        )
    batch = Batch(_pad(input), input.size(0))
    batch.nested, batch.lengths = input, input.offsets().diff()
    return batch


def _pad(nested: Tensor) -> Tensor:
    """[T, N, ...] from [N, j1, ...], padded with zeros."""
    if nested.size(0):
        nested._get_max_seqlen()  # cached by this call; without it to_padded_tensor pads to the sum of all lengths
    return torch.nested.to_padded_tensor(nested, 0.0).transpose(0, 1)


def fits(t, size: tuple[int, ...], w: Tensor) -> bool:
    """Is t a tensor of this size, and of the device and dtype of w? Autocast converts any dtype."""
    return (
        isinstance(t, Tensor)
        and t.shape == size
        and t.device == w.device
        and (t.dtype is w.dtype or torch._C._is_any_autocast_enabled())
    )


def describe(value) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {_size(value)} on {value.device}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else repr(value)


def _size(t: Tensor) -> list[int] | str:
    return "nested, of layout torch.strided," if t.is_nested and t.layout == torch.strided else list(t.shape)


def take_lengths(lengths: Tensor, batch: Batch) -> Tensor:
    """lengths [N]. Zeroes the padding of batch.x, so that NaN in it cannot leak."""
    if batch.batch_sizes is not None:
        raise ValueError("lengths cannot be given together with a PackedSequence, which has its own")
    if batch.lengths is not None:
        raise ValueError("lengths cannot be given together with a nested tensor, which has its own")
    x, wanted = batch.x, [batch.rows] if batch.batched else []
    if not (
        isinstance(lengths, Tensor)
        and lengths.dtype == torch.int64
        and list(lengths.shape) == wanted
        and lengths.device == x.device
    ):
        raise ValueError(f"lengths must be torch.int64 {wanted} on {x.device}, got {describe(lengths)}")
    lengths, T = lengths.reshape(batch.rows), x.size(0)
    if not _can_look_at(lengths):
        lengths = lengths.clamp(0, T)
    elif lengths.numel() and not (0 <= lengths.min() and lengths.max() <= T):
        raise ValueError(f"lengths must be between 0 and {T}, the steps of the input, got {lengths.tolist()}")
    batch.behind = torch.arange(T, device=x.device).unsqueeze(1) >= lengths
    batch.x = x.masked_fill(batch.behind.unsqueeze(2), 0)
    return lengths


def _can_look_at(t: Tensor) -> bool:
    """Can values be read without a device synchronisation or a graph break?"""
    return (
        not torch.compiler.is_compiling()
        and t.device.type == "cpu"
        and type(t) is Tensor
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
    )


def take_reset(reset: Tensor | PackedSequence, batch: Batch) -> Tensor:
    """The mask [T, N], packed [R]."""
    x = batch.x
    if isinstance(reset, PackedSequence):
        if batch.batch_sizes is None or not torch.equal(reset.batch_sizes, batch.batch_sizes):
            raise ValueError("reset can be a PackedSequence only beside an input packed with the same batch_sizes")
        reset = reset.data
    wanted = list((x if batch.nested is None else batch.nested).shape[:-1]) if batch.batched else [x.size(0)]
    wanted = wanted[::-1] if batch.batch_first else wanted
    if not (
        isinstance(reset, Tensor) and reset.dtype == torch.bool and _size(reset) == wanted and reset.device == x.device
    ):
        raise ValueError(f"reset must be torch.bool {wanted} on {x.device}, got {describe(reset)}")
    if batch.nested is not None:
        return _pad(reset)
    if not batch.batched:
        return reset.unsqueeze(1)
    return reset.transpose(0, 1) if batch.batch_first else reset


def take_reset_state(reset_state, batch: Batch, like: Sequence[Tensor]) -> list[Tensor]:
    """reset_state, expanded to the sizes of the states ``like``."""
    given = reset_state if isinstance(reset_state, (tuple, list)) else (reset_state,)
    if len(given) != len(like) or not all(isinstance(s, Tensor) for s in given):
        names = {1: "a tensor", 2: "a pair (h, c)"}.get(len(like), f"{len(like)} tensors")
        raise ValueError(f"reset_state must be {names} like hx, got {describe(reset_state)}")
    states = []
    for s, state in zip(given, like, strict=True):
        shape = list(state.shape) if batch.batched else [state.size(0), state.size(2)]
        if not torch._C._is_any_autocast_enabled() and s.dtype != state.dtype or s.device != state.device:
            raise ValueError(f"reset_state must be {state.dtype} on {state.device}, got {describe(s)}")
        try:
            s = s.expand(shape)
        except RuntimeError as error:
            raise ValueError(f"reset_state must broadcast to {shape}, got {describe(s)}: {error}") from None
        states.append(batch.take_state(s))
    return states


def take_step_inputs(cell, given: Mapping[str, Any] | None, batch: Batch, hidden: int) -> list[Tensor]:
    """The inputs that the cell declares, [T, N] or [T, N, H], packed [R] or [R, H], in their order."""
    x = batch.x if batch.nested is None else batch.nested
    rows = list(x.shape[:-1]) if batch.batched else [x.size(0)]
    taken = []
    for t, size in zip(*named_inputs(cell, given), strict=True):
        if isinstance(t, PackedSequence):
            if batch.batch_sizes is None or not torch.equal(t.batch_sizes, batch.batch_sizes):
                raise ValueError("an input can be a PackedSequence only beside one packed with the same batch_sizes")
            t = t.data
        check_step_input(t, (rows[::-1] if batch.batch_first else rows) + [hidden] * size, batch.x)
        if batch.nested is not None:
            t = _pad(t)
        elif not batch.batched:
            t = t.unsqueeze(1)
        t = t.transpose(0, 1) if batch.batch_first else t
        if batch.behind is not None:
            t = t.masked_fill(batch.behind.unsqueeze(2) if size else batch.behind, 0)
        taken.append(t)
    return taken


def named_inputs(cell, given: Mapping[str, Any] | None) -> tuple[list[Any], list[int]]:
    """What was given for the cell's inputs, in their order, and whether each has a value a unit (1) or one (0)."""
    names, given = (*cell.inputs, *cell.unit_inputs), {} if given is None else given
    if not isinstance(given, Mapping):
        raise TypeError(f"inputs must be a dictionary of tensors by name, got {describe(given)}")
    if set(given) != set(names):
        wanted = ", ".join(names) or "none"
        raise ValueError(f"{cell.name} needs inputs={{...}} with: {wanted}; got {', '.join(map(str, given)) or 'none'}")
    return [given[name] for name in names], [0] * len(cell.inputs) + [1] * len(cell.unit_inputs)


def check_step_input(t, size: list[int], x: Tensor) -> None:
    autocast = torch._C._is_any_autocast_enabled()
    if not isinstance(t, Tensor) or _size(t) != size or t.device != x.device or not (t.dtype is x.dtype or autocast):
        raise ValueError(f"an input of the cell must be {x.dtype} {size} on {x.device}, got {describe(t)}")


class CallOptions(NamedTuple):
    """What a call may ask for beyond torch.nn, as the user gave it; see :class:`fusedrnn.FusedLSTM`."""

    lengths: Any = None
    reset: Any = None
    reset_state: Any = None
    return_state_sequence: Any = False

    def add_to(self, options, batch: Batch, initial: Sequence[Tensor], layers: int):
        """Options of the stack, checked. What stands behind the ends of rows is taken out of batch.x."""
        lengths, reset, wanted = batch.lengths, self.reset, self.return_state_sequence
        if self.lengths is not None:
            lengths = take_lengths(self.lengths, batch)
        reset_states = ()
        if self.reset_state is not None:
            if reset is None:
                raise ValueError("reset_state is given without reset, which says where it is to be taken")
            reset_states = take_reset_state(self.reset_state, batch, initial)
        if reset is not None:
            reset = take_reset(reset, batch)
        if wanted not in (False, True, "all"):
            raise ValueError(f"return_state_sequence must be False, True or 'all', got {wanted!r}")
        sequences = layers if wanted == "all" else int(wanted)
        return options._replace(lengths=lengths, reset=reset, reset_states=reset_states, sequences=sequences)


def episode_starts(dones: Tensor, batch_first: bool = False, first: bool | Tensor = False) -> Tensor:
    """Turns "the episode ended after this step" into the ``reset`` of the steps that follow.

    Args:
        dones: [T, N] ([N, T] if ``batch_first``, or [T]), bool or numbers of which any but 0 mean yes.
        batch_first: whether the steps are the second dimension.
        first: whether the first step begins an episode: bool, or [N] (usually the last ``dones`` of the chunk before).

    Returns:
        bool, in the shape of ``dones``: true at step t where ``dones`` was true at t - 1.

    Example::

        >>> fusedrnn.episode_starts(torch.tensor([0, 1, 0, 0]))
        tensor([False, False,  True, False])

        >>> lstm, hx, dones_before = fusedrnn.FusedLSTM(8, 16), None, True
        >>> for observations, dones in [(torch.randn(20, 4, 8), torch.rand(20, 4) < 0.1)] * 3:
        ...     output, hx = lstm(observations, hx, reset=fusedrnn.episode_starts(dones, first=dones_before))
        ...     dones_before = dones[-1]
    """
    if not isinstance(dones, Tensor) or dones.dim() not in (1, 2):
        raise ValueError(f"dones must be a tensor with one or two dimensions, got {describe(dones)}")
    dim = 1 if batch_first and dones.dim() > 1 else 0
    starts = dones.bool().roll(1, dim)
    first = torch.as_tensor(first, device=dones.device)
    rows = [] if dones.dim() == 1 else [dones.size(1 - dim)]
    if first.dim() and list(first.shape) != rows:
        raise ValueError(f"first must be a bool or {rows}, got {describe(first)}")
    if dones.size(dim):
        starts.select(dim, 0).copy_(first)
    return starts
