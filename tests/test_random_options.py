"""Calls with every option at random, in float64, against loops over rows and steps; --random-cases says how many.

Whatever is drawn is a case: an option that does not go with the others (a projection of a GRU, the order of a padded
batch) is left out. So hypothesis can make a failing case small.
"""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loops import run_module, step
from tolerances import assert_same
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

import fusedrnn

pytestmark = pytest.mark.usefixtures("device")
MODULES = {
    "LSTM": (fusedrnn.FusedLSTM, fusedrnn.FusedLSTMCell, {}),
    "GRU": (fusedrnn.FusedGRU, fusedrnn.FusedGRUCell, {}),
    "RNN_TANH": (fusedrnn.FusedRNN, fusedrnn.FusedRNNCell, {}),
    "RNN_RELU": (fusedrnn.FusedRNN, fusedrnn.FusedRNNCell, {"nonlinearity": "relu"}),
}
GRAD_MODES = {"grad": torch.enable_grad, "no grad": torch.no_grad, "inference": torch.inference_mode}


def backwards(t):
    return t.permute([*reversed(range(t.dim()))])


LAYOUTS = {
    "dense": lambda t: t,
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "permuted": lambda t: backwards(backwards(t).contiguous()),
    "shifted": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "expanded": lambda t: t[:1].expand(t.shape) if t.dim() else t,
}
BROADCAST = {  # sizes of reset_state that broadcast to [planes, N, width]
    "full": lambda planes, N, width: (planes, N, width),
    "rows": lambda planes, N, width: (planes, 1, width),
    "planes": lambda planes, N, width: (1, N, width),
    "unit": lambda planes, N, width: (width,),
    "number": lambda planes, N, width: (),
}
SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
KINDS = ("dropout", "recurrent_dropout", "zoneout_h", "zoneout_c", "weight_drop")
RATES = st.sampled_from([0.4, 0.1, 1.0])
SHARED = {
    "name": st.sampled_from([*MODULES]),
    "N": st.sampled_from([2, 1, 3, 5, 0]),
    "I": SIZES,
    "H": SIZES,
    "bias": st.booleans(),
    "hx": st.booleans(),
    "frozen": st.sets(st.sampled_from(["x", "h0", "c0", "reset_h", "reset_c", "_ih", "_hh", "_hr"])),
    "undefined": st.sets(st.integers(0, 4)),  # results that get no gradient
    "grad_mode": st.sampled_from(["grad", "grad", "grad", *GRAD_MODES]),
    "layouts": st.fixed_dictionaries({kind: st.sampled_from([*LAYOUTS]) for kind in ("x", "state", "weight", "grad")}),
    "threads": st.sampled_from([1, 2]),
    "seed": st.integers(0, 2**32 - 1),
}
OF_A_CELL = {"unbatched": st.booleans()}
OF_A_MODULE = {
    "layers": st.integers(1, 3),
    "bidirectional": st.booleans(),
    "P": st.integers(0, 32),  # projected to so many features modulo H
    "form": st.sampled_from(["padded", "unbatched", "packed"]),
    "batch_first": st.booleans(),
    "T": st.sampled_from([2, 1, 3, 5, 7, 0]),
    "lengths": st.none() | st.lists(st.sampled_from([7, 1, 2, 4, 0]), min_size=5, max_size=5),  # T at most, N of them
    "ordered": st.booleans(),  # packed: there are sorted_indices, and rows may have no steps
    "reset": st.sampled_from([None, "tensor", "packed"]),
    "reset_state": st.sampled_from([None, *BROADCAST]),
    "sequences": st.sampled_from([False, True, "all"]),
    "rates": st.fixed_dictionaries({}, optional=dict.fromkeys(KINDS, RATES)),
    "forget_bias": st.sampled_from([None, 1.5]),
    "training": st.booleans(),
    "recompute": st.booleans(),
}


class Case:
    """The drawn options, as attributes, and the tensors of the call."""

    def __init__(self, drawn):
        self.__dict__ |= drawn
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        self.lstm, self.leaves = self.name == "LSTM", []
        self.sequence_class, self.cell_class, self.class_options = MODULES[self.name]

    def leaf(self, name, layout, *size, scale=1.0):
        return self.keep(name, self.lay_out(layout, torch.randn(size, dtype=torch.float64) * scale).detach())

    def input(self, *sequence):
        """Too small to saturate a unit: where tanh is 1 - 1e-4, its derivative is off by 1e-12 in both."""
        return self.leaf("x", "x", *sequence, self.I, scale=self.I**-0.5)

    def keep(self, name, t):
        t.requires_grad_(not any(part in name for part in self.frozen))
        self.leaves += [t] if t.requires_grad else []
        return t

    def lay_out(self, kind, t):
        return LAYOUTS[self.layouts[kind]](t)

    def lay_out_parameters(self):
        for name, p in self.module.named_parameters():
            p.data = self.lay_out("weight", p.data)
            self.keep(name, p)

    def gradients(self, results):
        torch.manual_seed(self.seed)
        grads = [self.lay_out("grad", torch.randn(t.shape, dtype=t.dtype)) for t in results]
        pairs = [pair for n, pair in enumerate(zip(results, grads, strict=True)) if n not in self.undefined]
        pairs = [(t, g) for t, g in pairs if t.requires_grad]
        if not pairs:
            return [torch.zeros_like(t) for t in self.leaves]
        outputs, grads = zip(*pairs, strict=True)
        actual = torch.autograd.grad(outputs, self.leaves, grads, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(self.leaves, actual, strict=True)]

    def assert_agrees(self):
        with GRAD_MODES[self.grad_mode]():
            actual, wanted = self.run(), self.loops()
        assert_same(actual, wanted)
        assert_same(self.gradients(actual), self.gradients(wanted))


