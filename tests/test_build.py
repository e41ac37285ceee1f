"""The build: what setup.py decides, and the package without its compiled part."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fusedrnn
from fusedrnn.backends import origin

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


@pytest.mark.parametrize(
    "given, known, used",
    [
        (None, "sm_80 sm_90", "8.0;9.0+PTX"),
        (None, "sm_80\nsm_90\nsm_100\nsm_120\nsm_121", "8.0;9.0;10.0;12.0+PTX"),
        ("8.6", "sm_120", "8.6"),
    ],
)
def test_the_architecture_list_is_honoured(setup, monkeypatch, given, known, used):
    replace(monkeypatch, setup, "nvcc_says", lambda *arguments: known)
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


@pytest.fixture
def main(setup, monkeypatch):
    """setup.py as pip runs it to make a wheel, up to the compilation. Returns what it is stopped with."""
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    for name in ("FUSEDRNN_NO_KERNELS", "PIP_NO_CACHE_DIR", "UV_NO_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def run():
        with pytest.raises(SystemExit) as stopped:
            setup["main"]()
        message = str(stopped.value).strip()
        assert message.startswith("*** fusedrnn is not installed: ")
        return message

    return run


def test_without_a_torch_in_sight_the_build_stops_and_says_what_to_type(setup, main, monkeypatch):
    replace(monkeypatch, setup, "torch", None)
    replace(monkeypatch, setup, "why_no_torch", "No module named 'torch'")
    assert "(No module named 'torch'): install torch 2.11 or newer, and add --no-build-isolation" in main()


def test_a_torch_that_is_too_old_stops_the_build(main, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert "it needs torch 2.11 or newer, and this is 2.9.1+cpu" in main()


def test_without_a_compiler_the_build_stops_and_says_what_to_type(main, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = main()
    assert "apt install g++ python3-dev" in message and "says: [Errno 2]" in message
    assert "FUSEDRNN_NO_KERNELS=1 PIP_NO_CACHE_DIR=1 pip install ." in message


def test_on_windows_the_build_stops(main, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert "use WSL 2" in main()


def test_a_typing_error_in_the_request_for_no_kernels_is_an_error(main, monkeypatch):
    monkeypatch.setenv("FUSEDRNN_NO_KERNELS", "yes")
    assert "FUSEDRNN_NO_KERNELS must be 0 or 1, got 'yes'" in main()


def test_pip_may_not_cache_a_build_without_kernels(main, monkeypatch):
    monkeypatch.setenv("FUSEDRNN_NO_KERNELS", "1")
    assert "without PIP_NO_CACHE_DIR=1" in main()


@pytest.mark.parametrize("cuda, sdist", [(False, False), (True, False), (False, True)])
def test_a_wheel_names_its_torch_and_requires_it(setup, monkeypatch, tmp_path, cuda, sdist):
    for name in ("pyproject.toml", "README.md", "LICENSE", *(["PKG-INFO"] if sdist else [])):
        (tmp_path / name).write_text((ROOT / name).read_text() if name != "PKG-INFO" else "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    macros = [setup["CUDA_MACRO"]] if cuda else []
    replace(monkeypatch, setup, "check_platform", lambda: None)
    replace(monkeypatch, setup, "extensions", lambda: [SimpleNamespace(define_macros=macros)])
    given = {}
    replace(monkeypatch, setup, "setup", lambda **options: given.update(options))
    setup["main"]()
    made = given["distclass"]({})
    made.parse_config_files()
    label = "" if sdist else "+torch2.13.0" + ".cu130" * cuda
    assert made.get_version() == fusedrnn.__version__ + label
    assert [r for r in made.install_requires if r.startswith("torch")] == ["torch==2.13.0"]


def test_what_was_compiled_for_another_torch_is_out_of_date(setup, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stamp = tmp_path / setup["torch_stamp"]()
    os.utime(stamp, (1, 1))
    setup["torch_stamp"]()
    assert stamp.stat().st_mtime == 1
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    setup["torch_stamp"]()
    assert stamp.read_text() == "2.99.0" and stamp.stat().st_mtime > 1


@pytest.mark.slow
def test_on_request_nothing_is_compiled_and_the_version_says_so(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "fusedrnn", tmp_path / "fusedrnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = os.environ | {"CXX": "no-such-compiler", "FUSEDRNN_NO_KERNELS": "1", "PIP_NO_CACHE_DIR": "1"}
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "dist").iterdir()
    assert made.name == f"fusedrnn-{fusedrnn.__version__}+nokernels-py3-none-any.whl"


@pytest.mark.parametrize(
    "cause, reason",
    [
        ('sys.modules["fusedrnn._C"] = None', "they were not built"),
        (
            'torch.__version__ = "2.99.0"',
            f"they were compiled for torch {torch.__version__}, and torch 2.99.0 is installed",
        ),
    ],
)
@pytest.mark.slow
def test_without_an_extension_that_fits_the_package_works_and_says_once_what_to_do(cause, reason):
    program = f"""
import sys
import torch
{cause}
from fusedrnn import FusedGRU
from fusedrnn.backends.extension import extension_error
ours, theirs = FusedGRU(3, 5), torch.nn.GRU(3, 5)
theirs.load_state_dict(ours.state_dict())
x = torch.randn(4, 2, 3)
assert torch.equal(ours(x)[0], theirs(x)[0])
assert torch.allclose(ours(x, lengths=torch.tensor([4, 4]))[0], theirs(x)[0], atol=1e-6)
print(extension_error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout
    assert done.stderr.count(f"all else slowly): {reason}. To build them: ") == 1
    assert f"pip install --no-cache-dir --force-reinstall --no-deps -e {ROOT}" in done.stderr


def test_builds_of_one_release_of_torch_are_the_same_and_those_of_commits_are_not():
    same = fusedrnn.backends.extension._release
    assert same("2.13.0+cpu") == same("2.13.0+cu130") == "2.13.0"
    assert same("2.13.0a0+gitabc") != same("2.13.0a0+gitdef")


SDIST, WHEEL = "file:///a%20b/fusedrnn-0.2.0.tar.gz", "file:///fusedrnn-0.2.0-cp311-linux_x86_64.whl"
GIT = {"url": "https://example.org/fusedrnn", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
PIP = "pip install --no-cache-dir --force-reinstall --no-deps"


@pytest.mark.parametrize(
    "installer, where, command",
    [
        ("pip", {"url": "file:///src", "dir_info": {}}, f"To build them: {PIP} /src"),
        ("pip", {"url": SDIST, "archive_info": {}}, f"To build them: {PIP} '/a b/fusedrnn-0.2.0.tar.gz'"),
        ("pip", GIT, f"To build them: {PIP} git+https://example.org/fusedrnn@abc"),
        ("pip", {"url": WHEEL, "archive_info": {}}, "pip install torch==2.11.0, or install a wheel made for this"),
        ("pip", None, "pip install torch==2.11.0, or install a wheel made for this torch"),
        ("uv", {"url": "file:///src"}, "To build them: uv pip install --no-build-isolation --no-cache --reinstall"),
    ],
)
def test_the_command_that_builds_the_kernels_names_where_the_package_came_from(
    monkeypatch, tmp_path, installer, where, command
):
    files = {"INSTALLER": installer + "\n", "direct_url.json": where and json.dumps(where)}
    found = SimpleNamespace(requires=["numpy", "torch==2.11.0"], read_text=files.get)
    monkeypatch.setattr(origin, "_distribution", lambda: found)
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    assert origin.remedy().startswith(command)
