// Stands in for OpenMP: see ATen/Parallel.h.
#pragma once

#include <ATen/Parallel.h>

inline int omp_get_num_threads() { return stand_in::team; }
