"""The functions of generated cells (csrc/functions.h, csrc/cpu/functions.h) for every width of vectors."""

import ctypes
import platform

import numpy as np
import pytest
import scalar_cells

SOURCE = """
#include "cpu/isa.h"
#define FUSEDRNN_ISA alone
#define FUSEDRNN_VECTOR_BYTES {bytes}
#include "cpu/functions.h"
#include "functions.h"
namespace fn = fusedrnn::fn;
using fusedrnn::alone::Vec;
using fusedrnn::alone::Vec2;
template <class V, class S, class F>
void apply(int64_t n, const S* a, const S* b, S* y, F f) {{
  if constexpr (std::is_same_v<V, S>) {{
    for (int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
  }} else {{
    for (int64_t i = 0; i < n; i += V::kLanes) f(V::load(a + i), V::load(b + i)).store(y + i);
  }}
}}
#define EXPORT(name, call)                                                                               \\
  extern "C" void name##_float(int64_t n, const float* a, const float* b, float* y, int kind) {{         \\
    auto f = [](auto a, auto b) {{ (void)b; return call; }};                                             \\
    kind == 0 ? apply<float>(n, a, b, y, f) : kind == 1 ? apply<Vec<float>>(n, a, b, y, f)               \\
                                                        : apply<Vec2<float>>(n, a, b, y, f);             \\
  }}                                                                                                     \\
  extern "C" void name##_double(int64_t n, const double* a, const double* b, double* y, int kind) {{     \\
    auto f = [](auto a, auto b) {{ (void)b; return call; }};                                             \\
    kind == 0 ? apply<double>(n, a, b, y, f) : kind == 1 ? apply<Vec<double>>(n, a, b, y, f)             \\
                                                         : apply<Vec2<double>>(n, a, b, y, f);           \\
  }}
EXPORT(log, fn::log(a))
EXPORT(log1p, fn::log1p(a))
EXPORT(expm1, fn::expm1(a))
EXPORT(sqrt, fn::sqrt(a))
EXPORT(rsqrt, fn::rsqrt(a))
EXPORT(softplus, fn::softplus(a))
EXPORT(absolute, fn::abs(a))
EXPORT(sign, fn::sign(a))
EXPORT(divide, fn::divide(a, b))
EXPORT(maximum, fn::maximum(a, b))
EXPORT(minimum, fn::minimum(a, b))
EXPORT(clamp, fn::clamp(a, decltype(a)(-1), decltype(a)(1)))
"""


def has(flag: str) -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            return f" {flag} " in file.read().replace("\n", " ")
    except OSError:
        return False


X86 = platform.machine() in ("x86_64", "AMD64")
WIDTHS = {16: []}
WIDTHS |= {32: ["-march=x86-64-v3"]} if X86 and has("avx2") else {}
WIDTHS |= {64: ["-march=x86-64-v4"]} if X86 and has("avx512bw") else {}
KINDS = {"number": 0, "vector": 1, "two vectors": 2}

pytestmark = pytest.mark.skipif(not scalar_cells.have_compiler(), reason="no C++ compiler on this machine")


@pytest.fixture(scope="module", params=WIDTHS)
def library(request):
    source = SOURCE.format(bytes=request.param)
    library = ctypes.CDLL(scalar_cells.compile_library(source, ["-O2", *WIDTHS[request.param]]))
    library.fused = request.param > 16 or not X86
    return library


