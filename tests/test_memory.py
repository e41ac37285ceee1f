"""Large tensors get the memory of those that are gone: never of one in use, and not all of it is kept for them."""

import concurrent.futures
import itertools
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch
from tolerances import assert_same

import fusedrnn

T, N, H = 64, 128, 64  # an output of 2 MiB
STATM = Path("/proc/self/statm")
MIB = 2**20
needs_statm = pytest.mark.skipif(not STATM.exists(), reason="the system does not say how much memory is in use")


def resident():
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@torch.no_grad()
def output(module, steps=T):
    return module(torch.ones(steps, N, 1))[0]


@pytest.fixture
def module():
    fusedrnn.empty_cache()  # cached by other tests
    return fusedrnn.FusedRNN(1, H)


def test_a_tensor_gets_the_memory_of_one_that_is_gone(module):
    large = 50 * T  # 100 MiB
    for steps in (large, large - 1, large // 2):  # a cached block may be up to twice as large
        gone = output(module, large)
        place = gone.data_ptr()
        del gone
        assert output(module, steps).data_ptr() == place
    assert output(module, large // 2 - 1).data_ptr() != place
    gone = output(module, large)
    assert output(module, large).data_ptr() != gone.data_ptr()


def test_tensors_in_use_share_nothing(module):
    lstm, kept = fusedrnn.FusedLSTM(1, H), []
    for k in range(12):
        y, state = lstm(torch.randn(T, N, 1))
        kept += [output(module, T // (1 + k % 3)), y, *torch.autograd.grad(y.sum(), list(lstm.parameters()))]
        if k % 3 == 1:
            del kept[::2]
    places = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in kept)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(places))


def no_more_than_256_mib_are_kept():
    module = fusedrnn.FusedRNN(1, H)
    outputs = [output(module, 16 * T) for _ in range(12)]
    before = resident()
    assert sum(y.nbytes for y in outputs) == 384 * 2**20
    del outputs
    assert before - resident() > 100 * 2**20


@torch.no_grad()
def call(rows):
    """A row takes 5 KiB of tensors and 4 of scratch memory: of so many, malloc keeps nothing itself."""
    layer, x = fusedrnn.FusedLSTM(8, 256), torch.ones(1, rows, 8)
    for _ in range(2):  # scratch memory is kept from the second call on
        layer(x)


ROWS = 20_000


def an_emptied_cache_is_the_systems_again():
    call(12)
    fusedrnn.empty_cache()
    before = resident()
    call(ROWS)
    assert resident() > before + 150 * MIB
    fusedrnn.empty_cache()
    assert resident() < before + 16 * MIB


def another_thread_gives_up_its_scratch_memory_at_its_next_call():
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        other.submit(torch.set_num_threads, 1)
        other.submit(call, ROWS // 2).result()
        fusedrnn.empty_cache()
        before = resident()
        other.submit(call, 12).result()
        assert resident() < before - 30 * MIB


@needs_statm
@pytest.mark.parametrize(
    "claim",
    [
        no_more_than_256_mib_are_kept,
        an_emptied_cache_is_the_systems_again,
        another_thread_gives_up_its_scratch_memory_at_its_next_call,
    ],
    ids=lambda claim: claim.__name__,
)
@pytest.mark.slow
def test_in_a_process_of_its_own(claim):
    """Elsewhere malloc has free memory of other tests, and uses and keeps that."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(claim).result()


@torch.no_grad()
def test_calls_of_any_size_follow_each_other():
    """The workspace that is kept is as large as the largest call needs, but no more than 64 MiB."""
    for size in (8, 300, 1100, 8, 1100, 300):
        ours, theirs = (kind(size, size, bidirectional=True) for kind in (fusedrnn.FusedLSTM, torch.nn.LSTM))
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(12, 1, size)
        assert_same(ours(x), theirs(x), torch.float32)


def test_an_output_is_a_tensor_as_any_other(module, tmp_path):
    y = output(module)
    expected = y.numpy().copy()
    torch.save(y, tmp_path / "y.pt")
    shared = output(module).share_memory_()
    grown = output(module).resize_(2 * T, N, H)[:T]
    for copy in (pickle.loads(pickle.dumps(y)), torch.load(tmp_path / "y.pt"), shared, grown, y.clone()):
        assert_same(copy, torch.from_numpy(expected))


def test_a_forked_process_has_memory_of_its_own(module):
    torch.set_num_threads(1)  # OpenMP's threads do not follow into a fork
    y = output(module)
    expected = y.clone()
    del y
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(output(module).mul_(2).sum().item()))
    child.start()
    doubled = queue.get()
    child.join()
    assert child.exitcode == 0
    assert doubled == expected.mul(2).sum().item()
    assert torch.equal(output(module), expected)
