#include "memory.h"

#include <atomic>
#include <cstdio>
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

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes) {
    std::snprintf(text_, sizeof text_, "fusedrnn: no memory for %zu bytes of scratch", bytes);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[80];
};

void* allocate(size_t bytes) {  // null where there is no memory
  size_t alignment = bytes < kHugePage ? kLine : kHugePage;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, bytes);
#ifdef __linux__
  if (data && alignment == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

// Blocks one on top of the other, as they are returned in about the opposite order. What finds no room lies outside;
// when nothing is taken, the stack goes, and comes back as high as was wanted, if there is memory for it.
struct Stack {
  char* base = nullptr;
  size_t room = 0, taken = 0, most = 0;  // bytes; taken and most with those outside
  Block* top = nullptr;
  uint32_t release = 0;  // the latest that it knows of

  ~Stack() { std::free(base); }
  size_t height() const { return top ? reinterpret_cast<char*>(top) + top->bytes - base : 0; }
};

thread_local Stack stack;
std::atomic<uint32_t> latest_release{0};

// Of a stack from which nothing is taken.
void renew(Stack& s, size_t room) {
  std::free(s.base);
  s.base = static_cast<char*>(room ? allocate(room) : nullptr);
  s.room = s.base ? room : 0;
}

void release_if_asked(Stack& s) {
  uint32_t latest = latest_release.load(std::memory_order_relaxed);
  if (s.release == latest || s.taken) return;
  renew(s, 0);
  s.release = latest, s.most = 0;
}

}  // namespace

void* take_scratch(size_t bytes) {
  Stack& s = stack;
  release_if_asked(s);
  bytes = (sizeof(Block) + bytes + kLine - 1) / kLine * kLine;
  size_t wanted = s.most < kMostKept ? s.most : kMostKept;
  if (!s.taken && s.room < wanted) renew(s, wanted);
  bool outside = bytes > s.room - s.height();
  void* place = outside ? allocate(bytes) : s.base + s.height();
  if (!place) throw OutOfMemory(bytes);
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
}

void release_scratch() {
  latest_release.fetch_add(1, std::memory_order_relaxed);
  release_if_asked(stack);
}

}  // namespace fusedrnn