def call(library, name: str, kind: str, a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    size = -len(a) % scalar_cells.LANES
    a = np.concatenate([a, np.ones(size, a.dtype)])
    b = np.ones_like(a) if b is None else np.concatenate([b, np.ones(size, a.dtype)])
    y = np.full_like(a, np.nan)
    pointers = [ctypes.c_void_p(t.ctypes.data) for t in (a, b, y)]
    suffix = "float" if a.dtype == np.float32 else "double"
    getattr(library, f"{name}_{suffix}")(ctypes.c_int64(len(a)), *pointers, KINDS[kind])
    return y[: len(y) - size]


def magnitudes(dtype, least: float, most: float, count: int = 20000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.exp(rng.uniform(np.log(least), np.log(most), count)).astype(dtype)


def ulps(y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Errors in units of the last place of what is wanted, known to more digits."""
    unit = np.spacing(np.abs(wanted.astype(y.dtype))).astype(wanted.dtype)
    return np.abs(y.astype(wanted.dtype) - wanted) / unit


def both(x: np.ndarray) -> np.ndarray:
    """Of either sign."""
    return np.concatenate([x, -x])


def points(name: str, dtype) -> np.ndarray:
    tiny, huge = np.finfo(dtype).tiny, np.finfo(dtype).max
    if name in ("log", "sqrt", "rsqrt"):
        subnormal = magnitudes(dtype, tiny / 1000, tiny) if name == "log" else magnitudes(dtype, tiny, 1)
        near_1 = (1 + both(magnitudes(np.float64, 1e-17, 0.5))).astype(dtype)
        return np.concatenate([magnitudes(dtype, tiny, huge), near_1, subnormal])
    if name == "log1p":
        return np.concatenate([magnitudes(dtype, tiny, huge), -magnitudes(dtype, tiny, 0.9999)])
    limit = 80 if dtype == np.float32 else 700
    return both(magnitudes(dtype, 1e-30, limit))


BOUNDS = {"log": 2, "log1p": 3, "expm1": 2, "sqrt": 0.51, "rsqrt": 1.5, "softplus": 4}


def allowed_error(name: str, x: np.ndarray, fused: bool) -> np.ndarray:
    """With what exp adds where its argument is large: vec.h."""
    slope = 5 / 4 if not fused else 1 / 20 if x.dtype == np.float32 else 1 / 3
    return BOUNDS[name] + (slope * np.abs(x) if name in ("expm1", "softplus") else 0 * x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float", "double"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOUNDS)
def test_errors_are_within_their_bounds(library, name, kind, dtype):
    wide = np.float64 if dtype == np.float32 else np.longdouble
    if np.finfo(wide).eps > np.finfo(dtype).eps / 100:
        pytest.skip("no wider number than a double on this machine")
    exact = {"rsqrt": lambda x: 1 / np.sqrt(x), "softplus": lambda x: np.logaddexp(x, 0)}.get(name) or getattr(np, name)
    x = points(name, dtype)
    beyond = ulps(call(library, name, kind, x), exact(x.astype(wide))) - allowed_error(name, x, library.fused)
    worst = np.argmax(beyond)
    assert beyond[worst] <= 0, f"of {x[worst]} by {beyond[worst]} ulp"


SPECIAL = [0.0, 1.0, -1.0, -2.0, np.inf, -np.inf, np.nan, 1e-40, 89.5, -104.0, 711.0, -750.0, 3e38, -3e38]


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float", "double"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["log", "log1p", "expm1", "sqrt", "absolute", "sign", "clamp", "softplus"])
def test_special_numbers(library, name, kind, dtype):
    exact = {
        "sign": lambda x: np.where(np.isnan(x), 0, np.sign(x)),
        "clamp": lambda x: np.clip(x, -1, 1),
        "softplus": lambda x: np.logaddexp(x, dtype(0)),
    }.get(name) or getattr(np, name)
    x = np.array(SPECIAL, dtype)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(call(library, name, kind, x), exact(x), rtol=1e-5, atol=np.finfo(dtype).tiny)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float", "double"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["maximum", "minimum", "divide"])
def test_functions_of_two_numbers(library, name, kind, dtype):
    numbers = np.concatenate([np.array([*SPECIAL, 3.0, 7.0, 1e30, 1e-30]), np.random.default_rng(0).normal(size=20)])
    a, b = (t.ravel().astype(dtype) for t in np.meshgrid(numbers, numbers))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(call(library, name, kind, a, b), getattr(np, name)(a, b))
