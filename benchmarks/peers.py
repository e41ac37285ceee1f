"""One shape, computed by everybody: fusedrnn, torch.nn, a Python loop over torch.nn's cell, ONNX Runtime, OpenVINO.

All have the same parameters and inputs. What is timed is a function without arguments that adds as little as possible
to the call: no_grad is for the caller to set, and ``tensors`` takes the results apart afterwards.
"""

from __future__ import annotations

import copy
import importlib.util
import zlib
from collections.abc import Callable, Mapping

import torch
from shapes import Shape
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fusedrnn

INFERENCE = {"onnxruntime": ("float32",), "openvino": ("float32", "bfloat16")}  # the dtypes that each has on a CPU
PEERS = ("torch", "loop", *INFERENCE)
ONNX_ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}  # ifgo to iofc; rzn to zrh


class Work:
    """A shape made real: torch.nn's module, its twin of fusedrnn, and what they are given."""

    def __init__(self, shape: Shape, device: str = "cpu"):
        self.shape = shape
        torch.manual_seed(zlib.crc32(shape.name.encode()))
        real = {"dtype": getattr(torch, shape.dtype), "device": device}
        sizes, options = (shape.I, shape.H), real
        if not shape.is_cell_module:
            sizes = *sizes, shape.layers
            options = (
                real | {"bidirectional": shape.directions == 2} | ({"proj_size": shape.proj} if shape.proj else {})
            )
        self.torch_module = getattr(nn, shape.cell)(*sizes, **options)
        self.our_module = getattr(fusedrnn, f"Fused{shape.cell}")(*sizes, **options)
        self.our_module.load_state_dict(self.torch_module.state_dict())
        self.lengths = shape.lengths()
        self.x = torch.randn(*(() if shape.is_cell_module else (shape.T,)), shape.N, shape.I, **real)
        if shape.form == "packed":
            self.x = pack_padded_sequence(self.x, self.lengths, enforce_sorted=False)
        # Episodes of 32 steps on the average. CleanRL's mask is a float, 1 where an episode ended before this step.
        self.ended = (torch.rand(shape.T, shape.N, device=device) < 1 / 32).to(real["dtype"])
        self.hx = None
        if shape.form in ("step", "reset"):
            size = () if shape.is_cell_module else (shape.layers * shape.directions,)
            states = [torch.randn(*size, shape.N, shape.H, **real) for _ in range(2)]
            self.hx = tuple(states) if "LSTM" in shape.cell else states[0]

    def double(self) -> Work:
        """The same numbers in float64."""
        twin = copy.deepcopy(self)
        twin.torch_module.double()
        twin.x, twin.ended = self.x.double(), self.ended.double()
        if self.hx is not None:
            twin.hx = tuple(s.double() for s in self.hx) if isinstance(self.hx, tuple) else self.hx.double()
        return twin


def contender(work: Work, who: str, call: str, threads: int = 1) -> Callable | None:
    """The function to time, or None where ``who`` cannot do that."""
    shape = work.shape
    if who in INFERENCE:
        standard = shape.form in ("padded", "step") and not shape.proj and not shape.is_cell_module
        if call == "training" or not standard or shape.dtype not in INFERENCE[who] or not installed(who):
            return None
        return {"onnxruntime": _onnxruntime, "openvino": _openvino}[who](work, threads)
    if who == "loop" and not shape.loop:
        return None
    run = {"fusedrnn": _fusedrnn, "torch": _torch, "loop": _loop}[who](work)
    if call == "forward":
        return lambda: run(work.x)
    packed = isinstance(work.x, PackedSequence)
    leaf = (work.x.data if packed else work.x).detach().requires_grad_()
    x = PackedSequence(leaf, *work.x[1:]) if packed else leaf
    module = work.our_module if who == "fusedrnn" else work.torch_module
    wanted = [leaf, *module.parameters()]
    steps = (int(work.lengths.sum()),) if packed else (shape.N,) if shape.is_cell_module else (shape.T, shape.N)
    torch.manual_seed(1)
    dy = torch.randn(*steps, shape.directions * (shape.proj or shape.H))
    dy = dy.to(getattr(torch, shape.dtype)).to(leaf)  # in float64 it has the same rounded values

    def training():
        result = run(x)
        return result, torch.autograd.grad(_first(result), wanted, dy)

    return training


def _first(result) -> Tensor:
    while not isinstance(result, Tensor):
        result = result.data if isinstance(result, PackedSequence) else result[0]
    return result


def tensors(result) -> list[Tensor]:
    """All that a contender returned, in one order for all."""
    if isinstance(result, Tensor):
        return [result.detach()]
    if isinstance(result, PackedSequence):
        return [result.data.detach()]
    if isinstance(result, (tuple, list, Mapping)):
        parts = result.values() if isinstance(result, Mapping) else result
        return [t for part in parts for t in tensors(part)]
    return [torch.from_numpy(result)]


def error(results: list[Tensor], exact: list[Tensor]) -> float:
    """Largest difference of any result, relative to the largest element of the exact one."""
    if [r.shape for r in results] != [e.shape for e in exact]:
        return float("inf")
    largest = 0.0
    for result, true in zip(results, exact, strict=True):
        if true.numel():
            difference = (result.double() - true).abs().max() / true.abs().max().clamp_min(1e-30)
            largest = max(largest, difference.nan_to_num(float("inf")).item())
    return largest


