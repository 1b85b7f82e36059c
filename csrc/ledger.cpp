#include "ledger.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <unordered_map>
#include <utility>

namespace lmcache {

namespace {

// What `Chunk::arriving` says besides a source (kSource + kEngine or a tier).
constexpr std::int8_t kNotNew = 0, kRefused = 1, kSource = 3;

std::uint8_t bit(std::size_t tier) { return static_cast<std::uint8_t>(1u << tier); }

}  // namespace

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
  for (const Place& place : call.places(keys.first(run), 0)) ++table_[place.slot].pins;
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
    --table_[place.slot].pins;
    released(place.slot);
  }
}

// Tells the orders, if the chunk is not spared any more.
void Ledger::released(Slot slot) {
  if (table_.spared(slot)) return;
  for (Tier& tier : tiers_) tier.order->release(slot);
}

void Ledger::hold(Slot slot, std::size_t tier) {
  held_ += table_[slot].held == 0;
  table_[slot].held |= bit(tier);
}

void Ledger::give_up(Slot slot, std::size_t tier) {
  table_[slot].held &= static_cast<std::uint8_t>(~bit(tier));
  held_ -= table_[slot].held == 0;
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

std::vector<Move> Ledger::admit(Keys keys, std::size_t counted, const Digest* parent,
                                std::size_t depth, Gate& gate) {
  Call call(table_);
  Slot before = kNoSlot;
  if (parent != nullptr) before = call.keep(table_.add(*parent));
  Places places = call.places(keys, depth);
  record(places, counted, before);
  std::reverse(places.begin(), places.end());
  return exclusive_ ? cascade(call, places, gate) : insert(call, places, gate);
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

std::vector<Move> Ledger::adopt(Keys keys, std::size_t tier) {
  Call call(table_);
  Order& order = *tiers_[tier].order;
  std::vector<Slot> slots, fresh;
  for (const Digest& key : keys) {
    const Slot slot = call.keep(table_.add(key));
    Chunk& chunk = table_[slot];
    if (chunk.times == 0) {  // it counts as used
      chunk.times = 1;
      chunk.turn = turn_;
      chunk.depth = static_cast<std::uint32_t>(slots.size());
      table_.set_parent(slot, slots.empty() ? kNoSlot : slots.back());
    }
    slots.push_back(slot);
  }
  for (auto slot = slots.rbegin(); slot != slots.rend(); ++slot) {
    if (!order.has(*slot)) {
      if (exclusive_ && only_tier(*slot) != kNone) continue;
      table_[*slot].arriving = kSource + kEngine;
      fresh.push_back(*slot);
    }
    order.touch(*slot);
  }
  std::vector<Move> gone;
  for (const auto& [slot, source] : cut(call, tier, fresh)) {
    if (source != kEngine) gone.push_back(move(slot, source, kNowhere));
  }
  for (const Slot slot : fresh) {
    table_[slot].arriving = kNotNew;
    hold(slot, tier);
  }
  return gone;
}

void Ledger::settle(const Digest& key, std::size_t target, bool stored) {
  const Slot slot = table_.find(key);
  if (slot == kNoSlot || (table_[slot].pending >> target & 1) == 0) {
    throw std::invalid_argument("a move was settled that is not under way");
  }
  table_[slot].pending &= static_cast<std::uint8_t>(~bit(target));
  Call call(table_);
  call.keep(slot);
  if (stored) {
    hold(slot, target);
  } else {
    tiers_[target].order->drop(slot);
  }
  released(slot);
}

bool Ledger::forget(const Digest& key, std::size_t tier) {
  const Slot slot = table_.find(key);
  if (slot == kNoSlot || !has(slot, tier) || table_[slot].pins > 1) return false;
  Call call(table_);
  tiers_[tier].order->drop(call.keep(slot));
  give_up(slot, tier);
  return true;
}

std::vector<Move> Ledger::clear() {
  std::vector<Move> moves;
  Call call(table_);
  for (std::size_t tier = 0; tier < tiers_.size(); ++tier) {
    for (const Slot slot : tiers_[tier].order->listed()) {
      if (table_.spared(slot)) continue;
      tiers_[tier].order->drop(call.keep(slot));
      give_up(slot, tier);
      moves.push_back(move(slot, static_cast<int>(tier), kNowhere));
    }
  }
  return moves;
}

// Marks those of the new chunks, last chunk first, that the tier's admission keeps out.
void Ledger::refuse(std::size_t tier, const std::vector<Slot>& fresh, Gate& gate) {
  if (fresh.empty() || gate.open(tier)) return;
  std::vector<const Chunk*> in_order;
  for (auto slot = fresh.rbegin(); slot != fresh.rend(); ++slot) {
    in_order.push_back(&table_[*slot]);
  }
  const std::vector<bool> selected = gate.select(tier, in_order);
  if (selected.size() != fresh.size()) {
    throw std::invalid_argument("an admission answered for " + std::to_string(selected.size()) +
                                " of " + std::to_string(fresh.size()) + " chunks");
  }
  for (std::size_t i = 0; i < fresh.size(); ++i) {
    if (selected[fresh.size() - 1 - i]) continue;
    table_[fresh[i]].arriving = kRefused;
    ++tiers_[tier].refusals;
  }
}

// Evicts until the tier fits, as its policy says. New chunks can fall out again (they are taken from
// `fresh`); if nothing else can go, they must, last chunk first.
std::vector<Ledger::Leaving> Ledger::cut(Call& call, std::size_t number, std::vector<Slot>& fresh) {
  Tier& tier = tiers_[number];
  std::vector<Leaving> out;
  std::size_t next = 0;
  while (tier.capacity && tier.order->size() > *tier.capacity) {
    Slot slot = tier.order->victim();
    if (slot != kNoSlot) {
      call.keep(slot);
      tier.order->evict(slot);
    } else {
      while (next < fresh.size() && table_[fresh[next]].arriving == kNotNew) ++next;
      if (next == fresh.size()) {
        throw std::logic_error("tier " + std::to_string(number) +
                               " is over its capacity and nothing can leave");
      }
      slot = call.keep(fresh[next]);
      tier.order->drop(slot);
    }
    if (const std::int8_t source = std::exchange(table_[slot].arriving, kNotNew)) {
      out.push_back({slot, source - kSource});
    } else {
      give_up(slot, number);
      ++tier.evictions;
      out.push_back({slot, static_cast<int>(number)});
    }
  }
  std::erase_if(fresh, [&](Slot slot) { return table_[slot].arriving == kNotNew; });
  return out;
}

// Inclusive: every tier takes every chunk and evicts on its own.
std::vector<Move> Ledger::insert(Call& call, const Places& tail_first, Gate& gate) {
  std::vector<Move> leaving;
  std::vector<std::pair<Place, int>> coming;
  for (std::size_t tier = 0; tier < tiers_.size(); ++tier) {
    Order& order = *tiers_[tier].order;
    std::vector<Slot> fresh;
    for (const auto& [slot, index] : tail_first) {
      if (!order.has(slot)) fresh.push_back(slot);
    }
    refuse(tier, fresh, gate);
    for (const Slot slot : fresh) {
      if (table_[slot].arriving != kRefused) table_[slot].arriving = kSource + kEngine;
    }
    for (const auto& [slot, index] : tail_first) {
      if (table_[slot].arriving != kRefused) {
        order.touch(slot);
      } else {
        table_[slot].arriving = kNotNew;
      }
    }
    for (const auto& [slot, source] : cut(call, tier, fresh)) {
      if (source != kEngine) leaving.push_back(move(slot, source, kNowhere));
    }
    if (!gate.open(tier)) gate.entered(tier, fresh.size());
    for (auto place = tail_first.rbegin(); place != tail_first.rend(); ++place) {
      if (std::exchange(table_[place->slot].arriving, kNotNew) != kNotNew) {
        coming.emplace_back(*place, static_cast<int>(tier));
      }
    }
  }
  // Only now: a chunk that one tier cancelled must not look pending to the next.
  for (const auto& [place, tier] : coming) {
    table_[place.slot].pending |= bit(static_cast<std::size_t>(tier));
    leaving.push_back(move(place.slot, kEngine, tier, static_cast<std::int64_t>(place.index)));
  }
  return leaving;
}

// Exclusive: chunks enter the fastest tier; what it evicts enters the next one as its most recent,
// and so on, which keeps one recency order over all tiers. What a tier's admission refuses goes on
// to the next one. A chunk below that another request has pinned, or that is on its way, stays
// there.
std::vector<Move> Ledger::cascade(Call& call, const Places& tail_first, Gate& gate) {
  // Chunks that a slower tier holds: they leave it, or come back.
  std::unordered_map<Slot, std::size_t> home;
  std::unordered_map<Slot, std::size_t> index;
  std::vector<Leaving> incoming;
  for (const auto& [slot, place] : tail_first) {
    const int tier = only_tier(slot);
    if (tier > 0 && table_.spared(slot)) {
      tiers_[static_cast<std::size_t>(tier)].order->touch(slot);
      continue;
    }
    if (tier > 0) {
      tiers_[static_cast<std::size_t>(tier)].order->drop(slot);
      home[slot] = static_cast<std::size_t>(tier);
    }
    index[slot] = place;
    incoming.push_back({slot, kEngine});
  }
  std::vector<Move> gone, demoted, coming;
  std::vector<std::pair<Slot, std::size_t>> reserved;
  for (std::size_t number = 0; number < tiers_.size(); ++number) {
    Order& order = *tiers_[number].order;
    std::vector<Slot> fresh, onward;
    const auto at_home = [&](Slot slot) {
      const auto found = home.find(slot);
      return found != home.end() && found->second == number;
    };
    for (const auto& [slot, source] : incoming) {
      if (!order.has(slot) && !at_home(slot)) fresh.push_back(slot);
    }
    refuse(number, fresh, gate);
    std::vector<Leaving> next;
    std::erase_if(fresh, [&](Slot slot) { return table_[slot].arriving == kRefused; });
    for (const auto& [slot, source] : incoming) {
      if (std::exchange(table_[slot].arriving, kNotNew) == kRefused) {
        next.push_back({slot, source});
        continue;
      }
      if (!order.has(slot) && !at_home(slot)) {
        table_[slot].arriving = static_cast<std::int8_t>(kSource + source);
      }
      order.touch(slot);
      if (at_home(slot)) home.erase(slot);
    }
    std::vector<Leaving> left = cut(call, number, fresh);
    left.insert(left.end(), next.begin(), next.end());
    incoming = std::move(left);
    if (!gate.open(number)) gate.entered(number, fresh.size());
    for (const Slot slot : fresh) {
      const int source = std::exchange(table_[slot].arriving, kNotNew) - kSource;
      std::vector<Move>& moves = source == kEngine ? coming : demoted;
      moves.push_back(move(slot, source, static_cast<int>(number),
                           source == kEngine ? static_cast<std::int64_t>(index[slot]) : -1));
      reserved.emplace_back(slot, number);
    }
  }
  for (const auto& [slot, source] : incoming) {
    if (source != kEngine) gone.push_back(move(slot, source, kNowhere));
  }
  for (const auto& [slot, place] : tail_first) {
    const auto found = home.find(slot);
    if (found == home.end()) continue;
    give_up(slot, found->second);
    gone.push_back(move(slot, static_cast<int>(found->second), kNowhere));
  }
  std::stable_sort(demoted.begin(), demoted.end(),
                   [](const Move& a, const Move& b) { return a.source > b.source; });
  std::stable_sort(coming.begin(), coming.end(), [](const Move& a, const Move& b) {
    return std::pair(a.target, a.index) < std::pair(b.target, b.index);
  });
  for (const auto& [slot, tier] : reserved) table_[slot].pending |= bit(tier);
  gone.insert(gone.end(), demoted.begin(), demoted.end());
  gone.insert(gone.end(), coming.begin(), coming.end());
  return gone;
}

void Ledger::spoil(const Digest& key, std::uint8_t held, std::uint8_t pending) {
  const Slot slot = table_.add(key);
  table_[slot].held = held;
  table_[slot].pending = pending;
}

std::optional<std::string> Ledger::broken() {
  std::vector<std::size_t> owned(tiers_.size());
  std::size_t held = 0;
  for (Slot slot = 0; slot < table_.slots(); ++slot) {
    const Chunk& chunk = table_[slot];
    const std::string name = "chunk " + std::to_string(slot);
    const unsigned both = chunk.held | chunk.pending;
    held += chunk.held != 0;
    if ((chunk.held & chunk.pending) != 0) {
      return name + " is both held by a tier and being written to it";
    }
    if (exclusive_ && std::popcount(both) > 1) return "exclusive " + name + " is in several tiers";
    if ((both != 0) != (chunk.times != 0)) {
      return "uses are kept of other chunks than the held and pending ones";
    }
    if (chunk.arriving != kNotNew || chunk.seen) return name + " belongs to a call that has ended";
    for (std::size_t tier = 0; tier < tiers_.size(); ++tier) owned[tier] += both >> tier & 1;
  }
  if (held != held_) {
    return std::to_string(held) + " chunks are held, " + std::to_string(held_) + " are counted";
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
  }
  return std::nullopt;
}

}  // namespace lmcache
