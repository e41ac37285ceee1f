"""FusedLSTM, FusedGRU and FusedRNN: the recurrent modules of torch.nn on the fused scan, with additional options."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from . import twin
from .dropin import DropIn, self_contained


@self_contained
class FusedLSTM(DropIn[tuple[Tensor, Tensor], Tensor, PackedSequence]):
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
        recurrent_dropout: probability that an element of h is zeroed on its way into W_h; the others are scaled by
            1 / (1 - p). One mask per row for the whole sequence, across resets, shared by all gates. (Gal &
            Ghahramani, A theoretically grounded application of dropout in recurrent neural networks, 2016)
        zoneout_h: probability that an element of h keeps its previous value in a step; in evaluation it becomes the
            expected mixture of old and new. With ``proj_size`` this is the projected h. (Krueger et al., Zoneout:
            regularizing RNNs by randomly preserving hidden activations, 2017)
        zoneout_c: the same for c. h is computed from c before zoneout.
        weight_drop: probability that an element of W_h is zeroed; the others are scaled by 1 / (1 - p). (DropConnect
            as in Merity et al., Regularizing and optimizing LSTM language models, 2018)
        forget_bias: initial value of the forget gate's b_i, with b_h at 0; None: random like the others.
            (Jozefowicz et al., An empirical exploration of recurrent network architectures, 2015, who propose 1)
        recompute: True: keep only h and c of every step for the backward pass, which recomputes the gates with one
            matrix product per layer. Less memory, more time, the same results.

    The last six are keyword-only, and attributes that can be changed later, like ``dropout``. Masks come from torch's
    generator, drawn anew for each call, layer and direction. Apart from zoneout they act in training only.

    Inputs: input, (h_0, c_0)
        - **input** (T, N, I), (N, T, I) if ``batch_first``, (T, I) unbatched, a PackedSequence, or a nested tensor of
          layout torch.jagged, (N, ragged T, I) whatever ``batch_first`` says: it runs as ``lengths`` does.
        - **h_0** (L*D, N, P) or (L*D, P) unbatched; zeros by default.
        - **c_0** (L*D, N, H) or (L*D, H) unbatched; zeros by default.

    Options of the call, by keyword only:
        - **lengths** (N), int64 on the input's device: row n ends after ``lengths[n]`` steps, in any order, 0 allowed.
          What the input holds behind the end has no influence, be it NaN; outputs there are zero, the final states
          are those at each row's own end, and the reverse direction starts there: the same as pack, run and pad.
          Values outside of 0 to T are an error; where looking at them would wait for a device or break a graph they
          are clamped. Unbatched: a tensor without dimensions. Not for packed or nested input, which has its own.
        - **reset** (T, N), bool ((N, T) if ``batch_first``, (T) unbatched; packed: a PackedSequence with the same
          batch_sizes, or a tensor in the order of ``input.data``; nested: (N, ragged T) with the offsets of the
          input): where true, the row's state becomes
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
        weight_ih_l[k]: (4*H, I), above the first layer (4*H, D*P), in the gate order i, f, g, o.
        weight_hh_l[k]: (4*H, P).
        bias_ih_l[k]: (4*H); absent if ``bias=False``.
        bias_hh_l[k]: (4*H); absent if ``bias=False``.
        weight_hr_l[k]: (P, H), only with ``proj_size``.

    Names of the second direction end in ``_reverse``. Initial values are drawn from
    :math:`\mathcal{U}(-1/\sqrt{H}, 1/\sqrt{H})`.

    Source: Hochreiter & Schmidhuber, Long short-term memory, 1997; forget gate: Gers et al., Learning to forget, 2000;
    projection: Sak et al., Long short-term memory recurrent neural network architectures, 2014.

    Example::

        >>> lstm = fusedrnn.FusedLSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10), lengths=torch.tensor([5, 0, 3]))
    """

    torch_class = nn.LSTM
    __prepare_scriptable__ = twin.scriptable
    check_forward_args = nn.LSTM.check_forward_args
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        weight_drop: float = 0.0,
        forget_bias: float | None = None,
        recompute: bool = False,
    ) -> None:
        DropIn.__init__(
            self, "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device, dtype, recurrent_dropout=recurrent_dropout, zoneout_h=zoneout_h, zoneout_c=zoneout_c,
            weight_drop=weight_drop, forget_bias=forget_bias, recompute=recompute,
        )  # fmt: skip

    def reset_parameters(self) -> None:
        nn.RNNBase.reset_parameters(self)
        if self.forget_bias is not None:
            if not self.bias:
                raise ValueError("forget_bias needs bias=True, got bias=False")
            for name, p in self.named_parameters():
                if name.startswith("bias"):
                    forget = p.detach()[self.hidden_size : 2 * self.hidden_size]
                    forget.fill_(self.forget_bias if name.startswith("bias_ih") else 0.0)


