"""Ways in which client projects use recurrent modules: each has the values and gradients that it has with torch.nn."""

import copy
import io
import pickle

import onnxruntime
import pytest
import torch
import torch.ao.quantization.quantize_fx as quantize_fx
from tolerances import assert_same
from torch import fx, nn
from torch.ao.quantization import QConfigMapping, get_default_qconfig
from torch.nn.utils import prune
from torch.utils._pytree import tree_leaves
from twins import TWINS, Client, every_class, input_and_state, is_cell, pair, results_and_gradients, tensors


def run(module, *, like=None):
    return results_and_gradients(module, *input_and_state(like or module))


def run_client(model):
    x, _ = input_and_state(model.rnn)
    return results_and_gradients(model, x)


class WithPair(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor, hx: tuple[torch.Tensor, torch.Tensor]):
        return self.rnn(x, hx)


class WithOne(WithPair):
    def forward(self, x: torch.Tensor, hx: torch.Tensor):
        return self.rnn(x, hx)


def script(module):
    _, states = input_and_state(module)
    return torch.jit.script((WithPair if isinstance(states, tuple) else WithOne)(copy.deepcopy(module)))


def scripted_with_states(module):
    return run(script(module), like=module)


def scripted_in_evaluation(module):
    scripted = script(module.eval())
    assert not scripted.rnn.training
    return run(scripted, like=module), run(scripted.train(), like=module)


def scripted_model(module):
    model = torch.jit.script(Client(copy.deepcopy(module)))
    return results_and_gradients(model, input_and_state(module)[0])


def scripted_frozen_and_loaded(module):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.script(Client(copy.deepcopy(module)).eval())), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)(input_and_state(module)[0])


def traced_with_the_default_check(module):
    x, _ = input_and_state(module)
    traced = torch.jit.trace(module, (x,))
    return results_and_gradients(traced, x)


def deep_copied(module):
    return run(copy.deepcopy(module))


def pickled(module):
    return run(pickle.loads(pickle.dumps(module)))


def saved_whole(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return run(torch.load(buffer, weights_only=False))


def states_zeroed_in_place_between_calls(module):
    """A rollout as of reinforcement learning."""
    x, h = input_and_state(module)
    results, done = [], torch.tensor([True, False])
    with torch.no_grad():
        for _ in range(3):
            result = module(x, h)
            h = result if is_cell(module) else result[1]
            results += [t.clone() for t in tensors(result)]
            for state in tree_leaves(h):
                if is_cell(module):
                    state[done] = 0
                else:
                    state[:, done] = 0
    return results


def outputs_put_into_a_buffer(module):
    x, h = input_and_state(module)
    buffer = torch.zeros(3, 2, 4, dtype=torch.float64)
    for step in range(3):
        result = module(x, h)
        h = result if is_cell(module) else result[1]
        buffer[step] = tree_leaves(h)[0].reshape(2, 4)
    return torch.autograd.grad(buffer.square().sum(), list(module.parameters()))


def packed(module):
    x, h = input_and_state(module)
    x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 5]), enforce_sorted=False)
    return results_and_gradients(module, x, h)


def moved_by_to(module):
    module = copy.deepcopy(module).to(torch.float32).to("cpu", torch.float64)
    return run(module)


def moved_by_to_with_swapped_parameters(module):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module = copy.deepcopy(module)
        first = next(module.parameters())
        module.float()
        assert first is next(module.parameters()) and first.dtype == torch.float32
        return run(module.double())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def made_on_meta_and_loaded_by_assignment(module):
    empty = type(module)(3, 4, device="meta", dtype=torch.float64)
    empty.load_state_dict(module.state_dict(), assign=True)
    return run(empty)


def state_dict_into_another(module):
    other = type(module)(3, 4, dtype=torch.float64)
    other.load_state_dict(module.state_dict(), strict=True)
    return run(other)


