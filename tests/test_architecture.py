"""Which part may use which: the table of CONTRIBUTING.md, as regular expressions. Each rule must catch a violation."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("csrc", "fusedrnn", "examples", "benchmarks", "tests")
SUFFIXES = {".h", ".cuh", ".cpp", ".cu", ".py"}


@dataclass
class Rule:
    name: str
    files: str  # regex that a path from the root must match in full
    broken: Callable[[str, str], Iterator[str]]  # (path, text) -> what is wrong
    bad: tuple[str, str]  # a path and a text that break it


def code(text: str) -> str:
    """C++ without its comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)


def includes_only(allowed: str):
    def broken(path, text):
        for included in re.findall(r'^\s*#\s*include\s*([<"][^>"]+[>"])', text, re.M):
            if not re.fullmatch(allowed, included):
                yield f"includes {included}"

    return broken


def never(pattern: str):
    def broken(path, text):
        text = text if path.endswith(".py") else code(text)
        yield from (f"says {match[0]!r}" for match in re.finditer(pattern, text))

    return broken


def imports(path: str, text: str) -> Iterator[str]:
    """Absolute names of all that a module of the package imports, e.g. fusedrnn.scan, torch.nn."""
    package = Path(path).parent.parts
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join(filter(None, [*above, node.module]))
            is_package = base in ("fusedrnn", "fusedrnn.backends", "fusedrnn.compiler")
            yield from (f"{base}.{alias.name}" if is_package else base for alias in node.names)


def imports_only(allowed: str):
    def broken(path, text):
        yield from (f"imports {name}" for name in imports(path, text) if not re.fullmatch(allowed, name))

    return broken


def imports_never(forbidden: str):
    def broken(path, text):
        yield from (f"imports {name}" for name in imports(path, text) if re.fullmatch(forbidden, name))

    return broken


# Arrows never point up.
RANKS = [
    "inputs packing twin backends.origin compiler.graph compiler.groups",
    "backends.extension compiler.operations compiler.lower compiler.norms",
    "compiler.cut compiler.trace",
    "compiler.emit compiler.build",
    "compiler.definition",
    "compiler.__init__ compiler.__main__",
    "zoo backends.reference noise",
    "backends.operators backends.compiled",
    "backends.onnx choice",
    "scan",
    "stack batch",
    "dropin recurrent cells",
    "modules",
    "convert info",
    "inference",
    "backends.__init__ __init__",
]
RANK = {module: rank for rank, modules in enumerate(RANKS) for module in modules.split()}


def arrows_point_down(path, text):
    module = path.removeprefix("fusedrnn/").removesuffix(".py").replace("/", ".")
    if module not in RANK:
        yield f"{module} has no place in RANKS"
        return
    for name in imports(path, text):
        other = name.removeprefix("fusedrnn.")
        if name.startswith("fusedrnn.") and other in RANK and RANK[other] >= RANK[module]:
            yield f"imports {name}, which is not below it"


def at_most_400_lines(path, text):
    lines = text.count("\n")
    if lines > 400:
        yield f"has {lines} lines"


STD = r"<[a-z_0-9]+>"
TORCH = r"<(ATen|torch|c10|caffe2)/.*"
GATES = r"\b(forget|candidate|sigmoid\w*|Tanh|Relu|(?i:lstm|gru|elman)\w*|k(Lstm|Gru|Rnn)\w*)\b"

BARE_CUDA = (
    r"\basm\b|<<<|__shared__|__constant__|\bvolatile\b|__threadfence\w*|\bcooperative_groups\b|__CUDA\w+|\batomic\w*\("
    r"|__ldg\b|__ldc[agsv]\b|__nanosleep\b|__trap\b|__half\w*|__nv_\w+|\bcuda[A-Z]\w*|__fdividef\b|__expf\b|\bclock(64)?\("
)

