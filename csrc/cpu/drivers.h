// Both drivers of every built-in cell and storage type: what each isa_*.cpp compiles for its instruction set.
#pragma once

#include "backward.h"
#include "forward.h"
#include "packed_gates.h"
#include "packed_kernels.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
CpuDriver<T> driver() {
  CpuDriver<T> driver{scan_forward<Cell, T>, scan_backward<Cell, T>, nullptr};
  if constexpr (std::is_same_v<T, float>) driver.packed = scan_packed<Cell>;
  return driver;
}

template <class T, class... Cells>
auto instantiate(CellList<Cells...>) {
  return std::array{&driver<Cells, T>...};
}
template auto instantiate<bfloat16>(BuiltInCells);
#ifndef FUSEDRNN_DOT_PRODUCTS  // which are of bfloat16
template auto instantiate<float>(BuiltInCells);
template auto instantiate<double>(BuiltInCells);
template auto instantiate<float16>(BuiltInCells);
#endif

}  // namespace fusedrnn::FUSEDRNN_ISA