def functional_call(module):
    weights = {name: (2 * p).detach().requires_grad_() for name, p in module.named_parameters()}
    output = tensors(torch.func.functional_call(module, weights, input_and_state(module)))
    return output, torch.autograd.grad(sum(t.sum() for t in output), list(weights.values()))


def name_of_weight(module):
    return next(name for name, _ in module.named_parameters() if "weight_hh" in name)


def weight_norm(module):
    module = nn.utils.parametrizations.weight_norm(copy.deepcopy(module), name_of_weight(module))
    return run(module), run(module)


def weight_norm_by_hook(module):
    module = nn.utils.weight_norm(copy.deepcopy(module), name_of_weight(module))
    return run(module), run(module)


def spectral_norm_removed(module):
    module, name = copy.deepcopy(module), name_of_weight(module)
    torch.manual_seed(3)
    nn.utils.parametrizations.spectral_norm(module, name)
    module.eval()(*input_and_state(module))
    nn.utils.parametrize.remove_parametrizations(module, name)
    return run(module)


def pruned(module):
    module = copy.deepcopy(module)
    prune.l1_unstructured(module, name_of_weight(module), amount=0.5)
    return run(module)


def parameters_as_views_of_one(module):
    """As FSDP does: the parameters are taken away, and views of a flat one stand in their places."""
    module = copy.deepcopy(module)
    shapes = {name: p.shape for name, p in module.named_parameters()}
    flat = nn.Parameter(nn.utils.parameters_to_vector(module.parameters()).detach())
    for name in shapes:
        delattr(module, name)
    grads = []
    for _ in range(2):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        for (name, shape), part in zip(shapes.items(), parts, strict=True):
            setattr(module, name, part.view(shape))
        output = tensors(module(*input_and_state(module)))
        grads += [*output, *torch.autograd.grad(sum(t.square().sum() for t in output), flat)]
        with torch.no_grad():
            flat.mul_(0.9)
    return grads


def averages_swapped_in(module):
    """An exponential moving average, evaluated in place of the weights, which come back then."""
    module = copy.deepcopy(module)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    results = []
    for _ in range(2):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.1)
        average.update_parameters(module)
        results.append(run(module))
        for _ in range(2):  # there and back
            for p, q in zip(module.parameters(), average.module.parameters(), strict=True):
                p.data, q.data = q.data, p.data
            results.append(run(module))
    return results


def data_swapped(module):
    module = copy.deepcopy(module)
    old = [p.data for p in module.parameters()]
    for p in module.parameters():
        p.data = p.data * 0.5
    half = run(module)
    for p, data in zip(module.parameters(), old, strict=True):
        p.data = data
    return half, run(module)


class Padded(nn.Module):
    """Rows of different lengths, as each library does them."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, lengths):
        if type(self.rnn) in TWINS.values():
            return self.rnn(x, lengths=lengths)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, states = self.rnn(packed)
        return nn.utils.rnn.pad_packed_sequence(output)[0], states


def by_onnxruntime(model, *args):
    file = io.BytesIO()
    torch.onnx.export(model.eval(), args, file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    names = [given.name for given in session.get_inputs()]
    return [torch.tensor(t) for t in session.run(None, {n: t.numpy() for n, t in zip(names, args, strict=True)})]


def exported_to_onnx(module):
    return by_onnxruntime(Client(copy.deepcopy(module)).float(), input_and_state(module)[0].float())


def exported_to_onnx_with_lengths(module):
    model, x = Padded(copy.deepcopy(module)).float(), input_and_state(module)[0].float()
    return by_onnxruntime(model, x, torch.tensor([3, 5]))


def traced_by_fx(module):
    return run_client(fx.symbolic_trace(Client(copy.deepcopy(module))))


def traced_by_fx_again_and_pickled(module):
    graph = fx.symbolic_trace(fx.symbolic_trace(Client(copy.deepcopy(module))))
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["rnn", "head"]
    graph = pickle.loads(pickle.dumps(graph))
    assert type(graph.rnn) is type(module) and repr(graph.rnn) == repr(module)
    return run_client(copy.deepcopy(graph))


class Steps(nn.Module):
    """A loop whose state is whatever the last call gave back."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, h):
        for _ in range(3):
            result = self.rnn(x, h)
            h = result if is_cell(self.rnn) else result[1]
        return h


