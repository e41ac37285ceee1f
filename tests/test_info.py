"""python -m fusedrnn.info, with and without a compiled extension."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fusedrnn import info
from fusedrnn.backends import extension


def run(**environment):
    return subprocess.run(
        [sys.executable, "-m", "fusedrnn.info"], env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_prints_versions_kernels_and_threads():
    done = run(OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["torch"] == torch.__version__
    assert lines["extension"] == f"built with torch {torch.__version__}"
    assert lines["threads"].startswith("1 ")


@pytest.mark.parametrize("isa", ["DEFAULT", "AVX2", "AVX512"])
@pytest.mark.slow
def test_the_forced_instruction_set_is_named(isa):
    done = run(FUSEDRNN_ISA=isa)
    if f"FUSEDRNN_ISA={isa} is not supported on this CPU" in done.stdout and isa != "DEFAULT":
        pytest.skip(f"this processor has no {isa}")
    assert f"instruction set {isa} " in done.stdout


@pytest.mark.slow
def test_an_instruction_set_that_does_not_exist_is_told_and_not_thrown():
    done = run(FUSEDRNN_ISA="AVX9000")
    assert done.returncode == 0, done.stderr
    assert "none: FUSEDRNN_ISA=AVX9000" in done.stdout


def test_without_the_extension_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(extension, "_C", None)
    monkeypatch.setattr(extension, "extension_error", "it was built with torch 1.0")
    found = info.info()
    assert found["extension"].startswith("not in use: it was built with torch 1.0. To build them: pip install ")
    assert "instruction set" not in found


def test_a_cuda_build_names_its_version_and_architectures(monkeypatch):
    fake = SimpleNamespace(
        torch_version="2.13.0", cuda_version=12080, cuda_archs="8.0;9.0+PTX", cpu_capability=lambda: "AVX2"
    )
    monkeypatch.setattr(extension, "_C", fake)
    found = info.info()
    assert found["CUDA part"] == "built with CUDA 12.8 for 8.0;9.0+PTX"
    assert found["kernels"] == "CPU and CUDA"


@pytest.mark.skipif(os.environ.get("FUSEDRNN_CUDA") != "1", reason="nobody asks for CUDA: FUSEDRNN_CUDA=1 is not set")
def test_an_extension_that_was_built_with_cuda_is_complete():
    assert extension.extension_error is None
    assert info.info()["kernels"] == "CPU and CUDA"
    assert extension._C.cuda_version // 1000 == int(torch.version.cuda.split(".")[0])
    assert extension._C.cuda_archs == os.environ["TORCH_CUDA_ARCH_LIST"]
