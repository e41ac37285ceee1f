// A stack of its own and a way to switch to it.
#pragma once

#include <cstddef>

#include "emulator.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

struct Fiber {
#ifdef __x86_64__
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;  // the host's is null until AddressSanitizer tells it
  size_t stack_bytes = 0;
  void* tsan = nullptr;  // ThreadSanitizer's and AddressSanitizer's idea of it
  void* asan = nullptr;
};

// Makes a fiber that starts in entry(), which never returns; the stack is kept for the next time. Stacks of different
// `number` start at different offsets, for at equal ones they would share cache sets.
void start(Fiber& fiber, void (*entry)(), size_t number);

// Leaves `from`, for good if it dies, and returns when somebody switches back.
void switch_fiber(Fiber& from, Fiber& to, bool dies);

void adopt_host(Fiber& host);                        // before the first switch: the calling thread as a fiber
void arrived_from_host(Fiber& host);                 // first thing in entry()
void name(Fiber& fiber, uint3 thread, uint3 block);  // for ThreadSanitizer's reports
void forget(Fiber& fiber);                           // one that was left in the middle of its work

}  // namespace emulator
