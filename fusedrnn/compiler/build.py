"""Compiles a generated cell's drivers for this machine, keeps them on disk, and makes them known to the library.

Whatever a cache may hold is compiled again rather than believed: a library counts if its checksum is beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ..backends import extension

try:
    import fcntl
except ImportError:  # no locks: two processes may compile the same, and either result is right
    fcntl = None

_TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_FLAGS = ["-std=c++20", "-O3", "-g0", "-fPIC", "-shared", "-Wno-psabi", "-w"]
# instruction set: (flags, bytes of a vector, header of its products of pairs of bfloat16)
_ISAS = {
    "DEFAULT": ([], 16, ""),
    "AVX2": (["-march=x86-64-v3"], 32, ""),
    "AVX512": (["-march=x86-64-v4"], 64, ""),
    "AVX512_VNNI": (["-march=x86-64-v4"], 64, ""),
    "AVX512_BF16": (["-march=x86-64-v4", "-mavx512bf16"], 64, "cpu/dot_avx512.h"),
    "NEON_BF16": (["-march=armv8.2-a+bf16"], 16, "cpu/dot_neon.h"),
}
_WITHOUT_PAIRS = {"AVX512_BF16": "AVX512", "NEON_BF16": "DEFAULT"}  # for other dtypes
_UNIT = """\
#include "cpu/isa.h"

#define FUSEDRNN_ISA {isa}
#define FUSEDRNN_VECTOR_BYTES {vector_bytes}
{definitions}#include "cells.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/functions.h"
#include "cpu/packed_gates.h"
#include "functions.h"

namespace fusedrnn::{isa} {{  // the linker may merge symbols of equal names
{struct_text}}}  // namespace fusedrnn::{isa}

