"""The places of csrc/cpu, and of the equations that all devices share, that are broken on purpose: see mutation.py.

Bounds, offsets, strides, masks of tails, conditions, barriers and roundings are removed or weakened, statements are
left out. Mutants run without PyTorch, compiled for three kinds of vectors, by one to three threads that pause by
chance, in memory that ends at fences. The constants that say when work is split are small, so that small layers are.
"""

from __future__ import annotations

from mutation import Suite

from . import build, cases
from .cases import Case
from .equivalent import EQUIVALENT
from .kernels import Kernels

INNER = r"(?:[^(),]|\((?:[^()]|\([^()]*\))*\))+"  # an argument
LAST = r"(?:[^()]|\((?:[^()]|\([^()]*\))*\))*"  # arguments
ALONE = r"^\s*(?:.*\) |else )?"  # what may stand before a statement

BOUNDS = [
    (
        r"(?<=; )([\w.]+) < (?!(?:M|NV|[AGQ]|kStates|\w*(?:V::)?kLanes|kColumns);)([^;&]+?)(?=;| &&)",
        "{1} <= {2}",
        "one more",
    ),
    (r"(?<=; )([\w.]+) < ([^;&]+?)(?=;| &&)", "{1} < {2} - 1", "one less"),
    (r"(?<=&& )([\w.]+) < ([^;&|]+?)(?=;)", "{1} <= {2}", "one more"),
    (r"(?<=&& )([\w.]+) < ([^;&|]+?)(?=;)", "{1} < {2} - 1", "one less"),
    (r"\bk >= end\b", "k > end", "one more"),
    (r"\bleast\((" + INNER + r"), (" + INNER + r")\)", "({1})", "all that is left at once"),
    (r"\bleast\((" + INNER + r"), (" + INNER + r")\)", "({2})", "more than is left"),
    (r"\b(?:rows|columns|n) >= (?:V::)?kLanes\b", "true", "a whole vector"),
    (r"\b(V|U|Vec<S>)::load\((" + INNER + r"), (" + INNER + r")\)", "{1}::load({2})", "a whole vector"),
    (r"\b([\w\[\]]+)\.store\((" + INNER + r"), (" + INNER + r")\)", "{1}.store({2})", "a whole vector"),
    (r"\bpadded<S>\((" + LAST + r")\)", "({1})", "not padded"),
    (r"\b(?:part\.)?member(?= \+ 1\b)", "{0} - 1", "a part is left out"),
]

PLACES = [
    (r"(?<=[+(\[ >])([a-z]|gate|own|place|unit|begin|first|emitted)(?= \* )", "0", "another's place"),
    (r"(?<=directions \+ )(?:walk\.|part\.)?d\b", "0", "another direction"),
    (r"(?<=[+-] )part\.(?:row|unit|out)\b", "0", "the first member's"),
    (r"(?<= = )part\.row(?=;)", "0", "the first member's"),
    (r"(?<=\* )s\.hidden\b", "s.projected", "another width"),
    (r"(?<=\* )s\.projected\b", "s.hidden", "another width"),
    (r"(?<=\* )s\.input\b", "s.hidden", "another width"),
    (r"(?<=, )s\.hidden(?=[,)])", "s.projected", "another width"),
    (r"(?<=, )s\.projected(?=[,)])", "s.hidden", "another width"),
    (r"(?<=, )s\.input(?=[,)])", "s.hidden", "another width"),
    (r"(?<=\* )H_(?=[ ,;)])", "s.hidden", "not padded"),
    (r"(?<=\* )P_(?=[ ,;)])", "s.projected", "not padded"),
    (r"(?<=>> )(?:pairs\w*|in_pairs)\b", "0", "as if not in pairs"),
    (r"\b(a|init|c) \+= [^,;()]+(?=,)", "{1}", "the same rows again"),
    (r"(?<=, )(b|packed) \+= [\w:]+(?=\))", "{1}", "the same place again"),
    (r"\bpanels - 1(?= - i)", "panels", "another panel"),
    (r"\bG - 1 - i\b", "G - 1", "another gate"),
    (r"(?<=\? )q(?= : G - 1)", "0", "another gate"),
    (r"\bq == Q - 1\b", "false", "another gate"),
    (r"\bq < G\b(?= *[,;]|, of_h)", "true", "another gate"),
    (r"\bQ == G \? G : G - 1", "G", "another gate"),
    (r"\bmember %= members;", "member /= members;", "another member"),
    (r"\bodd_of_pairs\(([^()]*)\)", "even_of_pairs({1})", "another of a pair"),
    (r"\bpairs_of\((" + INNER + r"), (" + INNER + r")\)", "pairs_of({2}, {1})", "another of a pair"),
    (r"\b(?:part\.)?d(?= \? )", "!{0}", "the other way"),
    (r"(?<=- )taken\[steps\.begin\]", "0", "rows of the chunks before"),
    (r"\balive_rows\(walk, t, part\.row\)", "0", "the first member's rows"),
    (r"(?<=if \()i & Half", "false", "a swap is undone"),
]

