"""The CUDA kernels on a GPU: every tier against the reference, modules against torch.nn, and GPU-only features."""

import os

import pytest
import torch
from conftest import WHY_NO_CUDA
from test_scan import make_layer
from tolerances import RATIO, SAME, distance, floor
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_map
from twins import every_sequence, pair, results_and_gradients

from fusedrnn import scan
from fusedrnn.backends import reference

if WHY_NO_CUDA:
    pytest.skip(f"{WHY_NO_CUDA}: the tests that have a device ran on the CPU only", allow_module_level=True)
DEVICE = "cuda"
TIERS = ["block", "cluster", "grid", "stepwise"]
BATCHES = {
    "padded": {"N": 13},
    "packed": {"packed": [9, 5, 5, 1, 1, 1]},
    "lengths and reset": {"lengths": [0, 5, 3, 2, 1, 5, 4, 5, 5], "reset": True, "reset_state": True},
    "packed and regularised": {"packed": [9, 5, 5, 1, 1, 1]},
}


@pytest.fixture(autouse=True)
def exact_products():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def tier(request, monkeypatch):
    """FUSEDRNN_PLAN; a GPU without clusters skips theirs."""
    if request.param == "cluster" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no thread-block clusters")
    monkeypatch.setenv("FUSEDRNN_PLAN", request.param)
    return request.param


def to(nest, device, dtype=None):
    """A copy of nested arguments elsewhere, floating tensors in another dtype and asking for gradients."""

    def move(t):
        if not isinstance(t, torch.Tensor):
            return t
        if not t.is_floating_point():
            return t.to(device)
        return t.detach().to(device, dtype or t.dtype).requires_grad_()

    return tree_map(move, nest)


def run(function, mode, inputs):
    """Results and gradients, on the CPU."""
    outputs = [t for kind in function(mode, inputs) for t in kind if t is not None]
    torch.manual_seed(1)
    grads = [torch.randn(t.shape, dtype=torch.float64).to(t) for t in outputs]
    results = torch.autograd.grad(outputs, inputs.differentiable(), grads, allow_unused=True)
    return [None if t is None else t.detach().cpu() for t in (*outputs, *results)]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("H", [19, 48])
@pytest.mark.parametrize("mode", list(reference.CELLS))
@pytest.mark.parametrize("tier", TIERS, indirect=True)
def test_every_tier_equals_the_reference(tier, mode, H, dtype, batch):
    given = {"N": 3, **BATCHES[batch]}
    N = len(given.get("lengths", ())) or given.pop("N")
    given.pop("N", None)
    inputs = make_layer(mode, dtype, D=2, T=6, N=N, I=7, H=H, **given)
    if "regularised" in batch:
        h_mask = torch.rand(inputs.initial[0].shape).gt(0.3).to(dtype).div(0.7)
        zones = [torch.rand(len(inputs.x), 2 * H) < 0.4 for _ in inputs.initial]
        inputs = inputs._replace(h_mask=h_mask, zones=zones)
    exact = run(reference.scan, mode, to(inputs, "cpu", torch.float64))
    sizes = inputs.batch_sizes  # the host's
    inputs = to(inputs, DEVICE)._replace(batch_sizes=sizes if sizes is None else sizes.cpu())
    ours = run(lambda *args: scan.scan(*args, sequences=True), mode, inputs)
    theirs = run(reference.scan, mode, inputs)
    for place, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True)):
        if c is None:
            assert a is None or not a.any()
        elif dtype in SAME:
            assert distance(a, c) <= SAME[dtype], place
        else:
            assert distance(a, c) <= RATIO * distance(b, c) + 8 * floor(dtype, 0), place


@every_sequence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("T, N, H", [(100, 5, 40), (300, 16, 128), (50, 33, 256), (20, 20, 600)])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_the_modules_are_as_exact_as_those_of_torch(plain, dtype, T, N, H, options):
    ours, theirs = (m.to(DEVICE) for m in pair(plain, 32, H, dtype=dtype, **options))
    x = torch.randn(T, N, 32, dtype=dtype, device=DEVICE, requires_grad=True)
    exact, exact_x = pair(plain, 32, H, **options)[1].to(DEVICE), x.detach().double().requires_grad_()
    exact.load_state_dict({k: v.double() for k, v in theirs.state_dict().items()})
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):  # torch's own default: both may use TF32
        results = [results_and_gradients(m, x, inputs=(x,)) for m in (ours, theirs)]
    wanted = results_and_gradients(exact, exact_x, inputs=(exact_x,))
    least = max(floor(dtype, 0), 2**-10 if dtype == torch.float32 else 0)  # TF32 has 10 bits
    for a, b, c in zip(*(sum(map(list, r), []) for r in (*results, wanted)), strict=True):
        assert distance(a, c) <= RATIO * distance(b, c) + 4 * least


