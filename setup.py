"""Compiles fusedrnn against the torch of the environment it is installed into.

An isolated build sees no packages of that environment, but pip runs it with that environment's Python, so torch is
taken from where this Python keeps packages. Where it is not there (uv, python -m build), the build stops and says what
to type. A wheel requires exactly the torch it was compiled against, and names it in its version (0.2.0+torch2.13.0),
unless it is made from a source distribution: pip insists on the version in the name of that.

Environment:
    FUSEDRNN_NO_KERNELS=1  install without compiling anything: version 0.2.0+nokernels
    FUSEDRNN_CUDA=0|1      leave the CUDA part out, or insist on it; by default it is built where nvcc and a CUDA build
                           of torch are found (whether a GPU is in sight makes no difference)
    TORCH_CUDA_ARCH_LIST   architectures of the CUDA part; by default 8.0, 9.0, and 10.0 and 12.0 where nvcc knows them,
                           with the newest also as PTX for GPUs to come
    FUSEDRNN_SANITIZE=1    AddressSanitizer and UndefinedBehaviorSanitizer
    MAX_JOBS               compiler processes at a time
    CXX                    the C++ compiler; it must know C++20
"""

import glob
import importlib.util
import os
import re
import shlex
import site
import subprocess
import sys
import sysconfig
import tempfile

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

visible = sys.path.copy()
if importlib.util.find_spec("torch") is None:  # isolation hides it; the Python is that of the environment, for pip
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        site.addsitedir(folder)
try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    torch, why_no_torch = None, error
sys.path[:] = visible

