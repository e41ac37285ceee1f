"""Peak memory of a call beyond what its parameters and input take, each measured in a process of its own.

What counts is the high-water mark of the resident set: it sees what every allocator takes. Needs Linux.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from peers import Work, contender
from shapes import SHAPES, Shape


def peak_extra(shape: Shape, who: str, call: str, threads: int) -> int:
    """Bytes, of two calls one after the other."""
    # Every block of 64 KiB and more comes from the system and goes back at once: nothing is hidden in a free list.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    question = json.dumps([shape.name, who, call, threads])
    done = subprocess.run([sys.executable, __file__, question], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"memory of {question}: {done.stderr}")
    return int(done.stdout)


def supported() -> bool:
    return os.access("/proc/self/clear_refs", os.W_OK)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _measure(name: str, who: str, call: str, threads: int) -> int:
    torch.set_num_threads(threads)
    shape = next(shape for shape in SHAPES if shape.name == name)
    with torch.set_grad_enabled(call == "training"):
        contender(Work(dataclasses.replace(shape, T=2, N=2, I=8, H=8)), who, call)()  # libraries and threads are there
        work = Work(shape)
        before = _status("VmRSS")
        run = contender(work, who, call)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        run()
        run()
    # In training the gradient that is given to the output is the benchmark's own.
    given = shape.T * shape.N * shape.H * work.x.element_size() if call == "training" else 0
    return _status("VmHWM") - before - given


if __name__ == "__main__":
    print(_measure(*json.loads(sys.argv[1])))
