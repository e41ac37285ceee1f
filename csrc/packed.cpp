// Where the parts of a packed block begin.
#include "packed.h"

#include <cstring>

namespace fusedrnn {
namespace {

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

class Sections {
 public:
  explicit Sections(const void* block) : at_(static_cast<const std::byte*>(block)) {
    take<std::byte>(sizeof(PackedHeader));
  }

  template <class E>
  const E* take(int64_t count) {
    auto section = reinterpret_cast<const E*>(at_ + bytes_);
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(E)), 64);
    return section;
  }
  int64_t bytes() const { return bytes_; }

 private:
  const std::byte* at_;
  int64_t bytes_ = 0;
};

}  // namespace

PackedWeights packed_weights(const void* block) {
  PackedHeader head;
  std::memcpy(&head, block, sizeof head);
  auto storage = static_cast<Storage>(head.storage);
  int64_t H = round_up(head.hidden, kPackedLanes), depth = kStorageDepth[head.storage];
  Sections sections(block);
  auto matrix = [&](int64_t gates, int64_t k) {
    int64_t count = gates * H * round_up(k, depth) * kStorageBytes[head.storage];
    return PackedMatrix{storage, static_cast<int>(gates), head.hidden, k, sections.take<std::byte>(count), nullptr,
                        nullptr};
  };
  auto add_scales = [&](PackedMatrix& w) {
    w.scales = sections.take<float>(w.gates * H);
    w.sums = sections.take<int32_t>(w.gates * H);
  };
  PackedWeights all{
      matrix(head.gates, head.input), matrix(head.recurrent, head.projected), nullptr, nullptr, nullptr, 0};
  if (storage == Storage::kInt8) add_scales(all.w_ih), add_scales(all.w_hh);
  all.b_ih = sections.take<float>(head.gates * H);
  all.b_hh = sections.take<float>(head.recurrent * H);
  all.vectors = sections.take<float>(head.vectors * H);
  all.bytes = sections.bytes();
  return all;
}

}  // namespace fusedrnn
