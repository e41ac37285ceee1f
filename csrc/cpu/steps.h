// What forward and backward share: scratch memory, which rows take which step, and the state they start it from.
#pragma once

#include "../cells.h"
#include "../timeline.h"
#include "gemm.h"
#include "memory.h"
#include "parallel.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class E>
FUSEDRNN_FN void zero(E* p, int64_t count) {
  std::memset(static_cast<void*>(p), 0, count * sizeof(E));
}
template <class E>
FUSEDRNN_FN void copy(E* to, const E* from, int64_t count) {
  std::memcpy(static_cast<void*>(to), from, count * sizeof(E));
}
template <class T, class S>
FUSEDRNN_FN void widen_row(S* to, const T* from, int64_t count) {
  for (int64_t j = 0; j < count; j += Vec<S>::kLanes) Vec<S>::load(from + j, count - j).store(to + j);
}
// Prefetch for write, while the gates are multiplied.
template <class E>
FUSEDRNN_FN void prefetch_for_write(const E* p, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(E);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(p + i, 1);
}
template <class T, class S>
constexpr bool kWidens = !std::is_same_v<T, S>;
template <class T, class S>
FUSEDRNN_FN void narrow_row(T* to, const S* from, int64_t count) {
  for (int64_t j = 0; j < count; j += Vec<S>::kLanes) Vec<S>::load(from + j).store(to + j, count - j);
}
template <class T, class S>
FUSEDRNN_FN void add_row(S* to, const T* from, int64_t count) {
  for (int64_t j = 0; j < count; j += Vec<S>::kLanes)
    (Vec<S>::load(to + j) + Vec<S>::load(from + j, count - j)).store(to + j);
}

// to = a * b, in arithmetic of type S.
template <class S, class A, class B, class To>
FUSEDRNN_FN void multiply_row(To* to, const A* a, const B* b, int64_t count) {
  for (int64_t j = 0; j < count; j += Vec<S>::kLanes)
    (Vec<S>::load(a + j, count - j) * Vec<S>::load(b + j, count - j)).store(to + j, count - j);
}

// The fraction of its old value that each lane keeps in a step; `at` is the first lane's place in the mask.
template <class S, class V = Vec<S>>
FUSEDRNN_FN V fraction_kept(const Zone& zone, int64_t at, int64_t lanes) {
  return zone.keeps ? V::load(zone.keeps + at, lanes) : V(static_cast<S>(zone.fraction));
}

// A state after zoneout, if there is any.
template <class S, class V>
FUSEDRNN_FN V zoned(const Zone& zone, int64_t at, int64_t lanes, V old, V fresh) {
  return zone ? blend(fraction_kept<S, V>(zone, at, lanes), old, fresh) : fresh;
}

// One direction's walk through time. "Before" and "after" are meant along the walk: direction 1 goes T-1 .. 0.
template <class T>
struct StepIterator : Timeline<T> {
  using Timeline<T>::p;
  using Timeline<T>::d;
  using Timeline<T>::at;
  const T* zeros;  // a row of zeros, as long as any state

  int64_t step(int64_t i) const { return d ? p.shape.steps - 1 - i : i; }
  int64_t row(int64_t t, int64_t n) const { return p.batch.offsets[t] + n; }
  int64_t rows(int64_t t) const { return p.batch.offsets[t + 1] - p.batch.offsets[t]; }
  bool alive(int64_t t, int64_t n) const { return Timeline<T>::alive(at(t), n); }
  // Does row n start step t from the reset state? reset[t] is met between t-1 and t.
  bool reset_before(int64_t t, int64_t n) const { return p.batch.reset && Timeline<T>::reset_before(at(t + d), n); }
  // The state number k that row n starts step t from.
  const T* before(int k, int64_t t, int64_t n) const {
    const State<T>& state = p.states[k];
    int64_t width = p.shape.width(k), place = this->state(n, width, 0), previous = d ? t + 1 : t - 1;
    if (reset_before(t, n)) return state.reset ? state.reset + place : zeros;
    return alive(previous, n) ? state.steps + this->output(row(previous, n), width, 0) : state.initial + place;
  }
  // Steps are taken without a gap from the row's first on, so its length is one past its last live step.
  int64_t length(int64_t n) const {
    int64_t t = p.shape.steps;
    while (t > 0 && !alive(t - 1, n)) --t;
    return t;
  }
};

