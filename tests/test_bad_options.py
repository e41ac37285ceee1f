"""Invalid options raise a ValueError that names the value and what is allowed."""

import copy
import io
import pickle

import pytest
import torch
from tolerances import assert_same
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn
from fusedrnn.inputs import ScanInputs

X = torch.zeros(5, 2, 3)
PACKED = pack_padded_sequence(X, [5, 3])
MASK = torch.zeros(5, 2, dtype=torch.bool)


def lengths(*values, **options):
    return {"lengths": torch.tensor(values, **options)}


def state(*sizes):
    return {"reset": MASK, "reset_state": tuple(torch.zeros(*size) for size in sizes)}


CALLS = {  # name: (input, options, words of the error)
    "lengths of another size": (
        X,
        lengths(5),
        r"lengths must be torch.int64 \[2\] on cpu, got torch.int64 \[1\] on cpu",
    ),
    "lengths 2-D": (X, lengths([5, 5]), r"\[2\] on cpu, got torch.int64 \[1, 2\]"),
    "lengths of another dtype": (X, lengths(5, 5, dtype=torch.int32), r"torch.int64 \[2\].*got torch.int32 \[2\]"),
    "lengths floating": (X, lengths(5.0, 5.0), r"torch.int64.*got torch.float32"),
    "lengths on another device": (X, lengths(5, 5, device="meta"), r"on cpu, got torch.int64 \[2\] on meta"),
    "lengths a list": (X, {"lengths": [5, 5]}, r"torch.int64 \[2\].*got a list of 2"),
    "lengths negative": (X, lengths(-1, 5), r"between 0 and 5.*got \[-1, 5\]"),
    "lengths too large": (X, lengths(6, 5), r"between 0 and 5.*got \[6, 5\]"),
    "lengths unbatched": (X[:, 0], lengths(5), r"torch.int64 \[\] on cpu, got torch.int64 \[1\]"),
    "lengths and packed": (PACKED, lengths(5, 3), "lengths cannot be given together with a PackedSequence"),
    "reset of another size": (
        X,
        {"reset": MASK.t()},
        r"reset must be torch.bool \[5, 2\] on cpu, got torch.bool \[2, 5\]",
    ),
    "reset of another dtype": (X, {"reset": MASK.float()}, r"torch.bool \[5, 2\] on cpu, got torch.float32"),
    "reset on another device": (X, {"reset": MASK.to("meta")}, r"on cpu, got torch.bool \[5, 2\] on meta"),
    "reset a number": (X, {"reset": True}, r"torch.bool \[5, 2\].*got True"),
    "reset unbatched": (X[:, 0], {"reset": MASK}, r"torch.bool \[5\] on cpu, got torch.bool \[5, 2\]"),
    "reset padded, input packed": (PACKED, {"reset": MASK}, r"torch.bool \[8\].*got torch.bool \[5, 2\]"),
    "reset packed, input padded": (X, {"reset": PACKED}, "reset can be a PackedSequence only beside an input packed"),
    "reset packed otherwise": (
        PACKED,
        {"reset": PackedSequence(MASK.flatten()[:8], torch.tensor([2, 2, 2, 2]))},
        "packed with the same batch_sizes",
    ),
    "reset_state alone": (X, {"reset_state": torch.zeros(1, 2, 4)}, "reset_state is given without reset"),
    "reset_state one of two": (X, state((1, 2, 4)), r"a pair \(h, c\) like hx, got a tuple of 1"),
    "reset_state of another size": (X, state((1, 3, 4), (1, 2, 4)), r"broadcast to \[1, 2, 4\], got.*\[1, 3, 4\]"),
    "reset_state of another dtype": (
        X,
        {"reset": MASK, "reset_state": (torch.zeros(1, 1, 4).double(), torch.zeros(1, 1, 4))},
        r"reset_state must be torch.float32 on cpu, got torch.float64",
    ),
    "reset_state a number": (X, {"reset": MASK, "reset_state": 0.0}, r"a pair \(h, c\) like hx, got 0.0"),
    "state sequence of another name": (X, {"return_state_sequence": "last"}, "False, True or 'all', got 'last'"),
    "input of another dtype": (X.double(), {"reset": MASK}, "dtype"),
}


