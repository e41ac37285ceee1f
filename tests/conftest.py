"""What every test finds: two threads at most, and the same random numbers each time."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_start():
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
