// Policies that are lists: LRU, ARC, S3-FIFO.
#include <algorithm>
#include <deque>

#include "ledger/lists.h"
#include "ledger/order.h"

namespace lmcache {
namespace {

// What the policies of this file share: lists 0 and 1 hold chunks, `kWaiting` has new ones that wait
// until the tier has made room for them, and lists behind it have ghosts.
class Listed : public Order {
 public:
  Listed(ChunkTable& table, std::size_t lists) : table_(table), lists_(table, lists) {}
  void release(Slot slot) override { lists_.release(slot); }
  bool has(Slot slot) override { return lists_.of(slot) <= kWaiting; }
  std::size_t size() const override {
    return lists_.size(0) + lists_.size(1) + lists_.size(kWaiting);
  }

 protected:
  static constexpr std::uint8_t kWaiting = 2;

  std::size_t settled() const { return lists_.size(0) + lists_.size(1); }
  void remember(Slot slot, std::uint8_t ghosts) {
    table_.reference(slot);
    lists_.put(slot, ghosts);
  }
  void forget(Slot ghost) {
    lists_.remove(ghost);
    table_.dereference(ghost);
  }

  ChunkTable& table_;
  Lists lists_;
};

// Least recently used goes first. A request touches its last chunk first, so a chunk never outlives
// the one before it.
class LRU final : public Listed {
 public:
  explicit LRU(ChunkTable& table) : Listed(table, 3) {}
  void touch(Slot slot) override { lists_.put(slot, 0); }
  Slot victim() override { return lists_.victim(0); }
  void evict(Slot slot) override { lists_.remove(slot); }
  void drop(Slot slot) override { lists_.remove(slot); }
  std::vector<Slot> listed() override { return lists_.listed(0); }
};

// Adaptive Replacement Cache (Megiddo and Modha, FAST'03). `kRecent` (T1) has chunks used once,
// `kFrequent` (T2) those used again, each with ghosts (B1, B2) of what it evicted; a miss that a
// ghost remembers shifts the target length of `kRecent`. New chunks wait until the tier has made
// room for them, one after another. A chunk that comes from another tier and was used there more
// than once enters `kFrequent`.
class ARC final : public Listed {
 public:
  ARC(std::optional<std::size_t> capacity, ChunkTable& table)
      : Listed(table, 5), capacity_(capacity) {}

  void touch(Slot slot) override {
    const std::uint8_t list = lists_.of(slot);
    if (list == kRecent || list == kFrequent) {
      lists_.put(slot, kFrequent);
    } else if (list != kWaiting) {
      const std::uint8_t origin = origin_of(slot, list);
      lists_.put(slot, kWaiting);
      lists_.uses(slot) = origin;
      settle();
    }
  }

  Slot victim() override {
    const auto length = static_cast<double>(lists_.size(kRecent));
    const Slot waiting = lists_.oldest(kWaiting);
    const bool tie = waiting != kNoSlot && lists_.uses(waiting) == kFrequentGhosts &&
                     length == target_;
    const bool recent_first = length > 0 && (length > target_ || tie);
    const Slot slot = lists_.victim(recent_first ? kRecent : kFrequent);
    return slot != kNoSlot ? slot : lists_.victim(recent_first ? kFrequent : kRecent);
  }

  void evict(Slot slot) override {
    const std::uint8_t list = lists_.of(slot);
    if (list == kRecent || list == kFrequent) {
      remember(slot, list == kRecent ? kRecentGhosts : kFrequentGhosts);
    } else if (list == kWaiting) {
      lists_.remove(slot);
    }
    settle();
  }

  void drop(Slot slot) override {
    if (has(slot)) lists_.remove(slot);
    settle();
  }

  std::vector<Slot> listed() override {
    std::vector<Slot> slots = lists_.listed(kRecent), frequent = lists_.listed(kFrequent);
    std::size_t over = 0;
    while (over < slots.size() && static_cast<double>(slots.size() - over) > target_) ++over;
    slots.insert(slots.begin() + static_cast<std::ptrdiff_t>(over), frequent.begin(),
                 frequent.end());
    const std::vector<Slot> waiting = lists_.listed(kWaiting);
    slots.insert(slots.end(), waiting.begin(), waiting.end());
    return slots;
  }

 private:
  static constexpr std::uint8_t kRecent = 0, kFrequent = 1, kRecentGhosts = 3, kFrequentGhosts = 4;

  // Where a new chunk belongs, after what its ghost teaches.
  std::uint8_t origin_of(Slot slot, std::uint8_t list) {
    const auto recent = static_cast<double>(lists_.size(kRecentGhosts));
    const auto frequent = static_cast<double>(lists_.size(kFrequentGhosts));
    if (list == kRecentGhosts && capacity_) {
      target_ = std::min(target_ + std::max(1.0, frequent / recent),
                         static_cast<double>(*capacity_));
      forget(slot);
      return kFrequent;
    }
    if (list == kFrequentGhosts) {
      target_ = std::max(target_ - std::max(1.0, recent / frequent), 0.0);
      forget(slot);
      return kFrequentGhosts;
    }
    return table_[slot].times > 1 ? kFrequent : kRecent;
  }

  // Lets in who waits, as far as there is room, and forgets the ghosts that are too old.
  void settle() {
    while (lists_.size(kWaiting) > 0 && (!capacity_ || settled() < *capacity_)) {
      const Slot slot = lists_.oldest(kWaiting);
      lists_.put(slot, lists_.uses(slot) == kRecent ? kRecent : kFrequent);
      if (capacity_) trim();
    }
  }

