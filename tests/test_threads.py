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


def train(layer, x, h0, given, threads=(1, 1)):
    """All results of a forward and a backward pass, by so many threads each."""
    leaves = [x, *h0, *layer.parameters()]
    torch.set_num_threads(threads[0])
    y, state = layer(x, h0 if len(h0) > 1 else h0[0], **given)
    results = [y, *(state if isinstance(state, tuple) else (state,))]
    torch.set_num_threads(threads[1])
    return [*results, *torch.autograd.grad(results, leaves, [r.detach() for r in results])]


TRAINED = list(itertools.product(["LSTM", "GRU", "RNN", "options"], [torch.float32, torch.bfloat16]))


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize(("form", "dtype"), [*TRAINED, ("user's", torch.float32)])
def test_layers_that_train_side_by_side_have_the_bits_of_one_thread(form, layers, dtype, side_by_side):
    N, T, given = 1, 301, {}
    if form == "options":
        N, T = layers - 1, 1101  # gradients of the weights are summed in three parts
        layer = fusedrnn.FusedLSTM(12, 40, layers, proj_size=20)
        given = {"lengths": torch.tensor([1099, 700][:N]), "reset": torch.rand(T, N) < 0.01}
        given["reset_state"] = (torch.randn(layers, N, 20, dtype=dtype), torch.randn(layers, N, 40, dtype=dtype))
    elif form == "user's":
        layer = fusedrnn.Recurrent(fusedrnn.zoo.mgu, 12, 40, layers)
    else:
        layer = getattr(fusedrnn, f"Fused{form}")(12, 40, layers)
    layer, x = layer.to(dtype), torch.randn(T, N, 12, dtype=dtype, requires_grad=True)
    widths = {"LSTM": (40, 40), "options": (20, 40)}.get(form, (40,))
    h0 = tuple(torch.randn(layers, N, width, dtype=dtype, requires_grad=True) for width in widths)
    expected = train(layer, x, h0, given)
    for threads in ((4, 4), (3, 4), (4, 1), (1, 4)):
        assert same(train(layer, x, h0, given, threads), expected), threads
    assert sum(side_by_side) == len(side_by_side) == 3


@pytest.mark.parametrize("wanted", ["of the upper layer", "of x", "of the lower state"])
def test_gradients_of_some_inputs_are_those_of_layers_one_after_the_other(wanted, side_by_side):
    layer, x = fusedrnn.FusedGRU(12, 24, 3), torch.randn(300, 1, 12, requires_grad=True)
    h0 = torch.zeros(3, 1, 24, requires_grad=True)
    leaf = {"of the upper layer": layer.weight_ih_l1, "of x": x, "of the lower state": h0}[wanted]

    def gradient(threads):
        torch.set_num_threads(threads)
        y, h = layer(x, h0)
        return torch.autograd.grad(h[:1].sum() if wanted == "of the lower state" else y.sum(), leaf)

    assert same(gradient(4), gradient(1)) and side_by_side == [True]


def test_layers_that_ran_side_by_side_can_be_differentiated_twice(side_by_side):
    layer, x = fusedrnn.FusedRNN(3, 4, 2).double(), torch.randn(192, 1, 3, dtype=torch.float64, requires_grad=True)

    def second(threads):
        torch.set_num_threads(threads)
        y, h = layer(x)
        leaves = [x, *layer.parameters()]
        first = torch.autograd.grad((y * y).sum() + h.exp().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), leaves)

    torch.testing.assert_close(second(2), second(1), rtol=1e-9, atol=1e-12)
    assert side_by_side == [True]


def test_layers_side_by_side_return_no_gradients_of_frozen_ones(side_by_side):
    layer, x = fusedrnn.FusedRNN(12, 24, 2), torch.randn(300, 1, 12)
    torch.set_num_threads(2)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == "weight_hh_l0")
    layer(x)[0].sum().backward()
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == ["weight_hh_l0"]
    layer.weight_hh_l0.requires_grad_(False)
    layer.weight_hh_l1.requires_grad_(True)
    layer(x)[0].sum().backward()
    assert side_by_side == [True, False]  # only the upper one's graph is wanted


def test_a_profiler_sees_layers_side_by_side_as_one_event():
    layer, x = fusedrnn.FusedGRU(12, 24, 2), torch.randn(300, 1, 12)
    torch.set_num_threads(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        layer(x)[0].sum().backward()
    events = [event.name for event in seen.events() if event.name.startswith("fusedrnn::")]
    assert events == ["fusedrnn::gru", "fusedrnn::gru_backward"]


@pytest.mark.parametrize(
    "why", ["dropout", "recompute", "few steps", "rows for all threads", "two directions", "states wanted"]
)
def test_layers_run_one_after_the_other_where_they_must(why, side_by_side):
    options = {"dropout": 0.5 * (why == "dropout"), "recompute": why == "recompute"}
    layer = fusedrnn.FusedGRU(12, 48, 2, bidirectional=why == "two directions", **options)
    x = torch.randn(50 if why == "few steps" else 400, 2 if why == "rows for all threads" else 1, 12)
    torch.set_num_threads(2)
    layer(x, return_state_sequence="all" if why == "states wanted" else False)
    assert True not in side_by_side
