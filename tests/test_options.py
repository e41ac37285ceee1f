"""lengths, reset, reset_state, every step's state and the regularised cells, against loops over rows and steps."""

import contextlib
import itertools

import pytest
import torch
from loops import run_module
from tolerances import assert_same
from torch import nn
from torch.utils._pytree import tree_leaves

import fusedrnn
from fusedrnn.inputs import ScanInputs
from fusedrnn.noise import Noise
from fusedrnn.twin import REGULARISERS

pytestmark = pytest.mark.usefixtures("device")
MODULES = {
    "LSTM": (fusedrnn.FusedLSTM, {}),
    "LSTM projected": (fusedrnn.FusedLSTM, {"proj_size": 2}),
    "GRU": (fusedrnn.FusedGRU, {}),
    "RNN tanh": (fusedrnn.FusedRNN, {}),
    "RNN relu": (fusedrnn.FusedRNN, {"nonlinearity": "relu"}),
}
FORMS = ["padded", "batch first", "lengths", "packed", "packed unsorted", "unbatched"]
every_module = pytest.mark.parametrize("name", MODULES)
T, I, H = 5, 3, 4


def make(name, **options):
    cls, class_options = MODULES[name]
    return cls(I, H, dtype=torch.float64, **class_options, **options)


class Case:
    """A call in one of the forms, the same call as loops, and the leaves of both."""

    def __init__(self, module, form, reset=False, reset_state=False):
        self.module, self.form = module, form
        self.lstm = module.mode == "LSTM"
        N = 1 if form == "unbatched" else 3
        self.lengths = {"lengths": [3, 0, 5], "packed": [5, 4, 1], "packed unsorted": [2, 5, 1]}.get(form, [T] * N)
        H = module.hidden_size
        planes, P = module.num_layers * (1 + module.bidirectional), module.proj_size or H

        def leaf(*size):
            return torch.randn(*size, dtype=torch.float64, requires_grad=True)

        self.x, self.h0, self.c0 = leaf(T, N, I), leaf(planes, N, P), leaf(planes, N, H)
        self.reset = torch.rand(T, N) < 0.4 if reset else None
        self.reset_h, self.reset_c = (leaf(planes, 1, P), leaf(planes, 1, H)) if reset_state else (None, None)
        module.batch_first = form == "batch first"
        self.leaves = [self.x, self.h0, *([self.c0] if self.lstm else [])]
        if reset_state:
            self.leaves += [self.reset_h, *([self.reset_c] if self.lstm else [])]

    def enter(self, s):
        """A sequence in the form of the call."""
        if self.form == "batch first":
            return s.transpose(0, 1)
        if self.form == "unbatched":
            return s.squeeze(1)
        if self.form.startswith("packed"):
            return nn.utils.rnn.pack_padded_sequence(s, self.lengths, enforce_sorted=self.form == "packed")
        return s

    def leave(self, s):
        """Back to [T, N, features]."""
        if isinstance(s, nn.utils.rnn.PackedSequence):
            return nn.utils.rnn.pad_packed_sequence(s, total_length=T)[0]
        return {"batch first": lambda: s.transpose(0, 1), "unbatched": lambda: s.unsqueeze(1)}.get(
            self.form, lambda: s
        )()

    def alone(self, s):
        """A state, without N where the input is unbatched."""
        return s.squeeze(1) if self.form == "unbatched" else s

    def hx(self, h, c):
        return (self.alone(h), self.alone(c)) if self.lstm else self.alone(h)

    def options(self):
        options = {}
        if self.form == "lengths":
            options["lengths"] = torch.tensor(self.lengths, device=self.x.device)
        if self.reset is not None:
            options["reset"] = self.enter(self.reset)
        if self.reset_h is not None:
            options["reset_state"] = self.hx(self.reset_h, self.reset_c)
        return options

    def run(self, sequences="all"):
        """output, h_n, c_n and the sequences of all layers, in the order and form of the loops."""
        options = self.options() | {"return_state_sequence": sequences}
        output, state, *rest = self.module(self.enter(self.x), self.hx(self.h0, self.c0), **options)
        state = [s.unsqueeze(1) if self.form == "unbatched" else s for s in tree_leaves(state)]
        results = [self.leave(output), *state]
        for part in rest:
            pairs = part if isinstance(part, list) else [(part,)]
            results += [self.leave(s) for pair in pairs for s in pair if s is not None]
        return results

    def loops(self, layer_noise=None):
        zeros_h, zeros_c = torch.zeros_like(self.h0), torch.zeros_like(self.c0)
        reset_h = zeros_h if self.reset_h is None else self.reset_h.expand_as(zeros_h)
        reset_c = zeros_c if self.reset_c is None else self.reset_c.expand_as(zeros_c)
        output, h_n, c_n, sequences = run_module(
            self.module, self.x, (self.h0, self.c0), self.lengths, self.reset, (reset_h, reset_c), layer_noise
        )
        states = [h_n, c_n] if self.lstm else [h_n]
        return [output, *states, *(s for pair in sequences for s in (pair if self.lstm else pair[:1]))]

    def gradients(self, outputs):
        wanted = [*self.leaves, *self.module.parameters()]
        torch.manual_seed(1)
        grads = [torch.randn_like(t) for t in outputs]
        actual = torch.autograd.grad(outputs, wanted, grads, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, actual, strict=True)]


