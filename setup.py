"""Builds fusedrnn._C against the torch that is installed: use pip's --no-build-isolation."""

import glob

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

setup(
    ext_modules=[
        CppExtension(
            "fusedrnn._C",
            sorted(glob.glob("csrc/*.cpp") + glob.glob("csrc/cpu/*.cpp")),
            define_macros=[("FUSEDRNN_TORCH_VERSION", f'"{torch.__version__}"')],
            extra_compile_args=["-O3", "-Wno-psabi"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
