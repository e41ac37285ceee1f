"""The measure of the other tests: NaN or infinity is never within a tolerance of a finite number."""

import itertools

import pytest
import torch
from tolerances import assert_same, distance

SPECIAL = (float("nan"), float("inf"), float("-inf"), 0.0)


@pytest.mark.parametrize("a, b", [*itertools.permutations(SPECIAL, 2)])
def test_numbers_that_are_not_finite_differ_from_all_others(a, b):
    assert distance(torch.tensor([1.0, a]), torch.tensor([1.0, b])) == float("inf")


@pytest.mark.parametrize("a", SPECIAL)
def test_equal_numbers_do_not_differ(a):
    assert distance(torch.tensor([1.0, a]), torch.tensor([1.0, a])) == 0


def test_another_number_shape_or_count_of_results_is_seen():
    t = torch.ones(2, 3)
    for other in (t + 1e-3, t[:1], [t, t], None):
        with pytest.raises(AssertionError):
            assert_same([t], [other], torch.float32)
    assert_same([t, None], [t + 1e-6, None], torch.float32)
