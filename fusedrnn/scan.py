"""The scan of one recurrent layer: the only door to the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from . import reference


def scan(
    mode: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    c_sequence: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Runs one layer, all steps and both directions. Nothing is checked here: the modules have done so.

    Args:
        mode: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``, as in :attr:`torch.nn.RNNBase.mode`.
        x: padded input [T, N, I], or packed rows [R, I] together with ``batch_sizes``.
        h0: initial hidden state [D, N, P]; its first size says whether the layer is bidirectional (D = 2).
        c0: initial cell state [D, N, H] of an LSTM, else None.
        weights: for each direction ``w_ih [G*H, I], w_hh [G*H, P]``, then ``b_ih, b_hh [G*H]`` or neither,
            then ``w_hr [P, H]`` of a projected LSTM.
        batch_sizes: [T] int64 on the CPU, not increasing: the number of packed rows in each step.
        lengths: [N] int64; row n ends after ``lengths[n]`` steps: later outputs are zero, its state is frozen, and
            the reverse direction starts at its end. Only with padded input.
        reset: bool [T, N] (packed: [R]); True cuts the row between the step before and this one. Forward, the state
            before this step becomes ``reset_h``, ``reset_c``; the reverse direction starts anew on the other side.
        reset_h, reset_c: as h0 and c0; None stands for zeros.
        c_sequence: also return the cell state after every step.

    Returns:
        y [T, N, D*P] (packed: [R, D*P]), h_n [D, N, P], c_n [D, N, H] or None, and c of every step [T, N, D*H] or None.
    """
    y, h_n, c_n, c_steps = reference.scan(
        mode, x, h0, c0, weights, batch_sizes, lengths, reset, reset_h, reset_c
    )
    return y, h_n, c_n, c_steps if c_sequence else None
