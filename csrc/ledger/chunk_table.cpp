#include "ledger/chunk_table.h"

#include <bit>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "curves/recency.h"

namespace lmcache {

std::size_t ChunkTable::bucket(const Digest& key) const {
  std::uint64_t words[sizeof(Digest) / sizeof(std::uint64_t)], hash = 0;
  std::memcpy(words, key.data(), sizeof(words));
  for (const std::uint64_t word : words) hash = mix(hash ^ word);
  const std::size_t low = std::bit_floor(bucket_count_);
  const std::size_t wide = hash & (2 * low - 1);
  return wide < bucket_count_ ? wide : hash & (low - 1);
}

Slot ChunkTable::find(const Digest& key) const {
  if (size_ == 0) return kNoSlot;
  Slot slot = buckets_[bucket(key)];
  while (slot != kNoSlot && chunks_[slot].key != key) slot = chunks_[slot].next;
  return slot;
}

void ChunkTable::split() {
  const std::size_t from = bucket_count_ - std::bit_floor(bucket_count_);
  buckets_[bucket_count_++] = kNoSlot;
  Slot slot = std::exchange(buckets_[from], kNoSlot);
  while (slot != kNoSlot) {
    Slot& head = buckets_[bucket(chunks_[slot].key)];
    const Slot next = std::exchange(chunks_[slot].next, head);
    head = std::exchange(slot, next);
  }
}

Slot ChunkTable::add(const Digest& key) {
  if (const Slot slot = find(key); slot != kNoSlot) return slot;
  if (size_ >= bucket_count_) split();
  Slot slot = free_;
  if (slot != kNoSlot) {
    free_ = chunks_[slot].next;
  } else {
    if (slots_ >= kNoSlot) throw std::length_error("the ledger is full: it has 2^32 - 1 chunks");
    slot = static_cast<Slot>(slots_++);
  }
  Slot& head = buckets_[bucket(key)];
  Chunk& chunk = chunks_[slot];
  chunk = Chunk{};
  chunk.key = key;
  chunk.next = std::exchange(head, slot);
  ++size_;
  return slot;
}

void ChunkTable::free(Slot slot) {
  Slot* link = &buckets_[bucket(chunks_[slot].key)];
  while (*link != slot) link = &chunks_[*link].next;
  *link = std::exchange(chunks_[slot].next, free_);
  free_ = slot;
  --size_;
}

void ChunkTable::set_parent(Slot slot, Slot parent) {
  if (parent != kNoSlot) reference(parent);
  const Slot before = std::exchange(chunks_[slot].parent, parent);
  if (before != kNoSlot) dereference(before);
}

void ChunkTable::dereference(Slot slot) {
  if (--chunks_[slot].references == 0) forget(slot);
}

void ChunkTable::forget(Slot slot) {
  // A loop, not a recursion: whole prompts can hang on one chunk.
  while (slot != kNoSlot) {
    Chunk& chunk = chunks_[slot];
    if (chunk.held != 0 || chunk.pending != 0) return;
    chunk.times = 0;
    const Slot parent = std::exchange(chunk.parent, kNoSlot);
    if (chunk.references == 0 && chunk.pins == 0) free(slot);
    if (parent == kNoSlot || --chunks_[parent].references != 0) return;
    slot = parent;
  }
}

}  // namespace lmcache
