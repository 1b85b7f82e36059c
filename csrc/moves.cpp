#include "moves.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pieces.h"
#include "pool.h"
#include "stream.h"

namespace lmcache {
namespace {

// A call that moves this much would flush the caches of all else and find none of its own bytes
// there when they are wanted; a smaller one leaves them warm for whoever reads next.
constexpr std::size_t kStreamFrom = std::size_t{8} << 20;
// Below this, a piece has too few whole cache lines.
constexpr std::size_t kStreamPiece = 1024;
// Waking a thread costs about as long as copying this much.
constexpr std::size_t kParallelFrom = std::size_t{256} << 10;
// Flat moves are cut into slices, so that threads can share a long one.
constexpr std::size_t kSlice = std::size_t{256} << 10;

void move(std::uint64_t to, std::uint64_t from, std::size_t nbytes, bool stream) {
  auto* destination = reinterpret_cast<void*>(to);
  const auto* source = reinterpret_cast<const void*>(from);
  if (stream && nbytes >= kStreamPiece) {
    stream_copy(destination, source, nbytes);
  } else if (nbytes == 2) {  // an item of K that the engine keeps transposed
    std::memcpy(destination, source, 2);
  } else {
    std::memcpy(destination, source, nbytes);
  }
}

// Pieces on their way, so that each is copied when it is known what is read after it.
class Lookahead {
 public:
  void push(std::uint64_t to, std::uint64_t from, std::size_t nbytes) {
    if (count_ == kAhead) copy_first(from, nbytes);
    pieces_[(first_ + count_++) % kAhead] = {to, from, nbytes};
  }
  void drain() {
    while (count_ > 0) copy_first(0, 0);
  }

 private:
  // Some KiB, the least that may pass while memory looks for an address; into the second-level cache.
  static constexpr std::size_t kAhead = 4;

  void copy_first(std::uint64_t ahead, std::size_t ahead_bytes) {
    const auto [to, from, nbytes] = pieces_[first_];
    first_ = (first_ + 1) % kAhead, --count_;
    if (nbytes < kStreamPiece || ahead_bytes < nbytes) return move(to, from, nbytes, true);
    stream_copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), nbytes,
                reinterpret_cast<const void*>(ahead));
  }

  struct Piece {
    std::uint64_t to, from;
    std::size_t nbytes;
  };
  Piece pieces_[kAhead];
  std::size_t first_ = 0, count_ = 0;
};

template <bool kGather>
void move_paged(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                Order order, int threads) {
  const std::int64_t chunk_bytes = raw_chunk_bytes(paged, table.chunk_tokens);
  const Runs found = find_runs(paged, table);
  check_move(paged, found, chunks, chunk_bytes, !kGather);
  const std::size_t layers = paged.layers(), planes = paged.planes();
  const auto chunk_tokens = static_cast<std::int64_t>(table.chunk_tokens);
  const std::int64_t plane_bytes = chunk_tokens * paged.token_bytes();
  const std::size_t total = found.tokens * paged.token_bytes() * layers * planes;
  const bool stream = total >= kStreamFrom;

  // An item is one layer of one chunk. Reads want memory in order, since the CPU fetches ahead, and
  // writes hardly mind: a gather follows the engine, all chunks of a layer; a scatter the chunks.
  const auto work = [&](std::size_t begin, std::size_t end) {
    Lookahead queue;
    const auto move_piece = [&](std::uint64_t there, std::uint64_t here, std::int64_t bytes) {
      const std::uint64_t to = kGather ? here : there, from = kGather ? there : here;
      if (stream) {
        queue.push(to, from, static_cast<std::size_t>(bytes));
      } else {
        move(to, from, static_cast<std::size_t>(bytes), false);
      }
    };
    for (std::size_t item = begin; item < end; ++item) {
      const std::size_t chunk = kGather ? item % table.chunks : item / layers;
      const std::size_t layer = kGather ? item / table.chunks : item % layers;
      for (std::size_t plane = 0; plane < planes; ++plane) {
        const std::uint64_t bytes = chunks[chunk] + (layer * planes + plane) * plane_bytes;
        for (std::size_t r = found.first[chunk]; r < found.first[chunk + 1]; ++r) {
          for_run(paged, plane, order, chunk_tokens, found.runs[r], paged.base(layer, plane), bytes,
                  move_piece);
        }
      }
    }
    queue.drain();
    if (stream) stream_fence();
  };
  parallel(total < kParallelFrom ? 1 : threads, table.chunks * layers, work);
}

struct Slice {
  std::uint64_t to, from;
  std::size_t nbytes;
};

}  // namespace

void gather(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks, Order order,
            int threads) {
  move_paged<true>(paged, table, chunks, order, threads);
}

void scatter(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks, Order order,
             int threads) {
  move_paged<false>(paged, table, chunks, order, threads);
}

void check_flat(const std::uint64_t* destinations, const std::uint64_t* sources,
                const std::uint64_t* nbytes, std::size_t count) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < count; ++i) {
    if (nbytes[i] == 0) continue;
    order.push_back(i);
    for (std::uint64_t address : {destinations[i], sources[i]}) {
      // No process has memory below the first page, or in the upper half of the addresses.
      if (address < 4096 || address >> 63 != 0 || nbytes[i] >> 62 != 0 ||
          (address + nbytes[i]) >> 63 != 0) {
        throw std::invalid_argument("copy " + std::to_string(i) + " of " +
                                    std::to_string(nbytes[i]) + " bytes at " +
                                    std::to_string(address) + " is in no process's memory");
      }
    }
  }
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return destinations[a] < destinations[b]; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const std::size_t before = order[i - 1];
    if (destinations[order[i]] - destinations[before] < nbytes[before]) {
      throw std::invalid_argument("dst[" + std::to_string(order[i]) + "] overlaps dst[" +
                                  std::to_string(before) + "]");
    }
  }
}

void copy(const std::uint64_t* destinations, const std::uint64_t* sources,
          const std::uint64_t* nbytes, std::size_t count, int threads) {
  check_flat(destinations, sources, nbytes, count);
  std::vector<Slice> slices;
  std::size_t total = 0;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t at = 0; at < nbytes[i]; at += kSlice) {
      slices.push_back({destinations[i] + at, sources[i] + at, std::min(kSlice, nbytes[i] - at)});
    }
    total += nbytes[i];
  }
  const bool stream = total >= kStreamFrom;
  const auto work = [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      move(slices[i].to, slices[i].from, slices[i].nbytes, stream);
    }
    if (stream) stream_fence();
  };
  parallel(total < kParallelFrom ? 1 : threads, slices.size(), work);
}

}  // namespace lmcache
