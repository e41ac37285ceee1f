#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <chrono>
#include <mutex>
#include <vector>

#include "../cpu/memory.h"
#include "../cpu/parallel.h"

namespace fusedrnn {
namespace {

constexpr size_t kLarge = size_t{1} << 17;       // bytes: from here on malloc may ask the system for each block
constexpr size_t kMostKept = size_t{256} << 20;  // bytes kept for later tensors at most, by all threads together

struct Block {
  void* data;
  size_t bytes;
};

// Free blocks, the one freed last at the end. Nobody waits long for the lock: whoever does not get it, as in a process
// that was forked while it was held, asks the system.
class Pool {
 public:
  Pool() { free_.reserve(kMostKept / kLarge + 1); }  // so that put() needs no memory

  Block take(size_t bytes) {
    if (std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      auto best = free_.end();
      for (auto block = free_.begin(); block != free_.end(); ++block)
        if (block->bytes >= bytes && block->bytes <= 2 * bytes && (best == free_.end() || block->bytes <= best->bytes))
          best = block;
      if (best != free_.end()) {
        Block found = *best;
        free_.erase(best);
        kept_ -= found.bytes;
        return found;
      }
    }
    return {c10::alloc_cpu(bytes), bytes};
  }

  void put(Block block) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.bytes > kMostKept) return c10::free_cpu(block.data);
    free_.push_back(block);
    kept_ += block.bytes;
    for (; kept_ > kMostKept; free_.erase(free_.begin())) {
      kept_ -= free_.front().bytes;
      c10::free_cpu(free_.front().data);
    }
  }

  void empty() {
    std::unique_lock lock(mutex_, std::chrono::milliseconds(100));
    if (!lock) return;
    for (Block block : free_) c10::free_cpu(block.data);
    free_.clear();
    kept_ = 0;
  }

 private:
  std::timed_mutex mutex_;
  std::vector<Block> free_;
  size_t kept_ = 0;
};

Pool& pool() {
  static Pool& pool = *new Pool;  // never freed: tensors may outlive what is static
  return pool;
}

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block(pool().take(bytes));
    c10::profiledCPUMemoryReporter().New(block->data, bytes);
    return {block->data, block, &release, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    c10::profiledCPUMemoryReporter().Delete(block->data);
    pool().put(*block);
    delete block;
  }
};

}  // namespace

at::Tensor empty(at::IntArrayRef size, const at::TensorOptions& options) {
  static Allocator& allocator = *new Allocator;
  auto bytes = static_cast<size_t>(c10::multiply_integers(size)) * options.dtype().itemsize();
  if (!options.device().is_cpu() || bytes < kLarge) return at::empty(size, options);
  return at::Tensor(at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                              options.dtype().toScalarType(), std::nullopt));
}

void empty_cache() {
  pool().empty();
  team(max_threads(), [](int64_t, int64_t) { release_scratch(); });
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace fusedrnn