CONDITIONS = [
    (r"\bt < 0(?= \|\|)", "false", "a step before the first"),
    (r"\bt >= p\.shape\.steps(?=\))", "false", "a step behind the last"),
    (r"\bn < s\.rows(?= &&)", "true", "rows of another step"),
    (r"\bs\.t < p\.batch\.lengths\[n\]", "s.t <= p.batch.lengths[n]", "one more"),
    (r"\bt \+ d\b", "t", "a reset after the step"),
    (r"(?<=if \()reset_before\(t, n\)", "false", "no reset"),
    (r"\bstate\.reset(?= \? state)", "decltype({0})(nullptr)", "reset to zeros"),
    (r"\b(?:walk\.)?alive\((?:t|previous|t - 1), n\)", "true", "a frozen row lives"),
    (r"\bwalk\.reset_before\(t, [\w\[\]]+\)", "false", "no reset"),
    (r"\bfirst(?= \?|\) w|\)\n)", "true", "a sum begins anew"),
    (r"\bfirst(?= \?|\)\n)", "false", "a sum begins with what was there"),
    (r"\bbegun(?=\) add)", "true", "a sum begins with what was there"),
    (r"\bbegun(?=\) add)", "false", "a sum begins anew"),
    (r"\blast(?= &&|\) [sn])", "true", "before the last chunk"),
    (r"\blast(?= &&|\) [sn])", "false", "never"),
    (r"(?<=, )i == 0(?=[,)])", "true", "a sum begins anew"),
    (r"(?<=\()i == 0(?=\) \{)", "true", "starts anew"),
    (r"\bi > begin(?= && part)", "false", "no meeting"),
    (r"\bi == last(?=[,)])", "false", "never"),
    (r"\bi == last(?=[,)])", "true", "before the last chunk"),
    (r"\b2 \* i > last\b", "2 * i >= last", "the first to come is the second"),
    (r"\b2 \* i > last\b", "false", "the second to come is the first"),
    (r"(?<=&& )d == 1(?=\))", "false", "the second to come is the first"),
    (r"(?<=if \()(?:[pg]\.\w+|dc_step|c_step|saved|zone|zone_h|zones\(k\)|projects|bias|given)(?=\))",
     "std::decay_t<decltype({0})>()", "left out"),
    (r"(?<=[;=] )(?:[pg]\.\w+)(?= &&)", "decltype({0})()",
     "left out"),
    (r"\bown(?= \? part\.parts)", "!own", "parts of another grain"),
    (r"!part\.splits_units\(\)(?=\) part\.sync)", "false", "no meeting"),
    (r"\bgroup >= groups\b", "group > groups", "a member too many"),
    (r"\bwhere\(V\(1\) <= fraction, old, (" + LAST + r")\)(?=;)", "{1}", "multiplied, not selected"),
    (r"\bwhere\(fraction <= V\(0\), fresh, (" + LAST + r")\)(?=\))", "{1}", "multiplied, not selected"),
    (r"\bzone\.keeps \+ at\b", "zone.keeps", "another's zoneout"),
    (r"\bh\.last != h\.steps\b", "true", "y is copied to itself"),
]  # fmt: skip

STATEMENTS = [
    (
        ALONE + r"(?P<at>(?!return|throw|for_|blend)\w+(?:(?:->|\.)\w+)?(?:<[^<>]*>)?\(" + LAST + r"\);)$",
        ";",
        "left out",
    ),
    (ALONE + r"(?P<at>[\w\[\].]+(?:\[[^\]]*\])? \+?= (?!\[)(?:[^;=]|(?<![=<>!])=(?!=))+;)$", ";", "left out"),
]