  void trim() {
    while (lists_.size(kRecentGhosts) > 0 &&
           lists_.size(kRecent) + lists_.size(kRecentGhosts) > *capacity_) {
      forget(lists_.oldest(kRecentGhosts));
    }
    while (lists_.size(kFrequentGhosts) > 0 &&
           settled() + lists_.size(kRecentGhosts) + lists_.size(kFrequentGhosts) > 2 * *capacity_) {
      forget(lists_.oldest(kFrequentGhosts));
    }
  }

  const std::optional<std::size_t> capacity_;
  double target_ = 0;  // of kRecent; p in the paper
};

// S3-FIFO (Yang et al., SOSP'23): first in, first out, in a small and a main queue. A new chunk
// enters `kSmall` (a tenth of the capacity), or `kMain` if a ghost remembers it: one that `kSmall`
// evicted lately, as many as `kMain` has room for. At the end of `kSmall`, what was used more than
// once since goes on to `kMain`, the rest is evicted. At the end of `kMain`, what was used goes round
// again with one use less, and what is spared as it is. Where a chunk's move makes `kMain` too long,
// its end is the one victim that is asked for (in the paper: one more). New chunks wait until the
// tier has made room for them. A chunk that was used in another tier more than once enters `kMain`.
class S3FIFO final : public Listed {
 public:
  S3FIFO(std::optional<std::size_t> capacity, ChunkTable& table)
      : Listed(table, 4),
        capacity_(capacity),
        small_size_(std::max<std::size_t>(1, capacity.value_or(0) / 10)),
        main_size_(capacity.value_or(0) - std::min(small_size_, capacity.value_or(0))) {}

  void touch(Slot slot) override {
    const std::uint8_t list = lists_.of(slot);
    if (list == kSmall || list == kMain) {
      lists_.uses(slot) = std::min<std::uint8_t>(lists_.uses(slot) + 1, kMostUses);
    } else if (list != kWaiting) {
      const bool known = table_[slot].times > 1 || list == kGhosts;
      if (list == kGhosts) forget(slot);
      lists_.put(slot, kWaiting);
      lists_.uses(slot) = known;
      settle();
    }
  }

  Slot victim() override {
    const bool small_first = lists_.size(kSmall) >= small_size_;
    const Slot slot = small_first ? from_small() : from_main();
    if (slot != kNoSlot) return slot;
    return small_first ? from_main() : from_small();
  }

  void evict(Slot slot) override {
    if (lists_.of(slot) == kSmall) {
      remember(slot, kGhosts);
      if (lists_.size(kGhosts) > main_size_) forget(lists_.oldest(kGhosts));
    }
    drop(slot);
  }

  void drop(Slot slot) override {
    if (has(slot)) lists_.remove(slot);
    settle();
  }

  // By going through with it, on queues of its own.
  std::vector<Slot> listed() override {
    struct Entry {
      Slot slot;
      std::uint8_t uses;
    };
    std::deque<Entry> small, main;
    for (Slot slot : lists_.listed(kSmall)) small.push_back({slot, lists_.uses(slot)});
    for (Slot slot : lists_.listed(kMain)) main.push_back({slot, lists_.uses(slot)});
    std::vector<Slot> slots;
    while (!small.empty() || !main.empty()) {
      bool from_main = main.size() > 0 && (small.size() < small_size_ || small.empty());
      while (!from_main && !small.empty()) {
        if (small.front().uses <= 1) break;
        main.push_back({small.front().slot, 0});
        small.pop_front();
        from_main = main.size() > main_size_ || small.empty();
      }
      if (from_main) {
        while (main.front().uses > 0) {
          main.push_back({main.front().slot, static_cast<std::uint8_t>(main.front().uses - 1)});
          main.pop_front();
        }
      }
      std::deque<Entry>& queue = from_main ? main : small;
      slots.push_back(queue.front().slot);
      queue.pop_front();
    }
    for (Slot slot : lists_.listed(kWaiting)) slots.push_back(slot);
    return slots;
  }

 private:
  static constexpr std::uint8_t kSmall = 0, kMain = 1, kGhosts = 3;
  static constexpr std::uint8_t kMostUses = 3;  // uses are counted in two bits

  Slot from_small() {
    bool moved = false;
    for (Slot slot; (slot = lists_.victim(kSmall)) != kNoSlot;) {
      if (lists_.uses(slot) <= 1) return slot;
      lists_.put(slot, kMain);
      moved = true;
      if (lists_.size(kMain) > main_size_) break;
    }
    return moved ? from_main() : kNoSlot;
  }

  Slot from_main() {
    for (Slot slot; (slot = lists_.victim(kMain)) != kNoSlot;) {
      lists_.turn_to(slot);
      const std::uint8_t uses = lists_.uses(slot);
      if (uses == 0) return slot;
      lists_.put(slot, kMain);
      lists_.uses(slot) = uses - 1;
    }
    return kNoSlot;
  }

  // Lets in who waits, as far as there is room.
  void settle() {
    while (lists_.size(kWaiting) > 0 && (!capacity_ || settled() < *capacity_)) {
      const Slot slot = lists_.oldest(kWaiting);
      lists_.put(slot, lists_.uses(slot) ? kMain : kSmall);
    }
  }

  const std::optional<std::size_t> capacity_;
  const std::size_t small_size_, main_size_;
};

}  // namespace

std::unique_ptr<Order> make_listed(std::string_view name, std::optional<std::size_t> capacity,
                                   ChunkTable& table) {
  if (name == "lru" || name == "unbounded") return std::make_unique<LRU>(table);
  if (name == "s3-fifo") return std::make_unique<S3FIFO>(capacity, table);
  if (name == "arc") return std::make_unique<ARC>(capacity, table);
  return nullptr;
}

}  // namespace lmcache
