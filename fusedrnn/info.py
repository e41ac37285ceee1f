"""What this installation is and can do: ``python -m fusedrnn.info``."""

from __future__ import annotations

import os
import platform

import torch
from torch import nn

from . import twin
from .backends import extension as backend
from .backends import origin
from .choice import cudnn_wish, has_kernels

CUDNN = {"": "for plain calls where its estimate is lower", "0": "never", "1": "for all plain calls"}


def info() -> dict[str, str]:
    """Versions, kernels, instruction set and threads, each under the name it is printed with."""
    found = {
        "fusedrnn": origin.version() or "not installed, run from its sources",
        "torch": torch.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }
    extension = backend._C
    if extension is None:
        found["extension"] = f"not in use: {backend.extension_error}. {origin.remedy()}"
        found["kernels"] = "none; torch.nn serves plain calls, the reference in PyTorch all others, slowly"
    else:
        found["extension"] = f"built with torch {extension.torch_version}"
        found["kernels"] = "CPU" + (" and CUDA" if extension.cuda_version else "")
        found["instruction set"] = _instruction_set(extension)
        found["CUDA part"] = _cuda(extension)
        if extension.cuda_version:
            found["cuDNN"] = f"{CUDNN[cudnn_wish()]} (FUSEDRNN_CUDNN=0 or 1 forces it)"
    found["CUDA devices"] = _devices()
    found["threads"] = f"{torch.get_num_threads()} (torch.set_num_threads) of {os.cpu_count()} processors"
    return found


def serves(module: nn.Module) -> str:
    """What runs plain calls of a layer or cell of this package, and calls with options where that is another.

    Compiled, traced and exported graphs and function transforms aside.
    """
    if getattr(module, "backend", "compiled") == "reference":  # of a cell that a user wrote
        return "the reference in PyTorch"
    p = next(module.parameters())
    if has_kernels(p):
        if p.is_cuda and isinstance(module, nn.RNNBase) and cudnn_wish() != "0" and not twin.rates(module):
            return f"the CUDA kernels; cuDNN {CUDNN[cudnn_wish()]}"
        return "the CUDA kernels" if p.is_cuda else "the CPU kernels"
    rest = "the reference in PyTorch"
    return rest if twin.rates(module) else f"torch.nn; what it cannot do, {rest}"


def _instruction_set(extension) -> str:
    arm = platform.machine() in ("aarch64", "arm64")
    others = "DEFAULT or NEON_BF16" if arm else "DEFAULT, AVX2, AVX512 or AVX512_BF16"
    try:
        return f"{extension.cpu_capability()} (FUSEDRNN_ISA={others} forces another)"
    except ValueError as error:  # FUSEDRNN_ISA asks for what is not there
        return f"none: {error}"


def _cuda(extension) -> str:
    if not extension.cuda_version:
        return "not built (it needs nvcc, a CUDA build of torch and FUSEDRNN_CUDA other than 0)"
    major, minor = divmod(extension.cuda_version // 10, 100)
    return f"built with CUDA {major}.{minor} for {getattr(extension, 'cuda_archs', 'architectures unknown')}"


def _devices() -> str:
    if not torch.cuda.is_available():
        return "none" if torch.version.cuda else "none (torch is a CPU build)"
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} (sm_{p.major}{p.minor})" for p in properties)


def main() -> None:
    for name, value in info().items():
        print(f"{name:<16}{value}")


if __name__ == "__main__":
    main()
