// The last header of a file of kernels, behind its target: both passes of the cells, compiled for its vectors.
#pragma once

#include "../test_cells.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "kernels.h"

namespace fusedrnn::FUSEDRNN_ISA {
template <class Cell, class T>
CpuDriver<T> driver() {
  return {scan_forward<Cell, T>, scan_backward<Cell, T>, nullptr};
}
}  // namespace fusedrnn::FUSEDRNN_ISA

#define INSTANTIATE(T)                            \
  template CpuDriver<T> driver<LstmCell, T>();    \
  template CpuDriver<T> driver<GruCell, T>();     \
  template CpuDriver<T> driver<TanhRnnCell, T>(); \
  template CpuDriver<T> driver<ReluRnnCell, T>();

#define INSTANTIATE_TEST_CELLS(T)                     \
  template CpuDriver<T> driver<ThreeStatesCell, T>(); \
  template CpuDriver<T> driver<FourStatesCell, T>();
