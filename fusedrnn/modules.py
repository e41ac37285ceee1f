"""FusedLSTM, FusedGRU and FusedRNN: the recurrent modules of torch.nn on the fused scan, and what those cannot do.

They derive from nn.RNNBase, as the compiler refuses to trace whatever derives from nn.LSTM, nn.GRU or nn.RNN.
"""

from __future__ import annotations

from torch import nn

from . import stack
from .batch import Batch, fits, make_batch, take_lengths, take_reset, take_reset_state
from .noise import Noise

REGULARISERS = ("recurrent_dropout", "zoneout_h", "zoneout_c", "weight_drop")


class _Recurrent(nn.RNNBase):
    """What the three modules share. Arguments that do not fit go to ``torch_class``, which says why."""

    torch_class: type[nn.RNNBase]

    # What torch.nn does not have. The defaults stand on the class: a converted module has no attributes of that name.
    # (0, not 0.0: the compiler takes a float on a class for an input of the graph.)
    recurrent_dropout = zoneout_h = zoneout_c = weight_drop = 0
    forget_bias: float | None = None
    recompute = False

    def __init__(self, mode: str, args: tuple, kwargs: dict):
        for name in (*REGULARISERS, "forget_bias", "recompute"):
            if name in kwargs:
                setattr(self, name, self._checked(mode, name, kwargs.pop(name)))
        super().__init__(mode, *args, **kwargs)

    @staticmethod
    def _checked(mode: str, name: str, value):
        if name in ("zoneout_c", "forget_bias") and mode != "LSTM":
            raise ValueError(f"{name} argument is only supported for LSTM, not RNN or GRU")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name == "recompute":
            good, wanted = isinstance(value, bool), "True or False"
        elif name == "forget_bias":
            good, wanted = number or value is None, "a number or None"
        else:
            good, wanted = number and 0 <= value <= 1, "a probability in range [0, 1]"
        if not good:
            raise ValueError(f"{name} should be {wanted}, got {value!r}")
        return value

    def extra_repr(self) -> str:
        own = {name: getattr(self, name) for name in (*REGULARISERS, "forget_bias", "recompute")}
        return super().extra_repr() + "".join(f", {name}={value}" for name, value in own.items() if value)

    def flatten_parameters(self) -> None:
        """Does nothing: the weights are taken as they are, anew in every call."""

    # No bare * before the options: the older exporter of torch.onnx passes defaults by place.
    def forward(self, input, hx=None, lengths=None, reset=None, reset_state=None, return_state_sequence=False):
        plain = lengths is None and reset is None and reset_state is None and not return_state_sequence
        own = self._parameters  # asked first: nn.Module's getattr takes four times as long
        weights = [own[name] if name in own else getattr(self, name) for name in self._flat_weights_names]
        noise = None
        if self.recurrent_dropout or self.zoneout_h or self.zoneout_c or self.weight_drop:
            rates = self.recurrent_dropout, self.zoneout_h, self.zoneout_c, self.weight_drop
            noise, plain = Noise(*rates, self.training), False
        batch = make_batch(input, self.batch_first)
        states = None if batch is None else self._states(hx, batch, weights[0])
        if states is None:
            return self._ask_torch(input, hx, plain)
        h0, c0 = states
        layers, reset_h, reset_c = self.num_layers, None, None
        if not plain:
            if lengths is not None:
                lengths = take_lengths(lengths, batch)
            if reset_state is not None:
                if reset is None:
                    raise ValueError("reset_state is given without reset, which says where it is to be taken")
                like, names = ((h0,), "a tensor") if c0 is None else ((h0, c0), "a pair (h, c)")
                reset_h, reset_c = (*take_reset_state(reset_state, batch, like, names), None)[:2]
            if reset is not None:
                reset = take_reset(reset, batch)
            if return_state_sequence not in (False, True, "all"):
                raise ValueError(f"return_state_sequence must be False, True or 'all', got {return_state_sequence!r}")
        y, h_n, c_n, sequences = stack.run(
            self.mode, batch.x, h0, c0, weights, layers, self.dropout if self.training else 0.0,
            batch.batch_sizes, lengths, reset, reset_h, reset_c,
            layers if return_state_sequence == "all" else int(return_state_sequence), noise, self.recompute,
        )  # fmt: skip
        output, state = batch.give_sequence(y), batch.give_state(h_n)
        if c_n is not None:
            state = state, batch.give_state(c_n)
        if not return_state_sequence:
            return output, state
        sequences = [tuple(map(batch.give_sequence, pair)) for pair in sequences]
        return output, state, sequences if return_state_sequence == "all" else sequences[-1][1]

    def _states(self, hx, batch: Batch, w):
        """h0 and c0 (or None) in the order of the batch; None where arguments and parameters do not fit each other."""
        x, lstm = batch.x, self.mode == "LSTM"
        layers, hidden = self.num_layers * (2 if self.bidirectional else 1), self.hidden_size
        projected = self.proj_size or hidden
        if x.shape[-1] != self.input_size or not fits(x, x.shape, w):
            return None
        if hx is None:
            h0 = x.new_zeros(layers, batch.rows, projected)
            return h0, (h0 if projected == hidden else x.new_zeros(layers, batch.rows, hidden)) if lstm else None
        if lstm and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
            return None
        size = (layers, batch.rows) if batch.batched else (layers,)
        h0, c0 = hx if lstm else (hx, None)
        if not (fits(h0, (*size, projected), w) and (not lstm or fits(c0, (*size, hidden), w))):
            return None
        return batch.take_state(h0), batch.take_state(c0) if lstm else None

    def _ask_torch(self, input, hx, plain: bool):
        """What torch.nn makes of arguments that do not fit: nearly always an error, with its message."""
        result = self.torch_class.forward(self, input, hx)
        if not plain:
            raise ValueError(
                "lengths, reset, state sequences and regularised cells need input, hx and parameters of one dtype and "
                "device"
            )
        return result


