// The CPU kernels as they are compiled here: for vectors of 32 and of 16 bytes, and with products of pairs of bfloat16.
#pragma once

#include "cpu/isa.h"

#define DECLARE(isa)                                                                         \
  namespace fusedrnn::isa {                                                                  \
  template <class T>                                                                         \
  void scan_forward(CellKind cell, const ScanParams<T>& params);                             \
  template <class T>                                                                         \
  void scan_backward(CellKind cell, const ScanParams<T>& params, const ScanGrads<T>& grads); \
  }
DECLARE(wide)
DECLARE(narrow_vectors)
DECLARE(dot_products)
#undef DECLARE

#define INSTANTIATE(T)                                           \
  template void scan_forward<T>(CellKind, const ScanParams<T>&); \
  template void scan_backward<T>(CellKind, const ScanParams<T>&, const ScanGrads<T>&);