@pytest.mark.parametrize("case", CALLS)
def test_options_of_a_call(case):
    given, options, words = CALLS[case]
    with pytest.raises(ValueError, match=words):
        fusedrnn.FusedLSTM(3, 4)(given, **options)


@pytest.mark.parametrize("dones, options, words", [
    ([0, 1], {}, "dones must be a tensor"),
    (torch.zeros(()), {}, r"dones must be.*got torch.float32 \[\]"),
    (MASK, {"first": torch.zeros(3)}, r"first must be a bool or \[2\], got torch.float32 \[3\]"),
])  # fmt: skip
def test_episode_starts(dones, options, words):
    with pytest.raises(ValueError, match=words):
        fusedrnn.episode_starts(dones, **options)


@pytest.mark.parametrize("cls", [fusedrnn.FusedLSTM, fusedrnn.FusedGRU, fusedrnn.FusedRNN])
@pytest.mark.parametrize("option, value", [
    ("recurrent_dropout", 1.5), ("recurrent_dropout", True), ("zoneout_h", -0.1), ("weight_drop", "0.5"),
    ("recompute", 1), ("zoneout_c", 2.0), ("forget_bias", "1"),
])  # fmt: skip
def test_options_of_a_module(cls, option, value):
    only_lstm = option in ("zoneout_c", "forget_bias") and cls is not fusedrnn.FusedLSTM
    words = f"unexpected keyword argument '{option}'" if only_lstm else f"{option} should be .*got {value!r}"
    with pytest.raises(TypeError if only_lstm else ValueError, match=words):
        cls(3, 4, **{option: value})


def test_a_forget_bias_without_biases():
    with pytest.raises(ValueError, match="forget_bias needs bias=True, got bias=False"):
        fusedrnn.FusedLSTM(3, 4, bias=False, forget_bias=1.0)


def test_regularised_cells_are_not_left_to_torch():
    module = fusedrnn.FusedLSTM(3, 4, zoneout_h=0.1)
    with pytest.raises(ValueError, match="dtype"):
        module(X.double())
    model = nn.Sequential(fusedrnn.FusedGRU(3, 3), module)
    with pytest.raises(ValueError, match=r"1 has zoneout_h=0.1, which torch.nn.LSTM cannot do; set it to 0 first"):
        fusedrnn.to_torch(model)
    assert type(model[0]) is fusedrnn.FusedGRU  # refused before anything was changed
    module.zoneout_h = 0
    assert type(fusedrnn.to_torch(model)[1]) is nn.LSTM


def test_options_survive_repr_pickling_copying_and_a_state_dict_of_torch():
    module = fusedrnn.FusedLSTM(3, 4, recurrent_dropout=0.1, zoneout_c=0.2, forget_bias=1.0, recompute=True)
    assert repr(module) == "FusedLSTM(3, 4, recurrent_dropout=0.1, zoneout_c=0.2, forget_bias=1.0, recompute=True)"
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert repr(twin) == repr(module)
        assert_same(twin.eval()(X), module.eval()(X), torch.float32)
    plain = nn.LSTM(3, 4)
    assert list(module.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(module.state_dict())
    converted = fusedrnn.convert(plain)
    assert not converted.recompute and repr(converted) == "FusedLSTM(3, 4)"
    converted.weight_drop = 0.5
    assert not torch.equal(converted(X + 1)[0], converted(X + 1)[0])


def test_zoneout_by_one_number_that_the_host_cannot_read():
    x, h0, w_ih, w_hh = torch.zeros(2, 1, 3), torch.zeros(1, 1, 4), torch.zeros(12, 3), torch.zeros(12, 4)
    inputs = ScanInputs(x, [h0], [w_ih], [w_hh], zones=[torch.tensor(0.5, device="meta")])
    with pytest.raises(ValueError, match="zoneout of one number must be on the CPU, got meta"):
        fusedrnn.scan.scan("GRU", inputs)
