"""A layer as one standard node of ONNX, for both exporters of torch.onnx."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # our gates in ONNX's order: i o f g and z r n


def layer(mode: str, x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], options: Sequence):
    """y, h_n, c_n of :func:`fusedrnn.scan.scan`; options are the arguments that ONNX has nothing for."""
    biased, projected = any(w.dim() == 1 for w in weights), len(weights) in (3, 5, 6, 10)
    count = 4 if biased else 2
    directions = len(weights) // count  # not from a size, which is a tensor while the older exporter traces
    if any(option is not None and option is not False for option in options) or projected:
        raise ValueError(
            "ONNX has no projection, packed input, lengths, reset, state sequences or regularised cells: export the "
            "module in evaluation mode, with padded input and without them"
        )
    if not torch.compiler.is_compiling():  # the exporter by tracing knows torch's own layers
        states = h0 if c0 is None else [h0, c0]
        run = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[mode]
        y, *states = run(x, states, list(weights), biased, 1, 0.0, False, directions == 2, False)
        return y, states[0], states[1] if c0 is not None else None
    _, rows, hidden = h0.shape
    node = mode.split("_")[0]
    order = ORDER[node]
    parts = [torch.cat([w.chunk(len(order))[gate] for gate in order]) for w in weights]
    w_ih, w_hh, *biases = (torch.stack(parts[i::count]) for i in range(count))
    states = [h0] if c0 is None else [h0, c0]
    attributes = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if node == "RNN":
        attributes["activations"] = ["Tanh" if mode == "RNN_TANH" else "Relu"] * directions
    if node == "GRU":
        attributes["linear_before_reset"] = 1
    y, *final = torch.onnx.ops.symbolic_multi_out(
        node,
        [x, w_ih, w_hh, torch.cat(biases, 1) if biases else None, None, *states],
        attributes,
        dtypes=[x.dtype] * (1 + len(states)),
        shapes=[[x.shape[0], directions, rows, hidden], *[h0.shape] * len(states)],
        version=14,
    )
    return y.transpose(1, 2).flatten(2), final[0], final[1] if c0 is not None else None
