"""The counterpart that TorchScript and torch.fx get for a fused module; see also test_clients.py."""

import pytest
import torch
from tolerances import assert_same
from torch import fx, nn
from twins import TWINS, Client, every_class, input_and_state, is_cell, pair

import fusedrnn


@every_class
def test_scripting_shares_the_weights_and_what_hangs_on_the_module(plain):
    ours = TWINS[plain](3, 4).eval()
    model = Client(ours.double())
    ours.register_buffer("steps", torch.tensor(3))
    scripted = torch.jit.script(model)
    assert not scripted.rnn.training and scripted.rnn.steps == 3
    assert [p.data_ptr() for p in scripted.parameters()] == [p.data_ptr() for p in model.parameters()]
    x = torch.randn(5, 3, dtype=torch.float64) if is_cell(ours) else torch.randn(5, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        next(ours.parameters()).mul_(2)
    assert_same(scripted(x), model.head(ours(x)[0].reshape(-1, 4)))
    # TorchScript leaves the twin in the model: it is the same module under another class, and can be converted again
    assert type(model.rnn) is plain and type(ours) is TWINS[plain] and model.rnn.__dict__ is ours.__dict__
    assert type(fusedrnn.convert(model).rnn) is TWINS[plain]


def test_scripting_takes_the_weights_as_they_are_now():
    ours, theirs = pair(nn.LSTM, 3, 4)
    raw = torch.randn(16, 4, dtype=torch.float64)
    for module in (ours, theirs):
        del module.weight_hh_l0
        module.weight_hh_l0 = raw * 2
    x, _ = input_and_state(ours)
    assert_same(torch.jit.script(Client(ours))(x), Client(theirs)(x))


@pytest.mark.parametrize("training, rates", [
    (True, "recurrent_dropout=0.1, weight_drop=0.2"), (True, "zoneout_h=0.3"), (False, "zoneout_c=0.3"),
])  # fmt: skip
def test_scripting_is_refused_where_torch_would_leave_masks_out(training, rates):
    rnn = fusedrnn.FusedLSTM(3, 4, dtype=torch.float64)
    for rate in rates.split(", "):
        setattr(rnn, rate.split("=")[0], float(rate.split("=")[1]))
    model = Client(rnn).train(training)
    with pytest.raises(ValueError, match=f"torch.nn.LSTM, which cannot do {rates}: set it to 0 first"):
        torch.jit.script(model)
    assert model.rnn is rnn


def test_scripting_is_not_refused_where_torch_does_the_same():
    rnn = fusedrnn.FusedLSTM(3, 4, dtype=torch.float64, weight_drop=0.2, recompute=True, forget_bias=1.0)
    model = Client(rnn).eval()
    x, _ = input_and_state(rnn)
    wanted = model(x)
    assert_same(torch.jit.script(model)(x), wanted)


def test_scripting_parametrized_weights_is_refused():
    model = Client(nn.utils.parametrizations.weight_norm(fusedrnn.FusedGRU(3, 4), "weight_hh_l0"))
    with pytest.raises(ValueError, match="TorchScript cannot compile parametrized weights"):
        torch.jit.script(model)


@every_class
def test_scripting_a_subclass(plain):
    class Sized(TWINS[plain]):
        def __init__(self):
            super().__init__(3, 4, dtype=torch.float64)

    class Doubling(Sized):
        def forward(self, x: torch.Tensor):
            return x * 2, x

    x = torch.randn(5, 3, dtype=torch.float64)
    x = x if is_cell(Sized()) else x.unsqueeze(1)
    model = Client(Sized())
    wanted = model(x)
    assert_same(torch.jit.script(model)(x), wanted)
    assert_same(torch.jit.script(Doubling())(x)[0], x * 2)  # not the forward of torch.nn


@every_class
def test_hooks_would_run_twice_in_a_trace_of_fx(plain):
    model = Client(TWINS[plain](3, 4))
    model.rnn.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(fx.proxy.TraceError, match="the hooks of rnn would run in the trace and again in the graph"):
        fx.symbolic_trace(model)

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return m is model.rnn or super().is_leaf_module(m, module_qualified_name)

    assert "call_module" in str(Tracer().trace(model))


def test_a_trace_of_fx_keeps_the_options_of_the_call():
    class Options(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fusedrnn.FusedLSTM(3, 4)

        def forward(self, x, lengths, reset):
            return self.rnn(x, None, lengths, reset=reset, return_state_sequence=True)

    model = Options()
    args = torch.randn(5, 2, 3), torch.tensor([2, 5]), torch.rand(5, 2) < 0.5
    graph = fx.symbolic_trace(model)
    assert_same(graph(*args), model(*args), torch.float32)
