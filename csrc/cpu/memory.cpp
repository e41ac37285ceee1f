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

// Blocks one on top of the other, as they are returned in about the opposite order. What finds no room lies outside,
// until nothing is taken and the stack can grow to what was wanted.
struct Stack {
  char* base = nullptr;
  size_t room = 0, taken = 0, most = 0;  // bytes; taken and most with those outside
  Block* top = nullptr;

  ~Stack() { std::free(base); }
  size_t height() const { return top ? reinterpret_cast<char*>(top) + top->bytes - base : 0; }

  void grow() {
    std::free(base);
    room = most < kMostKept ? most : kMostKept;
    size_t alignment = room < kHugePage ? kLine : kHugePage;
    room = (room + alignment - 1) / alignment * alignment;
    base = static_cast<char*>(std::aligned_alloc(alignment, room));
    if (!base) room = 0;
#ifdef __linux__
    if (base && alignment == kHugePage) madvise(base, room, MADV_HUGEPAGE);
#endif
  }
};

thread_local Stack stack;

}  // namespace

void* take_scratch(size_t bytes) {
  Stack& s = stack;
  bytes = (sizeof(Block) + bytes + kLine - 1) / kLine * kLine;
  bool outside = bytes > s.room - s.height();
  void* place = outside ? std::aligned_alloc(kLine, bytes) : s.base + s.height();
  if (!place) throw std::bad_alloc();
  auto* block = new (place) Block{s.top, bytes, outside, false};
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
  if (!s.taken && s.most > s.room && s.room < kMostKept) s.grow();
}

}  // namespace fusedrnn