RULES = [
    Rule(
        "cells know cmath and each other",
        r"csrc/(activations|cells|functions)\.h",
        includes_only(r'<(cmath|type_traits)>|"(activations|cells|function|scan)\.h"'),
        ("csrc/cells.h", "#include <immintrin.h>\n"),
    ),
    Rule(
        "cells know no torch, no device and no instruction set",
        r"csrc/(activations|cells|functions)\.h",
        never(r"\b(at|torch|c10)::|\b_mm\w+|\b__m\d+|\bthreadIdx\b|\bblockIdx\b|\b__sh\w+"),
        ("csrc/activations.h", "inline float f(float x) { return _mm_cvtss_f32(_mm_set1_ps(x)); }"),
    ),
    Rule(
        "cells know no memory and no time",
        r"csrc/(activations|cells|functions)\.h",
        never(r"\bstride\w*|\bint64_t\b|\bfor\s*\(|\bwhile\s*\(|\bnew\b|\bmalloc\b"),
        ("csrc/cells.h", "for (int t = 0; t < steps; ++t) s[0] = x[t];"),
    ),
    Rule(
        "the interface of the drivers is plain C++",
        r"csrc/(scan|timeline|function|packed)\.h|csrc/(registry|packed)\.cpp|csrc/cuda/plan\.h",
        includes_only(STD + r'|"(\.\./)?(activations|cells|function|packed|scan|timeline)\.h"'),
        ("csrc/scan.h", "#include <cuda_runtime.h>\n"),
    ),
    Rule(
        "the CPU drivers use the standard library, intrinsics, the system and each other",
        r"csrc/cpu/(?!parallel\.cpp).*",
        includes_only(
            STD
            + r"|<(immintrin|arm_neon|asm/hwcap|sys/(auxv|mman|sysctl))\.h>"
            + r'|"\.\./(activations|cells|packed|scan|timeline)\.h"|"[a-z_0-9-]+\.h"'
        ),
        ("csrc/cpu/forward.h", "#include <ATen/Parallel.h>\n"),
    ),
    Rule(
        "CUDA's headers stop at device.cuh",
        r"csrc/cuda/device.*",
        includes_only(
            STD + r'|<(cuda|cooperative_groups)[\w/]*\.h>|"\.\./(activations|scan)\.h"|"(emulated_)?device\w*\.c?u?h"'
        ),
        ("csrc/cuda/device_ptx.cuh", "#include <torch/extension.h>\n"),
    ),
    Rule(
        "the CUDA drivers use the standard library, their interface and each other",
        r"csrc/cuda/(?!device).*",
        includes_only(STD + r'|"\.\./(activations|cells|scan|timeline)\.h"|"[a-z_0-9-]+\.(h|cuh)"'),
        ("csrc/cuda/stepwise.cuh", "#include <cuda_runtime.h>\n"),
    ),
    Rule(
        "kernels ask the device for nothing but what device.cuh lists, so that the emulator can run them",
        r"csrc/cuda/(?!device).*",
        never(BARE_CUDA),
        ("csrc/cuda/stepwise.cuh", "extern __shared__ float sums[];"),
    ),
    Rule(
        "kernels wait by the functions of device.cuh, which end some day and are seen by the emulator",
        r"csrc/cuda/(?!device).*",
        never(r"\b(while|for)\s*\([^{}]*\bload_(acquire|relaxed)\b"),
        ("csrc/cuda/exchange.cuh", "while (device::load_acquire(counter) < blocks) {}"),
    ),
    Rule(
        "warp operations name all lanes",
        r"csrc/cuda/.*",
        never(
            r"__(shfl|ballot|any|all|match|reduce)\w*_sync\((?!\s*(~0u|0xffffffffu?)\b)|__activemask|__syncwarp\([^)]"
        ),
        ("csrc/cuda/product.cuh", "sum += __shfl_xor_sync(mask, sum, 1);"),
    ),
    Rule(
        "torch stops at csrc/torch and the seam to its thread pool",
        r"csrc/(?!torch/|cpu/parallel\.cpp).*",
        never(r"#\s*include\s*" + TORCH + r"|\b(at|torch|c10)::"),
        ("csrc/cuda/plan.h", "int plan(const at::Tensor& x);"),
    ),
    Rule(
        "the library of kernels and operators knows no Python",
        r"csrc/(?!torch/(extension|python)\.).*",
        never(r"#\s*include\s*<(Python\.h|pybind11/.*|torch/csrc/utils/pybind\.h)>|\bpybind11::|\bTHP\w+"),
        ("csrc/torch/layer.cpp", "pybind11::gil_scoped_release no_gil;"),
    ),
    Rule(
        "drivers know no gates",
        r"csrc/(cpu|cuda)/.*",
        never(GATES),
        ("csrc/cpu/forward.h", "if (std::is_same_v<Cell, LstmCell>) forget = sigmoid(x);"),
    ),
    Rule(
        "the gate equations stand once in C++",
        r"csrc/(?!activations\.h|cells\.h).*",
        never(r"\bsigmoid(_grad)?\s*\(|\b(Tanh|Relu)::(apply|grad)\b"),
        ("csrc/torch/layer.cpp", "auto i = at::sigmoid(x);"),
    ),
    Rule(
        "the gate equations stand once in Python",
        r"fusedrnn/(?!backends/reference\.py|zoo\.py).*\.py",
        never(r"(torch|F)\.(sigmoid|tanh|relu)\b|\.(sigmoid|tanh|relu)_?\("),
        ("fusedrnn/cells.py", "h = torch.sigmoid(o) * c.tanh()"),
    ),
    Rule(
        "only backends/extension.py imports the extension",
        r"(fusedrnn/(?!backends/extension\.py)|examples/|benchmarks/).*\.py",
        imports_never(r"fusedrnn\._C(\..*)?"),
        ("fusedrnn/info.py", "from . import _C"),
    ),
    Rule(
        "the reference is torch and nothing else",
        r"fusedrnn/backends/reference\.py",
        imports_only(r"__future__|collections\.abc|torch(\..*)?|fusedrnn\.inputs"),
        ("fusedrnn/backends/reference.py", "from .extension import cell_traits"),
    ),
    Rule(
        "the scan knows no modules and no packing",
        r"fusedrnn/(scan|inputs|backends/\w+)\.py",
        never(r"\bPackedSequence\b|\bnn\.Module\b|\bnum_layers\b|\bbatch_first\b"),
        ("fusedrnn/scan.py", "if isinstance(x, PackedSequence): x = x.data"),
    ),
    Rule(
        "the stack knows no modules, devices and dtypes",
        r"fusedrnn/stack\.py",
        never(r"\bnn\.Module\b|\bnn\.Parameter\b|\.(device|dtype|is_cuda|is_cpu)\b|\.(cuda|cpu)\("),
        ("fusedrnn/stack.py", "h = torch.zeros(2, device=x.device)"),
    ),
    Rule(
        "arrows never point up",
        r"fusedrnn/.*\.py",
        arrows_point_down,
        ("fusedrnn/stack.py", "from .modules import FusedLSTM"),
    ),
    Rule(
        "a file can be read at one sitting",
        r".*",
        at_most_400_lines,
        ("csrc/cpu/forward.h", "\n" * 401),
    ),
]


