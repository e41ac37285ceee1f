"""Layers and the dropout between them, as calls of :func:`fusedrnn.scan.scan`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .noise import Noise, dropout
from .scan import scan


def run(
    mode: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    layers: int,
    dropout_rate: float = 0.0,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    c_sequences: int = 0,
    noise: Noise | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, list[tuple[Tensor, Tensor | None]]]:
    """Runs all layers; each but the last hands its output, after dropout, to the next.

    Args:
        mode, x, batch_sizes, lengths, reset: as for :func:`fusedrnn.scan.scan`.
        h0, c0, reset_h, reset_c: as there, but of all layers: [L*D, N, P] and [L*D, N, H].
        weights: of all layers, one after the other, each in the order of the scan.
        layers: L.
        dropout_rate: probability with which an element between two layers becomes zero; 0 outside of training.
        c_sequences: the number of layers, counted from the last, whose cell state after every step is wanted.
        noise: masks inside of the layers, drawn anew in every call.
        recompute: as for the scan.

    Returns:
        y of the last layer, h_n [L*D, N, P], c_n [L*D, N, H] or None, and for each layer its y and its cell state
        after every step (None where not wanted).
    """
    h_n, c_n, sequences = [], [], []
    for layer in range(layers):
        if layer and dropout_rate:
            x = dropout(x, dropout_rate)
        h, c, own_reset_h, own_reset_c, own = h0, c0, reset_h, reset_c, weights
        if layers > 1:
            directions, count = h0.size(0) // layers, len(weights) // layers
            h, c, own_reset_h, own_reset_c = (
                None if s is None else s.narrow(0, layer * directions, directions) for s in (h0, c0, reset_h, reset_c)
            )
            own = weights[layer * count : (layer + 1) * count]
        h_mask = zone_h = zone_c = None
        if noise is not None:
            h_mask, zone_h, zone_c, own = noise.masks(x, h, c, own)
        x, h, c, c_steps = scan(
            mode, x, h, c, own, batch_sizes, lengths, reset, own_reset_h, own_reset_c, h_mask, zone_h, zone_c,
            layers - layer <= c_sequences, recompute,
        )  # fmt: skip
        h_n.append(h)
        c_n.append(c)
        sequences.append((x, c_steps))
    if layers == 1:
        return x, h, c, sequences
    return x, torch.cat(h_n), torch.cat(c_n) if c0 is not None else None, sequences
