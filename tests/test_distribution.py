"""What is inside of a source distribution and of a wheel made from it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("csrc", "fusedrnn", "tests", "examples", "benchmarks", "docs", ".ci", ".github")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CONTRIBUTING.md", "Makefile")
FILES += ("CHANGELOG.md", "CITATION.cff", ".clang-format", ".gitignore", ".pre-commit-config.yaml", "whitelizer.txt")
JUNK = (".venv/lib/junk.py", ".git/junk", "build/junk.o", "runs/junk.pt", "fusedrnn/_C.abi.so", ".pytest_cache/junk")
JUNK += ("tests/__pycache__/junk.pyc", "examples/__pycache__/junk.cpython-311.pyc", "junk.py", "dist/junk.tar.gz")


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def build(folder, kind):
    """Without kernels: what is asked here does not depend on them."""
    environment = os.environ | {"FUSEDRNN_NO_KERNELS": "1", "PIP_NO_CACHE_DIR": "1"}
    command = [sys.executable, "setup.py", "-q", kind, "--dist-dir", str(folder / "out")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "out").iterdir()
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository, and its files before building left anything there."""
    tree = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    return tree, files_in(tree)


@pytest.fixture(scope="module")
def unpacked(tree, tmp_path_factory):
    """A source distribution, made where much lies about."""
    tree, _ = tree
    for name in JUNK:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    with tarfile.open(build(tree, "sdist")) as archive:
        folder = tmp_path_factory.mktemp("unpacked")
        archive.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found, files_in(found)


@pytest.mark.slow
def test_a_source_distribution_is_the_repository(tree, unpacked):
    added = {"PKG-INFO", "setup.cfg", *(f"fusedrnn.egg-info/{name}" for name in (
        "PKG-INFO", "SOURCES.txt", "dependency_links.txt", "requires.txt", "top_level.txt"
    ))}  # fmt: skip
    assert unpacked[1] - added == tree[1]


def test_a_wheel_made_from_it_is_the_package_and_the_headers_of_cells(tree, unpacked):
    with zipfile.ZipFile(build(unpacked[0], "bdist_wheel")) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
    added = {"METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE"}
    info = {name for name in names if ".dist-info/" in name}
    assert {name.split("/", 1)[1] for name in info} == added
    headers = {f"fusedrnn/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("csrc/**/*.h")}
    cells = {name for name in headers if name.split("/")[2] not in ("cuda", "torch")}
    assert "fusedrnn/csrc/cpu/forward.h" in cells
    assert names - info == {name for name in tree[1] if name.startswith("fusedrnn/")} | cells
    assert "fusedrnn/py.typed" in names
    assert "\nLicense-Expression: MIT\n" in metadata
    assert metadata.endswith((ROOT / "README.md").read_text())
