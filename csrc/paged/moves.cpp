#include "paged/moves.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "paged/pieces.h"
#include "memory/pool.h"
#include "memory/stream.h"

namespace lmcache {
namespace {

// A call that moves this much would flush the caches of all else and find none of its own bytes
// there when they are wanted; a smaller one leaves them warm for whoever reads next.
constexpr std::size_t kStreamFrom = std::size_t{8} << 20;
// Waking a thread costs about as long as copying this much.
constexpr std::size_t kParallelFrom = std::size_t{256} << 10;
// Flat moves are cut into slices, so that threads can share a long one.
constexpr std::size_t kSlice = std::size_t{256} << 10;

void move(const Piece& piece) {
  auto* destination = reinterpret_cast<void*>(piece.to);
  const auto* source = reinterpret_cast<const void*>(piece.from);
  if (piece.nbytes == 2) {  // an item of K that the engine keeps transposed
    std::memcpy(destination, source, 2);
  } else {
    std::memcpy(destination, source, piece.nbytes);
  }
}

// Pieces on their way to memory, as many together as make their order known ahead of the copy.
class Batch {
 public:
  void push(const Piece& piece) {
    if (count_ == kMost) flush();
    pieces_[count_++] = piece;
  }
  void flush() {
    stream_pieces(pieces_, count_);
    count_ = 0;
  }

 private:
  static constexpr std::size_t kMost = 512;
  Piece pieces_[kMost];
  std::size_t count_ = 0;
};

// A run and its chunk's address.
struct Part {
  Run run;
  std::uint64_t chunk;
};

// A radix sort: one of 262,144 blocks by comparison takes as long as moving 2 KiB of each.
void sort_by_slot(std::vector<Part>& parts) {
  constexpr int kBits = 11;
  const auto before = [](const Part& a, const Part& b) { return a.run.slot < b.run.slot; };
  if (std::is_sorted(parts.begin(), parts.end(), before)) return;
  std::int64_t most = 0;
  for (const Part& part : parts) most = std::max(most, part.run.slot);
  std::vector<Part> other(parts.size());
  for (int shift = 0; shift < 63 && most >> shift > 0; shift += kBits) {
    const auto digit = [&](const Part& part) {
      return part.run.slot >> shift & ((std::int64_t{1} << kBits) - 1);
    };
    std::size_t next[(std::size_t{1} << kBits) + 1] = {};
    for (const Part& part : parts) ++next[digit(part) + 1];
    std::partial_sum(std::begin(next), std::end(next), std::begin(next));
    for (const Part& part : parts) other[next[digit(part)]++] = part;
    parts.swap(other);
  }
}

// All runs, chunk by chunk; or, `by_slot`, as the engine has them.
std::vector<Part> parts_of(const Runs& found, const SlotTable& table, const std::uint64_t* chunks,
                           bool by_slot) {
  std::vector<Part> parts;
  parts.reserve(found.runs.size());
  for (std::size_t chunk = 0; chunk < table.chunks; ++chunk) {
    for (std::size_t r = found.first[chunk]; r < found.first[chunk + 1]; ++r) {
      parts.push_back({found.runs[r], chunks[chunk]});
    }
  }
  if (by_slot) sort_by_slot(parts);
  return parts;
}

// K and V of a block lie side by side, not in arrays of their own.
bool planes_in_blocks(const Paged& paged) {
  const std::uint64_t k = paged.k_bases[0], v = paged.v_bases[0];
  return (k < v ? v - k : k - v) < static_cast<std::uint64_t>(paged.strides[0].block);
}

template <bool kGather>
void move_paged(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                Order order, int threads) {
  const std::int64_t chunk_bytes = raw_chunk_bytes(paged, table.chunk_tokens);
  const Runs found = find_runs(paged, table);
  check_move(paged, found, chunks, chunk_bytes, !kGather);
  const std::size_t layers = paged.layers(), planes = paged.planes();
  const auto chunk_tokens = static_cast<std::int64_t>(table.chunk_tokens);
  const std::int64_t token_bytes = paged.token_bytes();
  const std::int64_t plane_bytes = chunk_tokens * token_bytes;
  const std::size_t total = found.tokens * token_bytes * layers * planes;
  const bool stream = total >= kStreamFrom;

  // Past the caches, memory wants to be read in order, since the CPU fetches ahead, and hardly minds
  // how it is written: a gather follows the engine, a scatter the chunks. Layer by layer, as a layer
  // of the engine is fewer pages than a chunk's layers all over it. Items for threads: a share of the
  // runs, in one layer.
  const std::vector<Part> parts = parts_of(found, table, chunks, kGather && stream);
  const std::size_t shares = std::min(table.chunks, parts.size());
  const bool whole = whole_runs(paged, 0, order, chunk_tokens) &&
                     whole_runs(paged, planes - 1, order, chunk_tokens);
  const bool side_by_side = kGather && planes == 2 && planes_in_blocks(paged);
  const auto work = [&](std::size_t begin, std::size_t end) {
    Batch batch;
    const auto move_piece = [&](std::uint64_t there, std::uint64_t here, std::int64_t bytes) {
      const auto nbytes = static_cast<std::size_t>(bytes);
      const Piece piece = kGather ? Piece{here, there, nbytes} : Piece{there, here, nbytes};
      if (stream) {
        batch.push(piece);
      } else {
        move(piece);
      }
    };
    for (std::size_t item = begin; item < end; ++item) {
      const std::size_t layer = item / shares, share = item % shares;
      const Part* const first = parts.data() + parts.size() * share / shares;
      const Part* const last = parts.data() + parts.size() * (share + 1) / shares;
      const auto move_part = [&](const Part& part, std::size_t plane) {
        const std::uint64_t engine = paged.base(layer, plane);
        const std::uint64_t chunk = part.chunk + (layer * planes + plane) * plane_bytes;
        const Run& run = part.run;
        if (whole) {  // for_run would find that, at some cost for each run of each layer
          move_piece(engine + paged.offset(run.slot, plane), chunk + run.token * token_bytes,
                     run.tokens * token_bytes);
        } else {
          for_run(paged, plane, order, chunk_tokens, run, engine, chunk, move_piece);
        }
      };
      // Either way all parts in all planes.
      const std::size_t outer = side_by_side ? 1 : planes, inner = planes / outer;
      for (std::size_t o = 0; o < outer; ++o) {
        for (const Part* part = first; part != last; ++part) {
          for (std::size_t i = 0; i < inner; ++i) move_part(*part, o + i);
        }
      }
    }
    batch.flush();
    if (stream) stream_fence();
  };
  parallel(total < kParallelFrom ? 1 : threads, shares * layers, work);
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
  std::vector<Piece> slices;
  std::size_t total = 0;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t at = 0; at < nbytes[i]; at += kSlice) {
      slices.push_back({destinations[i] + at, sources[i] + at, std::min(kSlice, nbytes[i] - at)});
    }
    total += nbytes[i];
  }
  const bool stream = total >= kStreamFrom;
  const auto work = [&](std::size_t begin, std::size_t end) {
    if (stream) {
      stream_pieces(slices.data() + begin, end - begin);
      stream_fence();
    } else {
      std::for_each(slices.data() + begin, slices.data() + end, move);
    }
  };
  parallel(total < kParallelFrom ? 1 : threads, slices.size(), work);
}

}  // namespace lmcache