class FusedLSTM(_Recurrent):
    r"""A long short-term memory network of one or more layers, in place of :class:`torch.nn.LSTM`.

    .. math::
        i_t, f_t, o_t = \sigma(W_i x_t + b_i + W_h h_{t-1} + b_h), \quad
        g_t = \tanh(W_i x_t + b_i + W_h h_{t-1} + b_h) \\
        c_t = f_t \odot c_{t-1} + i_t \odot g_t, \quad h_t = o_t \odot \tanh(c_t)

    with each gate's own rows of the weights. A layer above the first takes the h of the one below as its x.

    Beside the options of the call, everything is as in torch.nn: arguments, parameters, their names and
    initialisation, errors. In addition, an input may have no steps and a row no length: then the final state is the
    initial one.

    Args:
        input_size: features I of the input.
        hidden_size: features H of the state.
        num_layers: layers L, each on top of the one before.
        bias: False leaves out ``bias_ih`` and ``bias_hh``.
        batch_first: True: sequences are (N, T, features); states remain (L*D, N, features).
        dropout: probability with which an element between two layers is zeroed, in training only.
        bidirectional: True: a second direction runs from the end; D = 2, and both outputs stand side by side.
        proj_size: features P of a learned projection of h, less than H; 0 for none, then P = H.
        device, dtype: of the parameters.

    Args of regularised cells, by keyword only. All masks come from torch's generator, are drawn anew in every call and
    for every layer and direction, and act in training only, but for zoneout. They are attributes like ``dropout``:
        - **recurrent_dropout** probability with which an element of h is zeroed on its way into W_h, and else divided
          by the rest. One mask a row for the whole sequence, the same for all gates; what a reset cuts shares it.
          (Gal & Ghahramani, A theoretically grounded application of dropout in recurrent neural networks, 2016)
        - **zoneout_h**, **zoneout_c** probability with which an element of h or c keeps its value in a step; in
          evaluation it becomes that share of its old value and the rest of the new. h is made from the c before
          zoneout; with ``proj_size``, it is the projected h that keeps its value. (Krueger et al., Zoneout:
          regularizing RNNs by randomly preserving hidden activations, 2017)
        - **weight_drop** probability with which an element of W_h is zeroed, and else divided by the rest.
          (DropConnect as in Merity et al., Regularizing and optimizing LSTM language models, 2018)
        - **forget_bias** what b_i of the forget gate starts from, b_h from 0; None: random as the others.
          (Jozefowicz et al., An empirical exploration of recurrent network architectures, 2015, who propose 1)
        - **recompute** True: keep only h and c of every step for the backward pass, which makes the gates again by one
          matrix product a layer. Two layers of T 128, N 32, I = H = 256 on one core: 28 instead of 60 MiB held for
          the backward pass, and 1.4 times as long; the results are the same.

    Inputs: input, (h_0, c_0)
        - **input** (T, N, I), (N, T, I) if ``batch_first``, (T, I) unbatched, or a PackedSequence.
        - **h_0** (L*D, N, P) or (L*D, P) unbatched; zeros by default.
        - **c_0** (L*D, N, H) or (L*D, H) unbatched; zeros by default.

    Options of the call, by keyword only:
        - **lengths** (N), int64 on the input's device: row n ends after ``lengths[n]`` steps, in any order, 0 allowed.
          What the input holds behind the end has no influence, be it NaN; outputs there are zero, the final states
          are those at each row's own end, and the reverse direction starts there: the same as pack, run and pad.
          Values outside of 0 to T are an error; where looking at them would wait for a device or break a graph they
          are clamped. Unbatched: a tensor without dimensions. Not for a PackedSequence, which has its own.
        - **reset** (T, N), bool ((N, T) if ``batch_first``, (T) unbatched; packed: a PackedSequence with the same
          batch_sizes, or a tensor in the order of ``input.data``): where true, the row's state becomes
          ``reset_state`` before this step, in every layer. It is selected, never multiplied: not even a NaN of the
          steps before gets across. The reverse direction is cut at the same place and starts anew on its other side.
          See :func:`fusedrnn.episode_starts`.
        - **reset_state** like (h_0, c_0) or broadcastable to it; zeros by default; differentiable.
        - **return_state_sequence**: True adds a third result, the last layer's c after every step, shaped like the
          output but with H features a direction. ``"all"`` adds a list of (h, c) after every step for each layer.

    Outputs: output, (h_n, c_n)
        - **output** (T, N, D*P), in the form of the input: h of the last layer after every step.
        - **h_n** (L*D, N, P), **c_n** (L*D, N, H): after the last step (the reverse direction's is at step 0).

    Attributes:
        weight_ih_l[k] (4*H, I) or (4*H, D*P), weight_hh_l[k] (4*H, P), bias_ih_l[k], bias_hh_l[k] (4*H),
        weight_hr_l[k] (P, H), in the gate order i, f, g, o; ``_reverse`` is appended for the second direction.
        Initialised from :math:`\mathcal{U}(-1/\sqrt{H}, 1/\sqrt{H})`.

    Source: Hochreiter & Schmidhuber, Long short-term memory, 1997; forget gate: Gers et al., Learning to forget, 2000;
    projection: Sak et al., Long short-term memory recurrent neural network architectures, 2014.

    Example::

        >>> lstm = fusedrnn.FusedLSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10), lengths=torch.tensor([5, 0, 3]))
    """

    torch_class = nn.LSTM
    check_forward_args = nn.LSTM.check_forward_args
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", args, kwargs)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.forget_bias is not None:
            if not self.bias:
                raise ValueError("forget_bias needs bias=True, got bias=False")
            for name, p in self.named_parameters():
                if name.startswith("bias"):
                    forget = p.detach()[self.hidden_size : 2 * self.hidden_size]
                    forget.fill_(self.forget_bias if name.startswith("bias_ih") else 0.0)


