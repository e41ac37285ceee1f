"""The modules behave as those of torch.nn, with everything that clients of torch.nn rely on."""

import copy
import inspect
import io
import itertools
import pathlib
import pickle

import pytest
import torch
from tolerances import assert_same
from torch import nn
from torch.testing._internal import common_modules
from torch.utils._pytree import tree_leaves, tree_map
from twins import TWINS, arguments, every_class, every_sequence, only_on_cpu, pair, results_and_gradients, tensors

import fusedrnn

pytestmark = pytest.mark.usefixtures("device")
INFOS = [info for info in common_modules.module_db if info.module_cls in TWINS]
every_info = pytest.mark.parametrize("info", INFOS, ids=lambda i: i.module_cls.__name__)


def samples(info, dtype=torch.float64):
    device, extra = torch.get_default_device(), {"with_packed_sequence": True}
    extra = extra if info.module_cls in (nn.GRU, nn.RNN) else {}
    for sample in info.module_inputs_func(info, device, dtype, requires_grad=True, training=True, **extra):
        built = sample.constructor_input
        yield pair(info.module_cls, *built.args, **built.kwargs, dtype=dtype), sample.forward_input


@every_info
def test_all_inputs_of_the_module_tests_of_torch(info):
    count = 0
    for (ours, theirs), given in samples(info):
        inputs = [t for t in tensors(given.args) if t.requires_grad]
        results, wanted = (results_and_gradients(m, *given.args, inputs=inputs, **given.kwargs) for m in (ours, theirs))
        assert_same(results, wanted)
        assert repr(ours) == "Fused" + repr(theirs)
        count += 1
    assert count >= 2


@pytest.mark.slow
@every_info
def test_gradients_of_both_orders_against_finite_differences(info):
    for number, ((ours, _), given) in enumerate(itertools.islice(samples(info), 0, None, 2)):
        fast = number % 6 > 0  # one random direction instead of all elements
        names, parameters = zip(*ours.named_parameters(), strict=True)
        inputs = [t for t in tensors(given.args) if t.requires_grad]

        def run(*given_now, ours=ours, given=given, names=names, inputs=inputs):
            new = dict(zip(map(id, inputs), given_now[len(names) :], strict=True))
            args = tree_map(lambda old, new=new: new.get(id(old), old), list(given.args))
            output = torch.func.functional_call(ours, dict(zip(names, given_now, strict=False)), tuple(args))
            return tuple(tensors(output))

        assert torch.autograd.gradcheck(run, (*parameters, *inputs), fast_mode=fast)
        assert torch.autograd.gradgradcheck(run, (*parameters, *inputs), fast_mode=fast)


@every_class
def test_parameters_have_the_same_names_shapes_and_values(plain):
    results = []
    for cls in (plain, TWINS[plain]):
        torch.manual_seed(3)
        results.append(cls(3, 4).state_dict())
    theirs, ours = results
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@every_sequence
def test_attributes_of_rnnbase(plain):
    ours, theirs = pair(plain, 3, 4, 2, bidirectional=True)
    for name in ("mode", "_flat_weights_names", "_all_weights", "input_size", "num_layers", "proj_size", "dropout"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert [[id(w) for w in ws] for ws in ours.all_weights] == [
        [id(getattr(ours, name)) for name in names] for names in theirs._all_weights
    ]
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    ours.flatten_parameters()
    assert isinstance(ours, nn.RNNBase)
    public = {name for name in dir(theirs) if not name.startswith("__")}
    assert public - set(dir(ours)) == set()


def test_positional_arguments_are_those_of_torch():
    for plain, args in {
        nn.LSTM: (3, 4, 2, False, True, 0.5, True, 2, "cpu"),
        nn.GRU: (3, 4, 2, False, True, 0.5, True, 0, "cpu"),
        nn.RNN: (3, 4, 2, "relu", False, True, 0.5, True, 0, "cpu"),
        nn.LSTMCell: (3, 4, False),
        nn.GRUCell: (3, 4, False),
        nn.RNNCell: (3, 4, False, "relu"),
    }.items():
        ours, theirs = pair(plain, *args)
        assert repr(ours) == "Fused" + repr(theirs)


@every_class
def test_pickle_deepcopy_and_whole_module_saving(plain):
    ours, _ = pair(plain, 3, 4)
    args = arguments(plain)
    wanted = ours(*args)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    for twin in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), torch.load(buffer, weights_only=False)):
        assert type(twin) is type(ours)
        assert_same(twin(*args), wanted)
        next(twin.parameters()).data.zero_()
    assert_same(ours(*args), wanted)


