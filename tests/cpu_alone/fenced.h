// Included before csrc/cpu/memory.cpp: what it takes from the system is full of NaN, and ends where nothing may be read
// or written.
#pragma once

#include <cstdlib>

namespace std {
void* fenced_alloc(size_t alignment, size_t bytes);
void fenced_free(void* data);
}  // namespace std

#define aligned_alloc fenced_alloc
#define free fenced_free
