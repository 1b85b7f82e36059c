// Least-recently-used order over chunks, and how deep each one lies in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lmcache {

// The distance of a chunk that was never used before.
constexpr std::int64_t kNever = -1;

// A well-mixed 64-bit number of another: splitmix64's finalizer, a bijection.
inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Every use takes the next place on a line; a chunk lives at its latest one. Its distance is the
// number of chunks that live there or later: the smallest LRU tier that would still hold it.
// Places are bits, counted by a Fenwick tree over blocks of them; when the line is full, chunks
// move together to its start. So memory is O(distinct chunks): 22 to 45 bytes for each.
class Recency {
 public:
  Recency();

  // One request uses these chunks, in prompt order. Writes each one's distance as it is before any
  // of them counts as used, then uses them, the last first: the Ledger's order. A chunk that stands
  // twice has one distance, and its first place counts.
  // `known` ids, n at least, can be read ahead. Throws std::length_error beyond 2^31 chunks.
  void use(const std::int64_t* ids, std::size_t n, std::int64_t* distances, std::size_t known);

  // A chunk's distance as it is now; kNever if it was never used.
  std::int64_t distance(std::int64_t id) const;

  std::size_t size() const { return live_; }

 private:
  struct Entry {
    std::int64_t id;
    std::int64_t place;  // kEmpty, kNew, or where it lives
  };
  static constexpr std::int64_t kEmpty = -2, kNew = -1;
  static constexpr std::size_t kBlockBits = 8;  // 256 places, four words

  Entry& find_or_add(std::int64_t id);
  void make_room(std::size_t more);
  void grow_table(std::size_t entries);
  void move_together(std::size_t places);
  std::int64_t before(std::int64_t place) const;
  void add(std::size_t block, std::int64_t n);

  std::vector<Entry> table_;
  std::vector<std::uint64_t> lives_;   // bit per place
  std::vector<std::uint32_t> counts_;  // Fenwick tree over blocks, from 1 on
  std::vector<std::size_t> slots_;     // of the request's chunks
  std::size_t used_ = 0;               // entries of the table
  std::size_t live_ = 0;
  std::size_t next_ = 0;  // place
  // Blocks before the one that is being filled. The tree has only these: nothing asks how many live
  // behind it, so a new place costs no walk.
  std::size_t full_ = 0;
};

}  // namespace lmcache