@every_class
def test_state_dicts_go_both_ways(plain):
    ours, theirs = TWINS[plain](3, 4), plain(3, 4)
    args = arguments(plain, dtype=torch.float32)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours(*args), theirs(*args), torch.float32)
    ours.load_state_dict(plain(3, 4).state_dict())


@every_class
def test_non_contiguous_input_state_and_parameters(plain):
    ours, theirs = pair(plain, 3, 4)
    x, h = arguments(plain)
    x, *states = (torch.stack([t, t], -1)[..., 0] for t in tree_leaves([x, h]))
    for module in (ours, theirs):
        for p in module.parameters():
            p.data = torch.stack([p.data, p.data], -1)[..., 0]
    assert not x.is_contiguous() and not next(ours.parameters()).is_contiguous()
    h = tuple(states) if len(states) == 2 else states[0]
    assert_same(*(results_and_gradients(m, x, h) for m in (ours, theirs)))


@every_class
def test_replaced_weights_are_seen_at_once(plain):
    ours, theirs = pair(plain, 3, 4)
    args = arguments(plain)
    for name in [name for name, _ in ours.named_parameters() if "weight" in name]:
        ours(*args)
        raw = torch.randn_like(getattr(ours, name), requires_grad=True)
        for module in (ours, theirs):
            delattr(module, name)
            setattr(module, name, raw * 2)
        assert_same(ours(*args), theirs(*args))
        (grad,) = torch.autograd.grad(tree_leaves(ours(*args))[0].sum(), raw)
        assert grad.abs().max() > 0
    with torch.no_grad():
        for module in (ours, theirs):
            next(module.parameters()).mul_(3)
    assert_same(ours(*args), theirs(*args))


@pytest.mark.parametrize("plain", [nn.LSTM, nn.LSTMCell], ids=lambda c: c.__name__)
def test_states_may_be_a_list(plain):
    ours, theirs = pair(plain, 3, 4)
    x, h = arguments(plain)
    assert_same(ours(x, list(h)), theirs(x, list(h)))


@every_class
def test_an_empty_batch(plain):
    ours, theirs = pair(plain, 3, 4)
    args = arguments(plain, N=0, grad=True)
    assert_same(*(results_and_gradients(m, *args, inputs=tree_leaves(args)) for m in (ours, theirs)))


@every_sequence
@pytest.mark.parametrize("batch_first", [False, True])
def test_no_steps_give_the_initial_state(plain, batch_first):
    ours, _ = pair(plain, 3, 4, 2, batch_first=batch_first)
    x, h = arguments(plain, T=0, layers=2, grad=True)
    x, states = x.transpose(0, 1) if batch_first else x, tree_leaves(h)
    output, h_n = ours(x, h)
    assert output.shape == ((2, 0, 4) if batch_first else (0, 2, 4))
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(h_n), states, strict=True))
    loss = output.sum() + sum(t.sum() for t in tree_leaves(h_n))
    for grad in torch.autograd.grad(loss, states, retain_graph=True):
        assert torch.equal(grad, torch.ones_like(grad))
    loss.backward()
    assert all(p.grad.shape == p.shape and not p.grad.any() for p in ours.parameters())


@every_class
@pytest.mark.parametrize("grad", [False, True])
def test_final_states_are_fresh_and_writable(plain, grad):
    ours, theirs = pair(plain, 3, 4)
    x, h = arguments(plain, grad=grad)
    for module in (ours, theirs):
        module.requires_grad_(grad)
    if "Cell" in plain.__name__:
        results = tree_leaves(ours(x, h))
    else:
        output, state = ours(x, h)
        results = tree_leaves(state)
    storages = [t.untyped_storage().data_ptr() for t in tree_leaves([x, h, list(ours.parameters())])]
    assert not {t.untyped_storage().data_ptr() for t in results} & set(storages)
    if "Cell" in plain.__name__:
        return
    before = output.clone()
    with torch.no_grad():
        for t in results:
            t[:, 0] = 7.0
    assert torch.equal(output, before)
    if grad:
        wanted = torch.autograd.grad(theirs(x, h)[0].sum(), list(theirs.parameters()))
        assert_same(torch.autograd.grad(output.sum(), list(ours.parameters())), wanted)


@every_class
def test_frozen_parameters_and_undefined_gradients(plain):
    ours, theirs = pair(plain, 3, 4)
    for chosen in range(4):
        for module in (ours, theirs):
            for n, p in enumerate(module.parameters()):
                p.requires_grad_(n == chosen)
        results = [torch.autograd.grad(tree_leaves(m(*args))[-1].sum(), [p for p in m.parameters() if p.requires_grad])
                 for args in [arguments(plain)] for m in (ours, theirs)]  # fmt: skip
        assert_same(*results)