def assert_agrees(case, layer_noise=None):
    torch.manual_seed(7)
    actual = case.run()
    torch.manual_seed(7)
    wanted = case.loops(layer_noise)
    assert_same(actual, wanted)
    assert_same(case.gradients(actual), case.gradients(wanted))


@every_module
@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_reset_equals_the_loops(name, form):
    for layers, bidirectional, bias, (reset, reset_state) in itertools.product(
        (1, 2), (False, True), (True, False), ((False, False), (True, False), (True, True))
    ):
        if bias or (layers, reset) == (2, True):
            module = make(name, num_layers=layers, bidirectional=bidirectional, bias=bias)
            assert_agrees(Case(module, form, reset, reset_state))


@every_module
def test_the_last_layers_cell_state_alone(name):
    case = Case(make(name, num_layers=2, bidirectional=True), "lengths", True)
    all_sequences, last = case.run(), case.run(True)
    states = 3 if case.lstm else 2
    assert_same(last[:states], all_sequences[:states])
    assert_same(last[states:], all_sequences[-1:] if case.lstm else [])


@every_module
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_a_default_device_elsewhere_changes_nothing(name, form, training):
    rates = regularised(name, recurrent_dropout=0.4, zoneout_h=0.3, zoneout_c=0.5, weight_drop=0.25)
    module = make(name, num_layers=2, bidirectional=True, recompute=True, **rates).train(training)
    case = Case(module, form, True, True)
    actual = []
    for elsewhere in (contextlib.nullcontext(), torch.device("meta")):
        torch.manual_seed(7)
        with elsewhere:
            actual.append(case.run())
            actual.append(torch.autograd.grad([t.sum() for t in actual[-1]], case.leaves))
    assert_same(actual[2:], actual[:2])


def regularised(name, **rates):
    return {rate: p for rate, p in rates.items() if name.startswith("LSTM") or rate != "zoneout_c"}


def noise_of(name, rates, training):
    h, *c = (rates.get(rate, 0) for rate in ("zoneout_h", "zoneout_c"))
    zoneout = (h, *c) if name.startswith("LSTM") else (h,)
    return Noise(rates.get("recurrent_dropout", 0), zoneout, rates.get("weight_drop", 0), training)


