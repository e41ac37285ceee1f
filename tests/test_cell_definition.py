"""What a cell may be: names, functions, and what is refused with its line."""

import copy
import linecache
import pickle
import re

import pytest
import torch
import torch.nn.functional as F

from fusedrnn import zoo
from fusedrnn.compiler import CellError, __main__, cell, layer_norm, rms_norm
from fusedrnn.compiler.groups import Gates, GroupError


@cell(gates="i f g o", states="h c")
def lstm(x, r, s):
    i, f, g, o = x + r
    c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def refused(body: str, **names) -> str:
    """The error of a cell whose function is this."""
    source = f"def wrong(x, r, s, *more):\n    {body}\n"
    scope = {"torch": torch, "F": F, "CONSTANT": torch.ones(5), "WEIGHT": torch.nn.Parameter(torch.tensor(2.0))}
    scope |= {"layer_norm": layer_norm, "rms_norm": rms_norm}
    path = f"<{body}>"
    linecache.cache[path] = len(source), None, source.splitlines(True), path
    exec(compile(source, path, "exec"), scope)
    with pytest.raises(CellError) as error:
        cell(**{"gates": "i f", "states": "h", **names})(scope["wrong"])
    return str(error.value)


REFUSED = {
    "return x.i.sum()": "sum is not an operation on the numbers of one unit; allowed are \\+ - \\* /, neg, sigmoid",
    "return x.i.mean(-1, keepdim=True) + s.h": "mean.dim is not an operation",
    "return torch.cumsum(x.i, 0)": "cumsum is not an operation",
    "return x.i.flip(0)": "flip is not an operation",
    "return torch.roll(x.i, 1, 0)": "roll is not an operation",
    "return x.i @ x.i.t()": "t is not an operation",
    "return F.softmax(x.i, -1)": "_softmax is not an operation",
    "return F.layer_norm(x.i, (5,))": "native_layer_norm is not an operation",
    "return F.dropout(x.i)": "is not an operation",
    "return torch.randn_like(x.i)": "randn_like is not an operation",
    "return torch.sin(x.i)": "sin is not an operation",
    "return x.i % 2": "remainder.Scalar is not an operation",
    "return 2 ** x.i": "pow.Scalar is not an operation",
    "return x.i[:1]": "slice.Tensor is not an operation",
    "return x.i.view(-1)": "view is not an operation",
    "return x.i.unsqueeze(0) * s.h": "unsqueeze is not an operation",
    "return torch.stack([x.i, s.h]).sum(0)": "stack is not an operation",
    "return F.gelu(x.i)": "gelu by erf: use approximate='tanh'",
    "return x.i ** 2.5": r"pow.Tensor_Scalar by 2.5: only whole numbers from -8 to 8",
    "return torch.clamp(x.i, min=s.h)": "clamp.Tensor by tensors: use torch.minimum and torch.maximum",
    "return x.i + CONSTANT": r"add.Tensor takes a tensor of shape \[5\] that is not one of the cell's",
    "return x.i * WEIGHT": "mul.Tensor takes a tensor that requires a gradient: declare it in parameters",
    "return x.i.add_(1)": "add_.Tensor changes a tensor in place: make a new one",
    "s.h += x.i; return s.h": "add_.Tensor changes a tensor in place",
    "s.h = x.i; return s.h": "s cannot be changed: return the new states",
    "return x.i if x.i > 0 else s.h": "a branch cannot depend on the values of a tensor: use torch.where",
    "return x.i.item() * s.h": "the values of a tensor cannot be read",
    "return x.j": "x has no 'j', only i, f",
    "return s.c": "s has no 'c', only h",
    "return x + 1": "the new state h is Gates, not made from",
    "return x.i, x.i": r"it returns 2 new states, not 1 \(h\)",
    "return x.i > 0": "the new state h is the result of a comparison, not a number",
    "return 1.0": "the new state h is float, not made from what the cell is given",
    "return torch.zeros(3, 5)": r"the new state h is a tensor of shape \[3, 5\]",
    "return x.i.float()": "_to_copy changes the type of a tensor",
    "return x.i.double()": "_to_copy changes the type of a tensor",
    "return x.i * x.i.shape[0]": "the function depends on the sizes or the dtype of its tensors",
    "return x.i * torch.finfo(x.i.dtype).eps": "the function depends on the sizes or the dtype of its tensors",
    "return x.i * 1j": "mul.Tensor takes the complex number 1j",
    "return unknown(x.i)": "NameError: name 'unknown' is not defined",
    "with torch.no_grad(): return x.i * 2": "mul.Tensor with gradients switched off .* use detach",
}


@pytest.mark.parametrize("body", REFUSED)
def test_what_a_kernel_cannot_do_is_refused_with_its_line(body):
    message = refused(body)
    assert re.search(REFUSED[body], message), message
    assert re.search(r"^cell wrong: ", message) and f"<{body}>:" in message, message


