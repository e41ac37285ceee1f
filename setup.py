"""Builds fusedrnn._C against the torch that is installed: use pip's --no-build-isolation.

Environment:
    FUSEDRNN_CUDA=0|1      leave the CUDA part out, or insist on it; by default it is built where nvcc and a CUDA build
                           of torch are found (whether a GPU is in sight makes no difference)
    TORCH_CUDA_ARCH_LIST   architectures of the CUDA part, "8.0;9.0+PTX" by default
    FUSEDRNN_SANITIZE=1    AddressSanitizer and UndefinedBehaviorSanitizer
    MAX_JOBS               compiler processes at a time
    CXX                    the C++ compiler; it must know C++20
"""

import glob
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile

import torch
from setuptools import setup
from torch.utils import cpp_extension

PYTHON_SOURCES = ["csrc/torch/extension.cpp", "csrc/torch/python.cpp"]  # the only ones that see Python
TORCH_SOURCES = [f"csrc/torch/{name}.cpp" for name in ("layer", "memory", "node", "operators", "recompute", "sums")]
CPU_SOURCES = [*TORCH_SOURCES, "csrc/registry.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))]
LIBRARY = "fusedrnn.libfusedrnn"
CUDA_SOURCES = sorted(glob.glob("csrc/cuda/*.cu"))
HEADERS = sorted(glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.cuh", recursive=True))


def say(message):
    print(f"\n*** fusedrnn: {message}\n", file=sys.stderr, flush=True)


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
        architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
        macros += [("FUSEDRNN_WITH_CUDA", "1"), ("FUSEDRNN_CUDA_ARCHS", f'"{architectures}"')]
        make, sources = cpp_extension.CUDAExtension, [*CPU_SOURCES, "csrc/torch/cuda.cpp", *CUDA_SOURCES]
        flags = {"cxx": cxx, "nvcc": ["-O3", "-std=c++20"]}
    mac = sys.platform == "darwin"
    name = "-Wl,-install_name,@rpath/libfusedrnn.so" if mac else "-Wl,-soname,libfusedrnn.so"
    rpath = "-Wl,-rpath,@loader_path" if mac else "-Wl,-rpath,$ORIGIN"
    common = {"define_macros": macros, "extra_compile_args": flags, "depends": HEADERS}
    library = make(LIBRARY, sources, extra_link_args=[*link, name], **common)
    library.libraries.remove("torch_python")
    return [library, make("fusedrnn._C", PYTHON_SOURCES, extra_link_args=[*link, rpath], **common)]


class Build(cpp_extension.BuildExtension):
    def get_ext_filename(self, name):
        if name in (LIBRARY, LIBRARY.rpartition(".")[2]):
            return os.path.join(*name.split(".")) + ".so"
        return super().get_ext_filename(name)

    def build_extension(self, extension):
        if extension.name != LIBRARY:
            extension.extra_link_args.append(self.get_ext_fullpath(LIBRARY))
        super().build_extension(extension)


def main():
    complaint = why_no_compiler()
    if complaint:
        say(
            "INSTALLING WITHOUT THE COMPILED KERNELS: correct, but slow.\n"
            f"No C++20 compiler that can build Python extensions is at hand: {complaint}\n"
            "Install g++ 11 or newer and Python's headers (Debian: g++ python3-dev), then install fusedrnn again."
        )
    setup(
        ext_modules=[] if complaint else extensions(),
        cmdclass={"build_ext": Build},
    )


if __name__ == "__main__":
    main()
