"""Layers and the dropout between them, as calls of :func:`fusedrnn.scan.scan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .inputs import WEIGHTS, ScanInputs
from .noise import Noise, dropout
from .scan import scan, scan_layers

Kinds = tuple[int, tuple[int | None, ...]]


def places(kinds: Sequence[str]) -> Kinds:
    """How many weights a layer has in one direction, and the place of each of WEIGHTS among them."""
    return len(kinds), tuple(kinds.index(kind) if kind in kinds else None for kind in WEIGHTS)


# Of torch.nn's layers, by (bias, projection).
KINDS = {
    (bias, projection): places((*WEIGHTS[:2], *WEIGHTS[2:4] * bias, *WEIGHTS[4:5] * projection))
    for bias in (False, True)
    for projection in (False, True)
}


class Options(NamedTuple):
    """Options that all layers of a stack share."""

    dropout: float = 0.0  # probability with which an element between two layers becomes zero; 0 outside of training
    batch_sizes: Tensor | None = None  # this and the next two as in ScanInputs
    lengths: Tensor | None = None
    reset: Tensor | None = None
    reset_states: Sequence[Tensor] = ()  # of all layers
    step_inputs: Sequence[Tensor] = ()  # the same for all layers and directions
    sequences: int = 0  # the number of layers, counted from the last, whose states after every step are returned
    noise: Noise | None = None  # masks inside the layers, drawn in every call
    recompute: bool = False


PLAIN = Options()


def _of_layer(layer: int, layers: int, directions: int, states: Sequence[Tensor]) -> Sequence[Tensor]:
    """The states of one layer, out of those of all layers."""
    return states if layers == 1 else [s.narrow(0, layer * directions, directions) for s in states]


def run(
    cell: str,
    x: Tensor,
    initial: Sequence[Tensor],
    parameters: tuple[Sequence[Tensor], Kinds],
    layers: int,
    options: Options,
) -> tuple[Tensor, list[Tensor], list[list[Tensor | None]]]:
    """Runs all layers; each but the last hands its output, after dropout, to the next.

    Args:
        cell, x: as for :func:`fusedrnn.scan.scan`.
        initial: each state of all layers, [L*D, N, width].
        parameters: of all layers and directions, one after the other, and what :func:`places` made of their kinds.
        layers: L.

    Returns:
        y of the last layer, each state after the last step [L*D, N, width], and for each layer its states after every
        step (None where not wanted).
    """
    weights, (count, places) = parameters
    if layers == 1 and options is PLAIN:  # fast path
        steps, last = scan(cell, ScanInputs(x, initial, *[() if i is None else weights[i::count] for i in places]))
        return steps[0], last, [steps]
    directions, final, sequences = initial[0].size(0) // layers, [], []

    def of_layer(layer: int, x: Tensor | None) -> ScanInputs:
        begin, end = layer * directions * count, (layer + 1) * directions * count
        states, reset_states = (_of_layer(layer, layers, directions, kind) for kind in (initial, options.reset_states))
        parts = [() if i is None else weights[begin + i : end : count] for i in places]
        given = (reset_states, options.step_inputs, options.batch_sizes, options.lengths, options.reset)
        return ScanInputs(x, states, *parts, *given)

    made = _run_side_by_side(cell, of_layer, x, layers, initial[0], options)
    for layer in range(layers):
        if made is None:
            if layer and options.dropout:
                x = dropout(x, options.dropout)
            inputs = of_layer(layer, x)
            if options.noise is not None:
                inputs = options.noise.apply(inputs)
            steps, last = scan(cell, inputs, layers - layer <= options.sequences, options.recompute)
        else:
            steps, last = made[layer]
        x = steps[0]
        final.append(last)
        sequences.append(steps)
    if layers == 1:
        return x, last, sequences
    return x, [torch.cat(states) for states in zip(*final, strict=True)], sequences


def _run_side_by_side(cell: str, of_layer, x: Tensor, layers: int, h0: Tensor, options: Options):
    """What :func:`fusedrnn.scan.scan_layers` makes of layers that all take the output of the one below as it is; None
    where they must run one after the other."""
    alike = layers > 1 and not options.dropout and options.noise is None and not options.sequences
    recompute = options.recompute and torch.is_grad_enabled()
    if not alike or recompute or torch.compiler.is_compiling() or h0.size(1) >= torch.get_num_threads():
        return None
    return scan_layers(cell, [of_layer(layer, None if layer else x) for layer in range(layers)])