// Returns 0, or 1 with what went wrong in message.
extern "C" int fusedrnn_register_cell(char* message, size_t room) {{
  using namespace fusedrnn;
  using Cell = {isa}::{struct};
  using Driver = CpuDriver<{type}>;
  try {{
    CellDrivers drivers{{traits_of<Cell>(), {{}}, {{}}}};
    std::get<Driver>(drivers.cpu) = {{
        {isa}::scan_forward<Cell, {type}>, {isa}::scan_backward<Cell, {type}>, {packed}}};
    register_cell(drivers);
    return 0;
  }} catch (const std::exception& error) {{
    std::strncpy(message, error.what(), room - 1);
  }} catch (...) {{
  }}
  return 1;
}}
"""
_loaded: set[tuple[str, torch.dtype]] = set()
_loading = threading.Lock()


class CellBuildError(RuntimeError):
    """Why a cell could not be compiled, or its library not be loaded."""


def load(struct_text: str, struct_name: str, dtype: torch.dtype) -> None:
    """Makes the CPU drivers of a cell of this dtype known to the library, from the cache or by compiling them.

    Raises:
        CellBuildError: there is no compiler, or it failed, or the library does not take the cell.
    """
    with _loading:
        if (struct_text, dtype) in _loaded:
            return
        isa = _instruction_set(dtype)
        flags, vector_bytes, pairs = _ISAS[isa]
        isa = f"compiled_{hashlib.sha256(struct_text.encode()).hexdigest()[:12]}"
        unit = _UNIT.format(
            isa=isa,
            vector_bytes=vector_bytes,
            definitions=f'#define FUSEDRNN_DOT_PRODUCTS\n#include "{pairs}"\n' if pairs else "",
            struct_text=struct_text,
            struct=struct_name,
            type=_TYPES[dtype],
            packed=f"{isa}::scan_packed<Cell>" if dtype is torch.float32 else "nullptr",
        )
        what = f"cell {struct_name} for {str(dtype).removeprefix('torch.')}"
        with compiled(unit, flags, what) as library:
            _register(library)
        _loaded.add((struct_text, dtype))


def _instruction_set(dtype: torch.dtype) -> str:
    if extension._C is None:
        raise CellBuildError(f"fusedrnn runs without its compiled extension: {extension.extension_error}")
    try:
        isa = extension._C.cpu_capability()
    except ValueError as error:  # FUSEDRNN_ISA asks for what is not there
        raise CellBuildError(str(error)) from error
    return isa if dtype == torch.bfloat16 else _WITHOUT_PAIRS.get(isa, isa)


def _register(library: Path) -> None:
    try:
        register = ctypes.CDLL(str(library)).fusedrnn_register_cell
    except (OSError, AttributeError) as error:
        with contextlib.suppress(OSError):
            library.unlink()  # to be compiled again
        raise CellBuildError(f"the compiled cell cannot be loaded: {error}") from error
    message = ctypes.create_string_buffer(500)
    if register(message, ctypes.c_size_t(len(message))):
        raise CellBuildError(f"the library does not take the compiled cell: {message.value.decode(errors='replace')}")


@contextlib.contextmanager
def compiled(unit: str, flags: list[str], what: str) -> Iterator[Path]:
    """The library made of a translation unit; it need not stay longer than the block."""
    compiler = _compiler()
    key = _key(unit, [*_FLAGS, *flags], compiler)
    library = None
    with contextlib.ExitStack() as block:
        try:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            cached = folder / f"{key}.so"
            if not _is_whole(cached):
                with _locked(folder / f"{key}.lock"):
                    if not _is_whole(cached):  # nobody made it in the meantime
                        library = block.enter_context(_made(unit, flags, compiler, what))
                        _put(library, cached)
            library = cached
        except OSError as error:  # read-only, full, not a folder
            _warn_once(f"fusedrnn: compiled cells are not kept, as the cache cannot be used: {error}")
            library = library or block.enter_context(_made(unit, flags, compiler, what))
        yield library


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def cache_folder() -> Path:
    """Where compiled cells are kept: $FUSEDRNN_CACHE, or this platform's place for caches."""
    if given := os.environ.get("FUSEDRNN_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/fusedrnn"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedrnn"


@functools.cache
def headers() -> Path:
    """The folder of the drivers' headers: in the installed package, or beside it in a source tree."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "cells.h").exists():
            return folder
    raise CellBuildError(f"the headers of the drivers are missing: there is no csrc in {package} or beside it")


def _compiler() -> list[str]:
    if given := os.environ.get("CXX"):
        return shlex.split(given)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise CellBuildError("there is no C++ compiler: c++, g++ and clang++ are not on the PATH, and CXX is not set")


@functools.cache
def _identity_of(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise CellBuildError(f"the C++ compiler cannot be run: {error}") from error
    if done.returncode:
        raise CellBuildError(f"{shlex.join(compiler)} --version failed: {done.stderr.strip() or 'it says nothing'}")
    return done.stdout


@functools.cache
def _identity_of_package() -> str:
    """Of all headers, and of the library that the compiled cell calls."""
    digest = hashlib.sha256(Path(extension.library_path()).read_bytes())
    for path in sorted(headers().rglob("*.h")):
        digest.update(f"{path.relative_to(headers())}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _key(unit: str, flags: list[str], compiler: list[str]) -> str:
    try:
        parts = [unit, _identity_of(tuple(compiler)), _identity_of_package(), *compiler, *flags]
    except (OSError, RuntimeError) as error:
        raise error if isinstance(error, CellBuildError) else CellBuildError(str(error)) from error
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _made(unit: str, flags: list[str], compiler: list[str], what: str) -> Iterator[Path]:
    """Compiles into a temporary folder, which goes when the block ends."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="fusedrnn-")
    except OSError as error:
        raise CellBuildError(f"there is no room to compile in: {error}") from error
    with folder as name:
        source, library = Path(name) / "cell.cpp", Path(name) / "cell.so"
        command = [*compiler, *_FLAGS, *flags, "-I", str(headers()), str(source), "-o", str(library)]
        command.append(extension.library_path())
        says = threading.Timer(1, lambda: print(f"fusedrnn: compiling {what}, once", file=sys.stderr, flush=True))
        says.start()
        try:
            source.write_text(unit)
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise CellBuildError(f"{what} could not be compiled: {error}") from error
        finally:
            says.cancel()
        if done.returncode or not library.exists():
            complaint = "\n".join(done.stderr.strip().splitlines()[:20]) or "it says nothing"
            raise CellBuildError(f"{what} could not be compiled. {shlex.join(compiler)} says: {complaint}")
        yield library


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_whole(library: Path) -> bool:
    try:
        return library.with_suffix(".sum").read_text() == _checksum(library)
    except (OSError, UnicodeDecodeError):
        return False


def _put(made: Path, cached: Path) -> None:
    """Both files appear whole or not at all; the checksum comes last."""
    for content, target in ((made.read_bytes(), cached), (_checksum(made).encode(), cached.with_suffix(".sum"))):
        descriptor, part = tempfile.mkstemp(dir=cached.parent, prefix=target.name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time. The system unlocks what a killed process had locked."""
    with path.open("w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
