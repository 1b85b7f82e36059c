// Policies that give each chunk a rank, the lowest of which goes first: LFU-aging, GDSF, Belady.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <queue>
#include <stdexcept>
#include <utility>

#include "ledger/order.h"
#include "curves/recency.h"

namespace lmcache {
namespace {

struct Rank {
  double value = 0;
  std::uint64_t tie = 0;  // ranks differ
  bool operator<(const Rank& other) const {
    return value != other.value ? value < other.value : tie < other.tie;
  }
};

// A set of chunks that knows its lowest rank: a heap whose chunks know their places in it. A spared
// chunk that comes up is taken out of the heap until it is released.
class Ranking {
 public:
  explicit Ranking(const ChunkTable& table) : table_(table) {}

  bool has(Slot slot) { return nodes_[slot].place != kOut; }
  std::size_t size() const { return heap_size_ + aside_; }
  // Kept of every chunk that ever had one, in the set or not.
  Rank rank(Slot slot) const { return nodes_[slot].rank; }
  void set_rank(Slot slot, Rank rank) { nodes_[slot].rank = rank; }

  // Adds the chunk, or moves it.
  void put(Slot slot, Rank rank) {
    Node& node = nodes_[slot];
    node.rank = rank;
    if (node.place == kAside) return;
    if (node.place == kOut) {
      node.place = heap_size_;
      heap_[heap_size_++] = slot;
    }
    settle(slot);
  }

  void remove(Slot slot) {
    Node& node = nodes_[slot];
    const Slot place = std::exchange(node.place, kOut);
    if (place == kAside) --aside_;
    if (place >= kAside) return;
    const Slot last = heap_[--heap_size_];
    if (last == slot) return;
    set(last, place);
    settle(last);
  }

  // The lowest that is not spared; kNoSlot if there is none.
  Slot lowest() {
    while (heap_size_ > 0) {
      ++table_.steps;
      const Slot slot = heap_[0];
      if (!table_.spared(slot)) return slot;
      remove(slot);
      nodes_[slot].place = kAside;
      ++aside_;
    }
    return kNoSlot;
  }

  void release(Slot slot) {
    if (nodes_[slot].place != kAside) return;
    remove(slot);
    put(slot, nodes_[slot].rank);
  }

 private:
  static constexpr Slot kOut = kNoSlot, kAside = kNoSlot - 1;
  static constexpr std::size_t kWays = 4;  // children of a heap's node: half the levels of two

  struct Node {
    Rank rank;
    Slot place = kOut;  // in the heap
  };

  void set(Slot slot, std::size_t place) {
    heap_[place] = slot;
    nodes_[slot].place = static_cast<Slot>(place);
  }

  // Moves the chunk to where its rank belongs.
  void settle(Slot slot) {
    const Rank rank = nodes_[slot].rank;
    std::size_t place = nodes_[slot].place;
    while (place > 0) {
      const std::size_t above = (place - 1) / kWays;
      if (!(rank < nodes_[heap_[above]].rank)) break;
      set(heap_[above], place);
      place = above;
    }
    for (;;) {
      const std::size_t first = place * kWays + 1;
      const std::size_t end = std::min<std::size_t>(first + kWays, heap_size_);
      std::size_t least = first;
      for (std::size_t i = first + 1; i < end; ++i) {
        if (nodes_[heap_[i]].rank < nodes_[heap_[least]].rank) least = i;
      }
      if (first >= end || !(nodes_[heap_[least]].rank < rank)) break;
      set(heap_[least], place);
      place = least;
    }
    set(slot, place);
  }

  const ChunkTable& table_;
  Blocks<Node> nodes_;
  Blocks<Slot> heap_;
  Slot heap_size_ = 0;
  std::size_t aside_ = 0;
};

// What the policies of this file share.
class Ranked : public Order {
 public:
  explicit Ranked(ChunkTable& table) : table_(table), ranking_(table) {}
  Slot victim() override { return ranking_.lowest(); }
  void drop(Slot slot) override { ranking_.remove(slot); }
  void release(Slot slot) override { ranking_.release(slot); }
  bool has(Slot slot) override { return ranking_.has(slot); }
  std::size_t size() const override { return ranking_.size(); }
  std::vector<Slot> listed() override {
    std::vector<Slot> slots;
    slots.reserve(size());
    for (std::size_t slot = 0; slot < table_.slots(); ++slot) {
      if (has(static_cast<Slot>(slot))) slots.push_back(static_cast<Slot>(slot));
    }
    sort(slots);
    return slots;
  }

