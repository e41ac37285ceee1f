#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "sanitizers.h"

namespace emulator {
namespace {

#if defined(EMULATOR_ASAN) || defined(EMULATOR_TSAN)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kPage = 4096;
constexpr size_t kGuardedStacks = 24000;  // each guard page costs a mapping, and Linux allows 65530

}  // namespace

#ifdef __x86_64__

// Saves what the ABI lets a callee keep, exchanges the stacks, and returns on the other one.
extern "C" void emulator_swap_stacks(void** save, void* to);
asm(R"(
.text
.p2align 4
.type emulator_swap_stacks,@function
emulator_swap_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_swap_stacks,.-emulator_swap_stacks
)");

static void lay_out(Fiber& fiber, void (*entry)(), char* top) {
  void** p = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
  *--p = nullptr;  // entry's return address: ends backtraces and gives the ABI's alignment
  *--p = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--p = nullptr;
  fiber.stack_pointer = p;
}
static void exchange(Fiber& from, Fiber& to) { emulator_swap_stacks(&from.stack_pointer, to.stack_pointer); }

#else

static void lay_out(Fiber& fiber, void (*entry)(), char* top) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = top - fiber.stack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}
static void exchange(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

void start(Fiber& fiber, void (*entry)(), size_t number) {
  if (!fiber.stack) {
    void* memory =
        mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::perror("emulator: no memory for the stack of a fiber");
      std::abort();
    }
    if (number < kGuardedStacks) mprotect(memory, kPage, PROT_NONE);
    fiber.stack = static_cast<char*>(memory) + kPage;
    fiber.stack_bytes = kStackBytes;
  }
  unpoison(fiber.stack, fiber.stack_bytes);
#ifdef EMULATOR_TSAN
  if (!fiber.tsan) fiber.tsan = __tsan_create_fiber(0);
#endif
  lay_out(fiber, entry, fiber.stack + fiber.stack_bytes - number * 7 % 61 * 64);
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool dies) {
#ifdef EMULATOR_TSAN
  constexpr unsigned kNoHappensBefore = 1;
  __tsan_switch_to_fiber(to.tsan, kNoHappensBefore);
#endif
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(dies ? nullptr : &from.asan, to.stack, to.stack_bytes);
#endif
  exchange(from, to);
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(from.asan, nullptr, nullptr);
#endif
}

void adopt_host([[maybe_unused]] Fiber& host) {
#ifdef EMULATOR_TSAN
  host.tsan = __tsan_get_current_fiber();
#endif
  host.stack = nullptr;
}

void arrived_from_host([[maybe_unused]] Fiber& host) {
#ifdef EMULATOR_ASAN
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (!host.stack) {
    host.stack = static_cast<char*>(const_cast<void*>(stack));
    host.stack_bytes = bytes;
  }
#endif
}

void name([[maybe_unused]] Fiber& fiber, [[maybe_unused]] uint3 thread, [[maybe_unused]] uint3 block) {
#ifdef EMULATOR_TSAN
  char text[96];
  std::snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", thread.x, thread.y, thread.z, block.x,
                block.y, block.z);
  __tsan_set_fiber_name(fiber.tsan, text);
#endif
}

void forget([[maybe_unused]] Fiber& fiber) {
#ifdef EMULATOR_TSAN
  if (fiber.tsan) __tsan_destroy_fiber(fiber.tsan);
  fiber.tsan = nullptr;
#endif
}

}  // namespace emulator
