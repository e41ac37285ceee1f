"""Compiling generated cells: what is kept, and what happens when it cannot be made or kept."""

import subprocess
import sys
import threading
import time
import warnings

import pytest
import scalar_cells
import torch
from tolerances import assert_same

from fusedrnn.backends import extension
from fusedrnn.compiler import build, cell
from fusedrnn.inputs import ScanInputs
from fusedrnn.scan import scan

pytestmark = pytest.mark.skipif(extension._C is None, reason="the compiled extension is missing")


@cell(gates="i f g o", states="h c")
def lstm(x, r, s):
    i, f = torch.sigmoid(x.i + r.i), torch.sigmoid(x.f + r.f)
    c = f * s.c + i * torch.tanh(x.g + r.g)
    return torch.sigmoid(x.o + r.o) * torch.tanh(c), c


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that holds the LSTM."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDRNN_CACHE", str(folder))
        generated = lstm.generate()
        build.load(generated.text, generated.struct, torch.float32)
    return folder


@pytest.mark.skipif(not scalar_cells.have_compiler(), reason="no C++ compiler on this machine")
def test_a_compiled_cell_runs_as_the_built_in_one(cache):
    torch.manual_seed(0)
    x, h, c = torch.randn(7, 9, 11), torch.randn(1, 9, 37), torch.randn(1, 9, 37)
    weights = [torch.randn(4 * 37, size) / 6 for size in (11, 37)]
    outputs = []
    for name in ("LSTM", lstm.generate().key):
        leaves = [t.clone().requires_grad_() for t in (x, h, c, *weights)]
        y = scan(name, ScanInputs(leaves[0], leaves[1:3], leaves[3:4], leaves[4:]))[0][0]
        outputs.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    for ours, theirs in zip(outputs[1], outputs[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_same(outputs[1][0], outputs[0][0])


@pytest.mark.skipif(not scalar_cells.have_compiler(), reason="no C++ compiler on this machine")
def test_a_kept_cell_is_loaded_at_once_and_needs_no_compiler_run(cache, monkeypatch):
    monkeypatch.setenv("FUSEDRNN_CACHE", str(cache))
    monkeypatch.setattr(build, "_loaded", set())
    registered = []
    monkeypatch.setattr(build, "_register", registered.append)
    monkeypatch.setattr(build, "_made", None)
    generated = lstm.generate()
    begin = time.perf_counter()
    build.load(generated.text, generated.struct, torch.float32)
    build.load(generated.text, generated.struct, torch.float32)
    assert time.perf_counter() - begin < 0.2
    assert [path.parent for path in registered] == [cache]


class Compiler:
    """A program in the compiler's place, which counts its runs. It makes a library of the text that it compiles."""

    def __init__(self, folder, monkeypatch):
        self.path, self.runs = folder / "compiler", folder / "runs"
        self.cache = folder / "cache"
        self.becomes('cat "$source" > "$made"')
        monkeypatch.setenv("CXX", str(self.path))
        monkeypatch.setenv("FUSEDRNN_CACHE", str(self.cache))
        build._identity_of.cache_clear()
        build._warn_once.cache_clear()

    def becomes(self, command: str, version: str = "1.0") -> None:
        self.path.write_text(
            "#!/bin/sh\n"
            f'[ "$1" = --version ] && echo {version} && exit 0\n'
            f"echo >> {self.runs}\n"
            'for word in "$@"; do\n'
            '  case "$word" in *.cpp) source="$word";; *cell.so) made="$word";; esac\n'
            "done\n" + command + "\n"
        )
        self.path.chmod(0o755)
        build._identity_of.cache_clear()

    def count(self) -> int:
        return len(self.runs.read_text()) if self.runs.exists() else 0


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    yield Compiler(tmp_path, monkeypatch)
    build._identity_of.cache_clear()


def made(unit: str, flags=()) -> str:
    """The contents of the library that is made of a unit."""
    with build.compiled(unit, list(flags), "cell Some for float32") as library:
        return library.read_text()


def test_what_was_compiled_once_is_kept(compiler):
    assert [made("a"), made("a")] == ["a", "a"]
    assert compiler.count() == 1


def test_another_unit_flag_or_compiler_is_compiled_anew(compiler):
    made("a")
    assert made("b") == "b" and compiler.count() == 2
    made("a", ["-march=other"])
    assert compiler.count() == 3
    compiler.becomes('cat "$source" > "$made"', version="2.0")
    made("a")
    assert compiler.count() == 4


def test_another_library_or_header_is_compiled_anew(compiler, monkeypatch):
    made("a")
    monkeypatch.setattr(build, "_identity_of_package", lambda: "another")
    made("a")
    assert compiler.count() == 2


@pytest.mark.parametrize("harm", ["truncated", "another's", "without its checksum"])
def test_what_is_not_whole_is_compiled_again(compiler, harm):
    made("a long unit")
    (library,) = compiler.cache.glob("*.so")
    if harm == "without its checksum":
        library.with_suffix(".sum").unlink()
    else:
        library.write_text("a lo" if harm == "truncated" else "anything else")
    assert [made("a long unit"), made("a long unit")] == ["a long unit", "a long unit"]
    assert compiler.count() == 2


def test_a_cache_that_is_no_folder_is_done_without_and_said_once(compiler):
    compiler.cache.write_text("")
    with pytest.warns(UserWarning, match="compiled cells are not kept, as the cache cannot be used: .*cache") as said:
        assert [made("a"), made("a")] == ["a", "a"]
    assert len(said) == 1


def test_a_full_cache_is_done_without(compiler, monkeypatch):
    def full(library, cached):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "_put", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert made("a") == "a"
    assert compiler.count() == 1


def test_a_cache_that_fills_up_half_way_holds_nothing_that_counts(compiler, monkeypatch):
    replace = build.os.replace

    def no_checksums(part, target):
        if str(target).endswith(".sum"):
            raise OSError(28, "No space left on device")
        replace(part, target)

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="No space left"):
        patch.setattr(build.os, "replace", no_checksums)
        assert made("a") == "a"
    assert {path.suffix for path in compiler.cache.iterdir()} == {".so", ".lock"}
    assert made("a") == "a"


def test_no_compiler_is_a_reason(monkeypatch, compiler):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.CellBuildError, match="the C.. compiler cannot be run: .*no-such-compiler"):
        made("a")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.CellBuildError, match="c.., g.. and clang.. are not on the PATH, and CXX is not set"):
        made("a")


