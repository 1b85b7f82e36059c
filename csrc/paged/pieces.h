// The contiguous pieces of a run: what CPUs and copy engines move at a time.
#pragma once

#include <cstdint>
#include <utility>

#include "paged/moves.h"
#include "paged/paged.h"

namespace lmcache {

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

inline Pieces pieces(const Paged& paged, std::size_t plane, Order order, std::int64_t chunk_tokens,
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

// Whether each run is one piece, whatever its length.
inline bool whole_runs(const Paged& paged, std::size_t plane, Order order,
                       std::int64_t chunk_tokens) {
  // One token that is a piece has its heads side by side, in chunks too, and two that are leave no
  // room between one and the next. Two alone may be all that the heads of a chunk have.
  const auto one_piece = [&](std::int64_t tokens) {
    return pieces(paged, plane, order, chunk_tokens, tokens).bytes == tokens * paged.token_bytes();
  };
  return one_piece(1) && one_piece(2);
}

// body(engine address, chunk address, bytes) for each piece of a run in one plane, whose base and
// whose part of the chunk are given.
template <typename Body>
void for_run(const Paged& paged, std::size_t plane, Order order, std::int64_t chunk_tokens,
             const Run& run, std::uint64_t engine, std::uint64_t chunk, const Body& body) {
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
        body(there, here, shape.bytes);
        there += inner.engine_stride, here += inner.chunk_stride;
      }
    }
  }
}

// The same for all of all chunks, chunk by chunk.
template <typename Body>
void for_pieces(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                Order order, const Body& body) {
  const Runs found = find_runs(paged, table);
  const auto chunk_tokens = static_cast<std::int64_t>(table.chunk_tokens);
  const std::int64_t plane_bytes = chunk_tokens * paged.token_bytes();
  for (std::size_t chunk = 0; chunk < table.chunks; ++chunk) {
    std::uint64_t part = chunks[chunk];
    for (std::size_t layer = 0; layer < paged.layers(); ++layer) {
      for (std::size_t plane = 0; plane < paged.planes(); ++plane, part += plane_bytes) {
        for (std::size_t r = found.first[chunk]; r < found.first[chunk + 1]; ++r) {
          for_run(paged, plane, order, chunk_tokens, found.runs[r], paged.base(layer, plane), part,
                  body);
        }
      }
    }
  }
}

// How many pieces a move has, of how many bytes in all.
struct PieceCount {
  std::size_t pieces, bytes;
};
inline PieceCount count_pieces(const Paged& paged, const SlotTable& table, Order order) {
  const Runs found = find_runs(paged, table);
  PieceCount counted{};
  for (std::size_t plane = 0; plane < paged.planes(); ++plane) {
    for (const Run& run : found.runs) {
      const Pieces shape = pieces(paged, plane, order, static_cast<std::int64_t>(table.chunk_tokens),
                                  run.tokens);
      std::int64_t count = static_cast<std::int64_t>(paged.layers());
      for (const Dim& dim : shape.dims) count *= dim.count;
      counted.pieces += static_cast<std::size_t>(count);
      counted.bytes += static_cast<std::size_t>(count * shape.bytes);
    }
  }
  return counted;
}

}  // namespace lmcache
