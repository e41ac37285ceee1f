#include "memory.h"

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fusedrnn {
namespace {

constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kMostKept = 0;  // so that it sees where each block ends
#else
constexpr size_t kMostKept = size_t{64} << 20;  // bytes a thread keeps at most
#endif

// In front of what is taken.
struct alignas(kLine) Block {
  Block* below;  // the one taken before, null for the first
  size_t bytes;  // with this head
  bool outside, returned;
};

void* allocate(size_t bytes) {
  size_t alignment = bytes < kHugePage ? kLine : kHugePage;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, bytes);
  if (!data) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

// Blocks one on top of the other, as they are returned in about the opposite order. What finds no room lies outside;
// when nothing is taken, the stack goes, and comes back as high as was wanted.
struct Stack {
  char* base = nullptr;
  size_t room = 0, taken = 0, most = 0;  // bytes; taken and most with those outside
  Block* top = nullptr;

  ~Stack() { std::free(base); }
  size_t height() const { return top ? reinterpret_cast<char*>(top) + top->bytes - base : 0; }
};

thread_local Stack stack;

}  // namespace

void* take_scratch(size_t bytes) {
  Stack& s = stack;
  bytes = (sizeof(Block) + bytes + kLine - 1) / kLine * kLine;
  size_t wanted = s.most < kMostKept ? s.most : kMostKept;
  if (!s.taken && s.room < wanted) {
    std::free(s.base);
    s.base = nullptr, s.room = 0;
    s.base = static_cast<char*>(allocate(wanted));
    s.room = wanted;
  }
  bool outside = bytes > s.room - s.height();
  auto* block = new (outside ? allocate(bytes) : s.base + s.height()) Block{s.top, bytes, outside, false};
  if (!outside) s.top = block;
  s.taken += bytes;
  s.most = s.taken > s.most ? s.taken : s.most;
  return block + 1;
}

void return_scratch(void* data) {
  Stack& s = stack;
  auto* block = static_cast<Block*>(data) - 1;
  s.taken -= block->bytes;
  if (block->outside)
    std::free(block);
  else
    block->returned = true;
  while (s.top && s.top->returned) s.top = s.top->below;
}

}  // namespace fusedrnn