ARITHMETIC = [
    (r"(?<!/ )(?<![\w.\]])([a-z]\w*(?:\[\d\]|\.\w+)?) \* (\w+(?:\[\d\]|\.\w+)?)(?![\w(:])", "{1}", "a factor is lost"),
    (r"(?<!/ )(?<![\w.\]])([a-z]\w*(?:\[\d\]|\.\w+)?) \* (\w+(?:\[\d\]|\.\w+)?)(?![\w(:])", "{2}", "a factor is lost"),
    (r"\(([^()+*/]+(?:\(\d\))?) \+ ([^()+*/]+)\)", "({1} - {2})", "another sign"),
    (r"\(([^()+*/-]+(?:\(\d\))?) - ([^()+*/-]+)\)", "({1} + {2})", "another sign"),
    (r"\b(x|r|saved|dgates|prev)\[([1-3])\]", "{1}[0]", "another gate or state"),
    (r"(?<![\w])s\[1\]", "s[0]", "another state"),
    (r"(?<=\()x <= V\(0\)", "V(0) <= x", "the other half"),
    (r"\bwhere\(([xy]) <= V\(0\), V\(0\), (\w+)\)", "{2}", "not rectified"),
]

ROUNDING = [
    (r"\b0x7fffu\b", "0u", "cut off, not rounded"),
    (r"\b0x7fffu\b", "0x8000u", "ties are rounded up"),
    (r"\b0xfffu\b", "0u", "cut off, not rounded"),
    (r"\(\(bits >> 1[36]\) & 1u\)", "({0} & 0u)", "ties are rounded down"),
    (r"(?<=\| )sign\b", "0", "no sign"),
    (r"\bv != v \? (.*) : rounded\b", "rounded", "a NaN is rounded"),
    (r"\bbits > 0x7f800000u", "false", "a NaN becomes infinity"),
    (r"\bbits >= 0x477ff000u", "false", "too large a number"),
    (r"\bbits < 0x38800000u", "false", "too small a number"),
    (r"\bmagnitude >= 0x7c00u << 13", "false", "infinity"),
]

MEMORY = [
    (r"(?<=outside = )bytes > s\.room - s\.height\(\)", "false", "more than there is room for"),
    (r"!s\.taken(?= &&)", "true", "what is taken goes"),
    (r"(?<=&& )s\.top->returned", "true", "what is taken is given again"),
    (r"(?<=if \(!outside\) )s\.top = block;", ";", "the same room again"),
    (r"^\s*(?P<at>s\.taken [+-]= [^;]+;)", ";", "miscounted"),
    (r"\bs\.top->returned\b", "false", "nothing is given back"),
    (r"\(bytes \+ alignment - 1\) / alignment", "bytes / alignment", "too little"),
    (r"\(sizeof\(Block\) \+ bytes \+ kLine - 1\)", "(bytes + kLine - 1)", "no room for the head"),
]

THREADS = [
    (r"\bstd::memory_order_(?:acquire|release|acq_rel)\b", "std::memory_order_relaxed", "relaxed"),
    (r"\barrived_\.store\([^;]*\);", ";", "the next meeting never ends"),
    (r"\bphase_\.notify_all\(\);", ";", "sleepers sleep on"),
    (r"(?<=\+ 1 == )members\b", "members - 1", "one does not wait"),
    (r"\bthread \? begin / thread : end\b", "end", "another member"),
    (r"\bbegin / part\b", "0", "another member"),
    (ALONE + r"(?P<at>phase_\.wait\([^;]*\);)$", ";", "no wait"),
]

PRODUCT = {"absent": "dh_n", "bias": False, "scale_h": 0}  # rounded once

