// Preloaded into a process by tests: an allocation of the extension that fails, a thread that loses its core, and a
// block of memory that takes long to free.
#include <errno.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <new>

extern "C" void* __libc_malloc(size_t bytes);
extern "C" void* __libc_memalign(size_t alignment, size_t bytes);
extern "C" void __libc_free(void* place);

namespace {

std::atomic<long> left{0};  // allocations until the one that fails; none does from 0 on

bool fails() { return left > 0 && left.fetch_sub(1) == 1; }

uintptr_t begin = 0, end = 0;  // of the extension

int find_extension(dl_phdr_info* library, size_t, void*) {
  if (!strstr(library->dlpi_name, "fusedrnn/_C")) return 0;
  begin = library->dlpi_addr;
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const auto& segment = library->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD) end = begin + segment.p_vaddr + segment.p_memsz;
  }
  return 1;
}

bool is_of_extension(void* caller) {
  auto place = reinterpret_cast<uintptr_t>(caller);
  return begin <= place && place < end;
}

void stall(int) { usleep(30000); }

std::atomic<void*> slow{nullptr};  // what is to be freed slowly
std::atomic<bool> freeing{false};

}  // namespace

extern "C" {

void fail_after(long allocations) {
  if (!begin) dl_iterate_phdr(find_extension, nullptr);
  left = allocations;
}
long allocations_left() { return left; }
void stall_on(int number) { signal(number, stall); }
void free_slowly(void* place) { slow = place; }
bool is_freeing() { return freeing; }

void free(void* place) noexcept {
  void* expected = place;
  if (place && slow.compare_exchange_strong(expected, nullptr)) {
    freeing = true;
    usleep(2000000);
    freeing = false;
  }
  __libc_free(place);
}

// Scratch memory.
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  return fails() ? nullptr : __libc_memalign(alignment, bytes);
}

// Tensors'.
int posix_memalign(void** place, size_t alignment, size_t bytes) noexcept {
  void* found = fails() ? nullptr : __libc_memalign(alignment, bytes);
  if (!found) return ENOMEM;
  *place = found;
  return 0;
}
}

// Vectors, strings and all else; not PyTorch's own, which ends the process in some places.
void* operator new(size_t bytes) {
  bool failed = left > 0 && is_of_extension(__builtin_return_address(0)) && fails();
  void* found = failed ? nullptr : __libc_malloc(bytes);
  if (!found) throw std::bad_alloc();
  return found;
}