def _fusedrnn(work: Work) -> Callable:
    module, hx = work.our_module, work.hx
    if work.shape.form == "lengths":
        lengths = work.lengths.to(work.x.device)
        return lambda x: module(x, lengths=lengths)
    if work.shape.form == "reset":
        reset = work.ended.bool()
        return lambda x: module(x, hx, reset=reset)
    return lambda x: module(x, hx)


def _torch(work: Work) -> Callable:
    """How it is done with torch.nn: one call where that exists."""
    module, hx, lengths, T = work.torch_module, work.hx, work.lengths, work.shape.T

    def pack_and_pad(x):
        y, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(y, total_length=T)[0], state

    def step_by_step(x):
        (h, c), y = hx, []
        for x_t, ended in zip(x.unbind(0), work.ended.unbind(0), strict=True):
            keep = (1.0 - ended).view(1, -1, 1)
            y_t, (h, c) = module(x_t.unsqueeze(0), (keep * h, keep * c))
            y.append(y_t)
        return torch.cat(y), (h, c)

    return {"lengths": pack_and_pad, "reset": step_by_step}.get(work.shape.form, lambda x: module(x, hx))


def _loop(work: Work) -> Callable:
    """A cell of torch.nn, called for each step."""
    shape, module = work.shape, work.torch_module
    cell = getattr(nn, f"{shape.cell}Cell")(shape.I, shape.H, dtype=work.x.dtype, device=work.x.device)
    for name, _ in list(cell.named_parameters()):
        setattr(cell, name, getattr(module, f"{name}_l0"))

    def run(x):
        state, y = None, []
        for x_t in x.unbind(0):
            state = cell(x_t, state)
            y.append(_first(state))
        return torch.stack(y), [s.unsqueeze(0) for s in (state if isinstance(state, tuple) else (state,))]

    return run


def installed(who: str) -> bool:
    return importlib.util.find_spec(who) is not None and importlib.util.find_spec("onnx") is not None


def onnx_model(work: Work):
    """The module as standard ONNX nodes: outputs y, h_n and, of an LSTM, c_n."""
    from onnx import TensorProto, helper, numpy_helper

    shape, nodes, constants = work.shape, [], []
    cell, D, H, order = shape.cell, shape.directions, shape.H, ONNX_ORDER[shape.cell]

    def constant(name, value):
        constants.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def in_onnx_order(kind, layer):
        """[D, G*H, ...] of both directions."""
        names = [f"{kind}_l{layer}{suffix}" for suffix in ("", "_reverse")[:D]]
        weights = [getattr(work.torch_module, name).detach().float() for name in names]
        return torch.stack([torch.cat([w.chunk(len(order))[k] for k in order]) for w in weights])

    states, y = ["h", "c"] if cell == "LSTM" else ["h"], "x"
    given = [f"{s}_0" for s in states] if work.hx is not None else []
    options = {"linear_before_reset": 1} if cell == "GRU" else {}
    for layer in range(shape.layers):
        inputs = [y, *(constant(f"{k}_{layer}", in_onnx_order(k, layer)) for k in ("weight_ih", "weight_hh"))]
        bias = torch.cat([in_onnx_order("bias_ih", layer), in_onnx_order("bias_hh", layer)], 1)
        inputs += [constant(f"bias_{layer}", bias), "", *given]
        finals = [f"{s}_n_{layer}" for s in states]
        direction = "bidirectional" if D == 2 else "forward"
        nodes.append(
            helper.make_node(cell, inputs, [f"raw_{layer}", *finals], hidden_size=H, direction=direction, **options)
        )
        y = f"y_{layer}"  # [T, D, N, H] to [T, N, D*H]
        nodes.append(helper.make_node("Transpose", [f"raw_{layer}"], [f"turned_{layer}"], perm=[0, 2, 1, 3]))
        target = constant(f"shape_{layer}", torch.tensor([shape.T, shape.N, D * H]))
        nodes.append(helper.make_node("Reshape", [f"turned_{layer}", target], [y]))
    for s in states:
        nodes.append(helper.make_node("Concat", [f"{s}_n_{k}" for k in range(shape.layers)], [f"{s}_n"], axis=0))

    def value(name, *size):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, size)

    state_size = shape.layers * D, shape.N, H
    inputs = [value("x", shape.T, shape.N, shape.I), *(value(name, *state_size) for name in given)]
    outputs = [value(y, shape.T, shape.N, D * H), *(value(f"{s}_n", *state_size) for s in states)]
    graph = helper.make_graph(nodes, work.shape.name, inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _onnx_inputs(work: Work) -> dict:
    hx = () if work.hx is None else work.hx if isinstance(work.hx, tuple) else (work.hx,)
    given = dict(zip(("x", "h_0", "c_0"), (work.x, *hx), strict=False))
    return {name: t.float().numpy() for name, t in given.items()}


def _onnxruntime(work: Work, threads: int) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads wait actively inside a run, as by default, but not beyond: the next contender needs the cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = onnx_model(work).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = _onnx_inputs(work)
    return lambda: session.run(None, inputs)


def _openvino(work: Work, threads: int) -> Callable:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    # By default it computes float32 models in bfloat16 where the processor can.
    options["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[work.shape.dtype]
    model = core.read_model(onnx_model(work).SerializeToString())
    request = core.compile_model(model, "CPU", options).create_infer_request()
    inputs = _onnx_inputs(work)
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)
