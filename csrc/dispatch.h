// Run-time cell kind to compile-time cell type, once.
#pragma once

#include "cells.h"
#include "scan.h"

namespace fusedrnn {

template <class F>
inline auto visit(CellKind kind, F&& f) {
  switch (kind) {
    case CellKind::kLstm:
      return f(LstmCell{});
    case CellKind::kGru:
      return f(GruCell{});
    case CellKind::kRnnTanh:
      return f(ElmanCell<Tanh>{});
    case CellKind::kRnnRelu:
      break;
  }
  return f(ElmanCell<Relu>{});
}

inline CellSizes cell_sizes(CellKind kind) {
  return visit(kind, [](auto cell) {
    using Cell = decltype(cell);
    return CellSizes{Cell::kGates, Cell::kSaved, Cell::kGrads};
  });
}

}  // namespace fusedrnn