@self_contained
class FusedGRU(DropIn[Tensor, None, None]):
    r"""A network of gated recurrent units, in place of :class:`torch.nn.GRU`.

    .. math::
        r_t, z_t = \sigma(W_i x_t + b_i + W_h h_{t-1} + b_h), \quad
        n_t = \tanh(W_i x_t + b_i + r_t \odot (W_h h_{t-1} + b_h)) \\
        h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    with each gate's own rows of the weights.

    Arguments are those of :class:`FusedLSTM` without ``proj_size``, ``zoneout_c`` and ``forget_bias``.

    Inputs: input, h_0
        as for :class:`FusedLSTM`, but the state is the one tensor h (L*D, N, H). The options of the call are the same;
        as h is the whole state and the output holds it, ``return_state_sequence=True`` adds None, and ``"all"`` a list
        of (h, None).

    Outputs: output (T, N, D*H), h_n (L*D, N, H)

    Attributes:
        weight_ih_l[k]: (3*H, I), above the first layer (3*H, D*H), in the gate order r, z, n.
        weight_hh_l[k]: (3*H, H).
        bias_ih_l[k]: (3*H).
        bias_hh_l[k]: (3*H).

    Source: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014, with the reset gate behind the
    recurrent product as in :class:`torch.nn.GRU`.

    Example::

        >>> output, h_n = fusedrnn.FusedGRU(10, 20, bidirectional=True)(torch.randn(5, 3, 10))
    """

    torch_class = nn.GRU
    __prepare_scriptable__ = twin.scriptable

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: Literal[0] = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout_h: float = 0.0,
        weight_drop: float = 0.0,
        recompute: bool = False,
    ) -> None:
        _refuse_projection(proj_size)
        DropIn.__init__(
            self, "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device, dtype, recurrent_dropout=recurrent_dropout, zoneout_h=zoneout_h, weight_drop=weight_drop,
            recompute=recompute,
        )  # fmt: skip


@self_contained
class FusedRNN(DropIn[Tensor, None, None]):
    r"""Elman's simple recurrent network, in place of :class:`torch.nn.RNN`.

    .. math::
        h_t = \tanh(W_i x_t + b_i + W_h h_{t-1} + b_h)

    Arguments are those of :class:`FusedGRU`, and in the fourth place:

    Args:
        nonlinearity: ``'tanh'`` or ``'relu'``.

    Inputs: input, h_0
        as for :class:`FusedGRU`.

    Outputs: output (T, N, D*H), h_n (L*D, N, H)

    Attributes:
        weight_ih_l[k]: (H, I), above the first layer (H, D*H).
        weight_hh_l[k]: (H, H).
        bias_ih_l[k]: (H).
        bias_hh_l[k]: (H).

    Source: Elman, Finding structure in time, 1990.

    Example::

        >>> output, h_n = fusedrnn.FusedRNN(10, 20, nonlinearity="relu")(torch.randn(5, 3, 10))
    """

    torch_class = nn.RNN
    __prepare_scriptable__ = twin.scriptable

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: Literal[0] = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout_h: float = 0.0,
        weight_drop: float = 0.0,
        recompute: bool = False,
    ) -> None:
        _refuse_projection(proj_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        mode = "RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU"
        DropIn.__init__(
            self, mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device, dtype, recurrent_dropout=recurrent_dropout, zoneout_h=zoneout_h, weight_drop=weight_drop,
            recompute=recompute,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


def _refuse_projection(proj_size: int) -> None:
    if proj_size:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