@every_sequence
def test_a_packed_sequence_and_a_projection(plain):
    options = {"proj_size": 9} if plain is nn.LSTM else {}
    ours, theirs = (m.to(DEVICE) for m in pair(plain, 6, 20, bidirectional=True, **options))
    x = torch.randn(7, 4, 6, dtype=torch.float64, device=DEVICE)
    packed = pack_padded_sequence(x, torch.tensor([3, 7, 1, 5]), enforce_sorted=False)
    results, wanted = (results_and_gradients(m, packed) for m in (ours, theirs))
    for a, b in zip(sum(map(list, results), []), sum(map(list, wanted), []), strict=True):
        assert distance(a, b) <= SAME[torch.float64]


def layer(dtype=torch.float32, T=20, N=5, I=16, H=64, device=DEVICE, plain=nn.LSTM):
    ours, _ = pair(plain, I, H, dtype=dtype)
    return ours.to(device), torch.randn(T, N, I, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_are_the_same_bits_each_time(dtype):
    ours, x = layer(dtype, T=200, N=40, H=300)
    first = results_and_gradients(ours, x)
    for _ in range(20):
        again = results_and_gradients(ours, x)
        assert all(torch.equal(a, b) for a, b in zip(sum(map(list, first), []), sum(map(list, again), []), strict=True))


def test_a_cuda_graph_replays_forward_and_backward():
    ours, x = layer()
    x.requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            ours(x)[0].sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ours(x)[0]
        (dx,) = torch.autograd.grad(y.sum(), x)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    wanted = ours(x)[0]
    assert torch.equal(y, wanted)
    assert torch.equal(dx, torch.autograd.grad(wanted.sum(), x)[0])


def test_two_streams_at_once_do_not_disturb_each_other():
    ours, x = layer(T=400, N=16, H=512)
    wanted = ours(x)[0]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(ours(x)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(y, wanted) for y in results)


def test_tensors_that_are_not_dense_or_not_aligned():
    ours, x = layer(torch.bfloat16, H=50)
    wanted = ours(x)[0]
    strided = torch.empty(5, 20, 33, dtype=x.dtype, device=DEVICE)[:, :, 1:].transpose(0, 1)[..., ::2].copy_(x)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=DEVICE)[1:].view_as(x).copy_(x)
    assert torch.equal(ours(strided)[0], wanted) and torch.equal(ours(shifted)[0], wanted)


@pytest.mark.parametrize("T, N", [(0, 3), (4, 0), (1, 1)])
def test_a_batch_with_nothing_in_it(T, N):
    ours, x = layer(T=T, N=N)
    h0, c0 = (torch.randn(1, N, 64, device=DEVICE, requires_grad=True) for _ in range(2))
    y, (h, c) = ours(x, (h0, c0))
    (y.sum() + h.sum() + 2 * c.sum()).backward()
    assert y.shape == (T, N, 64)
    if T == 0:
        assert torch.equal(h, h0) and torch.equal(c, c0) and (c0.grad == 2).all()


def test_more_steps_than_cudnn_takes():
    ours, x = layer(T=70_000, N=2, H=32)
    y, (h, _) = ours(x)
    assert torch.equal(y[-1], h[0]) and y.isfinite().all()


def test_more_elements_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("less than 30 GiB of GPU memory are free")
    ours, x = layer(torch.float16, T=2100, N=8192, I=8, H=64, plain=nn.GRU)
    with torch.no_grad():  # gates of 3.3e9 elements
        y = ours(x)[0]
        assert torch.equal(y[:, -8:], ours(x[:, -8:])[0])


def test_tensors_of_two_devices_are_refused():
    ours, x = layer()
    with pytest.raises((RuntimeError, ValueError), match="device|must be on"):
        ours(x.cpu())
    with pytest.raises((RuntimeError, ValueError), match="device|must be on"):
        ours(x, (torch.zeros(1, 5, 64), torch.zeros(1, 5, 64)))


def test_a_tier_that_cannot_be_is_an_error(monkeypatch):
    ours, x = layer(H=4000)
    monkeypatch.setenv("FUSEDRNN_PLAN", "block")
    with pytest.raises(ValueError, match="this layer does not fit this device"):
        ours(x)
    assert os.environ["FUSEDRNN_PLAN"] == "block"


def test_float32_obeys_the_precision_of_cudnn_rnn():
    ours, x = layer(T=50, N=16, H=128)
    exact, _ = pair(nn.LSTM, 16, 128)
    exact.load_state_dict({k: v.double() for k, v in ours.state_dict().items()})
    wanted = exact(x.cpu().double())[0]
    errors, before = {}, torch.backends.cuda.matmul.fp32_precision
    for allow in (False, True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow):
            errors[allow] = distance(ours(x)[0].cpu(), wanted)
    assert errors[False] < 1e-6 < errors[True] < 1e-2
    assert torch.backends.cuda.matmul.fp32_precision == before