def masks(noise, x, states, weights):
    """The noise of a layer: h_mask, zones of h and c, and the weights."""
    count = len(weights) // states[0].size(0)
    made = noise.apply(ScanInputs(x, states, weights[::count], weights[1::count]))
    weights = [made.w_hh[i // count] if i % count == 1 else w for i, w in enumerate(weights)]
    return made.h_mask, *(*made.zones, None)[:2], weights


@every_module
@pytest.mark.parametrize("form", ["padded", "lengths", "packed unsorted", "batch first"])
@pytest.mark.parametrize("training", [True, False])
def test_regularised_cells_equal_the_loops_with_the_same_masks(name, form, training):
    rates = regularised(name, recurrent_dropout=0.4, zoneout_h=0.3, zoneout_c=0.5, weight_drop=0.25)
    for chosen in [*({rate: p} for rate, p in rates.items()), rates]:
        noise = noise_of(name, chosen, training)
        module = make(name, num_layers=2, bidirectional=True, **chosen).train(training)
        case = Case(module, form, *[len(chosen) > 1] * 2)
        packed = form.startswith("packed")

        def layer_noise(x, h0, c0, weights, noise=noise, case=case, packed=packed):
            """The masks that the module draws from the same generator, in the form of the loops."""
            states = [h0, c0][: 1 + case.lstm]
            if not packed:
                return masks(noise, x, states, weights)
            order = nn.utils.rnn.pack_padded_sequence(x, case.lengths, enforce_sorted=False)
            h_mask, *zones, weights = masks(noise, order.data, states, weights)
            back = order.unsorted_indices
            zones = [z if z is None or not z.dim() else case.leave(order._replace(data=z)) for z in zones]
            return h_mask if h_mask is None else h_mask[:, back], *zones, weights

        assert_agrees(case, layer_noise)


@pytest.mark.parametrize("training", [True, False])
def test_regularised_cells_wider_than_a_panel_equal_the_loops(training):
    rates = dict.fromkeys(REGULARISERS, 0.3)
    module = fusedrnn.FusedLSTM(I, 80, proj_size=70, dtype=torch.float64, **rates).train(training)
    noise = noise_of("LSTM", rates, training)
    assert_agrees(Case(module, "padded"), lambda x, h0, c0, weights: masks(noise, x, [h0, c0], weights))


def test_masks_are_drawn_anew_at_their_rates_and_only_in_training():
    module = fusedrnn.FusedLSTM(2, 64, recurrent_dropout=0.25, zoneout_h=0.1, zoneout_c=0.4, weight_drop=0.5)
    noise = Noise(0.25, (0.1, 0.4), 0.5, True)
    h = torch.zeros(1, 50, 64)
    h_mask, zone_h, zone_c, weights = masks(noise, torch.zeros(20, 50, 2), [h, h], list(module.parameters()))
    assert set(h_mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    dropped = weights[1] == 0
    for mask, rate in ((h_mask == 0, 0.25), (zone_h, 0.1), (zone_c, 0.4), (dropped, 0.5)):
        assert abs(mask.float().mean() - rate) < 5 * (rate * (1 - rate) / mask.numel()) ** 0.5
    assert torch.equal(weights[1][~dropped], module.weight_hh_l0[~dropped] * 2)
    assert all(a is b for a, b in zip(weights, module.parameters(), strict=True) if a.dim() == 1)
    x = torch.randn(5, 3, 2)
    assert not torch.equal(module(x)[0], module(x)[0])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])
    plain = fusedrnn.FusedLSTM(2, 64).eval()
    plain.load_state_dict(module.state_dict())
    module.zoneout_h = module.zoneout_c = 0
    assert torch.equal(module(x)[0], plain(x)[0])


@pytest.mark.parametrize(
    "name, rate", [(name, rate) for name in MODULES for rate in regularised(name, **dict.fromkeys(REGULARISERS, 1.0))]
)
def test_a_rate_of_one_is_what_it_says(name, rate):
    case = Case(make(name, **{rate: 1.0}), "padded")
    actual = case.run()
    assert all(t.isfinite().all() for t in case.gradients(actual))
    if rate in ("recurrent_dropout", "weight_drop"):  # h does not reach the gates
        with torch.no_grad():
            case.module.weight_hh_l0.zero_()
        case.module.eval()
        assert_same(actual, case.run())
    else:  # the state never moves
        state = case.h0 if rate == "zoneout_h" else case.c0
        assert torch.equal(actual[1 if rate == "zoneout_h" else 2], state)


@every_module
def test_recompute_gives_the_same_bits_and_keeps_only_states(name):
    for form, reset, reset_state in [
        ("padded", False, False),
        ("lengths", True, True),
        ("packed unsorted", True, False),
    ]:
        rates = regularised(name, recurrent_dropout=0.4, zoneout_c=0.5) if reset else {}
        module = make(name, num_layers=2, bidirectional=True, dropout=0.5, **rates)
        case, kept = Case(module, form, reset, reset_state), []
        for module.recompute in (False, True):
            torch.manual_seed(3)
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
            ):
                outputs = case.run()
            kept.append((outputs, case.gradients(outputs), sum(sizes)))
        assert_same(kept[1][:2], kept[0][:2])
        assert kept[1][2] < kept[0][2]