PYTHON_SOURCES = ["csrc/torch/extension.cpp", "csrc/torch/python.cpp"]  # the only ones that see Python
TORCH_SOURCES = [
    f"csrc/torch/{name}.cpp" for name in ("layer", "memory", "node", "operators", "packed_layers", "recompute", "sums")
]
CPU_SOURCES = [*TORCH_SOURCES, "csrc/registry.cpp", "csrc/packed.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))]
LIBRARY = "fusedrnn.libfusedrnn"
CUDA_SOURCES = sorted(glob.glob("csrc/cuda/*.cu"))
OLDEST_TORCH = "2.11"
WITHOUT = "FUSEDRNN_NO_KERNELS=1 PIP_NO_CACHE_DIR=1 pip install ."
CUDA_MACRO = ("FUSEDRNN_WITH_CUDA", "1")
COMPILES_NOTHING = (None, "egg_info", "sdist")  # commands
HEADERS = sorted(glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.cuh", recursive=True))
CELL_HEADERS = sorted(glob.glob("csrc/*.h") + glob.glob("csrc/cpu/*.h"))  # what users' cells are compiled with


def say(message):
    print(f"\n*** fusedrnn: {message}\n", file=sys.stderr, flush=True)


def stop(message):
    raise SystemExit(f"\n*** fusedrnn is not installed: {message}\n")


def check_torch():
    if torch is None:
        stop(
            f"it is compiled against the torch of its environment, which this build does not see ({why_no_torch}): "
            f"install torch {OLDEST_TORCH} or newer, and add --no-build-isolation to the command "
            "(python -m build: --no-isolation)."
        )
    if [int(part) for part in torch.__version__.split(".")[:2]] < [int(part) for part in OLDEST_TORCH.split(".")]:
        stop(f"it needs torch {OLDEST_TORCH} or newer, and this is {torch.__version__}.")


def why_no_compiler():
    """Compiles an empty Python extension. Returns the compiler's complaint, or None if all is well."""
    command = [*shlex.split(os.environ.get("CXX") or "c++"), "-std=c++20", "-fPIC", "-shared"]
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "empty.cpp")
        with open(source, "w") as file:
            file.write("#include <Python.h>\n#include <concepts>\n")
        command += ["-I", sysconfig.get_paths()["include"], source, "-o", os.path.join(folder, "empty.so")]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return str(error)
        return done.stderr.strip() or "it failed" if done.returncode else None


def nvcc_says(*arguments):
    nvcc = os.path.join(cpp_extension.CUDA_HOME, "bin", "nvcc")
    done = subprocess.run([nvcc, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def see_through_wrapper():
    """torch looks for the toolkit around the nvcc on the PATH. If that is a script, nvcc itself knows its place."""
    found = re.search(r"^#\$ TOP=(.+)$", nvcc_says("--dryrun", "-E", "-x", "cu", os.devnull), re.MULTILINE)
    if found:
        cpp_extension.CUDA_HOME = os.path.realpath(found[1])


def why_no_cuda():
    """Returns what the CUDA part is missing, or None if it can be built."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    nvcc = os.path.join(cpp_extension.CUDA_HOME or "", "bin", "nvcc")
    if not os.path.exists(nvcc):
        return "nvcc is not found (set CUDA_HOME, or put nvcc on the PATH)"
    if not os.path.exists(os.path.join(cpp_extension.CUDA_HOME, "include", "cuda_runtime_api.h")):
        see_through_wrapper()
    if not os.path.exists(os.path.join(cpp_extension.CUDA_HOME, "include", "cuda_runtime_api.h")):
        return f"{cpp_extension.CUDA_HOME} has no headers of CUDA (set CUDA_HOME to where the toolkit is)"
    found = re.search(r"release (\d+)\.", nvcc_says("--version"))
    if not found or found[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {found[1] if found else '?'}, but torch was built with CUDA {torch.version.cuda}"
    if not CUDA_SOURCES:
        return "there are no CUDA kernels in csrc/cuda"
    return None


def default_architectures(nvcc_knows):
    """nvcc_knows: what nvcc --list-gpu-code prints."""
    known = set(nvcc_knows.split())
    newer = [f"{major}.0" for major in (10, 12) if f"sm_{major}0" in known]
    return ";".join(["8.0", "9.0", *newer]) + "+PTX"


def with_cuda():
    wanted = os.environ.get("FUSEDRNN_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"FUSEDRNN_CUDA must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return False
    missing = why_no_cuda()
    if missing and wanted == "1":
        raise SystemExit(f"FUSEDRNN_CUDA=1, but the CUDA part cannot be built: {missing}")
    if missing:
        say(f"building for the CPU only: {missing}")
    return not missing


def extensions():
    """The library of kernels and operators, which needs no Python, and the module that makes it known to Python."""
    # fast: products and sums are fused, which is GCC's default; psabi: GCC's note on passing vectors by value
    cxx = ["-O3", "-g0", "-std=c++20", "-ffp-contract=fast", "-Wno-psabi"]
    link = []
    macros = [("FUSEDRNN_TORCH_VERSION", f'"{torch.__version__}"')]
    if os.environ.get("FUSEDRNN_SANITIZE") == "1":
        # vptr: it asks for type information of classes that torch keeps to itself
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]
        cxx += [*sanitize, "-O1", "-g1", "-fno-omit-frame-pointer"]
        link += sanitize
    make, sources, flags = cpp_extension.CppExtension, CPU_SOURCES, cxx
    if with_cuda():
        known = nvcc_says("--list-gpu-code")
        architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures(known))
        macros += [CUDA_MACRO, ("FUSEDRNN_CUDA_ARCHS", f'"{architectures}"')]
        make, sources = cpp_extension.CUDAExtension, [*CPU_SOURCES, "csrc/torch/cuda.cpp", *CUDA_SOURCES]
        flags = {"cxx": cxx, "nvcc": ["-O3", "-std=c++20"]}
    mac = sys.platform == "darwin"
    name = "-Wl,-install_name,@rpath/libfusedrnn.so" if mac else "-Wl,-soname,libfusedrnn.so"
    rpath = "-Wl,-rpath,@loader_path" if mac else "-Wl,-rpath,$ORIGIN"
    common = {"define_macros": macros, "extra_compile_args": flags, "depends": HEADERS}
    library = make(LIBRARY, sources, extra_link_args=[*link, name], **common)
    library.libraries.remove("torch_python")
    return [library, make("fusedrnn._C", PYTHON_SOURCES, extra_link_args=[*link, rpath], **common)]


def torch_stamp():
    """A file that changes with the torch to compile against: what was compiled before is out of date then."""
    path = os.path.join("build", "torch.txt")
    os.makedirs("build", exist_ok=True)
    with open(path, "a+") as file:
        file.seek(0)
        if file.read() != torch.__version__:
            file.truncate(0)
            file.write(torch.__version__)
    return path


class BuildPython(build_py):
    """Puts the headers of compiled cells into the package. An editable one finds them beside itself."""

    def run(self):
        super().run()
        for header in () if self.editable_mode else CELL_HEADERS:
            target = os.path.join(self.build_lib, "fusedrnn", header)
            self.mkpath(os.path.dirname(target))
            self.copy_file(header, target)


class BuildExtensions(cpp_extension.BuildExtension if torch else object):
    def get_ext_filename(self, name):
        if name in (LIBRARY, LIBRARY.rpartition(".")[2]):
            return os.path.join(*name.split(".")) + ".so"
        return super().get_ext_filename(name)

    def build_extension(self, extension):
        if extension.name != LIBRARY:
            extension.extra_link_args.append(self.get_ext_fullpath(LIBRARY))
        super().build_extension(extension)


def distribution(label, requires):
    """The distribution of pyproject.toml, with a local label behind its version and its torch made exact."""

    class Labelled(Distribution):
        def parse_config_files(self, *args, **options):
            super().parse_config_files(*args, **options)
            others = [r for r in self.install_requires if not re.match(r"torch\b", r)]
            self.install_requires = self.metadata.install_requires = [requires, *others]
            self.metadata.version += label

    return Labelled


def check_platform():
    if sys.platform == "win32":
        stop(f"its kernels are not built on Windows: use WSL 2, or go without them: {WITHOUT}")
    complaint = why_no_compiler()
    if complaint:
        stop(
            "no C++20 compiler that can build Python extensions is at hand: install g++ 11 or newer and Python's "
            f"headers (Debian, Ubuntu: apt install g++ python3-dev), or go without kernels: {WITHOUT}\n"
            f"The compiler {shlex.quote(os.environ.get('CXX') or 'c++')} says: {complaint}"
        )


def without_kernels():
    wanted = os.environ.get("FUSEDRNN_NO_KERNELS", "")
    if wanted not in ("", "0", "1"):
        stop(f"FUSEDRNN_NO_KERNELS must be 0 or 1, got {wanted!r}")
    if wanted == "1" and "bdist_wheel" in sys.argv and not {"PIP_NO_CACHE_DIR", "UV_NO_CACHE"} & set(os.environ):
        stop(f"without PIP_NO_CACHE_DIR=1, pip might install this build again where kernels are wanted: {WITHOUT}")
    return wanted == "1"


def main():
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    if command in COMPILES_NOTHING:
        setup()
    elif without_kernels():
        setup(distclass=distribution("+nokernels", f"torch>={OLDEST_TORCH}"), cmdclass={"build_py": BuildPython})
    else:
        check_platform()
        check_torch()
        HEADERS.append(torch_stamp())
        modules = extensions()
        release, _, kind = torch.__version__.partition("+")
        label = f"+torch{release}" + f".{kind}" * (CUDA_MACRO in modules[0].define_macros)
        setup(
            distclass=distribution("" if os.path.exists("PKG-INFO") else label, f"torch=={release}"),
            ext_modules=modules,
            cmdclass={"build_ext": BuildExtensions, "build_py": BuildPython},
        )


if __name__ == "__main__":
    main()
