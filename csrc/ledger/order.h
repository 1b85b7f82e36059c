// Orders over chunks: which one goes when a tier is full. An order knows no bytes and no tiers.
//
// A chunk that is spared (pinned, or on its way into a tier) is no victim, but keeps its place.
// Searches that come upon one set it aside, so that none comes upon it again until it is released:
// what is spared costs once, however many victims are asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ledger/chunk_table.h"

namespace lmcache {

// The order of one tier. It holds exactly the chunks that were touched and have not left. A
// request's chunks are touched one after another, its last chunk first; only then does the tier ask
// for victims until it fits, so that for a moment an order holds more than its capacity.
class Order {
 public:
  virtual ~Order() = default;
  // The chunk was used, or came down from another tier: it enters the order, or moves in it.
  virtual void touch(Slot slot) = 0;
  // The chunk to evict next; kNoSlot if all are spared, and then what came last has to go. May move
  // chunks within the order, but none in or out.
  virtual Slot victim() = 0;
  // The chunk has left to make room: an order with ghosts remembers it.
  virtual void evict(Slot slot) = 0;
  // The chunk has left for another reason (a failed write, a move to another tier). Unknown ones
  // are ignored.
  virtual void drop(Slot slot) = 0;
  // The chunk is spared no more. Unknown ones are ignored.
  virtual void release(Slot slot) = 0;
  virtual bool has(Slot slot) = 0;
  virtual std::size_t size() const = 0;
  // Chunks, the next victim first, as if nothing were used or spared any more.
  virtual std::vector<Slot> listed() = 0;
};

// When each chunk will be used: request i is the Ledger's admission i.
class Future {
 public:
  void add(std::uint32_t turn, std::span<const Digest> keys);
  // The first request after `turn` that uses the chunk; infinity if none does.
  double next_use(const Digest& key, std::uint32_t turn) const;

 private:
  struct Hash {
    std::size_t operator()(const Digest& key) const;
  };
  std::unordered_map<Digest, std::vector<std::uint32_t>, Hash> turns_;
};

// By name, for a tier of so many chunks (none: without a bound); nullptr if the name is not known.
// "belady" needs a future.
std::unique_ptr<Order> make_order(std::string_view name, std::optional<std::size_t> capacity,
                                  ChunkTable& table, std::shared_ptr<const Future> future);

// Those of order_lists.cpp alone.
std::unique_ptr<Order> make_listed(std::string_view name, std::optional<std::size_t> capacity,
                                   ChunkTable& table);

}  // namespace lmcache
