"""Compiles the kernels of one type as csrc/cuda has them, and asks the drivers what they would launch for a layer."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .cubin import Cubin

ROOT = Path(__file__).resolve().parents[2]
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
    import sysconfig

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


class Kernels:
    """Of one type of csrc/cuda: bfloat16, float or double."""

    def __init__(self, dtype: str, folder: Path):
        self.dtype = dtype
        folder = folder / dtype
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / "launches.so"
        if not _is_newer(library):
            _build(dtype, folder, library)
        self.cubin = Cubin(folder / f"{dtype}.{ARCHITECTURE}.cubin", nvdisasm())
        self.library = ctypes.CDLL(str(library))
        self.library.record_layer.restype = ctypes.c_char_p

    def launches(self, cell, backward, tf32, sizes, arrays, tier, device=H100) -> tuple[str, list[Launched]]:
        """The tier, and the launches of the layer; arrays: names of arrays.h, and where they are."""
        made: list[Launched] = []

        def record(kernel, numbers, arguments):
            name = kernel.decode()
            values = (
                ctypes.string_at(arguments[i], size) for i, (_, size) in enumerate(self.cubin.kernel(name).parameters)
            )
            numbers = numbers[:7]
            made.append(Launched(name, tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6], tuple(values)))

        names = (ctypes.c_char_p * len(arrays))(*(name.encode() for name in arrays))
        data = (ctypes.c_void_p * len(arrays))(*arrays.values())
        answer = self.library.record_layer(
            cell.encode(),
            ctypes.c_bool(tf32),
            ctypes.c_bool(backward),
            (ctypes.c_int64 * 7)(*sizes),
            (ctypes.c_int * 3)(*device),
            tier.encode(),
            len(arrays),
            names,
            data,
            ON_LAUNCH(record),
        ).decode()
        return answer, made


@functools.cache
def _newest_source() -> float:
    here = (path for path in Path(__file__).parent.iterdir() if path.suffix == ".cpp")
    return max(path.stat().st_mtime for path in (*(ROOT / "csrc").rglob("*.*"), *here))


def _is_newer(built: Path) -> bool:
    return built.exists() and built.stat().st_mtime > _newest_source()


def _build(dtype: str, folder: Path, library: Path) -> None:
    flags = ["-std=c++20", "-O3", f"-arch={ARCHITECTURE}"]
    kernels = [*flags, "-Xcompiler", "-fPIC", "-c", "-keep", "-keep-dir", str(folder)]
    subprocess.run([nvcc(), *kernels, "-o", str(folder / "kernels.o"), str(ROOT / f"csrc/cuda/{dtype}.cu")], check=True)
    include = [f"-I{ROOT / 'csrc'}", f"-isystem{toolkit() / 'include'}"]
    source = str(Path(__file__).with_name("launches.cpp"))
    type_number = f"-DDTYPE={dtype}"
    linked = ["-shared", "-fPIC", "-Wl,-Bsymbolic", source, str(folder / "kernels.o"), "-o", str(library)]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++20", "-O1", type_number, *include, *linked], check=True)
