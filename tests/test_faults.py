"""A machine that fails: no memory for one allocation, whichever it is, a core that is gone for a while, or slow memory.

Each test starts a process of its own with faults.cpp preloaded, which ends in time whatever happens.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import fusedrnn

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="an allocator is replaced as only Linux allows it"),
    pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="something else is preloaded"),
]


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory):
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).with_name("faults.cpp")
    subprocess.run(["c++", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return {**os.environ, "LD_PRELOAD": str(library), "OMP_WAIT_POLICY": "passive"}  # between calls


def run_alone(environment, name, *arguments):
    """Runs a function of this file in a separate process and returns its output."""
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(fusedrnn.__file__).parents[1]), *sys.path])
    command = [sys.executable, __file__, name, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-500:]} {done.stderr[-3000:]}"
    return done.stdout


# Two threads split the rows of these, more of them the units; the last has two threads for each direction.
LAYERS = {
    "LSTM": lambda: fusedrnn.FusedLSTM(8, 256),
    "projection": lambda: fusedrnn.FusedLSTM(8, 256, proj_size=200),
    "GRU": lambda: fusedrnn.FusedGRU(8, 256),
    "RNN": lambda: fusedrnn.FusedRNN(8, 256, bidirectional=True),
}


def fail_everywhere(threads):
    """Lets every allocation of a forward and of a backward pass fail once, and prints how many were survived."""
    torch.set_num_threads(int(threads))
    print(sum(fail_each_allocation(make()) for make in LAYERS.values()) + fail_side_by_side())


def fail_side_by_side():
    """The same for layers that run at the same time."""
    layers, x, faults = fusedrnn.FusedGRU(8, 64, num_layers=3), torch.randn(400, 1, 8), ctypes.CDLL(None)

    @torch.no_grad()
    def inference():
        return [layers(x)[0]]

    def training():
        return [y := layers(x)[0], *torch.autograd.grad(y.sum(), layers.parameters())]

    places = 0
    for attempt in (inference, training):
        expected = attempt()
        for place in range(1, 2000):
            fusedrnn.empty_cache()
            faults.fail_after(place)
            try:
                results = attempt()
                ended = faults.allocations_left() > 0
            except (MemoryError, RuntimeError):
                continue
            finally:
                faults.fail_after(0)
            assert all(map(torch.equal, results, expected))
            if ended:
                break
        assert 10 < place < 1999
        places += place - 1
    return places


def fail_each_allocation(module):
    torch.manual_seed(0)
    faults = ctypes.CDLL(None)
    x, leaves = torch.randn(5, 2, 8, requires_grad=True), list(module.parameters())

    def forward():
        return module(x)[0]

    def backward(y):
        return [y, *torch.autograd.grad(y, [x, *leaves], torch.ones_like(y), retain_graph=True)]

    expected, y, places = backward(forward()), forward(), 0
    for attempt in (forward, lambda: backward(y)):
        place = errors = 0
        while True:
            place += 1
            fusedrnn.empty_cache()
            faults.fail_after(place)
            try:
                results = attempt()
                ended = faults.allocations_left() > 0
            except (MemoryError, RuntimeError) as error:
                ended, results, text = False, None, str(error)
                errors += 1
                assert not text or "alloc" in text or "memory" in text, text
            finally:
                faults.fail_after(0)
            for a, b in zip([results] if isinstance(results, torch.Tensor) else results or [], expected, strict=False):
                assert torch.equal(a, b)
            if ended:
                break
            if results is None:
                assert all(map(torch.equal, backward(forward()), expected))
        assert errors > 10, f"{errors} of {place} allocations led to an error"
        places += place - 1
    return places


@pytest.mark.parametrize("threads", [2, *(pytest.param(threads, marks=pytest.mark.slow) for threads in (1, 3, 4))])
def test_an_allocation_that_fails_is_one_error(threads, preloaded):
    assert int(run_alone(preloaded, "fail_everywhere", threads)) > 300


def lose_cores(threads):
    """A thread of the team stops in the middle of a pass: the team is abandoned, and the results are the same."""
    torch.manual_seed(0)
    faults, main, threads = ctypes.CDLL(None), threading.get_native_id(), int(threads)
    faults.stall_on(signal.SIGUSR1)
    before = set(os.listdir("/proc/self/task"))
    for layer, T, N in (
        (fusedrnn.FusedLSTM(8, 88), 1000, threads - 1),
        (fusedrnn.FusedLSTM(8, 600, proj_size=88), 60, 1),
        (fusedrnn.FusedGRU(8, 120), 1000, threads - 1),
        (fusedrnn.FusedRNN(8, 600), 160, 1),
    ):
        x, leaves = torch.randn(T, N, 8, requires_grad=True), list(layer.parameters())

        def forward(layer=layer, x=x):
            return layer(x)

        def backward(results, leaves=(x, *leaves)):
            y, states = results
            states = states if isinstance(states, tuple) else (states,)
            grads = torch.autograd.grad([y, *states], leaves, [y, *states], retain_graph=True)
            return [t.detach().clone() for t in (y, *states, *grads)]

        torch.set_num_threads(1)
        expected = backward(forward())
        torch.set_num_threads(threads)
        kept = forward()
        workers = sorted({int(task) for task in set(os.listdir("/proc/self/task")) - before} - {main})
        for victim in (main, *workers[: threads - 1]):
            for attempt in (lambda: backward(forward()), lambda: backward(kept)):  # noqa: B023
                time.sleep(0.1)  # past the time for which units are not split

                def stall(victim=victim):
                    time.sleep(0.002)
                    faults.tgkill(os.getpid(), victim, signal.SIGUSR1)

                thread = threading.Thread(target=stall)
                thread.start()
                results = attempt()
                thread.join()
                assert all(map(torch.equal, results, expected)), (layer, victim == main)
    print("same")


@pytest.mark.parametrize("threads", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_results_are_the_same_where_a_thread_lost_its_core(threads, preloaded):
    assert run_alone(preloaded, "lose_cores", threads) == "same\n"


def call_while_memory_is_freed():
    """Other threads and a forked process allocate while one thread releases the memory of freed tensors."""
    torch.set_num_threads(1)
    faults, layer, x = ctypes.CDLL(None), fusedrnn.FusedRNN(1, 64), torch.ones(64, 128, 1)

    @torch.no_grad()
    def output():
        return layer(x)[0]

    expected = output().clone()
    gone = output()
    place = gone.data_ptr()
    del gone
    faults.free_slowly(ctypes.c_void_p(place))
    thread = threading.Thread(target=fusedrnn.empty_cache)
    thread.start()
    while not faults.is_freeing():
        time.sleep(0.001)
    child = os.fork()
    if not child:
        signal.alarm(10)
        fusedrnn.empty_cache()
        os._exit(0 if torch.equal(output(), expected) else 1)
    y = output()
    assert y.data_ptr() != place
    assert torch.equal(y, expected)
    assert faults.is_freeing(), "a call waited for it"
    thread.join()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the forked process ended with {status}"
    print("same")


@pytest.mark.slow
def test_no_call_and_no_forked_process_waits_for_memory_that_is_freed_or_takes_it(preloaded):
    assert run_alone(preloaded, "call_while_memory_is_freed") == "same\n"


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
