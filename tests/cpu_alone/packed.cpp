// A program that multiplies by packed weights: reads the number of rows, of bytes of a block, the block and rows [I]
// from a file, and writes W_ih x [rows, G, H].
#include "cpu/isa.h"

#define FUSEDRNN_ISA packed_alone
#define FUSEDRNN_VECTOR_BYTES 16
#include <cstdio>
#include <vector>

#include "cpu/packed_kernels.h"

using namespace fusedrnn;

namespace {

template <class E>
std::vector<E> read(std::FILE* file, int64_t count) {
  std::vector<E> all(static_cast<size_t>(count));
  if (std::fread(all.data(), sizeof(E), all.size(), file) != all.size()) std::abort();
  return all;
}

}  // namespace

int main(int, char** arguments) {
  std::FILE* file = std::fopen(arguments[1], "rb");
  auto counts = read<int64_t>(file, 2);
  auto block = read<std::byte>(file, counts[1]);
  const PackedWeights weights = packed_weights(block.data());
  const PackedMatrix& w = weights.w_ih;
  int64_t rows = counts[0], H = w.units, all = w.gates * H;
  auto x = read<float>(file, rows * w.k);
  std::vector<float> room(rows * operand_room(w)), bias(64), products(rows * all + 16);
  std::vector<const float*> given, operands(rows);
  for (int64_t n = 0; n < rows; ++n) given.push_back(x.data() + n * w.k);
  const PackedKernels& kernels = packed_alone::packed_kernels();
  kernels.take_operands(w, rows, given.data(), room.data(), operands.data());
  int64_t panel = packed_alone::panel_for<float>(rows);
  std::vector<float> tile(rows * 64);
  for (int g = 0; g < w.gates; ++g)
    for (int64_t j = 0; j < H; j += panel) {
      int64_t columns = packed_alone::least(panel, H - j);
      kernels.multiply(w, {j, g, columns}, rows, operands.data(), bias.data(), tile.data(), 64);
      for (int64_t n = 0; n < rows; ++n)
        std::memcpy(&products[n * all + g * H + j], &tile[n * 64], columns * sizeof(float));
    }
  std::fwrite(products.data(), sizeof(float), rows * all, stdout);
}
