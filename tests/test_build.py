"""The build: what setup.py decides, and the package without its compiled part."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def setup():
    """The functions of setup.py."""
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup_functions")


def replace(monkeypatch, setup, name, value):
    monkeypatch.setitem(setup["why_no_cuda"].__globals__, name, value)


def test_a_missing_compiler_is_a_reason_and_not_a_crash(setup, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in setup["why_no_compiler"]()


def test_a_compiler_without_the_standard_library_is_a_reason(setup, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    assert setup["why_no_compiler"]() == "it failed"


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")
def test_the_compiler_of_this_machine_is_accepted(setup):
    assert setup["why_no_compiler"]() is None


def test_insisting_on_cuda_without_a_cuda_build_of_torch_is_an_error(setup, monkeypatch):
    monkeypatch.setenv("FUSEDRNN_CUDA", "1")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit, match="not a CUDA build"):
        setup["with_cuda"]()


def test_insisting_on_cuda_without_nvcc_is_an_error(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("FUSEDRNN_CUDA", "1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(setup["cpp_extension"], "CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="nvcc is not found"):
        setup["with_cuda"]()


def make_nvcc(folder, *said):
    """A folder that holds a program nvcc, which says the same whatever it is asked."""
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(said) + "\nEND\n")
    nvcc.chmod(0o755)
    return str(folder)


def make_toolkit(folder, release="13.0"):
    (folder / "include").mkdir(parents=True)
    (folder / "include/cuda_runtime_api.h").touch()
    return make_nvcc(folder, f"Cuda compilation tools, release {release}, V{release}.1")


def test_a_wrapper_of_nvcc_is_seen_through(setup, monkeypatch, tmp_path):
    toolkit = make_toolkit(tmp_path / "toolkit")
    wrapper = make_nvcc(tmp_path / "wrapper", "#$ _HERE_=nowhere", f"#$ TOP={toolkit}/bin/..", "#$ LIBRARIES=")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(setup["cpp_extension"], "CUDA_HOME", wrapper)
    replace(monkeypatch, setup, "CUDA_SOURCES", ["a.cu"])
    assert setup["why_no_cuda"]() is None
    assert setup["cpp_extension"].CUDA_HOME == os.path.realpath(toolkit)


def test_nvcc_without_the_headers_of_its_toolkit_is_a_reason(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(setup["cpp_extension"], "CUDA_HOME", make_nvcc(tmp_path))
    assert "no headers of CUDA" in setup["why_no_cuda"]()


@pytest.mark.parametrize(
    "override, release, sources, built",
    [
        ("", "13.0", ["a.cu"], True),
        ("1", "13.2", ["a.cu"], True),
        ("0", "13.0", ["a.cu"], False),
        ("", "12.8", ["a.cu"], False),
        ("", "13.0", [], False),
    ],
)
def test_cuda_is_built_iff_nvcc_and_torch_agree_and_nobody_objects(
    setup, monkeypatch, tmp_path, override, release, sources, built
):
    monkeypatch.setenv("FUSEDRNN_CUDA", override)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(setup["cpp_extension"], "CUDA_HOME", make_toolkit(tmp_path, release))
    replace(monkeypatch, setup, "CUDA_SOURCES", sources)
    assert setup["with_cuda"]() is built


def test_a_typing_error_in_the_override_is_an_error(setup, monkeypatch):
    monkeypatch.setenv("FUSEDRNN_CUDA", "yes")
    with pytest.raises(SystemExit, match="must be 0 or 1, got 'yes'"):
        setup["with_cuda"]()


@pytest.mark.parametrize("given, used", [(None, "8.0;9.0+PTX"), ("8.6", "8.6")])
def test_the_architecture_list_is_honoured(setup, monkeypatch, given, used):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    if given:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    replace(monkeypatch, setup, "with_cuda", lambda: True)

    def made(*args, **options):
        return SimpleNamespace(libraries=["torch_python"], **options)

    monkeypatch.setattr(setup["cpp_extension"], "CUDAExtension", made)
    for extension in setup["extensions"]():
        assert ("FUSEDRNN_CUDA_ARCHS", f'"{used}"') in extension.define_macros
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == used


def test_sanitizers_are_compiled_and_linked_on_request(setup, monkeypatch):
    replace(monkeypatch, setup, "with_cuda", lambda: False)
    monkeypatch.delenv("FUSEDRNN_SANITIZE", raising=False)
    for extension in setup["extensions"]():
        assert not any("sanitize" in flag for flag in extension.extra_compile_args)
    monkeypatch.setenv("FUSEDRNN_SANITIZE", "1")
    for extension in setup["extensions"]():
        assert "-fsanitize=address,undefined" in extension.extra_compile_args
        assert "-fsanitize=address,undefined" in extension.extra_link_args


@pytest.mark.slow
def test_setup_without_a_compiler_says_so_and_succeeds(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "fusedrnn", tmp_path / "fusedrnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = os.environ | {"CXX": "no-such-compiler"}
    command = [sys.executable, "setup.py", "-q", "build"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "INSTALLING WITHOUT THE COMPILED KERNELS" in done.stderr
    (built,) = (tmp_path / "build").glob("lib*/fusedrnn")
    assert (built / "scan.py").exists() and not list(built.glob("_C*"))


@pytest.mark.parametrize(
    "cause, reason",
    [
        ('sys.modules["fusedrnn._C"] = None', "it cannot be imported"),
        ('torch.__version__ = "2.99.0"', f"it was built with torch {torch.__version__}, but torch 2.99.0 is installed"),
    ],
)
@pytest.mark.slow
def test_without_an_extension_that_fits_the_package_works_and_says_once_what_to_do(cause, reason):
    program = f"""
import sys
import torch
{cause}
from fusedrnn.backends.extension import extension_error
from fusedrnn.inputs import ScanInputs
from fusedrnn.scan import scan
x, h = torch.randn(4, 2, 3), torch.zeros(1, 2, 5)
w = torch.randn(15, 3), torch.randn(15, 5)
y = scan("GRU", ScanInputs(x, [h], w[:1], w[1:]))[0][0]
theirs = torch.nn.GRU(3, 5, bias=False)
theirs.weight_ih_l0.data, theirs.weight_hh_l0.data = w
assert torch.allclose(y, theirs(x)[0], atol=1e-6)
print(extension_error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout
    assert done.stderr.count("fusedrnn runs without its compiled extension, correct but slow: " + reason) == 1
    assert "pip install --no-build-isolation --force-reinstall" in done.stderr