def sources() -> Iterator[tuple[str, str]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in SUFFIXES:
                yield path.relative_to(ROOT).as_posix(), path.read_text()


def violations(rule: Rule, files) -> list[str]:
    return [
        f"{path} {what}" for path, text in files if re.fullmatch(rule.files, path) for what in rule.broken(path, text)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_catches_what_it_forbids(rule):
    assert violations(rule, [rule.bad])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_holds(rule):
    assert violations(rule, sources()) == []


def test_the_rules_see_the_sources():
    seen = {path for path, _ in sources()}
    assert {"csrc/cells.h", "csrc/scan.h", "csrc/torch/layer.cpp", "csrc/cpu/parallel.cpp", "fusedrnn/scan.py"} <= seen


@pytest.mark.parametrize(
    "text", ["import fusedrnn._C", "from .. import _C", "from fusedrnn import _C", "from .._C import scan_forward"]
)
def test_no_way_of_importing_the_extension_is_overlooked(text):
    assert any(re.fullmatch(r"fusedrnn\._C(\..*)?", name) for name in imports("fusedrnn/backends/onnx.py", text))


@pytest.mark.parametrize(
    "text",
    [
        'asm volatile("bar.sync 0;");',
        "kernel<<<grid, block>>>(a);",
        "__shared__ float sums[32];",
        "while (*static_cast<volatile int*>(flag) == 0) {}",
        "__threadfence();",
        "namespace cg = cooperative_groups;",
        "#if __CUDA_ARCH__ >= 900",
        "atomicAdd(&sum, x);",
        "cudaStreamSynchronize(stream);",
        "__nv_bfloat16 x;",
    ],
)
def test_no_way_around_the_device_header_is_overlooked(text):
    assert re.search(BARE_CUDA, code(text))


def test_a_comment_may_say_what_code_may_not():
    assert code("int a;  // torch::Tensor\n/* at::exp\n */ int b;").split() == ["int", "a;", "int", "b;"]


def test_names_say_what_a_file_is():
    vague = re.compile(r"(^|_)(utils?|helpers?|misc|common|manager|impl|wrapper|engine)(_|$)")
    assert vague.search("rnn_utils")
    assert [path for path, _ in sources() if vague.search(Path(path).stem)] == []
