"""examples/cpp: a C++ program that runs exported layers, without Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_examples import EXAMPLES
from tolerances import assert_same
from torch import nn
from torch.utils._pytree import tree_leaves

import fusedrnn

MODELS = {
    "LSTM": lambda: fusedrnn.FusedLSTM(4, 6, num_layers=2, proj_size=3),
    "GRU": lambda: fusedrnn.FusedGRU(4, 6, bidirectional=True),
    "int8": lambda: fusedrnn.optimize_for_inference(nn.Sequential(nn.Linear(4, 5), nn.LSTM(5, 40)), "int8"),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    beside_python = str(Path(sys.executable).parent)  # where pip puts it
    cmake = shutil.which("cmake", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("cmake and a C++ compiler are not both on the PATH")
    build = tmp_path_factory.mktemp("cpp")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in ([cmake, "-S", EXAMPLES / "cpp", "-B", build, prefix], [cmake, "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "run_layers"


def export(model, x, path, form):
    with torch.no_grad():
        if form == "trace":
            return torch.jit.trace(model, (x,)).save(path)
        return torch._inductor.aoti_compile_and_package(torch.export.export(model, (x,)), package_path=str(path))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["trace", "package"])
@pytest.mark.parametrize("name", MODELS)
def test_a_program_without_python_gives_the_same_numbers(name, form, program, tmp_path):
    model, x = MODELS[name]().eval(), torch.randn(7, 2, 4)
    path = tmp_path / ("model.pt" if form == "trace" else "model.pt2")
    export(model, x, path, form)
    torch.save(x, tmp_path / "x.pt")
    command = [program, fusedrnn.library_path(), path, tmp_path / "x.pt", tmp_path / "y.pt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert_same(torch.load(tmp_path / "y.pt"), tree_leaves(model(x)))


@pytest.mark.slow
def test_the_program_says_what_is_wrong(program, tmp_path):
    for arguments, message in [([], "usage:"), (["none.so", "a", "b", "c"], "none.so: cannot open shared object")]:
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode and message in done.stderr
    done = subprocess.run(
        [program, fusedrnn.library_path(), "m.pt", tmp_path / "x.pt", "y"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "cannot read" in done.stderr
