"""Invalid arguments raise the errors of torch.nn."""

import re

import pytest
import torch
from tolerances import assert_same
from torch import nn
from torch.testing._internal import common_modules
from torch.utils._pytree import tree_map
from twins import TWINS, arguments, every_class, every_sequence, outcome

INFOS = [info for info in common_modules.module_db if info.module_cls in TWINS]
every_info = pytest.mark.parametrize("info", INFOS, ids=lambda i: i.module_cls.__name__)


def nameless(results):
    """An error without the class name in Python's message about a constructor."""
    if not isinstance(results[0], type):
        return results
    return results[0], re.sub(r"\w+(?=\.__init__\(\))", "", results[1])


@every_info
def test_all_error_inputs_of_the_module_tests_of_torch(info):
    errors = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    for case in errors:
        built, given = case.module_error_input.constructor_input, case.module_error_input.forward_input

        def run(cls, built=built, given=given):
            module = cls(*built.args, **built.kwargs)
            return module(*given.args, **given.kwargs)

        results = outcome(lambda run=run: run(TWINS[info.module_cls]))
        assert results == outcome(lambda run=run: run(info.module_cls))
        assert results[0] is case.error_type and re.search(case.error_regex, results[1])


X = torch.zeros(5, 2, 3)
PACKED = nn.utils.rnn.pack_padded_sequence(X, [5, 3])
WRONG = {  # name: constructor arguments, and from the right (input, state) what is given instead
    "input 1-D": ({}, lambda x, h: (x[0, 0],)),
    "input 4-D": ({}, lambda x, h: (x[None],)),
    "input not floating": ({}, lambda x, h: (x.long(),)),
    "input of another dtype": ({}, lambda x, h: (x.half(),)),
    "input and state of another dtype": ({}, lambda x, h: (x.double(), tree_map(torch.Tensor.double, h))),
    "input of another size": ({}, lambda x, h: (x[..., :2],)),
    "input on another device": ({}, lambda x, h: (x.to("meta"),)),
    "state on another device": ({}, lambda x, h: (x, tree_map(lambda t: t.to("meta"), h))),
    "state of another batch": ({}, lambda x, h: (x, tree_map(lambda t: t[:, :1], h))),
    "state of another batch, batch first": ({"batch_first": True}, lambda x, h: (x, h)),
    "state of another size": ({}, lambda x, h: (x, tree_map(lambda t: t[..., 1:], h))),
    "state of too few layers": ({"num_layers": 2}, lambda x, h: (x, h)),
    "state 2-D for batched input": ({}, lambda x, h: (x, tree_map(lambda t: t[0], h))),
    "state 3-D for unbatched input": ({}, lambda x, h: (x[:, 0], h)),
    "state of another dtype": ({}, lambda x, h: (x, tree_map(torch.Tensor.half, h))),
    "state not a tensor": ({}, lambda x, h: (x, 0)),
    "one state": ({}, lambda x, h: (x, h[0])),
    "three states": ({}, lambda x, h: (x, (h[0], h[0], h[0]))),
    "two states": ({}, lambda x, h: (x, (h, h))),
    "packed, input of another size": ({"hidden_size": 3, "input_size": 4}, lambda x, h: (PACKED,)),
    "packed, state of another batch": ({}, lambda x, h: (PACKED, tree_map(lambda t: t[:, :1], h))),
    "packed, sizes increasing": ({}, lambda x, h: (nn.utils.rnn.PackedSequence(x[0], torch.tensor([0, 2])), h)),
    "packed, sizes missing": ({}, lambda x, h: (nn.utils.rnn.PackedSequence(x[:, 0], torch.tensor([2, 2])), h)),
    "packed, sizes too many": ({}, lambda x, h: (nn.utils.rnn.PackedSequence(x[:, 0], torch.tensor([2, 2, 2])), h)),
    "packed, data 3-D": ({}, lambda x, h: (nn.utils.rnn.PackedSequence(x, torch.tensor([3, 2])), h)),
    "proj_size": ({"proj_size": 2}, lambda x, h: (x, h)),
    "proj_size too large": ({"proj_size": 4}, lambda x, h: (x, h)),
    "dropout too large": ({"dropout": 1.5}, lambda x, h: (x,)),
    "dropout not a number": ({"dropout": True}, lambda x, h: (x,)),
    "nonlinearity": ({"nonlinearity": "gelu"}, lambda x, h: (x,)),
}


@every_sequence
@pytest.mark.parametrize("case", WRONG)
def test_errors_are_those_of_torch(plain, case):
    options, change = WRONG[case]
    built = {"input_size": 3, "hidden_size": 4, **options}
    given = change(*arguments(plain, dtype=torch.float32))

    def run(cls):
        torch.manual_seed(0)
        return cls(**built)(*given)

    results, wanted = (nameless(outcome(lambda cls=cls: run(cls))) for cls in (TWINS[plain], plain))
    if isinstance(wanted[0], type):
        assert results == wanted
    else:  # torch.nn takes it, then we do
        assert_same(results, wanted, torch.float32)


@every_class
def test_sizes_that_are_missing_are_named_as_by_torch(plain):
    for args in [(), (3,)]:
        results, wanted = (nameless(outcome(lambda cls=cls, args=args: cls(*args))) for cls in (TWINS[plain], plain))
        assert results == wanted and "hidden_size" in results[1]
