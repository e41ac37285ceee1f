"""Recurrent layers whose weights are packed once, in place of those of a model that will only be run."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from . import stack
from .backends import compiled, extension
from .batch import describe, fits
from .convert import FUSED, TORCH
from .packing import FORMS, convert, form_of, pack
from .recurrent import Recurrent, RecurrentCell

_LAYERS = {nn.LSTM, nn.GRU, nn.RNN}
_MODES = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")


class _BuiltIn(NamedTuple):
    """What :class:`fusedrnn.compiler.Cell` says, of a cell of torch.nn."""

    name: str
    states: tuple[str, ...]
    recurrent: tuple[str, ...] = ("all",)
    inputs: tuple[str, ...] = ()
    unit_inputs: tuple[str, ...] = ()

    @property
    def initial(self) -> list[float]:
        return [0.0] * len(self.states)


class _Packed:
    """What packed layers and cells share."""

    def _take(self, module: nn.Module, form: str, suffixes: list[str]) -> None:
        nn.Module.__init__(self)
        self.form, self._packed_suffixes = form, suffixes
        for name in ("input_size", "hidden_size", "bias"):
            setattr(self, name, getattr(module, name))
        self.heads = getattr(module, "heads", 1)
        self.cell = module.cell if isinstance(module, (Recurrent, RecurrentCell)) else _built_in(module)
        self.proj_size = getattr(module, "proj_size", 0)
        self._name = self._register()
        self._kinds = stack.places(("packed", *["w_hr"] * (self.proj_size > 0)))
        for suffix in suffixes:
            tensors = _weights(module, suffix)
            self.register_buffer("packed" + suffix, pack(form, self.hidden_size, _checked(tensors, form, suffix)))
            if self.proj_size:
                w_hr = getattr(module, "weight_hr" + suffix)
                self.register_buffer("weight_hr" + suffix, w_hr.detach().float().clone())
        for name in _HOOKS:
            setattr(self, name, getattr(module, name).copy())
        self.train(module.training)

    def _register(self) -> str:
        if isinstance(self.cell, _BuiltIn):
            return self.cell.name
        name = compiled.register(self.cell)
        if not compiled.is_compiled(name, torch.float32, "cpu"):
            raise RuntimeError(f"{self.cell.name} has no kernels here, which packed weights need")
        return name

    def _tensors(self, suffix: str) -> list[Tensor]:
        buffers = self._buffers
        return [buffers[name + suffix] for name in ("packed", *["weight_hr"] * (self.proj_size > 0))]

    def _check(self, input: Tensor, w: Tensor) -> None:
        super()._check(input, input)
        if input.dtype is not torch.float32 or not input.is_cpu:
            raise ValueError(f"a packed layer takes float32, bfloat16 or float16 on the CPU, got {describe(input)}")

    def _initial(self, hx, x: Tensor, sizes: tuple[int, ...], w: Tensor) -> list[Tensor]:
        if not self.proj_size:
            return super()._initial(hx, x, sizes, x)
        both = [(*sizes[:-1], self.proj_size), sizes]
        if hx is None:
            return [x.new_zeros(size) for size in both]
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise ValueError(f"hx must be a tuple (h, c) for {self.cell.name}, got {describe(hx)}")
        for name, s, size in zip(self.cell.states, hx, both, strict=True):
            if not fits(s, size, x):
                raise RuntimeError(f"Expected hidden state {name} of size {size}, float32 on cpu, got {describe(s)}")
        return list(hx)

    def forward(self, input: Tensor | PackedSequence, *arguments: Any, **options: Any):
        """As the layer or cell that was packed."""
        dtype = input.data.dtype if isinstance(input, PackedSequence) else getattr(input, "dtype", None)
        if torch._C._is_any_autocast_enabled():
            with torch.autocast("cpu", enabled=False):
                return self.forward(input, *arguments, **options)
        if dtype in (torch.bfloat16, torch.float16):
            input, arguments, options = _to((input, arguments, options), dtype, torch.float32)
            return _to(super().forward(input, *arguments, **options), torch.float32, dtype)
        return super().forward(input, *arguments, **options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.form}"

    @property
    def backend(self) -> str:
        """``"compiled"``: there are packed layers only where there are kernels."""
        return "compiled"

    def __setstate__(self, state: dict) -> None:
        nn.Module.__setstate__(self, state)
        self._name = self._register()

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        for suffix in self._packed_suffixes:
            key = f"{prefix}packed{suffix}"
            if key not in state_dict:
                if f"{prefix}weight_ih{suffix}" in state_dict:
                    errors.append(f"{key}: the weights given are not packed; load them, then optimize_for_inference()")
            elif (form := form_of(state_dict[key])) != self.form:
                errors.append(f"{key}: the weights given are packed as {form}, those of this layer as {self.form}")
        if not errors:
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)


class PackedRecurrent(_Packed, Recurrent):
    """A layer of packed weights. Made by :func:`optimize_for_inference`, and called as the layer that it replaces."""

    def __init__(self, layer: nn.Module, form: str):
        ways = ("", "_reverse")[: 2 if layer.bidirectional else 1]
        self._take(layer, form, [f"_l{k}{way}" for k in range(layer.num_layers) for way in ways])
        self._suffixes = self._packed_suffixes
        for name in ("num_layers", "batch_first", "bidirectional"):
            setattr(self, name, getattr(layer, name))
        if not isinstance(layer, Recurrent):
            self.mode = layer.mode
        zoneout = getattr(layer, "zoneout", None)
        if zoneout is None:
            zoneout = {name: getattr(layer, f"zoneout_{name}", 0) for name in self.cell.states}
        self.zoneout = {name: rate for name, rate in zoneout.items() if rate}
        self._begins_with_zeros = not any(self.cell.initial)
        self.dropout = self.recurrent_dropout = self.weight_drop = 0.0
        self.recompute = False

    def forward(self, input, hx=None, *arguments, **options):
        plain = not (arguments or options or self.zoneout) and (hx is not None or self._begins_with_zeros)
        if plain and not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():  # fast path
            weights = (*self._buffers.values(),)
            made = extension.run_packed(
                self._name, self.num_layers, self.proj_size > 0, self.batch_first, weights, input, hx
            )
            if made is not None:
                return made[0], made[1] if len(made) == 2 else tuple(made[1:])
        return super().forward(input, hx, *arguments, **options)

    def train(self, mode: bool = True):
        """Does nothing: a packed layer has no dropout, and its zoneout is the mean."""
        self.training = False
        return self


class PackedRecurrentCell(_Packed, RecurrentCell):
    """One step with packed weights. Made by :func:`optimize_for_inference`, called as the cell that it replaces."""

    def __init__(self, cell: nn.Module, form: str):
        self._take(cell, form, [""])


def optimize_for_inference(model: nn.Module, weights: str = "float32") -> nn.Module:
    """A copy of ``model`` whose recurrent layers hold packed, immutable weights; everything else is copied as it is.

    Layers and cells of torch.nn and of fusedrnn are replaced, wherever they are in the model; the model itself may be
    one. They are called as before, with lengths, resets and every form of batch, on the CPU, and have no gradients.
    What they compute is float32 whatever the weights are; bfloat16 and float16 inputs and outputs are converted.

    Args:
        model: parameters of recurrent layers are float32, bfloat16 or float16, on the CPU.
        weights: how W_ih and W_hh are kept. ``"float32"`` changes no number. ``"bfloat16"`` and ``"float16"`` take half
            the memory, with weights rounded to 8 and 11 bits. ``"int8"`` takes a quarter: each row of a weight has a
            scale, and so have each row of inputs and of h in every step; products are exact integers, gates and states
            float32. Biases and the projection of an LSTM with ``proj_size`` remain float32.

    Returns:
        The copy. Its ``state_dict`` holds the packed weights and is the same on every machine.

    Raises:
        ValueError: an unknown form of weights, parameters of another dtype or device, or with infinity or NaN where
            the form has none.
        RuntimeError: fusedrnn is installed without its kernels.

    Example::

        >>> lstm = fusedrnn.FusedLSTM(64, 128)
        >>> small = fusedrnn.optimize_for_inference(lstm, weights="int8")
        >>> with torch.no_grad():
        ...     output, (h_n, c_n) = small(torch.randn(10, 1, 64))
    """
    if weights not in FORMS:
        raise ValueError(f"weights must be one of {', '.join(FORMS)}, got {weights!r}")
    if extension._C is None:
        raise RuntimeError(f"fusedrnn packs weights for its kernels, and {extension.extension_error}")
    copies = {}
    for name, module in model.named_modules():
        if isinstance(module, _Packed):
            raise ValueError(f"{name or 'the model itself'} is packed already, as {module.form}")
        try:
            packed = _pack_module(module, weights)
        except ValueError as error:
            raise ValueError(f"{name or 'the model itself'}: {error}") from None
        if packed is not None:
            copies[id(module)] = packed
    return copy.deepcopy(model, copies)


def _pack_module(module: nn.Module, form: str) -> nn.Module | None:
    cls = TORCH.get(type(module), type(module))
    if isinstance(module, (Recurrent, RecurrentCell)) and compiled.has_norms(module._name):
        warnings.warn(f"{module.cell.name} stays as it is: cells with norms are not packed", stacklevel=4)
        return None
    if cls in _LAYERS or cls is Recurrent:
        return PackedRecurrent(module, form)
    if cls in FUSED or cls is RecurrentCell:
        return PackedRecurrentCell(module, form)
    if isinstance(module, (*FUSED, Recurrent, RecurrentCell)):
        warnings.warn(f"{cls.__name__} stays as it is: subclasses are not packed", stacklevel=4)
    return None


def _built_in(module: nn.Module) -> _BuiltIn:
    mode = getattr(module, "mode", None)
    if mode is None:
        mode = _MODES.get(TORCH.get(type(module), type(module))) or f"RNN_{module.nonlinearity.upper()}"
    return _BuiltIn(mode, ("h", "c") if mode == "LSTM" else ("h",))


def _weights(module: nn.Module, suffix: str) -> dict[str, Tensor]:
    if isinstance(module, (Recurrent, RecurrentCell)):
        _, places = module._kinds
        tensors = module._tensors(suffix)
        return {kind: tensors[i] for kind, i in zip(stack.WEIGHTS, places, strict=True) if i is not None}
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    return {kind: getattr(module, name + suffix) for kind, name in names.items() if module.bias or kind[0] == "w"}


def _checked(tensors: dict[str, Tensor], form: str, suffix: str) -> dict[str, Tensor]:
    """The tensors as float32, if they can be packed."""
    for kind, t in tensors.items():
        name = {"w": "weight", "b": "bias"}.get(kind[0], kind) + kind[1:] + suffix
        if t.dtype not in (torch.float32, torch.bfloat16, torch.float16) or not t.is_cpu:
            raise ValueError(f"{name} must be float32, bfloat16 or float16 on the CPU, got {describe(t)}")
        if form in ("int8", "float16") and kind in ("w_ih", "w_hh"):
            wide = t.detach().float()
            if not (convert(wide, form)[0] if form == "float16" else wide).isfinite().all():
                raise ValueError(f"{name} has numbers that {form} cannot hold: NaN, infinity or too large ones")
    return {kind: t.detach().float() for kind, t in tensors.items()}


def _to(tree, source: torch.dtype, target: torch.dtype):
    return tree_map(lambda t: t.to(target) if isinstance(t, Tensor) and t.dtype is source else t, tree)


class Stream:
    """Runs recurrent layers one step at a time and keeps their states: for a microphone, a sensor, a robot.

    A call costs little more than its arithmetic: buffers and states are made once, and only the input is checked.

    Args:
        layer: a recurrent layer of torch.nn or fusedrnn of one direction, packed by :func:`optimize_for_inference` or
            not: then its weights are packed as float32. Later changes of its weights have no effect.
        rows: independent sequences N that advance together.

    Example::

        >>> stream = fusedrnn.Stream(torch.nn.GRU(40, 128))
        >>> for frame in torch.randn(100, 1, 40):
        ...     output = stream(frame)
        >>> output.shape
        torch.Size([1, 128])
        >>> stream.reset()
    """

    def __init__(self, layer: nn.Module, rows: int = 1):
        if not isinstance(layer, PackedRecurrent):
            layer = optimize_for_inference(layer)
        if not isinstance(layer, PackedRecurrent) or layer.bidirectional:
            raise ValueError(f"a stream runs a recurrent layer of one direction, got {layer}")
        if layer.cell.inputs or layer.cell.unit_inputs:
            raise ValueError(f"{layer.cell.name} has inputs beside x, which a stream does not take")
        if not isinstance(rows, int) or rows < 1:
            raise ValueError(f"rows must be a positive integer, got {rows!r}")
        self._cell, self._rows = layer.cell, rows
        self._sizes = [(layer.num_layers, rows, layer.hidden_size)] * len(layer.cell.states)
        if layer.proj_size:
            self._sizes[0] = (layer.num_layers, rows, layer.proj_size)
        zones = [layer.zoneout.get(name, 0.0) for name in layer.cell.states]
        weights = list(layer._buffers.values())
        stream = extension._C.Stream(layer._name, layer.num_layers, layer.proj_size > 0, weights, rows, zones)
        self._stream, self._step = stream, stream.step
        self.reset()

    def __call__(self, x: Tensor) -> Tensor:
        """The output (N, H) of the last layer after one more step, with input ``x`` (N, I), both float32."""
        return self._step(x)

    @property
    def state(self) -> Tensor | tuple[Tensor, ...]:
        """The state (L, N, H), of an LSTM the tuple (h, c): a copy. Assign one to go on from there."""
        states = self._stream.states()
        return states[0] if len(states) == 1 else tuple(states)

    @state.setter
    def state(self, state: Tensor | tuple[Tensor, ...]) -> None:
        given = (state,) if isinstance(state, Tensor) else tuple(state)
        if [getattr(s, "shape", None) for s in given] != self._sizes:
            raise ValueError(f"the state must be {self._sizes}, got {describe(state)}")
        self._stream.set_states(given)

    def reset(self, rows: Tensor | None = None) -> None:
        """Sets the state to that of a beginning sequence, in all rows or where the bool ``rows`` (N) says."""
        fresh = [torch.as_tensor(v(size) if callable(v) else float(v)).expand(size) for v, size in self._initial()]
        if rows is not None:
            if not isinstance(rows, Tensor) or rows.dtype is not torch.bool or list(rows.shape) != [self._rows]:
                raise ValueError(f"rows must be torch.bool [{self._rows}], got {describe(rows)}")
            keep = ~rows.view(1, -1, 1)
            fresh = [torch.where(keep, old, new) for old, new in zip(self._stream.states(), fresh, strict=True)]
        self._stream.set_states(fresh)

    def _initial(self):
        return zip(self._cell.initial, self._sizes, strict=True)
