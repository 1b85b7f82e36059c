// Where new chunks go, and what leaves for them.
#include <algorithm>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "ledger/ledger.h"
#include "ledger/ledger_call.h"

namespace lmcache {

std::vector<Move> Ledger::prepare_store(Keys keys, std::size_t counted, const Digest* parent,
                                         std::size_t depth, Gate& gate) {
  Call call(table_);
  Slot before = kNoSlot;
  if (parent != nullptr) before = call.keep(table_.add(*parent));
  Places places = call.places(keys, depth);
  record(places, counted, before);
  std::reverse(places.begin(), places.end());
  return exclusive_ ? cascade(call, places, gate) : insert(call, places, gate);
}

std::vector<Move> Ledger::register_chunks(Keys keys, std::size_t tier) {
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
    reserve(place.slot, static_cast<std::size_t>(tier));
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
  for (const auto& [slot, tier] : reserved) reserve(slot, tier);
  gone.insert(gone.end(), demoted.begin(), demoted.end());
  gone.insert(gone.end(), coming.begin(), coming.end());
  return gone;
}

}  // namespace lmcache
