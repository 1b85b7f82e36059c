#include "ledger/ledger.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

#include "ledger/ledger_call.h"

namespace lmcache {

Ledger::Ledger(std::span<const std::optional<std::size_t>> capacities, std::string_view policy,
               std::shared_ptr<const Future> future, bool exclusive)
    : exclusive_(exclusive) {
  if (capacities.size() > kMostTiers) {
    throw std::invalid_argument(std::to_string(capacities.size()) + " tiers; at most " +
                                std::to_string(kMostTiers) + " are possible");
  }
  for (const auto& capacity : capacities) {
    tiers_.push_back({capacity, make_order(policy, capacity, table_, future)});
    if (!tiers_.back().order) {
      throw std::invalid_argument("policy '" + std::string(policy) + "' is not known");
    }
  }
}

std::vector<Digest> Ledger::keys(std::size_t tier) {
  std::vector<Digest> keys;
  for (const Slot slot : tiers_[tier].order->listed()) keys.push_back(table_[slot].key);
  return keys;
}

int Ledger::fastest(const Digest& key) const {
  const Slot slot = table_.find(key);
  if (slot == kNoSlot || table_[slot].held == 0) return kNone;
  return std::countr_zero(table_[slot].held);
}

bool Ledger::has(Slot slot, std::size_t tier) const {
  return (table_[slot].held >> tier & 1) != 0;
}

bool Ledger::holds(const Digest& key, std::size_t tier) const {
  const Slot slot = table_.find(key);
  return slot != kNoSlot && has(slot, tier);
}

bool Ledger::pending(Keys keys) const {
  return std::any_of(keys.begin(), keys.end(), [&](const Digest& key) {
    const Slot slot = table_.find(key);
    return slot != kNoSlot && table_[slot].pending != 0 && table_[slot].held == 0;
  });
}

std::size_t Ledger::pin(Keys keys) {
  std::size_t run = 0;
  while (run < keys.size() && fastest(keys[run]) != kNone) ++run;
  Call call(table_);
  for (const Place& place : call.places(keys.first(run), 0)) {
    pinned_ += table_[place.slot].pins++ == 0;
  }
  return run;
}

void Ledger::unpin(Keys keys) {
  for (const Digest& key : keys) {
    const Slot slot = table_.find(key);
    if (slot == kNoSlot || table_[slot].pins == 0) {
      throw std::invalid_argument("a hit was unpinned that is not pinned");
    }
  }
  Call call(table_);
  for (const Place& place : call.places(keys, 0)) {
    pinned_ -= --table_[place.slot].pins == 0;
    released(place.slot);
  }
}

// Tells the orders, if the chunk is not spared any more.
void Ledger::released(Slot slot) {
  if (table_.spared(slot)) return;
  for (Tier& tier : tiers_) tier.order->release(slot);
}

std::pair<std::uint8_t, std::uint8_t> Ledger::where(const Digest& key) const {
  const Slot slot = table_.find(key);
  if (slot == kNoSlot) return {0, 0};
  return {table_[slot].held, table_[slot].pending};
}

// Room for a chunk that is on its way into the tier.
void Ledger::reserve(Slot slot, std::size_t tier) {
  table_[slot].pending |= bit(tier);
  ++tiers_[tier].pending;
}

void Ledger::hold(Slot slot, std::size_t tier) {
  held_ += table_[slot].held == 0;
  table_[slot].held |= bit(tier);
  note(table_[slot].key);
}

void Ledger::give_up(Slot slot, std::size_t tier) {
  table_[slot].held &= static_cast<std::uint8_t>(~bit(tier));
  held_ -= table_[slot].held == 0;
  note(table_[slot].key);
}

// The one tier of an exclusive stack that has the chunk, held or on its way; kNone.
int Ledger::only_tier(Slot slot) const {
  const unsigned both = table_[slot].held | table_[slot].pending;
  return both == 0 ? kNone : static_cast<int>(std::bit_width(both)) - 1;
}

// A request uses these chunks. The first `counted` were recorded for the same request before: that
// was the same use.
void Ledger::record(const Places& places, std::size_t counted, Slot parent) {
  for (const auto& [slot, depth] : places) {
    table_.set_parent(slot, parent);
    Chunk& chunk = table_[slot];
    chunk.depth = static_cast<std::uint32_t>(depth);
    chunk.times = std::max<std::uint32_t>(1, chunk.times + (depth >= counted));
    chunk.turn = turn_;
    parent = slot;
  }
  turn_ += counted == 0;
}

std::vector<Digest> Ledger::restore(std::size_t tier, Keys keys) {
  Call call(table_);
  Order& order = *tiers_[tier].order;
  std::vector<Digest> surplus;
  for (const Digest& key : keys) {
    const Slot slot = call.keep(table_.add(key));
    const int only = only_tier(slot);
    if (exclusive_ && only != kNone && only != static_cast<int>(tier)) {
      surplus.push_back(key);
      continue;
    }
    // Which chunk it continues is known again when a request uses it.
    if (table_[slot].times == 0) table_[slot].times = 1;
    order.touch(slot);
    hold(slot, tier);
  }
  const auto over = [&] {
    return tiers_[tier].capacity && order.size() > *tiers_[tier].capacity;
  };
  const auto discard = [&](Slot slot) {
    order.drop(call.keep(slot));
    give_up(slot, tier);
    surplus.push_back(table_[slot].key);
  };
  for (Slot victim; over() && (victim = order.victim()) != kNoSlot;) discard(victim);
  if (over()) {  // no victims, but chunks that wait for room: there is none for any
    for (const Slot slot : order.listed()) {
      if (over() && !table_.spared(slot)) discard(slot);
    }
  }
  return surplus;
}

void Ledger::touch(Keys keys, std::size_t counted) {
  Call call(table_);
  Places places = call.places(keys, 0, true);
  record(places, counted, kNoSlot);
  for (Tier& tier : tiers_) {
    for (auto place = places.rbegin(); place != places.rend(); ++place) {
      if (tier.order->has(place->slot)) tier.order->touch(place->slot);
    }
  }
}

void Ledger::complete_store(const Digest& key, std::size_t target, bool stored) {
  const Slot slot = table_.find(key);
  if (slot == kNoSlot || (table_[slot].pending >> target & 1) == 0) {
    throw std::invalid_argument("a move was settled that is not under way");
  }
  table_[slot].pending &= static_cast<std::uint8_t>(~bit(target));
  --tiers_[target].pending;
  Call call(table_);
  call.keep(slot);
  if (stored) {
    hold(slot, target);
  } else {
    tiers_[target].order->drop(slot);
    note(key);
  }
  released(slot);
}

bool Ledger::forget(const Digest& key, std::size_t tier) {
  const Slot slot = table_.find(key);
  if (slot == kNoSlot || !has(slot, tier)) return false;
  // What is on its way into a slower tier may be being copied from this one.
  if (table_[slot].pins > 1 || table_[slot].pending != 0) return false;
  Call call(table_);
  tiers_[tier].order->drop(call.keep(slot));
  give_up(slot, tier);
  return true;
}

std::vector<Move> Ledger::clear() {
  std::vector<Move> moves;
  Call call(table_);
  for (std::size_t tier = 0; tier < tiers_.size(); ++tier) {
    std::vector<Slot> gone = tiers_[tier].order->listed();
    std::erase_if(gone, [&](Slot slot) { return table_.spared(slot); });
    for (const Slot slot : gone) {
      give_up(call.keep(slot), tier);
      moves.push_back(move(slot, static_cast<int>(tier), kNowhere));
    }
    // From the end: what is next to go is what a heap has most work to part with.
    for (auto slot = gone.rbegin(); slot != gone.rend(); ++slot) tiers_[tier].order->drop(*slot);
  }
  return moves;
}

void Ledger::spoil(const Digest& key, std::uint8_t held, std::uint8_t pending) {
  const Slot slot = table_.add(key);
  table_[slot].held = held;
  table_[slot].pending = pending;
}

std::optional<std::string> Ledger::broken() {
  std::vector<std::size_t> owned(tiers_.size()), pending(tiers_.size());
  std::size_t held = 0, pinned = 0;
  for (Slot slot = 0; slot < table_.slots(); ++slot) {
    const Chunk& chunk = table_[slot];
    const std::string name = "chunk " + std::to_string(slot);
    const unsigned both = chunk.held | chunk.pending;
    held += chunk.held != 0;
    pinned += chunk.pins != 0;
    if ((chunk.held & chunk.pending) != 0) {
      return name + " is both held by a tier and being written to it";
    }
    if (exclusive_ && std::popcount(both) > 1) return "exclusive " + name + " is in several tiers";
    if ((both != 0) != (chunk.times != 0)) {
      return "uses are kept of other chunks than the held and pending ones";
    }
    if (chunk.arriving != kNotNew || chunk.seen) return name + " belongs to a call that has ended";
    for (std::size_t tier = 0; tier < tiers_.size(); ++tier) {
      owned[tier] += both >> tier & 1;
      pending[tier] += chunk.pending >> tier & 1;
    }
  }
  if (held != held_) {
    return std::to_string(held) + " chunks are held, " + std::to_string(held_) + " are counted";
  }
  if (pinned != pinned_) {
    return std::to_string(pinned) + " chunks are pinned, " + std::to_string(pinned_) +
           " are counted";
  }
  for (std::size_t tier = 0; tier < tiers_.size(); ++tier) {
    const std::string name = "tier " + std::to_string(tier);
    const std::vector<Slot> listed = tiers_[tier].order->listed();
    std::vector<bool> seen(table_.slots());
    for (const Slot slot : listed) {
      if (seen[slot]) return name + ": the policy lists a chunk twice";
      seen[slot] = true;
      if (((table_[slot].held | table_[slot].pending) >> tier & 1) == 0) {
        return name + ": the policy lists a chunk that the tier does not own";
      }
    }
    if (listed.size() != owned[tier] || listed.size() != tiers_[tier].order->size()) {
      return name + ": " + std::to_string(listed.size()) + " chunks ordered, " +
             std::to_string(owned[tier]) + " owned";
    }
    if (tiers_[tier].capacity && listed.size() > *tiers_[tier].capacity) {
      return name + ": " + std::to_string(listed.size()) + " chunks over capacity " +
             std::to_string(*tiers_[tier].capacity);
    }
    if (pending[tier] != tiers_[tier].pending) {
      return name + ": " + std::to_string(pending[tier]) + " chunks on their way, " +
             std::to_string(tiers_[tier].pending) + " counted";
    }
  }
  return std::nullopt;
}

}  // namespace lmcache
