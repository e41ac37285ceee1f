// What ThreadSanitizer and AddressSanitizer must be told, and nothing in a build without them. The runtime itself is
// never compiled with -fsanitize=thread (it would report its own state); EMULATOR_TSAN says that the kernels are.
#pragma once

#include <cstddef>

#ifdef EMULATOR_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned flags);
void __tsan_set_fiber_name(void*, const char*);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_read_range(void*, unsigned long);
void __tsan_write_range(void*, unsigned long);
}
#endif
#ifdef EMULATOR_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
void __asan_poison_memory_region(const volatile void*, size_t);
void __asan_unpoison_memory_region(const volatile void*, size_t);
}
#endif

namespace emulator {

// What one thread does before it releases a token happens before what another does after it acquired it.
inline void release([[maybe_unused]] const void* token) {
#ifdef EMULATOR_TSAN
  __tsan_release(const_cast<void*>(token));
#endif
}
inline void acquire([[maybe_unused]] const void* token) {
#ifdef EMULATOR_TSAN
  __tsan_acquire(const_cast<void*>(token));
#endif
}

// The runtime touches this memory in the name of the thread that runs.
inline void reads([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#ifdef EMULATOR_TSAN
  __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}
inline void writes([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef EMULATOR_TSAN
  __tsan_write_range(p, bytes);
#endif
}

inline void poison([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef EMULATOR_ASAN
  __asan_poison_memory_region(p, bytes);
#endif
}
inline void unpoison([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef EMULATOR_ASAN
  __asan_unpoison_memory_region(p, bytes);
#endif
}

// Copies that stay loops: a call of memcpy would be seen by the sanitizers.
#define EMULATOR_PLAIN_LOOP __attribute__((noinline, optimize("no-tree-loop-distribute-patterns")))
EMULATOR_PLAIN_LOOP inline void raw_copy(unsigned char* to, const unsigned char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to[i] = from[i];
}
EMULATOR_PLAIN_LOOP inline void raw_fill(unsigned char* to, unsigned char value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to[i] = value;
}

}  // namespace emulator