 protected:
  void sort(std::vector<Slot>& slots) const {
    std::vector<std::pair<Rank, Slot>> ranks;
    ranks.reserve(slots.size());
    for (const Slot slot : slots) ranks.emplace_back(ranking_.rank(slot), slot);
    std::sort(ranks.begin(), ranks.end());
    std::transform(ranks.begin(), ranks.end(), slots.begin(), [](auto& pair) { return pair.second; });
  }

  ChunkTable& table_;
  Ranking ranking_;
  std::uint64_t tick_ = 0;
};

// LFU with dynamic aging (LFUDA: Arlitt et al., Performance Evaluation Review 27, 2000). A chunk's
// rank is its uses plus the age at its last use; the age is the rank of the last chunk that was
// evicted, so that old fame is overtaken. Among equals the least recently used goes first. A chunk
// is never used without the one before it, so nothing outlives its prefix.
class LFUAging final : public Ranked {
 public:
  using Ranked::Ranked;
  void touch(Slot slot) override { ranking_.put(slot, {age_ + table_[slot].times, tick_++}); }
  void evict(Slot slot) override {
    // A spared chunk can leave late, with a low rank.
    if (has(slot)) age_ = std::max(age_, ranking_.rank(slot).value);
    drop(slot);
  }

 private:
  double age_ = 0;
};

// Greedy-Dual-Size-Frequency (Cherkasova, HP Labs 98-69, 1998), leaves first. A chunk's rank is
// `age + uses * cost / size`. Chunks are of one size. The cost is the square root of `depth + 1`:
// recomputing a chunk attends to all before it, so its cost grows with its depth, and the root keeps
// long prompts from owning the cache. The age is the highest rank that was evicted so far. Only a
// chunk that no other held chunk continues can go: without it those would be unreachable. Among
// equals the least recently used goes first.
class GDSF final : public Ranked {
 public:
  using Ranked::Ranked;

  void touch(Slot slot) override {
    const Chunk& chunk = table_[slot];
    const Rank rank{age_ + chunk.times * std::sqrt(chunk.depth + 1.0), tick_++};
    ranking_.set_rank(slot, rank);
    Place& place = places_[slot];
    if (!place.held || place.parent != chunk.parent) {
      if (chunk.parent != kNoSlot) {
        table_.reference(chunk.parent);
        ++places_[chunk.parent].continued;
        ranking_.remove(chunk.parent);
      }
      const Slot before = std::exchange(place.parent, chunk.parent);
      size_ += !std::exchange(place.held, true);
      orphan(before);
    }
    if (place.continued == 0) ranking_.put(slot, rank);
  }

  Slot victim() override {
    if (ranking_.size() > 0) return ranking_.lowest();
    // Content keys can follow each other in a circle.
    Slot lowest = kNoSlot;
    for (Slot slot = 0; size_ > 0 && slot < table_.slots(); ++slot) {
      ++table_.steps;
      if (!places_[slot].held || table_.spared(slot)) continue;
      if (lowest == kNoSlot || ranking_.rank(slot) < ranking_.rank(lowest)) lowest = slot;
    }
    return lowest;
  }

  void evict(Slot slot) override {
    if (has(slot)) age_ = std::max(age_, ranking_.rank(slot).value);
    drop(slot);
  }

  void drop(Slot slot) override {
    if (!has(slot)) return;
    places_[slot].held = false;
    --size_;
    ranking_.remove(slot);
    orphan(std::exchange(places_[slot].parent, kNoSlot));
  }

  bool has(Slot slot) override { return places_[slot].held; }
  std::size_t size() const override { return size_; }

