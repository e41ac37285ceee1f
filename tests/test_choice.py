"""Who computes a plain call on which GPU: simulated ones, three numbers each, for the choice needs no GPU."""

import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
from test_plan import A100, B200, H100, L4, RTX_4090
from twins import arguments, every_sequence, only_on_cpu, pair, tensors

from fusedrnn import choice, dropin, info
from fusedrnn.backends import extension

T4 = (40, 65536, 75)


def use(monkeypatch, gpu):
    """Makes this the GPU of the process, with kernels for it."""
    compare = extension._C.compare_with_cudnn
    fake = SimpleNamespace(cuda_version=13000, gpu=lambda index: gpu, compare_with_cudnn=compare)
    monkeypatch.setattr(extension, "_C", fake)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: divmod(gpu[2], 10))
    monkeypatch.delenv("FUSEDRNN_CUDNN", raising=False)
    for cached in (choice.gpu, choice._is_new_enough, choice.estimates):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def forget():
    yield
    for cached in (choice.gpu, choice._is_new_enough, choice.estimates):
        cached.cache_clear()


def on_gpu(dtype):
    device = SimpleNamespace(index=0)
    return SimpleNamespace(is_cuda=True, is_cpu=False, is_meta=False, dtype=dtype, device=device, numel=lambda: 1)


def who(dtype=torch.bfloat16, mode="LSTM", T=512, N=16, H=512, D=1):
    """In training."""
    layers, call, x = choice.Layers(mode, H, H, 1, D), choice.Call(T, N, H, False, True), on_gpu(dtype)
    if choice.torch_serves(x):
        return "torch.nn"
    return "cuDNN" if choice.cudnn_serves(layers, call, x) else "kernels"


@pytest.mark.parametrize(
    "gpu, given, expected",
    [
        (H100, {"H": 128}, "kernels"),
        (H100, {"H": 512}, "kernels"),
        (H100, {"H": 1024}, "kernels"),
        (H100, {"H": 2048, "N": 512}, "cuDNN"),  # compute-bound: a GEMM a step
        (H100, {"H": 1024, "N": 64, "dtype": torch.float16}, "cuDNN"),  # its kernel that keeps weights in registers
        (H100, {"H": 512, "dtype": torch.float16, "D": 2}, "kernels"),  # which takes one direction only
        (H100, {"H": 1024, "N": 16, "dtype": torch.float16, "mode": "GRU"}, "kernels"),
        (H100, {"H": 2048, "N": 512, "T": 70_000}, "kernels"),
        (A100, {"H": 256}, "kernels"),
        (A100, {"H": 2048, "N": 512}, "cuDNN"),
        (L4, {"H": 64}, "kernels"),
        (RTX_4090, {"H": 2048, "N": 512}, "cuDNN"),
        (B200, {"H": 512}, "kernels"),
    ],
)
def test_the_lower_estimate_is_chosen(monkeypatch, gpu, given, expected):
    use(monkeypatch, gpu)
    assert who(**given) == expected


def test_an_old_gpu_is_left_to_torch_with_one_warning(monkeypatch):
    use(monkeypatch, T4)
    with pytest.warns(UserWarning, match=r"no kernels for GPU 0, of compute capability 7\.5: they need 8\.0") as caught:
        assert [who(H=H) for H in (64, 512, 2048)] == ["torch.nn"] * 3
    assert len(caught) == 1


@pytest.mark.parametrize("capability, good", [(75, False), (80, True), (120, True)])
@pytest.mark.filterwarnings("ignore:fusedrnn has no kernels")
def test_kernels_are_for_gpus_from_compute_capability_8(monkeypatch, capability, good):
    use(monkeypatch, (*T4[:2], capability))
    assert choice.has_kernels(on_gpu(torch.float32)) is good and not choice.has_kernels(on_gpu(torch.int32))


@pytest.mark.parametrize("wish, expected", [("0", {"kernels"}), ("1", {"cuDNN"}), ("", {"kernels", "cuDNN"})])
def test_a_variable_overrides_the_estimates(monkeypatch, wish, expected):
    use(monkeypatch, H100)
    monkeypatch.setenv("FUSEDRNN_CUDNN", wish)
    assert {who(H=H, N=N) for H, N in itertools.product((64, 512), (16, 512))} == expected
    monkeypatch.setenv("FUSEDRNN_CUDNN", "yes")
    with pytest.raises(ValueError, match="FUSEDRNN_CUDNN must be 0 or 1, got 'yes'"):
        who()


def test_what_cudnn_cannot_do_is_left_to_the_kernels(monkeypatch):
    use(monkeypatch, H100)
    monkeypatch.setenv("FUSEDRNN_CUDNN", "1")
    with torch.backends.cudnn.flags(enabled=False):
        assert who() == "kernels"
    torch.use_deterministic_algorithms(True)
    try:
        assert who() == "kernels"
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.func.vmap(lambda t: t * (who() == "kernels"))(torch.ones(2)).tolist() == [1, 1]
    assert who() == "cuDNN"


@only_on_cpu
@every_sequence
def test_the_chosen_torch_serves_plain_calls_and_no_others(device, monkeypatch, plain):
    ours, theirs = pair(plain, 3, 4)
    x, state = arguments(plain)
    served = []
    forward = plain.forward
    monkeypatch.setattr(dropin.DropIn, "_cudnn_serves", lambda *call: True)
    monkeypatch.setattr(type(ours), "_cudnn_serves", lambda *call: True)
    monkeypatch.setattr(plain, "forward", lambda *call: served.append(call) or forward(*call))
    for a, b in zip(tensors(ours(x, state)), tensors(theirs(x, state)), strict=True):
        assert torch.equal(a, b)
    assert len(served) == 2
    ours(x, state, lengths=torch.tensor([5, 3]))
    ours.zoneout_h = 0.5
    ours(x, state)
    assert len(served) == 2


@only_on_cpu
def test_nothing_is_asked_about_a_gpu_on_a_cpu(device):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, _ = pair(torch.nn.LSTM, 3, 4)
        ours(arguments(torch.nn.LSTM)[0])
    assert info.serves(ours) == "the CPU kernels" and not choice.gpu.cache_info().misses
