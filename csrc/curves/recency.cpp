#include "curves/recency.h"

#include <algorithm>
#include <bit>
#include <stdexcept>

namespace lmcache {

namespace {

constexpr std::size_t kWordBits = 64;
constexpr std::size_t kBlockWords = 4;
constexpr std::size_t kFirstPlaces = 1 << 14;
constexpr std::size_t kMostChunks = std::size_t{1} << 31;

}  // namespace

Recency::Recency()
    : table_(1 << 10, Entry{0, kEmpty}),
      lives_(kFirstPlaces / kWordBits),
      counts_((kFirstPlaces >> kBlockBits) + 1) {}

Recency::Entry& Recency::find_or_add(std::int64_t id) {
  const std::size_t mask = table_.size() - 1;
  std::size_t slot = mix(static_cast<std::uint64_t>(id)) & mask;
  while (table_[slot].place != kEmpty && table_[slot].id != id) slot = (slot + 1) & mask;
  Entry& entry = table_[slot];
  if (entry.place == kEmpty) {
    entry = {id, kNew};
    ++used_;
  }
  return entry;
}

std::int64_t Recency::distance(std::int64_t id) const {
  const std::size_t mask = table_.size() - 1;
  std::size_t slot = mix(static_cast<std::uint64_t>(id)) & mask;
  while (table_[slot].place != kEmpty && table_[slot].id != id) slot = (slot + 1) & mask;
  const std::int64_t place = table_[slot].place;
  return place < 0 ? kNever : static_cast<std::int64_t>(live_) - before(place);
}

void Recency::grow_table(std::size_t entries) {
  std::vector<Entry> old(entries, Entry{0, kEmpty});
  old.swap(table_);
  used_ = 0;
  for (const Entry& entry : old) {
    if (entry.place != kEmpty) find_or_add(entry.id).place = entry.place;
  }
}

std::int64_t Recency::before(std::int64_t place) const {
  const auto at = static_cast<std::size_t>(place);
  std::int64_t n = 0;
  for (std::size_t i = at >> kBlockBits; i > 0; i &= i - 1) n += counts_[i];
  const std::size_t last = at / kWordBits;
  std::size_t word = (at >> kBlockBits) * kBlockWords;
  for (; word < last; ++word) n += std::popcount(lives_[word]);
  return n + std::popcount(lives_[last] & ((std::uint64_t{1} << (at % kWordBits)) - 1));
}

void Recency::add(std::size_t block, std::int64_t n) {
  for (std::size_t i = block + 1; i < counts_.size(); i += i & (~i + 1)) {
    counts_[i] += static_cast<std::uint32_t>(n);
  }
}

// Chunks keep their order and leave no gap; the line has at least `places` afterwards.
void Recency::move_together(std::size_t places) {
  for (Entry& entry : table_) {
    if (entry.place >= 0) entry.place = before(entry.place);
  }
  const std::size_t size = std::bit_ceil(std::max(places, kFirstPlaces));
  lives_.assign(size / kWordBits, 0);
  std::fill_n(lives_.begin(), live_ / kWordBits, ~std::uint64_t{0});
  if (live_ % kWordBits != 0) {
    lives_[live_ / kWordBits] = (std::uint64_t{1} << (live_ % kWordBits)) - 1;
  }
  const std::size_t blocks = size >> kBlockBits, block = std::size_t{1} << kBlockBits;
  counts_.assign(blocks + 1, 0);
  full_ = live_ >> kBlockBits;
  for (std::size_t i = 1; i <= blocks; ++i) {
    const std::size_t end = std::min(i, full_) * block;
    const std::size_t start = std::min(i - (i & (~i + 1)), full_) * block;
    counts_[i] = static_cast<std::uint32_t>(end - start);
  }
  next_ = live_;
}

void Recency::make_room(std::size_t more) {
  if (live_ + more > kMostChunks) throw std::length_error("more than 2^31 chunks");
  // At most 3 in 4 entries are taken.
  if (const std::size_t entries = std::bit_ceil((used_ + more) * 4 / 3 + 1);
      entries > table_.size()) {
    grow_table(entries);
  }
  if (next_ + more > lives_.size() * kWordBits) move_together(8 * (live_ + more));
}

void Recency::use(const std::int64_t* ids, std::size_t n, std::int64_t* distances,
                  std::size_t known) {
  // Before the first slot is taken: growing moves entries.
  make_room(n);
  const std::size_t mask = table_.size() - 1;
  constexpr std::size_t kAhead = 12;
  slots_.resize(n);
  std::int64_t last_place = kNew;
  for (std::size_t i = 0; i < n; ++i) {
    if (i + kAhead < known) {
      __builtin_prefetch(&table_[mix(static_cast<std::uint64_t>(ids[i + kAhead])) & mask]);
    }
    const Entry& entry = find_or_add(ids[i]);
    slots_[i] = static_cast<std::size_t>(&entry - table_.data());
    if (entry.place == kNew) {
      distances[i] = kNever;
    } else if (last_place > 0 && entry.place == last_place - 1) {
      // The chunk behind the last one in the same earlier request: the usual case.
      distances[i] = distances[i - 1] + 1;
    } else {
      distances[i] = static_cast<std::int64_t>(live_) - before(entry.place);
    }
    last_place = entry.place;
  }
  // Neighbours live in the same block mostly: one walk up the tree for each run of them.
  std::size_t left_block = 0;
  std::int64_t left = 0;
  for (std::size_t i = n; i-- > 0;) {
    std::int64_t& place = table_[slots_[i]].place;
    if (place < 0) {
      ++live_;
    } else {
      const auto at = static_cast<std::size_t>(place);
      lives_[at / kWordBits] &= ~(std::uint64_t{1} << (at % kWordBits));
      if (const std::size_t block = at >> kBlockBits; block < full_) {
        if (block != left_block) {
          if (left != 0) add(left_block, -left);
          left_block = block;
          left = 0;
        }
        ++left;
      }
    }
    lives_[next_ / kWordBits] |= std::uint64_t{1} << (next_ % kWordBits);
    place = static_cast<std::int64_t>(next_++);
    if (next_ >> kBlockBits != full_) {
      std::int64_t living = 0;
      for (std::size_t word = (next_ - 1) / kWordBits + 1, k = 0; k < kBlockWords; ++k) {
        living += std::popcount(lives_[--word]);
      }
      add(full_++, living);
    }
  }
  if (left != 0) add(left_block, -left);
}

}  // namespace lmcache
