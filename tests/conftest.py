"""Set-up of every test: two threads at most, the same random numbers each time; and the available devices."""

import os

import pytest
import torch

from fusedrnn.backends import extension

os.environ.setdefault("FUSEDRNN_CUDNN", "0")  # the kernels are tested; test_choice.py tests who is chosen
WHY_NO_CUDA = None
if not torch.cuda.is_available():
    WHY_NO_CUDA = "no GPU is in sight"
elif not getattr(extension._C, "cuda_version", None):
    WHY_NO_CUDA = "the extension has no CUDA part"


def pytest_addoption(parser):
    parser.addoption("--random-cases", type=int, default=100, help="how many calls with options at random are tried")
    parser.addoption("--float-step", type=int, default=2011, help="every which float32 tanh and sigmoid are tried with")


@pytest.fixture(autouse=True)
def same_start():
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu"] if WHY_NO_CUDA else ["cpu", "cuda"])
def device(request):
    """Where tensors are made that do not say where; products of float32 are exact there."""
    if request.param == "cpu":
        yield request.param
        return
    with torch.device(request.param), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield request.param