@pytest.mark.parametrize(
    "command, reason",
    [
        ("echo no such header >&2; exit 1", "could not be compiled. .* says: no such header"),
        ("exit 0", "could not be compiled. .* says: it says nothing"),
        ("kill -9 $$", "could not be compiled. .* says: it says nothing"),
    ],
)
def test_a_broken_compiler_is_a_reason(compiler, command, reason):
    compiler.becomes(command)
    with pytest.raises(build.CellBuildError, match=reason):
        made("a")
    compiler.becomes('cat "$source" > "$made"')
    assert made("a") == "a"


def test_a_library_that_cannot_be_loaded_is_a_reason_and_not_kept(compiler, monkeypatch):
    monkeypatch.setattr(build, "_loaded", set())
    with pytest.raises(build.CellBuildError, match="the compiled cell cannot be loaded"):
        build.load("struct Some {};", "Some", torch.float32)
    assert not list(compiler.cache.glob("*.so")) and not build._loaded


def test_without_the_extension_nothing_is_compiled(compiler, monkeypatch):
    monkeypatch.setattr(extension, "_C", None)
    monkeypatch.setattr(extension, "extension_error", "some reason")
    with pytest.raises(build.CellBuildError, match="without its compiled extension: some reason"):
        build.load("struct Some {};", "Some", torch.float32)


def test_two_at_once_compile_once(compiler):
    compiler.becomes('sleep 0.3; cat "$source" > "$made"')
    results = []
    threads = [threading.Thread(target=lambda: results.append(made("a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == ["a"] * 4 and compiler.count() == 1


def test_the_lock_of_a_killed_process_does_not_hold(compiler):
    made("a")
    (lock,) = compiler.cache.glob("*.lock")
    (library,) = compiler.cache.glob("*.so")
    library.unlink()
    program = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True)"
    program += "; time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    result = []
    thread = threading.Thread(target=lambda: result.append(made("a")))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()  # it waits for whoever compiles the same
    holder.kill()
    thread.join(10)
    holder.wait()
    assert result == ["a"]


def test_a_long_compilation_is_announced(compiler, capfd):
    made("a")
    assert capfd.readouterr().err == ""
    compiler.becomes('sleep 1.3; cat "$source" > "$made"')
    made("b")
    assert capfd.readouterr().err == "fusedrnn: compiling cell Some for float32, once\n"


def test_where_cells_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSEDRNN_CACHE", str(tmp_path))
    assert build.cache_folder() == tmp_path
    monkeypatch.setenv("FUSEDRNN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert build.cache_folder() == tmp_path / "xdg/fusedrnn"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert build.cache_folder().parts[-3:] == ("Library", "Caches", "fusedrnn")


def test_headers_are_found_in_either_place(monkeypatch, tmp_path):
    build.headers.cache_clear()
    assert (build.headers() / "cpu/forward.h").exists()
    build.headers.cache_clear()
    monkeypatch.setattr(build, "__file__", str(tmp_path / "fusedrnn/compiler/build.py"))
    with pytest.raises(build.CellBuildError, match="the headers of the drivers are missing"):
        build.headers()
    (tmp_path / "fusedrnn/csrc").mkdir(parents=True)
    (tmp_path / "fusedrnn/csrc/cells.h").touch()
    assert build.headers() == tmp_path / "fusedrnn/csrc"
    build.headers.cache_clear()


@pytest.mark.parametrize(
    "capability, dtype, chosen",
    [
        ("AVX512_BF16", torch.bfloat16, "AVX512_BF16"),
        ("AVX512_BF16", torch.float32, "AVX512"),
        ("AVX2", torch.bfloat16, "AVX2"),
    ],
)
def test_the_instruction_set_is_the_library_s(monkeypatch, capability, dtype, chosen):
    class Extension:
        cpu_capability = staticmethod(lambda: capability)

    monkeypatch.setattr(extension, "_C", Extension)
    assert build._instruction_set(dtype) == chosen


def test_nothing_is_said_when_all_is_well(compiler):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made("a")