class CellCase(Case):
    def __init__(self, drawn):
        super().__init__(drawn)
        self.module = self.cell_class(self.I, self.H, bias=self.bias, dtype=torch.float64, **self.class_options)
        self.lay_out_parameters()
        rows = [] if self.unbatched else [self.N]
        self.x = self.input(*rows)
        self.states = [self.leaf(name, "state", *rows, self.H) for name in ("h0", "c0")[: 1 + self.lstm]]

    def run(self):
        hx = None if not self.hx else tuple(self.states) if self.lstm else self.states[0]
        return tree_leaves(self.module(self.x, hx))

    def loops(self):
        states = self.states if self.hx else [torch.zeros_like(s) for s in self.states]
        x, h, c = (t.unsqueeze(0) if self.unbatched else t for t in (self.x, states[0], states[-1]))
        m = self.module
        rows = [
            step(self.name, F.linear(x[n], m.weight_ih, m.bias_ih), F.linear(h[n], m.weight_hh, m.bias_hh), h[n], c[n])
            for n in range(x.size(0))
        ]
        return [torch.cat([s.flatten()[:0], *(row[k] for row in rows)]).view(s.shape) for k, s in enumerate(states)]


class ModuleCase(Case):
    def __init__(self, drawn):
        super().__init__(drawn)
        self.make_module()
        self.make_rows()
        N, planes = len(self.rows), self.layers * (1 + self.bidirectional)
        self.widths = {"h": self.module.proj_size or self.H} | ({"c": self.H} if self.lstm else {})
        sequence = self.places[0].shape if self.form == "packed" else (self.T, N)
        self.x, self.mask = self.input(*sequence), torch.rand(sequence) < 0.4
        self.states = [self.leaf(f"{s}0", "state", planes, N, width) for s, width in self.widths.items()]
        self.reset_states = []
        if self.reset and self.reset_state:
            for s, width in self.widths.items():
                size = BROADCAST[self.reset_state](planes, N, width)
                size = size[::2] if self.form == "unbatched" and len(size) == 3 else size
                self.reset_states.append(self.leaf(f"reset_{s}", "state", *size))

    def make_module(self):
        options = {
            "num_layers": self.layers,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            **self.class_options,
        }
        self.rates = {rate: p for rate, p in self.rates.items() if self.lstm or rate != "zoneout_c"}
        options |= {rate: p for rate, p in self.rates.items() if rate != "dropout"}
        if self.lstm:
            options |= {"proj_size": self.P % self.H}
            options |= {"forget_bias": self.forget_bias} if self.bias else {}
        options |= {"batch_first": self.batch_first, "recompute": self.recompute, "dtype": torch.float64}
        self.module = self.sequence_class(self.I, self.H, **options).train(self.training)
        self.module.dropout = self.rates.get("dropout", 0.0)  # the constructor warns if there is one layer
        self.lay_out_parameters()

    def make_rows(self):
        """The length of each row, and for packed input the places (t, n) of its rows."""
        N = 1 if self.form == "unbatched" else self.N
        self.rows = [min(length, self.T) for length in (self.lengths or [7] * 5)[:N]]
        if self.form != "packed":
            return
        if not self.ordered:
            self.rows = sorted(filter(None, self.rows), reverse=True)
        self.T = max(self.rows, default=0)
        order = sorted(range(len(self.rows)), key=lambda n: -self.rows[n])
        self.order = torch.tensor(order, dtype=torch.int64) if self.ordered else None
        places = [(t, n) for t in range(self.T) for n in order if self.rows[n] > t]
        self.places = tuple(torch.tensor(places, dtype=torch.int64).view(-1, 2).unbind(1))
        sizes = [sum(length > t for length in self.rows) for t in range(self.T)]
        self.batch_sizes = torch.tensor(sizes, dtype=torch.int64, device="cpu")

    def enter(self, s):
        """A sequence [T, N, ...], packed [R, ...], in the form of the call."""
        if self.form == "packed":
            return PackedSequence(s, self.batch_sizes, self.order)
        if self.form == "unbatched":
            return s.squeeze(1)
        return s.transpose(0, 1) if self.batch_first else s

    def leave(self, s):
        """Back to [T, N, ...] in any case."""
        if self.form == "packed":
            return self.spread(s.data)
        if self.form == "unbatched":
            return s.unsqueeze(1)
        return s.transpose(0, 1) if self.batch_first else s

    def spread(self, s):
        """[T, N, ...] of a sequence [T, N, ...], packed [R, ...]."""
        if self.form != "packed":
            return s
        return s.new_zeros(self.T, len(self.rows), *s.shape[1:]).index_put(self.places, s)

    def hand_in(self, states):
        states = [s.squeeze(1) if self.form == "unbatched" and s.dim() == 3 else s for s in states]
        return tuple(states) if self.lstm else states[0]

    def fill(self, reset_state, like):
        """reset_state in the full size [planes, N, width]."""
        if self.form == "unbatched":
            return reset_state.expand_as(like.squeeze(1)).unsqueeze(1)
        return reset_state.expand_as(like)

    def run(self):
        options = {"return_state_sequence": self.sequences}
        if self.lengths and self.form != "packed":
            rows = self.rows[0] if self.form == "unbatched" else self.rows
            options["lengths"] = torch.tensor(rows, dtype=torch.int64)
        if self.reset:
            options["reset"] = self.mask if (self.form, self.reset) == ("packed", "tensor") else self.enter(self.mask)
        if self.reset_states:
            options["reset_state"] = self.hand_in(self.reset_states)
        hx = self.hand_in(self.states) if self.hx else None
        self.drawn, draw = [], fusedrnn.noise._draw
        with mock.patch.object(fusedrnn.noise, "_draw", lambda *args: self.drawn.extend(new := draw(*args)) or new):
            output, state, *more = self.module(self.enter(self.x), hx, **options)
        if self.form == "packed":
            assert_same(output[1:], self.enter(self.x)[1:])
        state = [s.unsqueeze(1) if self.form == "unbatched" else s for s in tree_leaves(state)]
        more = [s for s in tree_leaves(more, is_leaf=lambda s: isinstance(s, PackedSequence)) if s is not None]
        return [self.leave(output), *state, *map(self.leave, more)]

    def loops(self):
        states = self.states if self.hx else [torch.zeros_like(s) for s in self.states]
        reset_states = [torch.zeros_like(s) for s in self.states]
        if self.reset_states:
            reset_states = [self.fill(r, s) for r, s in zip(self.reset_states, self.states, strict=True)]
        self.drawn = iter(self.drawn)
        reset = self.spread(self.mask) if self.reset else None
        output, h_n, c_n, sequences = run_module(
            self.module, self.spread(self.x), (states[0], states[-1]), self.rows,
            reset, (reset_states[0], reset_states[-1]), self.layer_noise, self.between,
        )  # fmt: skip
        assert not list(self.drawn)
        results = [output, h_n, c_n] if self.lstm else [output, h_n]
        if self.sequences == "all":
            return results + [s for pair in sequences for s in pair[: 1 + self.lstm]]
        return results + [sequences[-1][1]] if self.sequences and self.lstm else results

    def captured(self, rate):
        """The mask that the module drew next; None where there is none to draw."""
        if not (self.training and self.rates.get(rate)):
            return None
        mask, p = next(self.drawn), self.rates[rate]
        assert mask.dtype == torch.bool or ((mask == 0) | (mask * (1 - p) == 1)).all()
        return mask

    def between(self, x):
        mask = self.captured("dropout")
        return x if mask is None else x * self.spread(mask)

    def zone(self, rate):
        if not self.training:
            return torch.tensor(self.rates[rate], dtype=torch.float64) if rate in self.rates else None
        mask = self.captured(rate)
        return None if mask is None else self.spread(mask)

    def layer_noise(self, x, h0, c0, weights):
        h_mask = self.captured("recurrent_dropout")
        if h_mask is not None and self.form == "packed" and self.ordered:
            h_mask = h_mask[:, self.order.argsort()]
        zones = [self.zone("zoneout_h"), self.zone("zoneout_c")]
        count = len(weights) // (1 + self.bidirectional)
        for n in range(1, len(weights), count):
            mask = self.captured("weight_drop")
            weights[n] = weights[n] if mask is None else weights[n] * mask
        return h_mask, *zones, weights


@pytest.mark.parametrize(
    "case, options", [(ModuleCase, OF_A_MODULE), (CellCase, OF_A_CELL)], ids=["of a module", "of a cell"]
)
def test_a_call_equals_the_loops(case, options, pytestconfig):
    @settings(
        max_examples=pytestconfig.getoption("--random-cases"), derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.fixed_dictionaries(SHARED | options))
    def agrees(drawn):
        case(drawn).assert_agrees()

    agrees()
