#include "paged/codecs.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory/pool.h"
#include "paged/row_bodies.h"

namespace lmcache {
namespace {

// Rows that a thread takes at a time: some tens of KiB.
constexpr std::uint32_t kRowsAtOnce = 256;
// Below this many bytes waking a thread costs more than it saves.
constexpr std::size_t kParallelFrom = std::size_t{64} << 10;

const RowBodies& bodies(bool portable) {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (avx2 && !portable) return kRowBodiesAvx2;
#endif
  static_cast<void>(portable);
  return kRowBodies;
}

// All rows of all chunks, on `threads` threads.
template <typename Body>
void for_rows(const Rows& rows, int threads, const Body& body) {
  const std::size_t parts = (rows.per_chunk + std::size_t{kRowsAtOnce} - 1) / kRowsAtOnce;
  const std::size_t bytes = std::size_t{rows.per_chunk} * rows.row_bytes * rows.chunk_count;
  parallel(bytes < kParallelFrom ? 1 : threads, parts * rows.chunk_count,
           [&](std::size_t begin, std::size_t end) {
             for (std::size_t i = begin; i < end; ++i) {
               const auto chunk = static_cast<std::uint32_t>(i / parts);
               const std::size_t first = i % parts * kRowsAtOnce;
               const std::size_t last = std::min<std::size_t>(first + kRowsAtOnce, rows.per_chunk);
               body(RowRange{chunk, static_cast<std::uint32_t>(first),
                             static_cast<std::uint32_t>(last)});
             }
           });
}

// A raw chunk as an engine of one token, which has as many heads as the chunk has rows.
Paged flat(std::int64_t rows, std::int64_t items, std::int64_t item_bytes, std::uint64_t raw) {
  std::int64_t row_bytes;
  if (rows < 1 || items < 1) throw std::invalid_argument("rows and items must be at least 1");
  if (__builtin_mul_overflow(items, item_bytes, &row_bytes)) {
    throw std::invalid_argument("a row is too large");
  }
  Paged paged{{raw}, {}, 1, {}, rows, row_bytes, row_bytes, 1};
  paged.strides[0] = {row_bytes, row_bytes, row_bytes, 0};
  paged.check();
  return paged;
}

}  // namespace

void move_coded(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                Order order, ItemType type, CodeType code, bool encode, int threads, bool portable) {
  const Verb verb = encode ? Verb::kEncode : Verb::kDecode;
  const RowPlan plan = plan_items(paged, table, chunks, order, type, verb);
  const auto body = encode ? bodies(portable).encode : bodies(portable).decode;
  for_rows(plan.rows, threads, [&](RowRange range) { body(plan.rows, type, code, range); });
}

void recode(const std::uint64_t* raw, const std::uint64_t* coded, std::size_t chunks,
            std::int64_t rows, std::int64_t items, ItemType type, CodeType code, bool encode,
            int threads, bool portable) {
  const std::int64_t slot = 0, size = item_size(type);
  const std::int64_t coded_bytes = coded_chunk_bytes(std::max<std::int64_t>(rows, 1),
                                                     std::max<std::int64_t>(items, 1));
  const Paged shape = flat(rows, items, size, 0);
  // All destinations are checked before any byte moves.
  const std::vector<std::int64_t> zeros(chunks, 0);
  const SlotTable table{zeros.data(), chunks, 1};
  const Runs found = find_runs(shape, table);
  Paged anywhere = shape;
  anywhere.k_bases = {std::uint64_t{1} << 20};
  check_move(anywhere, found, encode ? coded : raw, encode ? coded_bytes : shape.token_bytes(),
             false);
  for (std::size_t i = 0; i < chunks; ++i) {
    const std::uint64_t source = (encode ? raw : coded)[i];
    if (source < 4096 || source >> 62 != 0) throw std::invalid_argument("a source is null");
  }
  for (std::size_t i = 0; i < chunks; ++i) {
    const Paged paged = flat(rows, items, size, raw[i]);
    move_coded(paged, SlotTable{&slot, 1, 1}, coded + i, Order::kHeadsFirst, type, code, encode,
               threads, portable);
  }
}

}  // namespace lmcache
