// Which thread runs next.
#pragma once

#include <cstdint>
#include <string>

#include "machine.h"

namespace emulator {

uint64_t random_bits();
uint32_t random_below(uint32_t n);
bool hostile();  // the policy takes chances

void seed_random(uint64_t seed);
void reset_scheduler(size_t threads);
void make_ready(Thread* thread);
void run_threads();  // on the host: until all are done, or the kernel has failed

void wait(const char* what, Site site);  // until somebody makes this thread ready
void yield();
void maybe_yield();
void progress();             // something happened that another thread may wait for
[[noreturn]] void retire();  // the thread that runs is done

std::string place(Site site);

}  // namespace emulator
