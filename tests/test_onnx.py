"""torch.onnx.export writes standard nodes, and ONNX Runtime computes the same for other sizes than those exported."""

import io
import logging
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves
from twins import TWINS, every_sequence

import fusedrnn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore")
by_every_exporter = pytest.mark.parametrize(
    "dynamo", [pytest.param(False, id="TorchScript"), pytest.param(True, id="dynamo", marks=pytest.mark.slow)]
)

TOLERANCE = 1e-5  # float32, values within 1, two layers


def export(module, args, dynamo):
    """The model, with the last dimension of each input fixed and those before it free."""
    file, names = io.BytesIO(), ["x", "lengths"][: len(args)]
    free = {"x": dict(enumerate("TN" if args[0].dim() == 3 else "N")), "lengths": {0: "N"}}
    if dynamo:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        shapes = tuple(free[name] for name in names)
        torch.onnx.export(module, args, dynamo=True, verbose=False, dynamic_shapes=shapes).save(file)
    else:
        torch.onnx.export(module, args, file, dynamo=False, input_names=names, dynamic_axes=free)
    return onnx.load_from_string(file.getvalue())


def assert_the_same_numbers(module, model, *args):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    results = session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), args, strict=True)})
    for a, b in zip(results, tree_leaves(module(*args)), strict=True):
        assert a.shape == b.shape and (torch.from_numpy(a) - b).abs().max() < TOLERANCE


def count(model, plain):
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    return [node.op_type for node in model.graph.node].count(plain.__name__.removesuffix("Cell"))


class Given(nn.Module):
    """The layers with a state that is not zero, in one of the forms of sequences."""

    def __init__(self, plain, form=None, **options):
        super().__init__()
        self.inner, self.form = TWINS[plain](3, 4, 2, bidirectional=True, **options).eval(), form
        self.start = nn.Parameter(torch.randn(4, 1, 4))

    def forward(self, x, lengths=None):
        h = self.start.expand(-1, x.shape[1], -1)
        hx = (h, 2 * h) if self.inner.mode == "LSTM" else h
        if self.form == "lengths":
            return tuple(tree_leaves(self.inner(x, hx, lengths=lengths)))
        if lengths is None:
            return tuple(tree_leaves(self.inner(x, hx)))
        hx = None if self.form == "sorted" else hx
        y, h = self.inner(pack_padded_sequence(x, lengths, enforce_sorted=self.form == "sorted"), hx)
        return pad_packed_sequence(y)[0], *tree_leaves(h)


@by_every_exporter
@every_sequence
def test_one_node_a_layer_with_the_same_numbers(plain, dynamo):
    module = Given(plain)
    model = export(module, (torch.randn(5, 2, 3),), dynamo)
    assert count(model, plain) == 2
    assert_the_same_numbers(module, model, torch.randn(7, 3, 3))


@by_every_exporter
@every_sequence
def test_lengths_without_biases(plain, dynamo):
    module = Given(plain, "lengths", bias=False)
    model = export(module, (torch.randn(5, 2, 3), torch.tensor([3, 5])), dynamo)
    assert count(model, plain) == 2
    x = torch.randn(7, 4, 3)
    x[2:, 0] = torch.nan
    assert_the_same_numbers(module, model, x, torch.tensor([2, 7, 0, 4]))


@pytest.mark.parametrize("form", ["sorted", "unsorted"])
@every_sequence
def test_packed_sequences_by_the_exporter_that_traces(plain, form):
    module = Given(plain, form)
    model = export(module, (torch.randn(5, 2, 3), torch.tensor([5, 3])), dynamo=False)
    assert count(model, plain) == 2
    lengths = [7, 5, 4] if form == "sorted" else [5, 7, 4]
    assert_the_same_numbers(module, model, torch.randn(7, 3, 3), torch.tensor(lengths))


@by_every_exporter
@pytest.mark.parametrize("plain", [c for c in TWINS if "Cell" in c.__name__], ids=lambda c: c.__name__)
def test_a_cell_is_a_node_of_one_step(plain, dynamo):
    module = TWINS[plain](3, 4).eval()
    model = export(module, (torch.randn(2, 3),), dynamo)
    assert count(model, plain) == 1
    assert_the_same_numbers(module, model, torch.randn(5, 3))


class Calls(nn.Module):
    def __init__(self, inner, **options):
        super().__init__()
        self.inner, self.options = inner, options

    def forward(self, x):
        return self.inner(x, **{name: make(x) for name, make in self.options.items()})[0]


REFUSED = {
    "reset": Calls(fusedrnn.FusedLSTM(3, 4), reset=lambda x: x[..., 0] > 0),
    "projection": Calls(fusedrnn.FusedLSTM(3, 4, proj_size=2)),
    "state_sequence": Calls(fusedrnn.FusedLSTM(3, 4), return_state_sequence=lambda x: True),
    "zoneout": Calls(fusedrnn.FusedGRU(3, 4, zoneout_h=0.1)),
}


@pytest.mark.parametrize("dynamo, what", [*((False, what) for what in REFUSED), (True, "reset")])
def test_what_onnx_has_no_node_for_is_refused(dynamo, what):
    text = "ONNX has no projection, reset, state sequences or regularised cells"
    with pytest.raises(Exception, match=re.escape(text)) as raised:
        export(REFUSED[what].eval(), (torch.randn(5, 2, 3),), dynamo)
    assert isinstance(raised.value.__cause__ if dynamo else raised.value, ValueError)
