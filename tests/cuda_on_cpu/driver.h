// What Python and replay.cpp call. Cells come by name. Numbers: types float, double, bfloat16, float16; policies as in
// emulator::Policy.
#pragma once

#include <cstdint>

extern "C" {

// The CallStruct of layer.py.
struct Call {
  const char* cell;
  const char* tier;  // "": the one that the plan chooses
  int type, tf32, backward, count;
  const int64_t* sizes;  // T, N, R, I, H, P, D
  const char* const* names;
  void* const* data;
};

// Null, or what went wrong.
const char* run_layer(const Call* call);
const char* last_plan();

void set_schedule(int policy, uint64_t seed);
void set_patience(double seconds);  // with threads that spin
void set_device(int multiprocessors, int shared_bytes, int capability, int taken);

// One step of `count` units in double, by the arguments of csrc/cells.h: in is x, r (backward: saved, prev), one array
// a plane; state is s (ds); out is saved (dgates).
void cell_step(const char* cell, int backward, int64_t count, const double* const* in, double* const* state,
               double* const* out);
}
