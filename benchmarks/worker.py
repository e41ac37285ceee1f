"""A process that bench.py starts, and that times a checkout's fusedrnn or measures the memory of a call: it reads
JSON questions, one per line, and writes JSON answers."""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import timing
import torch
from contenders import Work, contender
from shapes import SHAPES

import fusedrnn

NAMED = {shape.name: shape for shape in SHAPES["cpu"]}


@contextlib.contextmanager
def worker(checkout: Path, **environment: str) -> Iterator[Callable]:
    """Yields ask(what, *values), which calls the method ``what`` of Answers there."""
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    options = {"env": os.environ | {"PYTHONPATH": path} | environment, "text": True, "start_new_session": True}
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, __file__, checkout], **options, **pipes)

    def ask(*question):
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            print(json.dumps(question), file=process.stdin, flush=True)
        if not (answer := process.stdout.readline()):
            sys.exit(f"bench: the worker of {checkout} ended at {question}; its error is above")
        return json.loads(answer)

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()


class Answers:
    def prepare(self, name: str, call: str, threads: int) -> None:
        self.call = None  # the one before is freed first
        gc.collect()
        gc.disable()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(call == "training")
        self.call = contender(Work(NAMED[name]), "fusedrnn", call, threads)
        self.call()

    def sample(self, count: int) -> float:
        return timing.wall_clock(self.call, count)

    def memory(self, name: str, who: str, call: str, threads: int) -> int:
        """Bytes of two calls in a row beyond parameters and input, whatever allocates them."""
        torch.set_num_threads(threads)
        torch.set_grad_enabled(call == "training")
        shape = NAMED[name]
        contender(Work(dataclasses.replace(shape, T=2, N=2, I=8, H=8)), who, call)()  # starts libraries and threads
        work = Work(shape)
        before, run = self.status("VmRSS"), contender(work, who, call)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        run()
        run()
        # In training, the benchmark itself holds the gradient of the output.
        given = shape.T * shape.N * shape.H * work.x.element_size() if call == "training" else 0
        return self.status("VmHWM") - before - given

    def status(self, field: str) -> int:
        return 1024 * int(re.search(rf"^{field}:\s*(\d+)", Path("/proc/self/status").read_text(), re.M)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the folder that fusedrnn must be imported from, compiled")
    expected, loaded = (
        parser.parse_args().checkout,
        [Path(m.__file__) for m in (fusedrnn, sys.modules.get("fusedrnn._C")) if m],
    )
    if [path.resolve().parent.parent for path in loaded] != [expected] * 2:
        sys.exit(f"worker: fusedrnn of {expected} is not compiled; loaded was {', '.join(map(str, loaded))}")
    answers = Answers()
    for line in sys.stdin:
        what, *values = json.loads(line)
        print(json.dumps(getattr(answers, what)(*values)), flush=True)
