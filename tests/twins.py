"""Each module of torch.nn beside ours: made alike, called alike."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import fusedrnn

TWINS = {
    nn.LSTM: fusedrnn.FusedLSTM,
    nn.GRU: fusedrnn.FusedGRU,
    nn.RNN: fusedrnn.FusedRNN,
    nn.LSTMCell: fusedrnn.FusedLSTMCell,
    nn.GRUCell: fusedrnn.FusedGRUCell,
    nn.RNNCell: fusedrnn.FusedRNNCell,
}
SEQUENCES = [nn.LSTM, nn.GRU, nn.RNN]
every_class = pytest.mark.parametrize("plain", list(TWINS), ids=lambda c: c.__name__)
every_sequence = pytest.mark.parametrize("plain", SEQUENCES, ids=lambda c: c.__name__)
only_on_cpu = pytest.mark.parametrize("device", ["cpu"], indirect=True)


def pair(plain, *args, dtype=torch.float64, **kwargs):
    """torch.nn's module and ours with the same parameters."""
    theirs = plain(*args, dtype=dtype, **kwargs)
    ours = TWINS[plain](*args, dtype=dtype, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def arguments(plain, I=3, H=4, N=2, T=5, layers=1, dtype=torch.float64, grad=False):
    """Input and state for a module or a cell."""
    cell = "Cell" in plain.__name__

    def leaf(*size):
        return torch.randn(*size, dtype=dtype, requires_grad=grad)

    states = [leaf(N, H) if cell else leaf(layers, N, H) for _ in range(2 if "LSTM" in plain.__name__ else 1)]
    return leaf(N, I) if cell else leaf(T, N, I), tuple(states) if len(states) == 2 else states[0]


def outcome(run):
    """Results, or the error's type and text."""
    try:
        return run()
    except Exception as error:
        return type(error), str(error)


def tensors(nest):
    """The floating tensors of nested results or arguments."""
    return [t for t in tree_leaves(nest) if isinstance(t, torch.Tensor) and t.is_floating_point()]


def results_and_gradients(module, *args, inputs=(), **kwargs):
    """All outputs, and the gradients of inputs and parameters from random gradients of the outputs."""
    output = tensors(module(*args, **kwargs))
    wanted = [t for t in (*inputs, *module.parameters()) if t.requires_grad]
    torch.manual_seed(1)
    grads = [torch.randn(t.shape).bfloat16().to(t) for t in output]  # the same numbers in every dtype
    grads = torch.autograd.grad(output, wanted, grads, allow_unused=True)
    return output, grads


class Client(nn.Module):
    """A model around a layer or a cell; it scripts, traces and quantises."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(4, 2, dtype=next(rnn.parameters()).dtype)
        for p in self.head.parameters():
            nn.init.constant_(p, 0.5)

    def forward(self, x):
        return self.head(self.rnn(x)[0].reshape(-1, 4))


def is_cell(module):
    return isinstance(module, nn.RNNCellBase)


def input_and_state(module):
    torch.manual_seed(7)
    return arguments(next(plain for plain, fused in TWINS.items() if isinstance(module, (plain, fused))))
