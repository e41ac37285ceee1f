"""Compiles the kernels of one type as csrc/cuda has them, and asks the drivers what they would launch for a layer."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from .cubin import Cubin

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).with_name("launches.cpp")
ARCHITECTURE = "sm_90"
H100 = (132, 232448, 90)  # multiprocessors, shared memory of a block, compute capability
ON_LAUNCH = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_void_p))


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    found = os.path.join(home, "bin", "nvcc") if home else shutil.which("nvcc")
    if not found:
        raise SystemExit("gpu-cost: nvcc is not on the PATH (or set CUDA_HOME)")
    return found


def toolkit() -> Path:
    """Where the headers of CUDA are; nvcc itself may be a script elsewhere."""
    said = subprocess.run([nvcc(), "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = next(line.removeprefix("#$ TOP=") for line in said.splitlines() if line.startswith("#$ TOP="))
    return Path(top)


def nvdisasm() -> str:
    """The toolkit's, that of the wheel nvidia-cuda-nvdisasm, or $NVDISASM."""
    if found := os.environ.get("NVDISASM") or shutil.which("nvdisasm"):
        return found
    for folder in (toolkit() / "bin", *Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin")):
        if (folder / "nvdisasm").exists():
            return str(folder / "nvdisasm")
    raise SystemExit("gpu-cost: there is no nvdisasm: pip install nvidia-cuda-nvdisasm, or set NVDISASM")


@dataclass(frozen=True)
class Launched:
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: int
    arguments: tuple[bytes, ...]


class CallStruct(ctypes.Structure):
    """Call of tests/cuda_on_cpu/driver.h."""

    _fields_ = (
        [(name, ctypes.c_char_p) for name in ("cell", "tier")]
        + [(name, ctypes.c_int) for name in ("type", "tf32", "backward", "count")]
        + [("sizes", ctypes.POINTER(ctypes.c_int64)), ("names", ctypes.POINTER(ctypes.c_char_p))]
        + [("data", ctypes.POINTER(ctypes.c_void_p))]
    )


class Kernels:
    """Of one type of csrc/cuda: bfloat16, float or double."""

    def __init__(self, dtype: str, folder: Path):
        self.dtype = dtype
        folder = folder / dtype
        folder.mkdir(parents=True, exist_ok=True)
        kernels, library = folder / "kernels.o", folder / "launches.so"
        if _is_older(kernels, *(ROOT / "csrc").rglob("*.*")):
            _compile(dtype, kernels)
        if _is_older(library, kernels, HOST):
            _link(dtype, kernels, library)
        self.cubin = Cubin(folder / f"{dtype}.{ARCHITECTURE}.cubin", nvdisasm())
        self.library = ctypes.CDLL(str(library))
        self.library.record_layer.restype = ctypes.c_char_p

    def launches(self, cell, backward, tf32, sizes, arrays, tier) -> tuple[str, list[Launched]]:
        """The tier, and the launches of the layer; arrays: names of arrays.h, and where they are."""
        made: list[Launched] = []

        def record(kernel, numbers, arguments):
            name, numbers = kernel.decode(), numbers[:7]
            sizes = [size for _, size in self.cubin.kernel(name).parameters]
            values = (ctypes.string_at(arguments[i], size) for i, size in enumerate(sizes))
            made.append(Launched(name, tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6], tuple(values)))

        names = (ctypes.c_char_p * len(arrays))(*(name.encode() for name in arrays))
        data = (ctypes.c_void_p * len(arrays))(*arrays.values())
        sizes = (ctypes.c_int64 * 7)(*sizes)
        call = CallStruct(cell.encode(), tier.encode(), 0, tf32, backward, len(arrays), sizes, names, data)
        answer = self.library.record_layer(ctypes.byref(call), (ctypes.c_int * 3)(*H100), ON_LAUNCH(record))
        return answer.decode(), made


def _is_older(built: Path, *sources: Path) -> bool:
    return not built.exists() or built.stat().st_mtime < max(path.stat().st_mtime for path in sources)


def _compile(dtype: str, kernels: Path) -> None:
    flags = ["-std=c++20", "-O3", f"-arch={ARCHITECTURE}", "-Xcompiler", "-fPIC", "-keep", "-keep-dir", kernels.parent]
    subprocess.run([nvcc(), *flags, "-c", ROOT / f"csrc/cuda/{dtype}.cu", "-o", kernels], check=True)


def _link(dtype: str, kernels: Path, library: Path) -> None:
    include = [f"-I{ROOT / 'csrc'}", "-isystem", toolkit() / "include"]
    flags = ["-std=c++20", "-O1", f"-DDTYPE={dtype}", "-shared", "-fPIC", "-Wl,-Bsymbolic"]
    subprocess.run([os.environ.get("CXX", "c++"), *flags, *include, HOST, kernels, "-o", library], check=True)
