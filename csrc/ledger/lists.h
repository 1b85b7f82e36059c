// Linked lists over chunks, oldest first, that know their oldest chunk that is not spared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ledger/chunk_table.h"

namespace lmcache {

// A chunk is in one list at most. Spared chunks that a search has come upon are set aside where they
// are: neighbours that are set aside form a run, whose two ends know each other, so that the next
// search steps over it at once. A chunk that is released inside a run splits it, for as many steps
// as the nearer end is away: n releases of one run cost O(n log n) together, in any order.
class Lists {
 public:
  static constexpr std::uint8_t kNowhere = 255;

  Lists(const ChunkTable& table, std::size_t lists) : table_(table), ends_(lists) {}

  std::size_t size(std::uint8_t list) const { return ends_[list].size; }
  std::uint8_t of(Slot slot) { return nodes_[slot].list; }
  std::uint8_t& uses(Slot slot) { return nodes_[slot].uses; }
  Slot oldest(std::uint8_t list) const { return ends_[list].oldest; }
  // As the list's newest, out of the list that it is in; uses become 0.
  void put(Slot slot, std::uint8_t list);
  void remove(Slot slot);
  // The oldest that is not spared; kNoSlot if there is none.
  Slot victim(std::uint8_t list);
  // What is older than the list's victim becomes its newest, in that order.
  void turn_to(Slot victim);
  void release(Slot slot);
  // Oldest first.
  std::vector<Slot> listed(std::uint8_t list) const;

 private:
  struct Node {
    Slot older = kNoSlot, newer = kNoSlot;
    Slot end = kNoSlot;  // of one end of a run: the other
    std::uint8_t list = kNowhere;
    std::uint8_t uses = 0;
    bool aside = false;
  };
  struct Ends {
    Slot oldest = kNoSlot, newest = kNoSlot;
    std::size_t size = 0;
  };

  bool aside(Slot slot) { return slot != kNoSlot && nodes_[slot].aside; }
  void join(Slot first, Slot last);
  Slot set_aside(Slot slot);

  const ChunkTable& table_;
  Blocks<Node> nodes_;
  std::vector<Ends> ends_;
};

}  // namespace lmcache