CASES = [
    Case(mode, isa, dtype, batch, D, T, N, I, H, P, **more)
    for mode, isa, dtype, batch, D, T, N, I, H, P, more in [
        ("LSTM", "wide", "float32", "padded", 1, 1, 3, 5, 20, 0, {}),  # few rows: nothing is packed
        ("GRU", "wide", "float32", "padded", 1, 1, 1, 16, 16, 0, {}),
        ("LSTM", "wide", "float32", "padded", 2, 5, 9, 11, 37, 0, {}),
        ("GRU", "wide", "float32", "padded", 1, 5, 33, 20, 21, 0, {}),
        ("RNN_TANH", "wide", "float32", "padded", 2, 23, 7, 3, 5, 0, {}),
        ("GRU", "wide", "float32", "packed reset masks", 2, 6, 13, 11, 21, 0, {}),
        ("LSTM", "wide", "float32", "packed fewer shares", 2, 6, 16, 4, 37, 0, {"bias": False}),
        ("LSTM", "wide", "float32", "lengths reset masks", 2, 5, 9, 11, 37, 13, {}),
        ("LSTM", "wide", "float32", "lengths reset", 1, 40, 3, 33, 70, 0, {"absent": "dc_steps dh_n"}),
        ("LSTM", "wide", "float32", "kept", 1, 4, 9, 5, 20, 0, {}),
        ("LSTM", "wide", "float32", "padded", 1, 4, 5, 7, 40, 24, {"absent": "dy"}),
        ("GRU", "wide", "float32", "lengths kept", 2, 4, 9, 5, 20, 0, {"absent": "dy"}),
        ("RNN_RELU", "wide", "float32", "padded", 1, 30, 1, 8, 48, 0, {"absent": "dh_n"}),
        ("LSTM", "wide", "float32", "padded", 1, 3, 5, 8, 16, 0, {"scale": 1000}),
        ("GRU", "wide", "float32", "padded", 1, 3, 5, 8, 16, 0, {"scale": 1000}),
        ("LSTM", "wide", "float32", "padded", 1, 3, 5, 8, 16, 0, {"special": float("nan")}),
        ("LSTM", "wide", "bfloat16", "padded", 1, 9, 1, 11, 37, 0, {}),
        ("LSTM", "wide", "bfloat16", "padded", 1, 5, 6, 11, 38, 0, {}),
        ("GRU", "wide", "bfloat16", "padded", 1, 20, 1, 12, 37, 0, {}),
        ("GRU", "wide", "bfloat16", "lengths reset masks", 2, 5, 9, 12, 22, 0, {}),
        ("LSTM", "wide", "bfloat16", "lengths reset shares", 2, 7, 9, 12, 22, 14, {}),
        ("RNN_RELU", "wide", "bfloat16", "padded", 1, 1, 16, 3, 37, 0, {"absent": "dh_n"}),
        ("LSTM", "wide", "float32", "padded", 1, 20, 1, 40, 37, 25, {}),  # units are split, and columns of w_hr
        ("LSTM", "wide", "float32", "lengths", 1, 20, 1, 5, 37, 25, {}),
        ("LSTM", "wide", "float32", "masks", 1, 1, 5, 8, 16, 0, {"special": float("nan")}),
        ("LSTM", "narrow", "float64", "lengths reset zeros masks", 1, 20, 1, 5, 21, 11, {}),
        ("LSTM", "dot-products", "bfloat16", "reset masks", 1, 20, 1, 5, 61, 9, {}),
        ("LSTM", "wide", "bfloat16", "lengths reset zeros", 2, 5, 13, 40, 5, 21, {}),
        ("LSTM", "wide", "float32", "reset zeros", 2, 5, 9, 40, 33, 0, {}),
        ("LSTM", "wide", "bfloat16", "padded", 1, 1, 13, 3, 37, 9, {}),
        ("LSTM", "wide", "float32", "padded", 1, 1, 3, 7, 21, 9, {}),
        ("LSTM", "narrow", "float64", "padded", 2, 5, 9, 7, 19, 0, {}),
        ("GRU", "narrow", "float64", "packed reset masks", 2, 6, 13, 5, 11, 0, {}),
        ("LSTM", "narrow", "float64", "lengths reset shares", 2, 20, 5, 5, 11, 7, {}),
        ("GRU", "narrow", "float64", "padded", 1, 3, 5, 8, 16, 0, {"scale": 1000}),
        ("LSTM", "narrow", "float16", "lengths reset", 2, 5, 9, 7, 13, 0, {}),
        ("RNN_RELU", "narrow", "float16", "padded", 1, 1, 16, 3, 37, 0, {"absent": "dh_n"}),
        *(
            ("RNN_RELU", isa, dtype, "padded", 1, 1, 300, 1, 1, 0, {"scale": scale, "special": special, **PRODUCT})
            for isa, dtype, scales in [
                ("wide", "bfloat16", [1]),
                ("narrow", "float16", [1, 1e-5, 1e5]),
                ("dot-products", "bfloat16", [1]),
            ]
            for scale in scales
            for special in (0, float("inf"), float("nan"))
        ),
        ("LSTM", "dot-products", "bfloat16", "padded", 1, 5, 9, 12, 22, 0, {}),
        ("GRU", "dot-products", "bfloat16", "lengths reset masks", 2, 7, 9, 11, 21, 0, {}),
        ("LSTM", "dot-products", "bfloat16", "packed reset shares", 2, 7, 9, 12, 22, 13, {}),
        ("LSTM", "dot-products", "bfloat16", "lengths reset masks", 2, 5, 9, 12, 22, 14, {}),
        ("GRU", "dot-products", "bfloat16", "padded", 1, 15, 7, 12, 20, 0, {"absent": "dh_n"}),
        ("RNN_TANH", "dot-products", "bfloat16", "padded", 1, 3, 2, 5, 21, 0, {}),
        ("RNN_RELU", "dot-products", "bfloat16", "padded", 1, 1, 16, 3, 37, 0, {"absent": "dh_n"}),
        ("THREE_STATES", "wide", "float32", "lengths reset masks", 2, 5, 9, 11, 21, 0, {"absent": "dh_n ds2_steps"}),
        ("THREE_STATES", "narrow", "float64", "packed reset shares", 2, 6, 13, 5, 11, 7, {}),
        ("FOUR_STATES", "wide", "float32", "packed reset shares", 2, 6, 13, 5, 21, 0, {}),
        ("FOUR_STATES", "narrow", "float64", "lengths reset masks", 2, 5, 9, 7, 19, 0, {"absent": "dc_n ds3_n"}),
        ("FOUR_STATES", "narrow", "float64", "kept", 1, 20, 1, 5, 21, 0, {}),
        ("LSTM", "wide", "float32", "padded", 2, 3, 0, 3, 5, 0, {}),
        ("GRU", "wide", "float32", "lengths reset", 1, 0, 3, 3, 5, 0, {}),
    ]
]  # fmt: skip

