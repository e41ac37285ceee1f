"""A layer as one standard node of ONNX, for both exporters of torch.onnx."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inputs import WEIGHTS, ScanInputs
from . import extension, operators, reference

ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # our gates in ONNX's order: i o f g and z r n


@extension.constant_in_graphs  # else the compiler takes the answer to be no, also while it exports
def is_exporting() -> bool:
    return torch.onnx.is_in_onnx_export()


def check(cell: str) -> None:
    if cell in reference.WRITTEN or cell.split("_")[0] not in ORDER:
        raise ValueError(f"ONNX has no operator for the cell {cell}: only for LSTM, GRU and RNN")


def layer(cell: str, inputs: ScanInputs, sequences: bool) -> tuple[list[Tensor | None], list[Tensor]]:
    """As :func:`fusedrnn.scan.scan`."""
    compiling, lengths = torch.compiler.is_compiling(), inputs.lengths
    check(cell)
    batch_sizes = inputs.batch_sizes
    allowed = inputs._replace(lengths=None, batch_sizes=batch_sizes if compiling else None)
    if allowed.has_options() or inputs.w_hr or sequences:
        raise ValueError(
            "ONNX has no projection, reset, state sequences or regularised cells, and torch.onnx.export(dynamo=True) "
            "no packed input, but lengths=: export the module in evaluation mode and without them"
        )
    if batch_sizes is not None:  # the exporter by tracing turns the packing around torch's layers into sequence_lens
        return reference.torch_layer(cell, inputs)
    one_step = inputs.one_step
    x, states = inputs.x, list(inputs.initial)
    if one_step:
        x, states = x.unsqueeze(0), [s.unsqueeze(0) for s in states]
    y, *last = _run(cell, inputs._replace(x=x, initial=states))
    if lengths is not None:  # without steps ONNX Runtime ends in zero
        runs = lengths.reshape(1, -1, 1) > 0
        last = [torch.where(runs, s, s0) for s, s0 in zip(last, states, strict=True)]
    y = y.transpose(1, 2).flatten(2)
    if one_step:
        y, last = y.squeeze(0), [s.squeeze(0) for s in last]
    return [y, *[None] * (len(last) - 1)], last


def _run(cell: str, inputs: ScanInputs):
    """The results of the node: Y [T, D, N, H], Y_h and Y_c."""
    node, x, states = cell.split("_")[0], inputs.x, list(inputs.initial)
    order = ORDER[node]
    directions = inputs.directions  # not from a size, which is a tensor while the older exporter traces
    hidden = int(inputs.w_ih[0].shape[0]) // len(order)  # a tensor, too
    w_ih, w_hh, b_ih, b_hh = (_in_order(getattr(inputs, name), order, hidden) for name in WEIGHTS[:4])
    sequence_lens = None if inputs.lengths is None else inputs.lengths.int()
    arguments = [x, w_ih, w_hh, None if b_ih is None else torch.cat([b_ih, b_hh], 1), sequence_lens, *states]
    attributes = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if node == "RNN":
        attributes["activations"] = ["Tanh" if cell == "RNN_TANH" else "Relu"] * directions
    if node == "GRU":
        attributes["linear_before_reset"] = 1
    if torch.compiler.is_compiling():
        return torch.onnx.ops.symbolic_multi_out(
            node,
            arguments,
            attributes,
            dtypes=[x.dtype] * (1 + len(states)),
            shapes=[[x.shape[0], directions, *states[0].shape[1:]], *[s.shape for s in states]],
            version=14,
        )
    steps, last = _untraced(operators.scan_forward, cell, False, False, inputs)
    return _Node.apply(node, attributes, [steps[0], *last], *arguments)


def _in_order(weights: Sequence[Tensor], order: Sequence[int], hidden: int) -> Tensor | None:
    """Of all directions, one behind the other, with their gates in this order."""
    parts = [torch.cat([w[gate * hidden : (gate + 1) * hidden] for gate in order]).unsqueeze(0) for w in weights]
    return torch.cat(parts) if parts else None


def _untraced(run, *args):
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        with torch.no_grad():
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
