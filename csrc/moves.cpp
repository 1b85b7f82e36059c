#include "moves.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

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

// One dimension of the pieces of a run: how many, and how far apart on either side.
struct Dim {
  std::int64_t count, engine_stride, chunk_stride;
};

// A run in one plane: pieces of `bytes`, each contiguous on both sides, in three dimensions.
struct Pieces {
  Dim dims[3];  // the last varies fastest
  std::int64_t bytes;

  // Pieces that touch on both sides are one piece.
  void merge() {
    for (int i = 2; i >= 0; --i) {
      if (dims[i].count == 1) continue;
      if (dims[i].engine_stride != bytes || dims[i].chunk_stride != bytes) return;
      bytes *= std::exchange(dims[i].count, 1);
    }
  }
};

Pieces pieces(const Paged& paged, std::size_t plane, Order order, std::int64_t chunk_tokens,
              std::int64_t tokens) {
  const bool heads_first = order == Order::kHeadsFirst;
  const Strides& by = paged.strides[plane];
  const std::int64_t head = heads_first ? chunk_tokens * paged.head_bytes : paged.head_bytes;
  const std::int64_t token = heads_first ? paged.head_bytes : paged.token_bytes();
  const Dim heads = {paged.kv_heads, by.head, head};
  const Dim rows = {tokens, by.token, token};
  const Dim items = {paged.items(), by.item, paged.item_bytes};
  Pieces found = {{heads_first ? heads : rows, heads_first ? rows : heads, items},
                  paged.item_bytes};
  found.merge();
  return found;
}

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

  const auto move_run = [&](const Run& run, std::size_t plane, std::uint64_t engine,
                            std::uint64_t chunk) {
    const Pieces shape = pieces(paged, plane, order, chunk_tokens, run.tokens);
    const bool heads_first = order == Order::kHeadsFirst;
    engine += paged.offset(run.slot, plane);
    chunk += run.token * (heads_first ? paged.head_bytes : paged.token_bytes());
    const auto& [outer, middle, inner] = shape.dims;
    for (std::int64_t o = 0; o < outer.count; ++o) {
      for (std::int64_t m = 0; m < middle.count; ++m) {
        std::uint64_t there = engine + o * outer.engine_stride + m * middle.engine_stride;
        std::uint64_t here = chunk + o * outer.chunk_stride + m * middle.chunk_stride;
        for (std::int64_t i = 0; i < inner.count; ++i) {
          move(kGather ? here : there, kGather ? there : here, shape.bytes, stream);
          there += inner.engine_stride, here += inner.chunk_stride;
        }
      }
    }
  };
  // An item is one layer of one chunk. Reads want memory in order, since the CPU fetches ahead, and
  // writes hardly mind: a gather follows the engine, all chunks of a layer; a scatter the chunks.
  const auto work = [&](std::size_t begin, std::size_t end) {
    for (std::size_t item = begin; item < end; ++item) {
      const std::size_t chunk = kGather ? item % table.chunks : item / layers;
      const std::size_t layer = kGather ? item / table.chunks : item % layers;
      for (std::size_t plane = 0; plane < planes; ++plane) {
        const std::uint64_t bytes = chunks[chunk] + (layer * planes + plane) * plane_bytes;
        for (std::size_t r = found.first[chunk]; r < found.first[chunk + 1]; ++r) {
          move_run(found.runs[r], plane, paged.base(layer, plane), bytes);
        }
      }
    }
    if (stream) stream_fence();
  };
  parallel(total < kParallelFrom ? 1 : threads, table.chunks * layers, work);
}

struct Slice {
  std::uint64_t to, from;
  std::size_t nbytes;
};

void check_flat(const std::uint64_t* destinations, const std::uint64_t* sources,
                const std::uint64_t* nbytes, std::size_t count) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < count; ++i) {
    if (nbytes[i] == 0) continue;
    order.push_back(i);
    for (std::uint64_t address : {destinations[i], sources[i]}) {
      // No process has memory below the first page, or in the upper half of the addresses.
      if (address < 4096 || nbytes[i] >> 62 != 0 || (address + nbytes[i]) >> 63 != 0) {
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

}  // namespace

void gather(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks, Order order,
            int threads) {
  move_paged<true>(paged, table, chunks, order, threads);
}

void scatter(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks, Order order,
             int threads) {
  move_paged<false>(paged, table, chunks, order, threads);
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