// Some steps that follow each other, and how many rows take them.
struct Steps {
  int64_t begin, end, rows;
};

// Calls f(first column, columns) for the panels of columns begin .. end, alternating the direction from step to
// step, so that panels still in the cache are used first.
template <class F>
FUSEDRNN_FN void for_panels(int64_t panel, int64_t begin, int64_t end, bool backwards, F&& f) {
  int64_t panels = (end - begin + panel - 1) / panel;
  for (int64_t i = 0; i < panels; ++i) {
    int64_t j = begin + (backwards ? panels - 1 - i : i) * panel;
    f(j, least(end - j, panel));
  }
}

// Member i's part of n things begins here; parts begin at multiples of `grain`.
FUSEDRNN_FN int64_t boundary(int64_t n, int64_t i, int64_t members, int64_t grain) {
  int64_t grains = (n + grain - 1) / grain;
  return least(grains * i / members * grain, n);
}

// The part of one direction that one thread does: either some batch rows and all units from the first step to the last,
// or some units of all rows; then its threads synchronise in every step.
struct Partition {
  int d;
  int64_t member, members;  // of the direction
  int64_t row, row_end;     // batch rows
  int64_t unit, unit_end;   // of H
  int64_t out, out_end;     // of P
  int64_t parts;            // that units are split in, 1 where rows are
  int64_t first, last;      // of these parts, its own
  Barrier* barrier;

  bool splits_units() const { return parts > 1; }
  void sync() const { barrier->sync(members); }
  void sync_if_units_are_split() const {
    if (splits_units()) sync();
  }
  // The same where nobody is in the midst of anything. True if the others have left: from here on this member does it
  // all.
  bool sync_or_take_over(const Shape& s) {
    if (!splits_units() || !barrier->sync(members, true)) return false;
    member = 0, members = 1, first = 0, last = parts - 1;
    unit = out = 0, unit_end = s.hidden, out_end = s.projected;
    return true;
  }
};

// Calls f(begin, end) for those of n columns that a thread packs in panels: its own units where units are split, so
// that they start out in its cache.
template <class S, class F>
void for_packed(const Partition& part, int64_t n, int64_t panel, F&& f) {
  bool own = part.splits_units();
  int64_t parts = own ? part.parts : part.members, grain = own ? Vec<S>::kLanes : panel;
  for (int64_t i = own ? part.first : part.member; i <= (own ? part.last : part.member); ++i)
    f(boundary(n, i, parts, grain), boundary(n, i + 1, parts, grain));
}

// A partition's columns begin .. end of n, and the width of panels.
struct Panels {
  int64_t width, begin, end, n;
};

// for_panels of them: panels as they were packed, so they begin anew with each part.
template <class S, class F>
FUSEDRNN_FN void for_panels(const Partition& part, Panels of, bool backwards, F&& f) {
  for (int64_t i = part.first; i <= part.last; ++i) {
    int64_t own = backwards ? part.first + part.last - i : i;
    if (part.first < part.last)
      of.begin = boundary(of.n, own, part.parts, Vec<S>::kLanes),
      of.end = boundary(of.n, own + 1, part.parts, Vec<S>::kLanes);
    for_panels(of.width, of.begin, of.end, backwards, f);
  }
}

// Batch rows divided by the steps they take: where member i's begin.
template <class T>
int64_t row_part(const ScanParams<T>& p, int64_t i, int64_t members) {
  if (i == members) return p.shape.rows;
  StepIterator<T> walk{{p, 0}, nullptr};
  int64_t total = 0, taken = 0, n = 0;
  for (int64_t m = 0; m < p.shape.rows; ++m) total += walk.length(m) + 1;
  while (taken * members < i * total) taken += walk.length(n++) + 1;
  return n;
}

constexpr int64_t kCacheOfACore = 1 << 20;  // bytes

// Planes `stride` apart, of the units of one vector.
template <int Count, class V, class E>
FUSEDRNN_FN void load_planes(const E* from, int64_t stride, V* to) {
#pragma GCC unroll 4
  for (int i = 0; i < Count; ++i) to[i] = V::load(from + i * stride);
}
template <int Count, class V, class E>
FUSEDRNN_FN void store_planes(const V* from, E* to, int64_t stride, int64_t lanes) {
#pragma GCC unroll 4
  for (int i = 0; i < Count; ++i) from[i].store(to + i * stride, lanes);
}

