"""One recurrent layer by the CPU kernels alone, every array of it in memory that ends at a fence."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import tempfile
import threading
from pathlib import Path

import torch
from cuda_on_cpu.layer import Call, CallStruct
from torch import Tensor

LIBC = ctypes.CDLL(None, use_errno=True)


class KernelError(RuntimeError):
    pass


class Fenced:
    """A copy of a tensor that ends where nothing may be read or written, and is not to be written at all if given."""

    def __init__(self, tensor: Tensor, given: bool):
        bytes = tensor.numel() * tensor.element_size()
        pages = -(-max(bytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.map = mmap.mmap(-1, pages + mmap.PAGESIZE)
        self.map[:pages] = b"\xff" * pages
        self.begin = pages - bytes  # full of NaN before it
        if bytes:
            data = torch.frombuffer(self.map, dtype=tensor.dtype, count=tensor.numel(), offset=self.begin)
            self.tensor = data.view(tensor.shape).copy_(tensor)
        else:
            self.tensor = tensor
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.address = start + self.begin
        protect(start + pages, mmap.PAGESIZE, 0)
        if given:
            protect(start, pages, mmap.PROT_READ)

    def is_untouched_before(self) -> bool:
        return self.map[: self.begin] == b"\xff" * self.begin


def protect(address: int, bytes: int, how: int) -> None:
    if LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(bytes), how):
        raise OSError(ctypes.get_errno(), "mprotect")


class Kernels:
    """The kernels in a library that :mod:`build` made."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.library.run_layer.restype = ctypes.c_char_p

    def run(self, call: Call, threads: int = 1, seed: int = 0) -> Call:
        """Fills in the results of a call. Of -n threads that are asked for one does not come."""
        self.library.set_schedule(threads, ctypes.c_uint64(seed))
        made = {id(call.arrays[name]) for name in call.results}
        fenced = {id(t): Fenced(t, id(t) not in made) for t in call.arrays.values()}
        arrays = {name: fenced[id(t)] for name, t in call.arrays.items()}
        addresses = {name: array.address for name, array in arrays.items()}
        error = self.library.run_layer(ctypes.byref(CallStruct.of(call, addresses)))
        if error:
            raise KernelError(error.decode())
        for name in call.results:
            if not arrays[name].is_untouched_before():
                raise KernelError(f"something was written in front of {name}")
            call.arrays[name] = arrays[name].tensor.clone()
        return call


class Program:
    """The same kernels in a program (see replay.cpp), such as one for another processor behind its emulator."""

    def __init__(self, command: list[str | Path]):
        self.command = command

    def run(self, call: Call, threads: int = 1, seed: int = 0) -> Call:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "call"
            call.write(file)
            command = [*self.command, str(threads), str(seed), "--write", file]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise KernelError(done.stderr or f"it ended with {done.returncode}")
            data, at = bytearray(file.read_bytes()), 0
        for name, t in call.arrays.items():
            if name in call.results and t.numel():
                result = torch.frombuffer(data, dtype=t.dtype, count=t.numel(), offset=at)
                call.arrays[name] = result.clone().view(t.shape)
            at += t.numel() * t.element_size()
        return call


def in_a_fresh_thread(f, *args):
    """f(*args), by a thread that has no scratch memory yet."""
    results, errors = [], []

    def work():
        try:
            results.append(f(*args))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
