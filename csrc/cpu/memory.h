// Scratch memory of the drivers, kept by each thread from one call to the next: fresh pages cost the kernel up to 8 %
// of a call (LSTM, T=100, N=32, H=512: 5,000 page faults). In one piece: to look for a block of each size was 0.2 of an
// RNN's step (T=1, N=1, H=128).
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedrnn {

void* take_scratch(size_t bytes);  // aligned to 64 bytes, uninitialised; throws a std::bad_alloc
void return_scratch(void* block);  // from the thread that took it
void release_scratch();            // what this thread keeps; each other gives up its own when it next takes some

template <class E>
class Buffer {
 public:
  // With a vector's worth of room behind the end.
  explicit Buffer(int64_t count) : data_(static_cast<E*>(take_scratch(static_cast<size_t>(count) * sizeof(E) + 64))) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { return_scratch(data_); }
  operator E*() const { return data_; }

 private:
  E* data_;
};

}  // namespace fusedrnn
