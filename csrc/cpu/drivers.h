// Both drivers for every storage type: what each isa_*.cpp compiles for its instruction set.
#pragma once

#include "backward.h"
#include "forward.h"

namespace fusedrnn::FUSEDRNN_ISA {

#define FUSEDRNN_INSTANTIATE(T)                                  \
  template void scan_forward<T>(CellKind, const ScanParams<T>&); \
  template void scan_backward<T>(CellKind, const ScanParams<T>&, const ScanGrads<T>&);
FUSEDRNN_INSTANTIATE(bfloat16)
#ifndef FUSEDRNN_DOT_PRODUCTS  // which are of bfloat16
FUSEDRNN_INSTANTIATE(float)
FUSEDRNN_INSTANTIATE(double)
FUSEDRNN_INSTANTIATE(float16)
#endif
#undef FUSEDRNN_INSTANTIATE

}  // namespace fusedrnn::FUSEDRNN_ISA