@every_class
def test_the_same_backward_twice_has_the_same_bits(plain):
    ours, _ = pair(plain, 17, 33, dtype=torch.float32)
    x, h = arguments(plain, 17, 33, 9, 20, dtype=torch.float32, grad=True)
    loss = sum(t.square().sum() for t in tree_leaves(ours(x, h)))
    first, second = (torch.autograd.grad(loss, [x, *ours.parameters()], retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@only_on_cpu
@every_class
def test_results_do_not_depend_on_the_number_of_threads(plain):
    ours, _ = pair(plain, 40, 96, dtype=torch.float32)
    x, h = arguments(plain, 40, 96, 24, 30, dtype=torch.float32, grad=True)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        output = tree_leaves(ours(x, h))
        inputs = [x, *tree_leaves(h), *ours.parameters()]
        results.append([*output, *torch.autograd.grad(sum(t.square().sum() for t in output), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_sequence
def test_attributes_can_change_between_calls(plain, device):
    ours, theirs = pair(plain, 3, 4, 2)
    x, _ = arguments(plain)
    for module in (ours, theirs):
        module.batch_first = True
        module.dropout = 0.5
    results = []
    for module in (ours, theirs):
        torch.manual_seed(5)
        results.append(module(x))
    if device == "cpu":  # torch's generator, drawn in the same order; cuDNN has its own
        assert_same(*results)
    ours.eval(), theirs.eval()
    assert_same(ours(x), theirs(x))
    assert not torch.equal(results[0][0], ours(x)[0])


@every_sequence
def test_a_subclass_cooperates(plain):
    class Mine(TWINS[plain]):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, batch_first=True, **kwargs)

        def reset_parameters(self):
            for p in self.parameters():
                nn.init.constant_(p, 0.1)

        def forward(self, x, hx=None):
            return super().forward(x, hx=hx)

    ours = Mine(3, 4, 2)
    assert all((p == 0.1).all() for p in ours.parameters())
    theirs = plain(3, 4, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 3)
    assert_same(ours(x), theirs(x), torch.float32)


@every_class
def test_a_class_that_copies_all_methods_works_on_its_own(plain):
    base = nn.RNNCellBase if "Cell" in plain.__name__ else nn.RNNBase
    copied = type("Copied", (base,), dict(vars(TWINS[plain])))
    assert not issubclass(copied, TWINS[plain])
    options = {"zoneout_h": 0.5, "recompute": True} if base is nn.RNNBase else {}
    torch.manual_seed(3)
    ours = TWINS[plain](3, 4, dtype=torch.float64, **options)
    torch.manual_seed(3)
    theirs = copied(3, 4, dtype=torch.float64, **options)
    assert repr(theirs) == repr(ours).replace(type(ours).__name__, "Copied")
    args = arguments(plain)
    assert_same(*(results_and_gradients(m.eval(), *args) for m in (ours, theirs)))


def test_a_copied_constructor_sets_the_forget_bias():
    copied = type("Copied", (nn.RNNBase,), dict(vars(fusedrnn.FusedLSTM)))
    assert copied(3, 4, forget_bias=2.0).bias_ih_l0[4:8].eq(2).all()


@every_class
def test_signatures_are_those_of_torch_and_options_come_by_keyword(plain):
    parameters = inspect.signature(TWINS[plain]).parameters.values()
    given = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keyword_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if "Cell" in plain.__name__:
        assert given == list(inspect.signature(plain).parameters) and not keyword_only
        return
    wanted = list(inspect.signature(nn.RNNBase.__init__).parameters)[2:]  # without self and mode
    wanted[3:3] = ["nonlinearity"] if plain is nn.RNN else []
    assert given == wanted
    only_lstm = {"zoneout_c", "forget_bias"} if plain is nn.LSTM else set()
    assert set(keyword_only) == {"recurrent_dropout", "zoneout_h", "weight_drop", "recompute"} | only_lstm


@every_class
def test_nan_and_infinity_propagate_as_in_torch(plain):
    ours, theirs = pair(plain, 3, 4, dtype=torch.float32)
    for bad in (float("nan"), float("inf"), 1e30):
        x, h = arguments(plain, dtype=torch.float32)
        x[1 if "Cell" in plain.__name__ else (2, 1)] = bad
        for a, b in zip(tree_leaves(ours(x, h)), tree_leaves(theirs(x, h)), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-6)


@only_on_cpu
def test_version_is_the_one_of_the_package():
    text = (pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'version = "{fusedrnn.__version__}"' in text
