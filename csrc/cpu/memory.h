// Scratch memory of the drivers: a LIFO arena for each thread, kept from one call to the next, so that calls neither
// page-fault nor search for blocks.
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
