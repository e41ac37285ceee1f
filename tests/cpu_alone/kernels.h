// The CPU kernels as they are compiled here: for vectors of 32 and of 16 bytes, and with products of pairs of bfloat16.
#pragma once

#include "cpu/isa.h"

#define DECLARE(isa)             \
  namespace fusedrnn::isa {      \
  template <class Cell, class T> \
  CpuDriver<T> driver();         \
  }
DECLARE(wide)
DECLARE(narrow_vectors)
DECLARE(dot_products)
#undef DECLARE
