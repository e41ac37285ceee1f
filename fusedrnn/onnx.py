"""A layer as one standard node of ONNX, for both exporters of torch.onnx."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import kernels

ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # our gates in ONNX's order: i o f g and z r n


@torch.compiler.assume_constant_result  # else the compiler takes the answer to be no, also while it exports
def is_exporting() -> bool:
    return torch.onnx.is_in_onnx_export()


def layer(mode: str, x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], options: Sequence):
    """y, h_n, c_n of :func:`fusedrnn.scan.scan`; options are its arguments from batch_sizes on."""
    batch_sizes, lengths, *others = options
    if torch.compiler.is_compiling():
        others.append(batch_sizes)
    if any(option is not None and option is not False for option in others) or len(weights) in (3, 5, 6, 10):
        raise ValueError(
            "ONNX has no projection, reset, state sequences or regularised cells, and torch.onnx.export(dynamo=True) "
            "no packed input, but lengths=: export the module in evaluation mode and without them"
        )
    if h0.dim() == 2:  # one step
        x, h0, c0 = (None if t is None else t.unsqueeze(0) for t in (x, h0, c0))
        return tuple(None if t is None else t.squeeze(0) for t in layer(mode, x, h0, c0, weights, options))
    if batch_sizes is not None:
        return _packed(mode, x, h0, c0, weights, batch_sizes)
    node, order = mode.split("_")[0], ORDER[mode.split("_")[0]]
    count = 4 if any(w.dim() == 1 for w in weights) else 2
    directions = len(weights) // count  # not from a size, which is a tensor while the older exporter traces
    hidden = int(weights[0].shape[0]) // len(order)  # a tensor, too
    parts = [torch.cat([w[gate * hidden : (gate + 1) * hidden] for gate in order]).unsqueeze(0) for w in weights]
    w_ih, w_hh, *biases = (torch.cat(parts[i::count]) for i in range(count))
    states = [h0] if c0 is None else [h0, c0]
    sequence_lens = None if lengths is None else lengths.int()
    inputs = [x, w_ih, w_hh, torch.cat(biases, 1) if biases else None, sequence_lens, *states]
    attributes = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if node == "RNN":
        attributes["activations"] = ["Tanh" if mode == "RNN_TANH" else "Relu"] * directions
    if node == "GRU":
        attributes["linear_before_reset"] = 1
    if torch.compiler.is_compiling():
        y, *final = torch.onnx.ops.symbolic_multi_out(
            node,
            inputs,
            attributes,
            dtypes=[x.dtype] * (1 + len(states)),
            shapes=[[x.shape[0], directions, *h0.shape[1:]], *[h0.shape] * len(states)],
            version=14,
        )
    else:
        values = _untraced(kernels.forward, mode, False, False, (x, h0, c0, None, lengths, *[None] * 6), weights)
        y, *final = _Node.apply(node, attributes, values[: 1 + len(states)], *inputs)
    if lengths is not None:  # without steps ONNX Runtime ends in zero
        runs = lengths.reshape(1, -1, 1) > 0
        final = [torch.where(runs, s, s0) for s, s0 in zip(final, states, strict=True)]
    return y.transpose(1, 2).flatten(2), final[0], final[1] if c0 is not None else None


def _untraced(run, *args):
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        return run(*args)
    finally:
        torch._C._set_tracing_state(state)


class _Node(torch.autograd.Function):
    """How the exporter by tracing is told of a node: by ``symbolic``. The values are for whoever looks at them."""

    @staticmethod
    def forward(ctx, node, attributes, values, *inputs):
        y, *final = values
        return y.unflatten(2, (final[0].size(0), -1)).transpose(1, 2), *(t.clone() for t in final)

    @staticmethod
    def symbolic(g, node, attributes, values, *inputs):
        given = [_absent(g) if t is None else t for t in inputs]
        suffixes = {int: "_i", str: "_s", list: "_s"}
        named = {name + suffixes[type(value)]: value for name, value in attributes.items()}
        return g.op(node, *given, outputs=len(values), **named)


def _absent(g):
    constant = g.op("prim::Constant")
    constant.setType(torch._C.OptionalType.ofTensor())
    return constant


def _packed(mode, x, h0, c0, weights, batch_sizes):
    """The exporter by tracing turns the packing around torch's own layers into ``sequence_lens``."""
    count = 4 if any(w.dim() == 1 for w in weights) else 2
    states = h0 if c0 is None else [h0, c0]
    run = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[mode]
    y, *states = run(x, batch_sizes, states, list(weights), count == 4, 1, 0.0, False, len(weights) == 2 * count)
    return y, states[0], states[1] if c0 is not None else None