SMALLER = [
    (r"kCacheOfACore = 1 << 20", "kCacheOfACore = 1 << 14"),
    (r"kFlopsWorthAThread = 1e6", "kFlopsWorthAThread = 1e4"),
    (r"kFlopsWorthASync = 3e4", "kFlopsWorthASync = 1e3"),
    (r"kChunkRows = 96\b", "kChunkRows = 10"),
    (r"kChunkRows = 1024\b", "kChunkRows = 32"),
    (r"kBlockRows = \d \* kTileRows", "kBlockRows = kTileRows"),
    (r"kBlockUnits = 64", "kBlockUnits = 16"),
    (r"kTerms = 128", "kTerms = 16"),
    (r"kChain = 16\b", "kChain = 8"),
    (r"kPatience = 2000\b", "kPatience = 4'000'000'000"),  # units are split on a busy machine too
]

DRIVERS = BOUNDS + PLACES + CONDITIONS + STATEMENTS

# Constants and declarations; hints; what only AVX-512 has; how much work there is.
LEFT_OUT = r"constexpr|static_assert|FUSEDRNN_(?!ISA::)|^\s*#|template <|\busing\b|^\s*(?:static|explicit)\b"
LEFT_OUT += r"|prefetch|expect|_mm\w+|\bflops\b"

SUITE = Suite(
    name="csrc/cpu",
    patterns={
        "activations.h": ARITHMETIC,
        "cells.h": ARITHMETIC,
        "timeline.h": CONDITIONS,
        "cpu/vec.h": BOUNDS + STATEMENTS + ROUNDING,
        "cpu/vec2.h": BOUNDS,
        "cpu/gemm.h": DRIVERS,
        "cpu/matrix.h": DRIVERS,
        "cpu/steps.h": DRIVERS,
        "cpu/forward.h": DRIVERS,
        "cpu/backward.h": DRIVERS,
        "cpu/sums.h": DRIVERS,
        "cpu/memory.cpp": MEMORY,
        "cpu/parallel.cpp": THREADS,
    },
    equivalent=EQUIVALENT,
    cases=CASES,
    library=build.library,
    open=Kernels,
    run=cases.run,
    replays=lambda csrc: [
        *([build.program("tsan", csrc), str(threads), str(seed)] for threads, seed in cases.THREADS[1:3]),
        [build.program("asan", csrc), "2", "1"],
    ],
    record=cases.calls,
    seconds=60,
    prepare=cases.prepare,
    left_out=LEFT_OUT,
    smaller=SMALLER,
)
