"""torch.onnx.export gives standard nodes, and ONNX Runtime the same numbers with other sizes than those exported."""

import io
import logging

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from twins import TWINS, every_sequence

import fusedrnn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TOLERANCE = 1e-5  # float32, values within 1, two layers


def export(module, x, dynamo):
    file = io.BytesIO()
    if dynamo:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False, dynamic_shapes=({0: "T", 1: "N"},))
        program.save(file)
    else:
        torch.onnx.export(module, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "T", 1: "N"}})
    return onnx.load_from_string(file.getvalue())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript", "dynamo"])
@every_sequence
def test_standard_nodes_with_the_same_numbers(plain, dynamo):
    module = TWINS[plain](3, 4, 2, bidirectional=True).eval()
    model = export(module, torch.randn(5, 2, 3), dynamo)
    assert [node.op_type for node in model.graph.node].count(plain.__name__) == 2  # one node a layer
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = torch.randn(7, 3, 3)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for a, b in zip(found, tree_leaves(module(x)), strict=True):
        assert (torch.from_numpy(a) - b).abs().max() < TOLERANCE


class WithReset(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = fusedrnn.FusedLSTM(3, 4)

    def forward(self, x):
        return self.inner(x, reset=x[..., 0] > 0)[0]


@pytest.mark.filterwarnings("ignore")
def test_what_onnx_has_no_node_for_is_refused():
    with pytest.raises(ValueError, match="ONNX has no projection, packed input, lengths, reset"):
        export(WithReset(), torch.randn(5, 2, 3), dynamo=False)
