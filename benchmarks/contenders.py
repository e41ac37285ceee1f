"""One shape, computed by fusedrnn, torch.nn, a Python loop over the steps, ONNX Runtime and OpenVINO,
all with the same parameters and inputs."""

import copy
import io
import math
import warnings
import zlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch
from shapes import Shape
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import fusedrnn

INFERENCE = {"onnxruntime": ("float32",), "openvino": ("float32", "bfloat16")}  # the dtypes that each has on a CPU
OTHERS = ("torch", "loop", *INFERENCE)


class Work:
    """The modules of a shape, torch.nn's and fusedrnn's with the same parameters, and their inputs."""

    def __init__(self, shape: Shape, device: str = "cpu"):
        self.shape = shape
        torch.manual_seed(zlib.crc32(shape.name.encode()))
        real = {"dtype": getattr(torch, shape.dtype), "device": device}
        steps, stack, options = (), (), {}
        if not shape.is_cell_module:
            steps, stack = (shape.T,), (shape.layers * shape.directions,)
            options = {"num_layers": shape.layers, "bidirectional": shape.directions == 2}
            options |= {"proj_size": shape.proj} if shape.proj else {}
        self.torch_module = getattr(nn, shape.cell)(shape.I, shape.H, **options, **real)
        self.fused_module = getattr(fusedrnn, f"Fused{shape.cell}")(shape.I, shape.H, **options, **real)
        self.fused_module.load_state_dict(self.torch_module.state_dict())
        self.lengths = shape.lengths()
        self.x = torch.randn(*steps, shape.N, shape.I, **real)
        if shape.form == "packed":
            self.x = pack_padded_sequence(self.x, self.lengths, enforce_sorted=False)
        self.reset = torch.rand(shape.T, shape.N, device=device) < 1 / 32  # episodes of 32 steps on average
        count = (2 if "LSTM" in shape.cell else 1) if shape.form == "step" else 0
        self.states = tuple(torch.randn(*stack, shape.N, shape.H, **real) for _ in range(count))

    @property
    def hx(self):
        return self.states if len(self.states) == 2 else self.states[0] if self.states else None

    def double(self) -> "Work":
        """The same numbers in float64."""
        twin = copy.deepcopy(self)
        twin.torch_module.double()
        twin.x, twin.states = self.x.double(), tuple(s.double() for s in self.states)
        return twin


def contender(work: Work, who: str, call: str, threads: int = 1) -> Callable | None:
    """The function to time, or None if ``who`` does not support the shape."""
    shape = work.shape
    if who in INFERENCE:
        standard = shape.form in ("padded", "step") and not shape.proj and not shape.is_cell_module
        possible = call == "forward" and standard and shape.dtype in INFERENCE[who] and find_spec(who)
        return {"onnxruntime": _onnxruntime, "openvino": _openvino}[who](work, threads) if possible else None
    if who == "loop" and not shape.loop:
        return None
    run = {"torch": _torch, "loop": _loop, "fusedrnn": _fusedrnn}[who](work)
    if call == "forward":
        return lambda: run(work.x)
    packed = isinstance(work.x, PackedSequence)
    leaf = (work.x.data if packed else work.x).detach().requires_grad_()
    x = PackedSequence(leaf, *work.x[1:]) if packed else leaf
    wanted = [leaf, *(work.fused_module if who == "fusedrnn" else work.torch_module).parameters()]
    torch.manual_seed(1)
    dy = torch.randn(*leaf.shape[:-1], shape.directions * (shape.proj or shape.H))
    dy = dy.to(getattr(torch, shape.dtype)).to(leaf)  # in float64 it has the same rounded values

    def training():
        result = run(x)
        return result, torch.autograd.grad(result[0].data if packed else result[0], wanted, dy)

    return training


def tensors(result) -> list[Tensor]:
    """All tensors in what a contender returned, in the same order for all contenders."""
    leaves = tree_leaves(list(result.values()) if isinstance(result, Mapping) else result)
    return [torch.as_tensor(leaf).detach() for leaf in leaves if leaf is not None]


def error(results: list[Tensor], exact: list[Tensor]) -> float:
    """Largest difference of any result, relative to the largest element of the exact one."""
    if [r.shape for r in results] != [e.shape for e in exact]:
        return math.inf
    pairs = [(r.double(), e.double()) for r, e in zip(results, exact, strict=True) if e.numel()]
    relative = ((r - e).abs().max() / e.abs().max().clamp_min(1e-30) for r, e in pairs)
    return max((r.nan_to_num(math.inf).item() for r in relative), default=0.0)


def _fusedrnn(work: Work) -> Callable:
    module, hx = work.fused_module, work.hx
    options = {"reset": {"reset": work.reset}, "lengths": {"lengths": work.lengths.to(work.reset.device)}}
    options = options.get(work.shape.form, {})
    return lambda x: module(x, hx, **options)


def _torch(work: Work) -> Callable:
    """The usual code with torch.nn: one call where possible."""
    module, hx, lengths, T = work.torch_module, work.hx, work.lengths, work.shape.T

    def pack_and_pad(x):
        y, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(y, total_length=T)[0], state

    return {"lengths": pack_and_pad, "reset": _loop(work)}.get(work.shape.form, lambda x: module(x, hx))


def _loop(work: Work) -> Callable:
    """torch.nn's module, called for each step; where episodes end, its state is multiplied by 0, as in CleanRL."""
    shape, module, keeps = work.shape, work.torch_module, [None] * work.shape.T
    if shape.form == "reset":
        keeps = (~work.reset).to(getattr(torch, shape.dtype)).unsqueeze(2).split(1)

    def run(x):
        state, y = (x.new_zeros(1, shape.N, shape.H),) * (2 if shape.cell == "LSTM" else 1), []
        for x_t, keep in zip(x.split(1), keeps, strict=True):
            if keep is not None:
                state = tuple(s * keep for s in state)
            y_t, state = module(x_t, state if len(state) == 2 else state[0])
            state = state if isinstance(state, tuple) else (state,)
            y.append(y_t)
        return torch.cat(y), state

    return run


def _onnx(work: Work) -> tuple[bytes, dict]:
    """torch.nn's module as a model of standard ONNX nodes, in float32, and its inputs."""
    inputs = dict(zip(("x", "h_0", "c_0"), [t.float() for t in (work.x, *work.states)], strict=False))
    x, *states = inputs.values()
    arguments = (x, *([tuple(states)] if len(states) == 2 else states))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated, but its graphs are smaller
        module = copy.deepcopy(work.torch_module).float()
        torch.onnx.export(module, arguments, buffer, dynamo=False, input_names=list(inputs))
    return buffer.getvalue(), {name: t.numpy() for name, t in inputs.items()}


def _onnxruntime(work: Work, threads: int) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads spin during a run, as by default, but not afterwards: the next contender needs the cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model, inputs = _onnx(work)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def _openvino(work: Work, threads: int) -> Callable:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    # By default it computes float32 models in bfloat16 where the processor can.
    options["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[work.shape.dtype]
    model, inputs = _onnx(work)
    request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)
