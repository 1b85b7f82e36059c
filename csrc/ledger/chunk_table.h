// What is known of chunks: one record each, found by its key.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "hash/sha256.h"

namespace lmcache {

// A record's number; the number of one that was freed is given again.
using Slot = std::uint32_t;
constexpr Slot kNoSlot = ~Slot{0};

// An array that grows block by block. What it has never moves, so that no call pays for a copy of
// all, however large it has become.
template <typename T>
class Blocks {
 public:
  explicit Blocks(const T& fill = T{}) : fill_(fill) {}
  T& operator[](std::size_t i) {
    while (i >> kBits >= blocks_.size()) {
      blocks_.push_back(std::make_unique_for_overwrite<T[]>(kItems));
      std::fill_n(blocks_.back().get(), kItems, fill_);
    }
    return blocks_[i >> kBits][i & (kItems - 1)];
  }
  // Only for what was written before.
  const T& operator[](std::size_t i) const { return blocks_[i >> kBits][i & (kItems - 1)]; }

 private:
  static constexpr std::size_t kBits = 12, kItems = std::size_t{1} << kBits;
  T fill_;
  std::vector<std::unique_ptr<T[]>> blocks_;
};

struct Chunk {
  Digest key{};
  Slot next = kNoSlot;    // in its bucket, or of those that are free
  Slot parent = kNoSlot;  // the chunk before it in the request that used it last
  std::uint32_t depth = 0;
  std::uint32_t times = 0;  // requests that have used it since any tier took it; 0: none has it
  std::uint32_t turn = 0;   // the number of the last of them
  std::uint32_t pins = 0;
  std::uint32_t references = 0;  // of orders that remember it, of chunks behind it, of calls
  std::uint8_t held = 0;         // bit per tier that can serve it
  std::uint8_t pending = 0;      // bit per tier that it is being written to
  bool seen = false;             // for the call that is running
  std::int8_t arriving = 0;      // likewise
};
static_assert(sizeof(Chunk) == 64);

// Linear hashing (Litwin, VLDB 1980): the table grows by one bucket with each chunk, so none of
// them waits for all others to be moved.
class ChunkTable {
 public:
  Slot find(const Digest& key) const;
  Slot add(const Digest& key);  // the one that is there, if any

  Chunk& operator[](Slot slot) { return chunks_[slot]; }
  const Chunk& operator[](Slot slot) const { return chunks_[slot]; }

  // Whether it may not be evicted.
  bool spared(Slot slot) const {
    const Chunk& chunk = chunks_[slot];
    return chunk.pins != 0 || chunk.pending != 0;
  }

  void reference(Slot slot) { ++chunks_[slot].references; }
  // Frees the record if that was the last that anyone wanted of it.
  void dereference(Slot slot);
  // Forgets the uses of a chunk that no tier has any more, and frees the record likewise.
  void forget(Slot slot);
  void set_parent(Slot slot, Slot parent);

  // Slots are below this.
  std::size_t slots() const { return slots_; }
  std::size_t size() const { return size_; }

  // Steps that searches for victims took: their cost, for tests.
  mutable std::size_t steps = 0;

 private:
  std::size_t bucket(const Digest& key) const;
  void split();
  void free(Slot slot);

  Blocks<Chunk> chunks_;
  Blocks<Slot> buckets_{kNoSlot};
  std::size_t bucket_count_ = 1, slots_ = 0, size_ = 0;
  Slot free_ = kNoSlot;
};

}  // namespace lmcache
