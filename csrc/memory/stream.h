// Copies that go around the caches.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmcache {

// Contiguous bytes to copy, at addresses.
struct Piece {
  std::uint64_t to, from;
  std::size_t nbytes;
};

// memcpy of each piece in turn, with non-temporal stores where the CPU has AVX2. An ordinary store
// first reads the cache line that it overwrites; this doesn't, so it moves two bytes of memory
// traffic for each byte copied, not three. Any alignment. Call `stream_fence` before another thread
// may read the destinations.
//
// Fastest where sources follow one another in memory, wherever their destinations lie: the CPU
// fetches ahead by itself along one run of memory, and a store, unlike a load, needn't be waited for.
void stream_pieces(const Piece* pieces, std::size_t count);
void stream_fence();

}  // namespace lmcache