@pytest.mark.parametrize(
    "body, message",
    [
        ("return layer_norm(2.0)", "layer_norm takes gates, such as x, r and x [+] r, or a state, not float"),
        ("return rms_norm(r).i", "rms_norm takes gates, .*, not a group without gates"),
        ("return rms_norm(CONSTANT) + s.h", r"rms_norm takes gates or a state, .*, not a tensor of float32 \[5\]"),
        ("return rms_norm(x.i > 0)", r"rms_norm takes gates or a state, .*, not a tensor of bool \[3, 5\]"),
        ("return s.h * layer_norm(more[0].w)", r"layer_norm takes gates or a state, .*, not a tensor of float64 \[5\]"),
        ("return s.h * layer_norm(more[1].t)", r"layer_norm takes gates .*, not a tensor of float64 \[3, 1\]"),
        ("with torch.no_grad(): return layer_norm(s.h)", "layer_norm with gradients switched off .* use detach"),
    ],
)
def test_norms_take_what_has_a_number_a_row_and_unit(body, message):
    said = refused(body, recurrent="", parameters="w", inputs="t")
    assert re.search(message, said) and f"<{body}>:" in said, said


def test_groups_of_different_gates_do_not_go_together():
    message = refused("return (x + r).i", recurrent="f")
    assert "two groups have different gates: x has i, f; r has f" in message
    assert "two groups have different gates: r has f; x has i, f" in refused("return (r - x).f", recurrent="f")


@pytest.mark.parametrize(
    "names, message",
    [
        ({"gates": "i 2f"}, "gates: '2f' is no name"),
        ({"gates": "i class"}, "gates: 'class' is no name"),
        ({"gates": "i _f"}, "gates: '_f' is no name"),
        ({"gates": "i i"}, "gates: 'i' is there twice"),
        ({"gates": ""}, "there must be a gate"),
        ({"gates": 2}, "gates must be names with spaces between them, got 2"),
        ({"recurrent": False}, "recurrent must be names with spaces between them, got False"),
        ({"states": ""}, "there must be 1 to 4 states, got 0"),
        ({"states": "h a b c d"}, "there must be 1 to 4 states, got 5"),
        ({"states": {"h": "zero"}}, "'h' begins with 'zero', which is no number and no function of a shape"),
        ({"parameters": {"u": None}}, "'u' begins with None, which is no number and no function of a shape"),
        ({"recurrent": "o"}, "recurrent: there is no gate 'o', only i, f"),
        ({"parameters": "p p"}, "parameters: 'p' is there twice"),
        ({"parameters": "p", "gate_parameters": "p"}, "'p' is in parameters and in gate_parameters"),
        ({"inputs": "t", "unit_inputs": "t"}, "'t' is in inputs and in unit_inputs"),
        ({"parameters": "weight_hh"}, "parameters: 'weight_hh' is the name of a weight that every layer has"),
        ({"inputs": "a b c", "unit_inputs": "d e"}, "there may be 4 inputs and unit_inputs in all, got 5"),
    ],
)
def test_wrong_names_are_refused(names, message):
    assert message in refused("return x.i", **names)


def test_the_decorator_says_how_it_is_used():
    with pytest.raises(CellError, match="takes names first"):
        cell(lambda x, r, s: x)
    with pytest.raises(CellError, match="decorates a function, not int"):
        cell()(3)


def test_a_function_must_take_what_it_is_given():
    with pytest.raises(CellError, match="takes 2 positional arguments but 3 were given"):
        cell(gates="i", states="h")(lambda x, s: x.i)


def test_groups_are_read_by_name_and_in_order_and_follow_gate_parameters():
    x, r = Gates("x", "if", [torch.tensor(1.0), torch.tensor(2.0)]), Gates("r", "f", [torch.tensor(3.0)])
    gain = Gates("p.gain", "if", [torch.tensor(10.0), torch.tensor(20.0)], follower=True)
    i, f = gain * x + 1 - x
    assert (i, f) == (10, 39) and len(x) == 2
    assert list(gain * r) == list(r * gain) == [60] and (2 - r).f == -1 and (-r).f == -3
    assert list(torch.tensor(2.0) * x) == [2, 4]
    with pytest.raises(TypeError):
        x * "2"


