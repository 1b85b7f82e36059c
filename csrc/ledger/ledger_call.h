// A call of the Ledger while it runs.
#pragma once

#include <cstdint>
#include <vector>

#include "ledger/ledger.h"

namespace lmcache {

// What `Chunk::arriving` says besides a source (kSource + kEngine or a tier).
constexpr std::int8_t kNotNew = 0, kRefused = 1, kSource = 3;

inline std::uint8_t bit(std::size_t tier) { return static_cast<std::uint8_t>(1u << tier); }

// Keeps the records of all chunks that a call deals with until it ends, then forgets the uses of
// those that no tier has.
class Ledger::Call {
 public:
  explicit Call(ChunkTable& table) : table_(table) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    for (const Slot slot : slots_) {
      table_.forget(slot);
      table_.dereference(slot);
    }
  }
  Slot keep(Slot slot) {
    table_.reference(slot);
    slots_.push_back(slot);
    return slot;
  }
  // A chunk may stand twice in a request (content keys): its first place counts.
  Places places(Keys keys, std::size_t depth, bool only_known = false) {
    Places places;
    places.reserve(keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const Slot slot = only_known ? table_.find(keys[i]) : table_.add(keys[i]);
      if (slot == kNoSlot || table_[slot].seen) continue;
      if (only_known && table_[slot].held == 0 && table_[slot].pending == 0) continue;
      table_[slot].seen = true;
      places.push_back({keep(slot), depth + i});
    }
    for (const Place& place : places) table_[place.slot].seen = false;
    return places;
  }

 private:
  ChunkTable& table_;
  std::vector<Slot> slots_;
};

}  // namespace lmcache