class FusedGRU(_Recurrent):
    r"""A network of gated recurrent units, in place of :class:`torch.nn.GRU`.

    .. math::
        r_t, z_t = \sigma(W_i x_t + b_i + W_h h_{t-1} + b_h), \quad
        n_t = \tanh(W_i x_t + b_i + r_t \odot (W_h h_{t-1} + b_h)) \\
        h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    with each gate's own rows of the weights.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as for
            :class:`FusedLSTM`; there is no projection.
        recurrent_dropout, zoneout_h, weight_drop, recompute: as for :class:`FusedLSTM`.

    Inputs: input, h_0
        as for :class:`FusedLSTM`, but the state is the one tensor h (L*D, N, H). The options of the call are the same;
        as h is the whole state and the output holds it, ``return_state_sequence=True`` adds None, and ``"all"`` a list
        of (h, None).

    Outputs: output (T, N, D*H), h_n (L*D, N, H)

    Attributes:
        weight_ih_l[k] (3*H, I) or (3*H, D*H), weight_hh_l[k] (3*H, H), bias_ih_l[k], bias_hh_l[k] (3*H), in the gate
        order r, z, n.

    Source: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014, with the reset gate behind the
    recurrent product as in :class:`torch.nn.GRU`.

    Example::

        >>> output, h_n = fusedrnn.FusedGRU(10, 20, bidirectional=True)(torch.randn(5, 3, 10))
    """

    torch_class = nn.GRU

    def __init__(self, *args, **kwargs):
        _refuse_projection(kwargs)
        super().__init__("GRU", args, kwargs)


class FusedRNN(_Recurrent):
    r"""Elman's simple recurrent network, in place of :class:`torch.nn.RNN`.

    .. math::
        h_t = \tanh(W_i x_t + b_i + W_h h_{t-1} + b_h)

    Args:
        input_size, hidden_size, num_layers: as for :class:`FusedLSTM`.
        nonlinearity: ``'tanh'`` or ``'relu'``; by position it is the fourth argument.
        bias, batch_first, dropout, bidirectional, device, dtype: as for :class:`FusedLSTM`.
        recurrent_dropout, zoneout_h, weight_drop, recompute: as for :class:`FusedLSTM`.

    Inputs: input, h_0
        as for :class:`FusedGRU`.

    Outputs: output (T, N, D*H), h_n (L*D, N, H)

    Attributes:
        weight_ih_l[k] (H, I) or (H, D*H), weight_hh_l[k] (H, H), bias_ih_l[k], bias_hh_l[k] (H).

    Source: Elman, Finding structure in time, 1990.

    Example::

        >>> output, h_n = fusedrnn.FusedRNN(10, 20, nonlinearity="relu")(torch.randn(5, 3, 10))
    """

    torch_class = nn.RNN

    def __init__(self, *args, **kwargs):
        _refuse_projection(kwargs)
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
        if nonlinearity not in modes:
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(modes[nonlinearity], args, kwargs)
        self.nonlinearity = nonlinearity


def _refuse_projection(kwargs: dict) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