def test_groups_are_the_same_side_by_side_and_apart():
    wholes = {"x": torch.randn(3, 10), "r": torch.randn(3, 5), "y": torch.randn(3, 10), "gain": torch.randn(10)}
    names = {"x": "if", "r": "f", "y": "if", "gain": "if"}
    results = []
    for apart in (False, True):
        x, r, y, gain = (
            Gates(key, names[key], t.split(5, -1) if apart else t, follower=key == "gain") for key, t in wholes.items()
        )
        groups = [gain * x + y - 1, 2 * (x - y) * gain, gain * r, r * gain - 2, -x, 3 - -(x * torch.ones(3, 5))]
        groups += [layer_norm(x + y), rms_norm(r), layer_norm(gain * x + 1)]
        results.append([[*group] for group in groups])
        assert x.f is x.f and len(x) == 2
        with pytest.raises(GroupError, match="x has i, f; r has f"):
            x + r
    for whole, apart in zip(*results, strict=True):
        assert len(whole) == len(apart) and all(map(torch.equal, whole, apart))


def test_a_cell_is_its_function_and_pickled_by_reference():
    assert pickle.loads(pickle.dumps(lstm)) is lstm
    assert copy.deepcopy(lstm) is lstm and copy.copy(lstm) is lstm
    assert repr(lstm) == "<cell lstm: gates i f g o, states h c>"
    assert (zoo.mgu.__doc__, zoo.mgu.__module__) == (zoo.mgu.function.__doc__, "fusedrnn.zoo")
    local = cell(gates="a", states="h")(lambda x, r, s: x.a)
    with pytest.raises(CellError, match="cannot be pickled: define it at the top of a module"):
        pickle.dumps(local)
    assert copy.deepcopy(local) is local and copy.copy(local) is local


def test_the_reference_is_the_function_of_rows():
    torch.manual_seed(0)
    x, r, h, c = torch.randn(3, 20), torch.randn(3, 20), torch.randn(3, 5), torch.randn(3, 5)
    theirs = torch.nn.LSTMCell(20, 5).requires_grad_(False)
    theirs.weight_ih.copy_(torch.eye(20))
    theirs.weight_hh.zero_()
    theirs.bias_ih.zero_(), theirs.bias_hh.zero_()
    for ours, wanted in zip(lstm.of_vectors(None)(x, r, h, c), theirs(x + r, (h, c)), strict=True):
        torch.testing.assert_close(ours, wanted)
    score = torch.rand(3)
    new = zoo.augru.of_vectors(None)(torch.randn(3, 15), torch.randn(3, 15), h, inputs=[score * 0])
    torch.testing.assert_close(new[0], h)


def test_the_reference_takes_vectors_in_order():
    @cell(gates="a b", states="h", recurrent="", parameters="u", gate_parameters="gain", unit_inputs="gap")
    def ordered(x, r, s, p, e):
        y = p.gain * x
        return y.a + p.u * s.h + e.gap * y.b

    x, h, vectors, gap = torch.randn(3, 10), torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5)
    new = ordered.of_vectors(vectors)(x, None, h, inputs=[gap])
    wanted = vectors[1] * x[:, :5] + vectors[0] * h + gap * vectors[2] * x[:, 5:]
    torch.testing.assert_close(new[0], wanted)
    assert zoo.min_gru.recurrent == () and ordered.vectors == 3


def test_the_key_changes_with_what_the_function_takes_from_outside():
    scale = 2.0

    @cell(gates="a", states="h")
    def scaled(x, r, s):
        return x.a * scale + r.a

    before = scaled.generate().key
    assert scaled.generate().key == before
    scale = 3.0
    assert scaled.generate().key != before


@pytest.mark.parametrize(
    "name, struct", [("forward", "ForwardCell"), ("_2d_cell", "DCell"), ("größe", "GreCell"), ("__", "Cell")]
)
def test_a_struct_has_a_name_of_its_own(name, struct):
    def function(x, r, s):
        return x.a

    function.__name__ = name
    generated = cell(gates="a", states="h")(function).generate()
    assert generated.struct == struct and f"struct {struct} {{" in generated.text


@pytest.mark.parametrize(
    "context", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta"), lambda: torch.autocast("cpu")]
)
def test_a_kernel_is_the_same_wherever_it_is_made(context):
    with context():
        assert zoo.slstm.generate().key == zoo.slstm.generate().key
        text = zoo.slstm.generate().text
    assert zoo.slstm.generate().text == text


def test_the_struct_of_a_cell_is_printed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cells", "show", "fusedrnn.zoo:mgu"])
    __main__.main()
    assert capsys.readouterr().out == "// fusedrnn.zoo.mgu\n" + zoo.mgu.generate().text


@pytest.mark.parametrize(
    "reference, message",
    [
        ("fusedrnn.zoo", "names no cell: module:name"),
        ("nowhere:mgu", "No module named 'nowhere'"),
        ("fusedrnn.zoo:nothing", "has no attribute 'nothing'"),
        ("fusedrnn.zoo:cell", "is no cell but of type function"),
    ],
)
def test_what_cannot_be_printed_is_said(reference, message):
    with pytest.raises(SystemExit, match=message):
        __main__.find(reference)
