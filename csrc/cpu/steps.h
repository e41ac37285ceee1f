// What forward and backward share: scratch memory, which rows take which step, and the state they start it from.
#pragma once

#include <cstdlib>
#include <new>

#include "../dispatch.h"
#include "gemm.h"
#include "parallel.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Uninitialised scratch aligned for vectors, with a vector's worth of room behind the end.
template <class E>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    size_t bytes = (static_cast<size_t>(count) * sizeof(E) + 2 * kAlignment - 1) / kAlignment * kAlignment;
    data_ = static_cast<E*>(std::aligned_alloc(kAlignment, bytes));
    if (!data_) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  operator E*() const { return data_; }

 private:
  static constexpr size_t kAlignment = 64;
  E* data_;
};

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
template <class T, class S>
FUSEDRNN_FN void narrow_row(T* to, const S* from, int64_t count) {
  for (int64_t j = 0; j < count; j += Vec<S>::kLanes) Vec<S>::load(from + j).store(to + j, count - j);
}
template <class T, class S>
FUSEDRNN_FN void add_row(S* to, const T* from, int64_t count) {
  for (int64_t j = 0; j < count; j += Vec<S>::kLanes)
    (Vec<S>::load(to + j) + Vec<S>::load(from + j, count - j)).store(to + j);
}

// One direction's walk through time. "Before" and "after" are meant along the walk: direction 1 goes T-1 .. 0.
template <class T>
struct Walk {
  const ScanParams<T>& p;
  int d;
  const T* zeros;  // a row of zeros, as long as any state

  int64_t step(int64_t i) const { return d ? p.shape.steps - 1 - i : i; }
  int64_t row(int64_t t, int64_t n) const { return p.batch.offsets[t] + n; }
  int64_t rows(int64_t t) const { return p.batch.offsets[t + 1] - p.batch.offsets[t]; }
  bool alive(int64_t t, int64_t n) const {
    return t >= 0 && t < p.shape.steps && n < rows(t) && (!p.batch.lengths || t < p.batch.lengths[n]);
  }
  // Does row n start step t from the reset state? reset[t] cuts between t-1 and t.
  bool cut(int64_t t, int64_t n) const {
    return p.batch.reset && alive(t + d, n) && p.batch.reset[row(t + d, n)];
  }
  // The state a row starts step t from, for states of the given width.
  const T* before(int64_t t, int64_t n, int64_t width, const T* steps, const T* initial, const T* reset) const {
    int64_t own = (d * p.shape.rows + n) * width, previous = d ? t + 1 : t - 1;
    if (cut(t, n)) return reset ? reset + own : zeros;
    return alive(previous, n) ? steps + (row(previous, n) * p.shape.directions + d) * width : initial + own;
  }
  const T* h_before(int64_t t, int64_t n) const { return before(t, n, p.shape.projected, p.y, p.h0, p.reset_h); }
  const T* c_before(int64_t t, int64_t n) const { return before(t, n, p.shape.hidden, p.c_steps, p.c0, p.reset_c); }
  // Steps are taken without a gap from the row's first on, so its length is one past its last live step.
  int64_t length(int64_t n) const {
    int64_t t = p.shape.steps;
    while (t > 0 && !alive(t - 1, n)) --t;
    return t;
  }
};

// Shares the directions and rows of a layer out among threads, by the steps they take, and calls
// f(direction, first row, one past the last row). A row belongs to one thread for the whole sequence: no barriers.
template <class T, class F>
void for_row_ranges(const ScanParams<T>& p, double flops, F&& f) {
  constexpr double kFlopsWorthAThread = 1e6;
  const Shape& s = p.shape;
  int64_t threads = flops < kFlopsWorthAThread ? 1 : max_threads();
  int64_t shares = (threads + s.directions - 1) / s.directions;
  shares = shares < s.rows ? shares : (s.rows > 0 ? s.rows : 1);
  Walk<T> walk{p, 0, nullptr};
  Buffer<int64_t> first(shares + 1);
  int64_t total = 0, taken = 0, share = 0;
  for (int64_t n = 0; n < s.rows; ++n) total += walk.length(n) + 1;
  for (int64_t n = 0; n < s.rows; ++n) {
    while (share < shares && taken * shares >= share * total) first[share++] = n;
    taken += walk.length(n) + 1;
  }
  while (share <= shares) first[share++] = s.rows;
  parallel_for(shares * s.directions, [&](int64_t task) {
    int64_t i = task / s.directions;
    if (first[i] < first[i + 1]) f(static_cast<int>(task % s.directions), first[i], first[i + 1]);
  });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
