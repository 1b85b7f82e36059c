#include "moves.h"

#include <algorithm>
#include <cstring>
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
  } else {
    std::memcpy(destination, source, nbytes);
  }
}

// One dimension of the pieces of a run: how many, and how far apart on either side.
struct Dim {
  std::int64_t count, engine_stride, chunk_stride;
};

// A run in one plane: outer x inner pieces of `bytes`, each contiguous on both sides.
struct Pieces {
  Dim outer, inner;
  std::int64_t bytes;

  // Pieces that touch on both sides are one piece.
  void merge(Dim& dim) {
    if (dim.engine_stride == bytes && dim.chunk_stride == bytes) {
      bytes *= std::exchange(dim.count, 1);
    }
  }
};

Pieces pieces(const Paged& paged, Order order, std::int64_t chunk_tokens, std::int64_t tokens) {
  const bool heads_first = order == Order::kHeadsFirst;
  const std::int64_t head = heads_first ? chunk_tokens * paged.head_bytes : paged.head_bytes;
  const std::int64_t token = heads_first ? paged.head_bytes : paged.token_bytes();
  const Dim heads = {paged.kv_heads, paged.head_stride, head};
  const Dim rows = {tokens, paged.token_stride, token};
  Pieces found = {heads_first ? heads : rows, heads_first ? rows : heads, paged.head_bytes};
  found.merge(found.inner);
  if (found.inner.count == 1) found.merge(found.outer);
  return found;
}

template <bool kGather>
void move_paged(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                Order order, int threads) {
  const Runs found = find_runs(paged, table);
  const std::size_t layers = paged.layers(), planes = paged.planes();
  const auto chunk_tokens = static_cast<std::int64_t>(table.chunk_tokens);
  const std::int64_t plane_bytes = chunk_tokens * paged.token_bytes();
  const std::size_t total = found.tokens * paged.token_bytes() * layers * planes;
  const bool stream = total >= kStreamFrom;

  const auto move_run = [&](const Run& run, std::uint64_t engine, std::uint64_t chunk) {
    const Pieces shape = pieces(paged, order, chunk_tokens, run.tokens);
    const bool heads_first = order == Order::kHeadsFirst;
    engine += run.offset;
    chunk += run.token * (heads_first ? paged.head_bytes : paged.token_bytes());
    for (std::int64_t o = 0; o < shape.outer.count; ++o) {
      for (std::int64_t i = 0; i < shape.inner.count; ++i) {
        const std::uint64_t there =
            engine + o * shape.outer.engine_stride + i * shape.inner.engine_stride;
        const std::uint64_t here =
            chunk + o * shape.outer.chunk_stride + i * shape.inner.chunk_stride;
        move(kGather ? here : there, kGather ? there : here, shape.bytes, stream);
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
          move_run(found.runs[r], paged.base(layer, plane), bytes);
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
