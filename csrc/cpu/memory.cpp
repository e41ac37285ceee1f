#include "memory.h"

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fusedrnn {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMostKept = size_t{64} << 20;  // bytes a thread keeps at most

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
  bool taken = false;
};

struct Blocks {
  Block blocks[32];

  ~Blocks() {
    for (Block& block : blocks) std::free(block.data);
  }
};

thread_local Blocks kept;

void* allocate(size_t bytes) {
  size_t alignment = bytes < kHugePage ? 64 : kHugePage;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, bytes);
  if (!data) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace

void* take_scratch(size_t bytes) {
  Block *best = nullptr, *empty = nullptr;
  for (Block& block : kept.blocks) {
    if (!block.data) empty = &block;
    if (block.data && !block.taken && block.bytes >= bytes && block.bytes <= 2 * bytes + 4096 &&
        (!best || block.bytes < best->bytes))
      best = &block;
  }
  if (!best) {
    void* data = allocate(bytes);
    for (Block& block : kept.blocks)  // all full: an old one goes
      if (!empty && !block.taken) empty = &block;
    if (!empty) return data;
    std::free(empty->data);
    best = empty;
    *best = {data, bytes, false};
  }
  best->taken = true;
  return best->data;
}

void return_scratch(void* data) {
  size_t total = 0;
  Block* own = nullptr;
  for (Block& block : kept.blocks) {
    total += block.bytes;
    if (block.data == data) own = &block;
  }
  if (own && total <= kMostKept) {
    own->taken = false;
    return;
  }
  std::free(data);
  if (own) *own = {};
}

}  // namespace fusedrnn
