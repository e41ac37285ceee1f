#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

// In a page of its own in front of what is allocated.
struct Head {
  char* begin;
  size_t bytes;
};

static Head* head_of(char* data, size_t page) {
  return reinterpret_cast<Head*>(data - reinterpret_cast<uintptr_t>(data) % page - page);
}

namespace std {

void* fenced_alloc(size_t alignment, size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE), slack = alignment > page ? alignment : 0;
  const size_t all = page + (bytes + page - 1) / page * page + slack + page;
  void* mapped = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* begin = static_cast<char*>(mapped);
  char* end = begin + all - page;
  if (slack) end -= reinterpret_cast<uintptr_t>(end) % alignment;
  mprotect(end, begin + all - end, PROT_NONE);
  char* data = end - bytes;
  Head* head = head_of(data, page);
  memset(head + 1, 0xff, end - reinterpret_cast<char*>(head + 1));
  new (head) Head{begin, all};
  return data;
}

void fenced_free(void* memory) {
  if (!memory) return;
  auto* data = static_cast<char*>(memory);
  Head* head = head_of(data, sysconf(_SC_PAGESIZE));
  for (auto* p = reinterpret_cast<unsigned char*>(head + 1); p < memory; ++p)
    if (*p != 0xff) {
      fputs("something was written in front of an allocation\n", stderr);
      abort();
    }
  munmap(head->begin, head->bytes);
}

}  // namespace std