@every_module
def test_tensors_decide_the_device_and_not_the_default(name):
    rates = regularised(name, recurrent_dropout=0.4, zoneout_h=0.5)
    for form, training in itertools.product(("lengths", "packed unsorted"), (False, True)):
        module = make(name, num_layers=2, dropout=0.5, recompute=training, **rates).train(training)
        case = Case(module, form, reset=True)
        actual = []
        for default in (case.x.device, torch.device("meta")):
            torch.manual_seed(3)
            with default:
                outputs = case.run()
                actual.append((outputs, case.gradients(outputs)))
        assert_same(*actual)


@every_module
def test_nothing_gets_across_a_reset(name):
    for bidirectional, bad in itertools.product((False, True), (float("nan"), float("inf"))):
        module = make(name, num_layers=2, bidirectional=bidirectional)
        x, h = torch.randn(6, 3, I, dtype=torch.float64), 4 if bidirectional else 2
        P = module.proj_size or H
        states = [torch.randn(h, 3, size, dtype=torch.float64) for size in (P, H)]
        reset = torch.zeros(6, 3, dtype=torch.bool)
        reset[2, 0] = reset[4, 0] = reset[0, 1] = True
        bad_x, bad_states = x.clone(), [s.clone() for s in states]
        bad_x[2:4, 0] = bad  # the second of three episodes of row 0
        for s in bad_states if not bidirectional else []:
            s[:, 1] = bad  # the state in front of the first episode of row 1
        good = torch.ones(6, 3, dtype=torch.bool)
        good[2:4, 0] = False
        actual = []
        for given, initial in ((x, states), (bad_x, bad_states)):
            leaves = [t.requires_grad_() for t in (given, *initial[: 1 + (module.mode == "LSTM")])]
            hx = tuple(leaves[1:]) if len(leaves) == 3 else leaves[1]
            y, state = module(leaves[0], hx, reset=reset)
            loss = torch.where(good.unsqueeze(2), y, 0).square().sum() + sum(s.sum() for s in tree_leaves(state))
            dx, *dstates = torch.autograd.grad(loss, leaves)
            actual.append([y[good], tree_leaves(state), dx[good], dstates])
        assert_same(actual[1], actual[0])


@every_module
def test_nothing_gets_across_the_end_of_a_row(name):
    module = make(name, num_layers=2, bidirectional=True)
    x = torch.randn(6, 3, I, dtype=torch.float64)
    lengths = torch.tensor([2, 0, 6])
    behind = torch.arange(6).unsqueeze(1) >= lengths
    actual = []
    for value in (0.0, float("nan"), float("inf")):
        leaf = x.masked_fill(behind.unsqueeze(2), value).requires_grad_()
        outputs = tree_leaves(module(leaf, lengths=lengths))
        grads = torch.autograd.grad(sum(t.square().sum() for t in outputs), [leaf, *module.parameters()])
        assert not outputs[0][behind].any() and not grads[0][behind].any()
        actual.append([outputs, grads])
    assert_same(actual[1], actual[0])
    assert_same(actual[2], actual[0])


def test_episode_starts_follow_the_ends():
    dones = torch.tensor([[1, 0], [0, 0], [0, 1], [0, 0]])
    starts = torch.tensor([[False, False], [True, False], [False, False], [False, True]])
    assert torch.equal(fusedrnn.episode_starts(dones), starts)
    assert torch.equal(fusedrnn.episode_starts(dones.t().float(), batch_first=True), starts.t())
    assert torch.equal(fusedrnn.episode_starts(dones[:, 1].bool()), starts[:, 1])
    starts[0] = torch.tensor([True, False])
    assert torch.equal(fusedrnn.episode_starts(dones, first=torch.tensor([1, 0])), starts)
    starts[0] = True
    assert torch.equal(fusedrnn.episode_starts(dones, first=True), starts)
    assert fusedrnn.episode_starts(dones[:0]).shape == (0, 2)


def test_the_forget_gate_starts_where_it_is_told():
    module = fusedrnn.FusedLSTM(I, H, 2, bidirectional=True, forget_bias=1.5)
    for name, p in module.named_parameters():
        if name.startswith("bias"):
            assert (p[H : 2 * H] == (1.5 if "_ih_" in name else 0)).all()
            assert p[:H].any() and p[2 * H :].any()
    torch.manual_seed(0)
    module.reset_parameters()
    torch.manual_seed(0)
    plain = nn.LSTM(I, H, 2, bidirectional=True)
    assert torch.equal(module.weight_hh_l1_reverse, plain.weight_hh_l1_reverse)
