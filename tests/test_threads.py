"""Calls from many threads, from within a parallel region of PyTorch, with other numbers of threads, after a fork."""

import ctypes
import itertools
import multiprocessing
import threading
from pathlib import Path

import pytest
import torch

import fusedrnn
from fusedrnn import stack

# Two threads split the rows of the first, the units of the second and the directions of the third.
LAYERS = {
    "rows": (lambda: fusedrnn.FusedLSTM(12, 100), 9),
    "units": (lambda: fusedrnn.FusedGRU(12, 320), 1),
    "directions": (lambda: fusedrnn.FusedRNN(12, 200, 2, bidirectional=True), 2),
}
T = 30
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name):
    """A call, forward and backward, that returns its results."""
    build, N = LAYERS[name]
    layer, x = build(), torch.randn(T, N, 12, requires_grad=True)

    def run():
        y, _ = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))]

    return run


def same(actual, expected):
    return all(map(torch.equal, actual, expected))


def run_in_threads(works, seconds=120):
    """Runs each in its own thread, all at once, and returns the errors that they report."""
    wrong, start = [], threading.Barrier(len(works))

    def run(work):
        try:
            start.wait()
            work()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=[work], daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "a call does not end"
    return wrong


def test_calls_of_many_threads_at_once_give_the_bits_of_one():
    runs = [make(name) for name in LAYERS]
    wanted = [run() for run in runs]

    def work(first):
        torch.set_num_threads(2)  # a setting of each thread
        for i in range(12):
            k = (first + i) % len(runs)
            assert same(runs[k](), wanted[k])
            if i % 5 == 0:
                fusedrnn.empty_cache()

    assert run_in_threads([lambda first=first: work(first) for first in range(6)]) == []


@every_layer
def test_the_number_of_threads_may_change_between_calls(name):
    run = make(name)
    wanted = run()
    for threads in (1, 2, 3, 8, 1, 4):
        torch.set_num_threads(threads)
        assert same(run(), wanted), threads


def test_the_number_of_threads_may_change_between_forward_and_backward():
    build, N = LAYERS["units"]
    layer, x = build(), torch.randn(T, N, 12, requires_grad=True)
    leaves, actual = [x, *layer.parameters()], []
    for before, after in itertools.permutations((1, 2, 3), 2):
        torch.set_num_threads(before)
        y, _ = layer(x)
        torch.set_num_threads(after)
        actual.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
    assert all(same(each, actual[0]) for each in actual)


def openmp():
    """The library whose threads PyTorch uses."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = {line.split()[-1] for line in lines if "libgomp" in line}
    return ctypes.CDLL(paths.pop()) if len(paths) == 1 else None


@every_layer
def test_a_call_from_within_a_team_runs_on_its_own_thread(name):
    library = openmp()
    if library is None:
        pytest.skip("PyTorch's threads are not those of GNU OpenMP")
    run, actual, lock = make(name), [], threading.Lock()
    wanted = run()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def member(_):
        results = run()
        with lock:
            actual.append((threading.get_ident(), results))

    library.GOMP_parallel(member, None, 2, 0)
    assert len({thread for thread, _ in actual}) == len(actual) == 2
    assert all(same(results, wanted) for _, results in actual)


def test_a_process_that_is_forked_while_others_call_can_call():
    """Locks that are held at that time stay so in the child, and OpenMP's threads do not follow."""
    run = make("rows")
    wanted, ends = run(), threading.Event()

    def child(queue):
        torch.set_num_threads(1)
        fusedrnn.empty_cache()
        queue.put(same(run(), wanted))

    def call():
        torch.set_num_threads(1)
        while not ends.is_set():
            run()
            fusedrnn.empty_cache()

    def fork():
        context = multiprocessing.get_context("fork")
        try:
            for _ in range(5):
                queue = context.SimpleQueue()
                process = context.Process(target=child, args=[queue])
                process.start()
                process.join(60)
                stuck = process.is_alive()
                process.kill()
                assert not stuck and process.exitcode == 0 and queue.get()
        finally:
            ends.set()

    assert run_in_threads([call, call, fork]) == []


@pytest.fixture
def side_by_side(monkeypatch):
    """How many calls ran their layers at the same time."""
    taken = []

    def count(*arguments, scan_layers=stack.scan_layers):
        made = scan_layers(*arguments)
        taken.append(made is not None)
        return made

    monkeypatch.setattr(stack, "scan_layers", count)
    return taken


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("build", [fusedrnn.FusedLSTM, fusedrnn.FusedGRU, fusedrnn.FusedRNN])
@pytest.mark.parametrize("form", ["padded", "lengths and resets", "packed", "packed weights", "user's"])
def test_layers_side_by_side_have_the_bits_of_one_thread(form, build, layers, side_by_side):
    options = {"proj_size": 20} if build is fusedrnn.FusedLSTM and form == "lengths and resets" else {}
    layer, x, given = build(12, 48, layers, **options), torch.randn(401, 1, 12), {}
    if form == "lengths and resets":
        given = {"lengths": torch.tensor([333]), "reset": torch.rand(401, 1) < 0.01}
    if form == "packed":
        x = torch.nn.utils.rnn.pack_sequence([x[:, 0]])
    if form == "packed weights":
        layer = fusedrnn.optimize_for_inference(layer)
    if form == "user's":
        layer = fusedrnn.Recurrent(fusedrnn.zoo.mgu, 12, 48, layers)
    results = []
    with torch.no_grad():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, state = layer(x, **given)
            results.append([y.data, *(state if isinstance(state, tuple) else (state,))])
    assert form == "packed weights" or side_by_side == [True, True]
    assert all(same(result, results[0]) for result in results)


@pytest.mark.parametrize("why", ["gradients", "few steps", "rows for all threads", "two directions", "states wanted"])
def test_layers_run_one_after_the_other_where_they_must(why, side_by_side):
    layer = fusedrnn.FusedGRU(12, 48, 2, bidirectional=why == "two directions")
    x = torch.randn(50 if why == "few steps" else 400, 2 if why == "rows for all threads" else 1, 12)
    torch.set_num_threads(2)
    with torch.set_grad_enabled(why == "gradients"):
        layer(x, return_state_sequence="all" if why == "states wanted" else False)
    assert True not in side_by_side