def traced_by_fx_with_states(module):
    graph = fx.symbolic_trace(Steps(copy.deepcopy(module)))
    return run(graph, like=module)


def quantised_by_fx_but_for_the_layer(module):
    model = Client(copy.deepcopy(module)).float().eval()
    x = input_and_state(module)[0].float()
    mapping = QConfigMapping().set_object_type(nn.Linear, get_default_qconfig("x86"))
    prepared = quantize_fx.prepare_fx(model, mapping, (x,))
    prepared(x)
    converted = quantize_fx.convert_fx(prepared)
    assert type(converted.rnn) is type(module) and "quantized" in type(converted.head).__module__
    return converted(x)


def methods_copied_to_a_class(module):
    """As torchrl does, for a class with a constructor of its own that derives from nn.RNNBase alone."""
    cls = type(module)
    base, first = (nn.RNNCellBase, ()) if is_cell(module) else (nn.RNNBase, (module.mode,))
    chunks = {"num_chunks": module.weight_ih.size(0) // 4, "bias": True} if is_cell(module) else {}

    def init(self):
        base.__init__(self, *first, 3, 4, dtype=torch.float64, **chunks)
        self.nonlinearity = "tanh"

    copied = type("Copied", (base,), {**vars(cls), "__init__": init})()
    copied.load_state_dict(module.state_dict())
    return run(copied, like=module)


EVERY = [
    scripted_with_states, scripted_in_evaluation, scripted_model, scripted_frozen_and_loaded,
    traced_with_the_default_check, deep_copied, pickled, saved_whole, states_zeroed_in_place_between_calls,
    outputs_put_into_a_buffer, moved_by_to, moved_by_to_with_swapped_parameters, made_on_meta_and_loaded_by_assignment,
    state_dict_into_another, functional_call, weight_norm, weight_norm_by_hook, spectral_norm_removed, pruned,
    parameters_as_views_of_one, averages_swapped_in, data_swapped, traced_by_fx, traced_by_fx_again_and_pickled,
    traced_by_fx_with_states, methods_copied_to_a_class, exported_to_onnx,
]  # fmt: skip
CASES = [(way, plain) for way in EVERY for plain in TWINS]
CASES += [(way, plain) for way in (packed, exported_to_onnx_with_lengths) for plain in (nn.LSTM, nn.GRU, nn.RNN)]
CASES += [(quantised_by_fx_but_for_the_layer, plain) for plain in (nn.LSTM, nn.GRUCell)]


@pytest.mark.parametrize("way, plain", CASES, ids=lambda case: case.__name__)
@pytest.mark.filterwarnings("ignore")
def test_a_client_gets_what_torch_gives(way, plain):
    ours, theirs = pair(plain, 3, 4)
    results, wanted = way(ours), way(theirs)
    assert_same(results, wanted, tensors(wanted)[0].dtype)


def traced_by_fx_as_the_root(module):
    fx.symbolic_trace(module)


def scripted_with_a_keyword_that_is_not_there(module):
    class Wrong(Client):
        def forward(self, x):
            return self.rnn(x, lengths=x)

    torch.jit.script(Wrong(module))


def called_without_input(module):
    module()


@every_class
@pytest.mark.parametrize("way", [
    traced_by_fx_as_the_root, scripted_with_a_keyword_that_is_not_there, called_without_input,
], ids=lambda way: way.__name__)  # fmt: skip
def test_a_client_gets_the_error_that_torch_gives(way, plain):
    kinds = [type(error) for module in pair(plain, 3, 4) if (error := failure(lambda m=module: way(m)))]
    assert len(kinds) == 2 and kinds[0] is kinds[1]


def failure(action):
    try:
        action()
    except Exception as error:
        return error
