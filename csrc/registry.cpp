// The cells that can be run, by name.
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cells.h"

namespace fusedrnn {
namespace {

template <class Cell, class... T>
CellDrivers drivers_of() {
  CellDrivers drivers{traits_of<Cell>(), {cpu_driver<Cell, T>()...}, {}};
#ifdef FUSEDRNN_WITH_CUDA
  drivers.cuda = {cuda_driver<Cell, T>()...};
#endif
  return drivers;
}

template <class... Cells>
std::deque<CellDrivers> drivers_of_all(CellList<Cells...>) {
  return {drivers_of<Cells, float, double, bfloat16, float16>()...};
}

struct Registry {
  std::mutex mutex;
  std::deque<CellDrivers> cells = drivers_of_all(BuiltInCells{});  // a deque: references stay valid

  const CellDrivers* find(std::string_view name) const {
    for (const CellDrivers& cell : cells)
      if (cell.traits.name == name) return &cell;
    return nullptr;
  }
};

Registry& registry() {
  static Registry instance;
  return instance;
}

}  // namespace

const CellDrivers& find_cell(std::string_view name) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  if (const CellDrivers* cell = r.find(name)) return *cell;
  std::string known;
  for (const CellDrivers& cell : r.cells) known += (known.empty() ? "" : ", ") + std::string(cell.traits.name);
  throw std::invalid_argument("fusedrnn: there is no cell " + std::string(name) + ", only " + known +
                              "; one of fusedrnn.cell is there once a layer of it was called or asked for its backend");
}

void register_cell(const CellDrivers& cell) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  for (CellDrivers& known : r.cells) {
    if (std::string_view(known.traits.name) != cell.traits.name) continue;
    if (!(known.traits == cell.traits))
      throw std::invalid_argument("fusedrnn: there is another cell " + std::string(cell.traits.name));
    auto add = [](auto& to, const auto& from) {
      if (!to.forward) to = from;
    };
    std::apply([&](auto&... to) { std::apply([&](const auto&... from) { (add(to, from), ...); }, cell.cpu); },
               known.cpu);
    std::apply([&](auto&... to) { std::apply([&](const auto&... from) { (add(to, from), ...); }, cell.cuda); },
               known.cuda);
    return;
  }
  r.cells.push_back(cell);
}

}  // namespace fusedrnn
