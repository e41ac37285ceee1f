"""Mutants that no case can tell from the kernels."""

LARGER = "memory is larger than what is put there"
EMPTY = "one round more, of nothing"
UNUSED = "lanes behind the last unit, which are never stored"
SIZE = "only how much is done at a time"
TEAMS = "here no team ends early: tests/test_faults.py"
GRU = "a GRU or RNN has no projection, and with one this is not asked"

EQUIVALENT: list[tuple[str, str]] = [
    ("as if not in pairs: w_ih(packs", LARGER),
    ("as if not in pairs: w_hh(packs", LARGER),
    ("the first member's: int64_t count = share.row_end - share.row, width", LARGER),
    ("one more: for (int64_t j = begin; j < end; j += kBlockUnits)", EMPTY),
    ("one more: for (next = i; next < s.steps && chunk < chunk_rows; ++next)", "a chunk may be a step longer"),
    ("all that is left at once: if (!p.batch.lengths) return least(end, walk.rows(t))", "a member without rows"),
    ("not padded: copy(dhidden", UNUSED),
    ("not padded: int64_t outs = padded<S>(share.out_end", UNUSED),
    ("not padded: zero(packed, padded<S>(columns))", UNUSED),
    ("not padded: zero(to, padded<S>(count))", UNUSED),
    ("a NaN is rounded: Half half", "its last 16 bits are zeros, so that it stays one"),
    ("relaxed: phase_.wait", "the load that follows acquires"),
    ("another width: int64_t bytes = Q", SIZE),
    ("another width: double weights", SIZE),
    ("another width: return Cell::kGates * s.hidden * s.projected", SIZE),
    ("one more: for (int64_t t = 1; count > 1 && t < s.steps; ++t)", "an empty chunk at the end"),
    ("one less: for (int64_t m = 0; m < p.shape.rows; ++m) total", SIZE),
    ("another's place: while (taken * members < i * total)", "one member has all rows"),
    ("all that is left at once: int64_t end = Pairs && kDotProducts ? k_count : least", "only rounding differs"),
    ("more than is left: for (int64_t end = least(k + kChain, rows)", "only rounding differs"),
    ("left out: lost = lost + ", "only rounding differs, too little for so few rows"),
    ("another width: w.multiply(block_rows, j, columns, lead, s.hidden", GRU),
    ("another width: for (int64_t b = 0; b < block_rows; ++b) last[b] = a[m + b] + ((Q - 1) * s.hidden", GRU),
    ("another width: if (zone_h) lead_past(p.zone_h", GRU),
    ("another width: if (zone_h) state[0] = blend(", GRU),
    ("another width: return projects ? hidden_row(d, row) : p.y", GRU),
    ("y is copied to itself: if (p.h_n != p.y)", "memcpy of a place to itself"),
    ("a sum begins anew: for (int d = 0; d < s.directions; ++d) sums[d]->prepare(", "weights are packed again"),
    ("a sum begins anew: if (first) w_ih_of_dx.pack(", "weights are packed again"),
    ("left out: for (int64_t b = 0; p.saved && b < block_rows; ++b) expect_stores", "a hint"),
    ("one less: for (int64_t b = 0; p.saved && b < block_rows; ++b) expect_stores", "a hint"),
    ("before the last chunk: if (last) sum.put_down(", "what is stored is stored again"),
    ("before the last chunk: if (last && of_h && dw.b_hh) narrow_row(", "what is stored is stored again"),
    ("a sum begins anew: V total = first", "of what is lost, only rounding differs"),
    ("relaxed: if (phase_.load(std::memory_order_acquire) == phase) sleep", "the load that follows acquires"),
    ("one less: for (int i = 0; i < V::kLanes; ++i) { if (i & Half) continue;", "the last is always left out"),
    ("one more: for (; i < next; ++i)", EMPTY),
    ("another width: pairs(kDotProducts && G * s.hidden % 2 == 0)", "with a projection G is 4"),
    ("not padded: S* row = masked + m * padded<S>(s.projected)", "rows are stored to their last unit, not beyond"),
    ("left out: for (Barrier& barrier : barriers) barrier.start_clock()", TEAMS),
    ("left out: if (barriers[0].ended() || barriers[1].ended())", TEAMS),
    ("miscounted: s.taken", "what is kept, not what is computed: tests/test_memory.py"),
]
