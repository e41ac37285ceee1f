"""The library of kernels and operators: it needs no Python, and serves graphs where fusedrnn is not imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import assert_same

import fusedrnn
from fusedrnn.backends import extension


def test_the_library_needs_no_python():
    contents = Path(fusedrnn.library_path()).read_bytes()
    assert b"libc10" in contents
    assert b"libtorch_python" not in contents and b"libpython" not in contents


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, "int8"])
def test_an_exported_layer_runs_where_only_the_library_is_loaded(weights, tmp_path):
    """A C++ program in place of Python: test_cpp.py."""
    layer = fusedrnn.FusedLSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3).eval()
    layer = fusedrnn.optimize_for_inference(layer, weights) if weights else layer
    sizes = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("N", min=2)}
    exported = torch.export.export(layer, (torch.randn(5, 2, 4),), dynamic_shapes={"input": sizes})
    torch.export.save(exported, tmp_path / "layer.pt2")
    x = torch.randn(9, 3, 4)
    torch.save(x, tmp_path / "x.pt")
    program = f"""
import sys
import torch
torch.ops.load_library({fusedrnn.library_path()!r})
run = torch.export.load("layer.pt2").module()
with torch.no_grad():
    torch.save(run(torch.load("x.pt")), "y.pt")
assert "fusedrnn" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert_same(torch.load(tmp_path / "y.pt"), layer(x))


def test_cells_are_found_by_name():
    assert extension.cell_traits("LSTM") == (4, 4, 2, 0, 0, 4, 4)
    with pytest.raises(ValueError, match="there is no cell SRU, only LSTM, GRU, RNN_TANH, RNN_RELU"):
        extension.cell_traits("SRU")


def test_without_the_extension_there_is_no_library(monkeypatch):
    monkeypatch.setattr(extension, "_C", None)
    monkeypatch.setattr(extension, "extension_error", "no compiler")
    with pytest.raises(RuntimeError, match="fusedrnn has no library: no compiler"):
        fusedrnn.library_path()