// What a cell is given beside gates and states, for units j on of a packed row: unit vectors [U, H] and per-step
// inputs.
template <class Cell, class T, class S, class V>
FUSEDRNN_FN void load_operands(const ScanParams<T>& p, int64_t row, int64_t j, Strided<const S> vectors, V* to) {
  constexpr int U = Cell::kVectors;
  for (int u = 0; u < U; ++u) to[u] = V::load(vectors.at + u * vectors.stride + j);
  for (int e = 0; e < Cell::kInputs; ++e) {
    const StepInput<const T>& input = p.inputs[e];
    to[U + e] = input.per_unit ? V::load(input.values + row * p.shape.hidden + j, p.shape.hidden - j)
                               : V(Vec<S>::load(input.values + row, 1).v[0]);
  }
}

// Is W_hh, as it is packed, too large for one core to keep?
template <class Cell, class S>
bool is_large(const Shape& s) {
  return Cell::kRecurrent * s.hidden * s.projected * static_cast<int64_t>(sizeof(S)) > kCacheOfACore;
}

// How a layer is divided among threads: groups for its directions, and members of each for rows or units.
struct Division {
  int64_t groups, members;
  int64_t parts;  // that units are split in, 1 where rows are
};

// Rows are split where every thread's core can keep all of W_hh, as then no thread waits for another before the end;
// units where it cannot or where rows are fewer than threads.
template <class Cell, class T>
Division divide(const ScanParams<T>& p, double flops) {
  constexpr double kFlopsWorthAThread = 1e6, kFlopsWorthASync = 3e4;
  const Shape& s = p.shape;
  double weights = static_cast<double>(Cell::kRecurrent) * s.hidden * s.projected;
  int64_t wanted = flops < kFlopsWorthAThread ? 1 : max_threads(), groups = least(wanted, s.directions);
  int64_t members = wanted / groups;
  if (members > 1 && 2.0 * s.rows * weights > kFlopsWorthASync * members &&
      (s.rows < members || is_large<Cell, Arithmetic<T>>(s)) && syncing_pays())
    return {groups, members, members};
  return {groups, least(members, s.rows > 0 ? s.rows : 1), 1};
}

// Calls f(partition) on each thread, for one direction after another where there are fewer threads than directions.
// Where a team ends before its work, one member of a group is left for what comes after this call, too.
template <class T, class F>
void run_partitioned(const ScanParams<T>& p, Division& division, F&& f) {
  using S = Arithmetic<T>;
  const Shape& s = p.shape;
  int64_t parts = division.parts;
  Barrier barriers[2];
  if (parts > 1)
    for (Barrier& barrier : barriers) barrier.start_clock();
  team(division.groups * division.members, [&](int64_t member, int64_t threads) {
    int64_t groups = least(threads, s.directions), members = threads / groups, group = member / members;
    if (group >= groups) return;
    member %= members;
    for (int d = static_cast<int>(group); d < s.directions; d += static_cast<int>(groups)) {
      Partition part{d, member, members, 0, s.rows, 0, s.hidden, 0, s.projected, parts, 0, 0, &barriers[group]};
      if (parts > 1) {
        int64_t first = boundary(parts, member, members, 1), end = boundary(parts, member + 1, members, 1);
        part.first = first, part.last = end - 1;
        part.unit = boundary(s.hidden, first, parts, Vec<S>::kLanes);
        part.unit_end = boundary(s.hidden, end, parts, Vec<S>::kLanes);
        part.out = boundary(s.projected, first, parts, Vec<S>::kLanes);
        part.out_end = boundary(s.projected, end, parts, Vec<S>::kLanes);
      } else {
        part.row = row_part(p, member, members);
        part.row_end = row_part(p, member + 1, members);
      }
      barriers[group].run([&] {
        f(part);
        part.sync_or_take_over(s);  // of one step, too, it shall be known how long the last was waited for
      });
    }
  });
  if (barriers[0].ended() || barriers[1].ended()) division.members = 1;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
