// Who holds what: lookup, pins, placement. Decides everything and moves no byte.
// cache_core/ledger.py says what each verb means.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ledger/chunk_table.h"
#include "ledger/order.h"

namespace lmcache {

struct Move {
  Digest key;
  int source, target;  // kEngine or a tier; kNowhere or a tier
  std::int64_t index;
};

class Ledger {
 public:
  static constexpr int kEngine = -1, kNowhere = -1, kNone = -1;
  static constexpr std::size_t kMostTiers = 8;
  using Keys = std::span<const Digest>;

  // What decides for each tier which new chunks may enter it, if anything does.
  class Gate {
   public:
    virtual ~Gate() = default;
    virtual bool open(std::size_t tier) const = 0;  // to all
    // Which of the new chunks, first chunk of the prompt first, may enter.
    virtual std::vector<bool> select(std::size_t tier, const std::vector<const Chunk*>& chunks) = 0;
    virtual void entered(std::size_t tier, std::size_t chunks) = 0;
  };

  struct Tier {
    std::optional<std::size_t> capacity;  // none: without a bound
    std::unique_ptr<Order> order;
    std::uint64_t evictions = 0, refusals = 0;
    std::size_t pending = 0;  // chunks on their way into it
  };

  // A policy's name and capacity of each tier, fastest first. An unbounded policy's capacity must
  // be none. Throws std::invalid_argument.
  Ledger(std::span<const std::optional<std::size_t>> capacities, std::string_view policy,
         std::shared_ptr<const Future> future, bool exclusive);
  // Orders refer to the table.
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  std::size_t size() const { return held_; }
  const std::vector<Tier>& tiers() const { return tiers_; }
  std::size_t records() const { return table_.size(); }
  std::size_t steps() const { return table_.steps; }
  std::vector<Digest> keys(std::size_t tier);
  // The fastest tier that can serve a chunk; kNone.
  int fastest(const Digest& key) const;
  bool holds(const Digest& key, std::size_t tier) const;
  bool pending(Keys keys) const;
  // Bits of the tiers that can serve a chunk, and of those that it is on its way into.
  std::pair<std::uint8_t, std::uint8_t> where(const Digest& key) const;
  std::size_t pinned() const { return pinned_; }

  // From here on notes each chunk that a tier gets, loses or fails to get.
  void follow() { followed_ = true; }
  // What was noted since the last call; a chunk may stand there twice.
  std::vector<Digest> changed() { return std::exchange(changed_, {}); }

  // Chunks of the leading run that is held, now pinned once each.
  std::size_t pin(Keys keys);
  void unpin(Keys keys);
  std::vector<Digest> restore(std::size_t tier, Keys keys);
  std::vector<Move> prepare_store(Keys keys, std::size_t counted, const Digest* parent,
                                  std::size_t depth, Gate& gate);
  void touch(Keys keys, std::size_t counted);
  std::vector<Move> register_chunks(Keys keys, std::size_t tier);
  void complete_store(const Digest& key, std::size_t target, bool stored);
  bool forget(const Digest& key, std::size_t tier);
  std::vector<Move> clear();

  // The first invariant that does not hold, in words.
  std::optional<std::string> broken();
  // Overwrites what a chunk's record says of the tiers that have it: a means of testing `broken`.
  void spoil(const Digest& key, std::uint8_t held, std::uint8_t pending);

 private:
  class Call;
  struct Place {
    Slot slot;
    std::size_t index;  // in the prompt
  };
  struct Leaving {
    Slot slot;
    int source;  // where its bytes are
  };
  using Places = std::vector<Place>;

  std::vector<Move> insert(Call& call, const Places& tail_first, Gate& gate);
  std::vector<Move> cascade(Call& call, const Places& tail_first, Gate& gate);
  void refuse(std::size_t tier, const std::vector<Slot>& fresh, Gate& gate);
  std::vector<Leaving> cut(Call& call, std::size_t tier, std::vector<Slot>& fresh);
  void record(const Places& places, std::size_t counted, Slot parent);
  bool has(Slot slot, std::size_t tier) const;
  int only_tier(Slot slot) const;
  void reserve(Slot slot, std::size_t tier);
  void hold(Slot slot, std::size_t tier);
  void give_up(Slot slot, std::size_t tier);
  void released(Slot slot);
  void note(const Digest& key) {
    if (followed_) changed_.push_back(key);
  }
  Move move(Slot slot, int source, int target, std::int64_t index = -1) const {
    return {table_[slot].key, source, target, index};
  }

  ChunkTable table_;
  std::vector<Tier> tiers_;
  const bool exclusive_;
  std::size_t held_ = 0, pinned_ = 0;  // chunks
  bool followed_ = false;
  std::vector<Digest> changed_;
  std::uint32_t turn_ = 0;
};

}  // namespace lmcache