  std::vector<Slot> listed() override {
    std::vector<std::uint32_t> continued(table_.slots());
    std::vector<bool> left(table_.slots());
    using Entry = std::pair<Rank, Slot>;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> ends;
    for (Slot slot = 0; slot < table_.slots(); ++slot) {
      continued[slot] = places_[slot].continued;
      left[slot] = has(slot);
      if (ranking_.has(slot)) ends.emplace(ranking_.rank(slot), slot);
    }
    std::vector<Slot> slots, circle;
    slots.reserve(size_);
    while (!ends.empty()) {
      const Slot slot = ends.top().second;
      ends.pop();
      left[slot] = false;
      slots.push_back(slot);
      const Slot parent = places_[slot].parent;
      if (parent != kNoSlot && --continued[parent] == 0 && left[parent]) {
        ends.emplace(ranking_.rank(parent), parent);
      }
    }
    for (Slot slot = 0; slot < table_.slots(); ++slot) {
      if (left[slot]) circle.push_back(slot);
    }
    sort(circle);
    slots.insert(slots.end(), circle.begin(), circle.end());
    return slots;
  }

 private:
  struct Place {
    Slot parent = kNoSlot;        // when it was touched last in this tier
    std::uint32_t continued = 0;  // by so many held chunks; of chunks that are not held too
    bool held = false;
  };

  // One continuation of `parent` has gone, or continues another now.
  void orphan(Slot parent) {
    if (parent == kNoSlot) return;
    if (--places_[parent].continued == 0 && has(parent)) {
      ranking_.put(parent, ranking_.rank(parent));
    }
    table_.dereference(parent);
  }

  Blocks<Place> places_;
  std::size_t size_ = 0;
  double age_ = 0;
};

// The chunk whose next use is farthest away goes first (Belady, IBM Systems Journal 5, 1966); among
// equals the deepest in its prompt. What has just come may go at once. A chunk is never used before
// the one in front of it, so nothing outlives its prefix.
class Belady final : public Ranked {
 public:
  Belady(ChunkTable& table, std::shared_ptr<const Future> future)
      : Ranked(table), future_(std::move(future)) {}

  void touch(Slot slot) override {
    const Chunk& chunk = table_[slot];
    constexpr std::uint64_t kDeepest = (std::uint64_t{1} << 24) - 1;
    const std::uint64_t height = kDeepest - std::min<std::uint64_t>(chunk.depth, kDeepest);
    ranking_.put(slot, {-future_->next_use(chunk.key, chunk.turn), height << 40 | tick_++});
  }
  void evict(Slot slot) override { drop(slot); }

 private:
  std::shared_ptr<const Future> future_;
};

}  // namespace

std::size_t Future::Hash::operator()(const Digest& key) const {
  std::uint64_t words[sizeof(Digest) / sizeof(std::uint64_t)], hash = 0;
  std::memcpy(words, key.data(), sizeof(words));
  for (const std::uint64_t word : words) hash = mix(hash ^ word);
  return hash;
}

void Future::add(std::uint32_t turn, std::span<const Digest> keys) {
  for (const Digest& key : keys) {
    std::vector<std::uint32_t>& turns = turns_[key];
    if (turns.empty() || turns.back() != turn) turns.push_back(turn);
  }
}

double Future::next_use(const Digest& key, std::uint32_t turn) const {
  const auto found = turns_.find(key);
  if (found != turns_.end()) {
    const auto next = std::upper_bound(found->second.begin(), found->second.end(), turn);
    if (next != found->second.end()) return *next;
  }
  return std::numeric_limits<double>::infinity();
}

std::unique_ptr<Order> make_order(std::string_view name, std::optional<std::size_t> capacity,
                                  ChunkTable& table, std::shared_ptr<const Future> future) {
  if (name == "lfu-aging") return std::make_unique<LFUAging>(table);
  if (name == "gdsf") return std::make_unique<GDSF>(table);
  if (name == "belady" && future) return std::make_unique<Belady>(table, std::move(future));
  return make_listed(name, capacity, table);
}

}  // namespace lmcache
