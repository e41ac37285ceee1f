// Shared memory, asynchronous copies into it, stores to other blocks of the cluster, and memory that stays as it is.
#include <cstring>

#include "sanitizers.h"
#include "scheduler.h"

namespace emulator {
namespace {

bool in_shared_memory(const void* p, size_t bytes) {
  const Block& block = *machine.running->block;
  auto begin = static_cast<const unsigned char*>(p);
  return begin >= block.shared && begin + bytes <= block.shared + block.shared_bytes;
}

bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

void land(const Copy& copy) {
  if (copy.valid) reads(copy.from, copy.bytes);
  writes(copy.to, copy.bytes);
  if (copy.valid)
    raw_copy(copy.to, copy.from, copy.bytes);
  else
    raw_fill(copy.to, 0, copy.bytes);
}

}  // namespace

unsigned char* shared_memory() { return machine.running->block->shared; }

size_t red_zone(unsigned char* array, size_t bytes) {
  if (!array) return 0;
  if (!in_shared_memory(array, bytes)) fail("more shared memory is carved than the launch gave", {});
#ifdef EMULATOR_ASAN
  constexpr size_t kGap = 64;
  poison(array + bytes, (16 - bytes % 16) % 16 + kGap);
  return kGap;
#else
  return 0;
#endif
}

// ---- asynchronous copies: done at once, or not before they are waited for

void copy_async(void* shared, const void* global, int bytes, bool valid, Site site) {
  ++counts.copies;
  if (!aligned(shared, bytes) || (valid && !aligned(global, bytes))) fail("an asynchronous copy is misaligned", site);
  if (!in_shared_memory(shared, bytes)) fail("an asynchronous copy goes elsewhere than to shared memory", site);
  Thread* self = machine.running;
  self->site = site;
  Copy copy{static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, valid};
  if (hostile() && random_below(4) == 0) return land(copy);  // early: shows buffers that are overwritten too soon
  if (valid) reads(copy.from, bytes);
  writes(copy.to, bytes);
  raw_fill(copy.to, 0xff, bytes);  // late: the old contents are gone, the new ones are not there
  self->copies.push_back(copy);
}

void copy_async_commit() { machine.running->groups.push_back(machine.running->copies.size()); }

void copy_async_wait(int groups) {
  Thread* self = machine.running;
  int ended = int(self->groups.size()) - groups;
  if (ended <= 0) return;
  size_t landed = self->groups[ended - 1];
  for (size_t i = 0; i < landed; ++i) land(self->copies[i]);
  self->copies.erase(self->copies.begin(), self->copies.begin() + landed);
  self->groups.erase(self->groups.begin(), self->groups.begin() + ended);
  for (size_t& end : self->groups) end -= landed;
}

// ---- clusters

namespace {

// Where p, in this block's shared memory, lies in that of block `rank` of the cluster.
void* in_peer(void* p, unsigned rank, Site site) {
  const Block& block = *machine.running->block;
  if (!in_shared_memory(p, 1)) fail("an asynchronous store to what is not shared memory", site);
  if (rank >= block.cluster->blocks.size()) fail("there is no block " + std::to_string(rank) + " in the cluster", site);
  const Block& peer = *block.cluster->blocks[rank];
  if (!peer.started) fail("the other block's shared memory is used before that block has started", site);
  if (peer.live == 0) fail("the other block's shared memory is used after that block has left", site);
  return peer.shared + (static_cast<unsigned char*>(p) - block.shared);
}

}  // namespace

void store_async(void* shared, uint64_t* barrier, unsigned rank, const void* value, Site site) {
  Message message;
  if (!aligned(shared, sizeof message.bytes)) fail("an asynchronous store is misaligned", site);
  message.to = static_cast<unsigned char*>(in_peer(shared, rank, site));
  message.barrier = static_cast<uint64_t*>(in_peer(barrier, rank, site));
  writes(message.to, sizeof message.bytes);
  release(message.barrier);
  raw_copy(message.bytes, static_cast<const unsigned char*>(value), sizeof message.bytes);
  machine.messages.push_back(message);
}

}  // namespace emulator
