#include "paged/row_plan.h"

#include <bit>
#include <limits>
#include <stdexcept>
#include <string>

namespace lmcache {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::uint32_t>::max();
// Loops over a row count in 32 bits, and the last step may go past its end.
constexpr std::int64_t kMostRowBytes = std::int64_t{1} << 31;

void require(bool good, const std::string& what) {
  if (!good) throw std::invalid_argument(what);
}

std::uint32_t narrow(std::int64_t value, const char* what) {
  require(value <= kMost, std::string(what) + " is " + std::to_string(value) +
                              "; a move has at most 2^32 - 1 of these");
  return static_cast<std::uint32_t>(value);
}

Divisor divisor(std::uint32_t number) {
  if (number == 0) return divisor(1);  // of nothing: there are no rows
  const auto bits = static_cast<std::uint32_t>(std::bit_width(number - 1));  // 2^bits >= number
  const std::uint64_t above = (std::uint64_t{1} << bits) - number;
  const auto multiplier = static_cast<std::uint32_t>((above << 32) / number + 1);
  return {number, multiplier, bits > 0 ? 1u : 0u, bits > 0 ? bits - 1 : 0};
}

int alignment_of(const RowPlan& plan, bool contiguous) {
  const Rows& rows = plan.rows;
  std::uint64_t all = 16 | rows.row_bytes;
  for (std::uint64_t base : plan.bases) all |= base;
  for (std::uint32_t i = 0; i < rows.chunk_count; ++i) all |= rows.chunks[i];
  for (std::uint32_t plane = 0; plane < rows.planes; ++plane) {
    const Strides& by = rows.strides[plane];
    all |= static_cast<std::uint64_t>(by.block | (rows.block_tokens.number > 1 ? by.token : 0) |
                                      (rows.heads > 1 ? by.head : 0) |
                                      (contiguous ? 0 : by.item));
  }
  return static_cast<int>(all & -all);
}

RowPlan plan(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks, Order order,
             Verb verb, std::int64_t item_bytes, bool merge_heads) {
  RowPlan made{};
  Rows& rows = made.rows;
  const std::size_t planes = paged.planes(), layers = paged.layers();
  for (std::size_t layer = 0; layer < layers; ++layer) {
    for (std::size_t p = 0; p < planes; ++p) made.bases.push_back(paged.base(layer, p));
  }
  const std::int64_t raw = raw_chunk_bytes(paged, table.chunk_tokens);
  require(paged.num_slots <= kMost && paged.block_tokens <= kMost,
          "Paged: num_slots and block_tokens must be below 2^32 here");
  rows.slots = table.slots;
  rows.chunks = chunks;
  rows.block_tokens = divisor(static_cast<std::uint32_t>(paged.block_tokens));
  rows.planes = static_cast<std::uint32_t>(planes);
  const std::int64_t row_bytes = merge_heads ? paged.token_bytes() : paged.head_bytes;
  rows.heads = merge_heads ? 1 : narrow(paged.kv_heads, "kv_heads");
  rows.tokens = narrow(static_cast<std::int64_t>(table.chunk_tokens), "chunk_tokens");
  require(row_bytes <= kMostRowBytes, "a row of " + std::to_string(row_bytes) +
                                          " bytes is too long; a move takes up to 2^31 of them");
  rows.row_bytes = static_cast<std::uint32_t>(row_bytes);
  rows.items = static_cast<std::uint32_t>(row_bytes / item_bytes);
  rows.per_chunk = narrow(raw / row_bytes, "rows in a chunk");
  rows.chunk_count = narrow(static_cast<std::int64_t>(table.chunks), "chunks");
  rows.heads_first = order == Order::kHeadsFirst;
  rows.inner = divisor(rows.heads_first ? rows.tokens : rows.heads);
  rows.outer = divisor(rows.heads_first ? rows.heads : rows.tokens);
  for (std::size_t p = 0; p < planes; ++p) {
    rows.strides[p] = paged.strides[p];
    if (paged.items() == 1) rows.strides[p].item = item_bytes;
  }
  const bool coded = verb == Verb::kEncode || verb == Verb::kDecode;
  made.chunk_bytes = coded ? coded_chunk_bytes(raw / row_bytes, rows.items) : raw;
  const Runs found = find_runs(paged, table);
  check_move(paged, found, chunks, made.chunk_bytes,
             verb == Verb::kScatter || verb == Verb::kDecode);
  made.tokens = found.tokens;
  rows.bases = made.bases.data();
  made.alignment = alignment_of(made, paged.contiguous_heads());
  return made;
}

}  // namespace

RowPlan plan_moves(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                   Order order, Verb verb) {
  require(paged.contiguous_heads(),
          "Paged: the bytes of a head must lie side by side here: item_stride must be item_bytes");
  bool touch = order == Order::kTokensFirst;
  for (std::size_t p = 0; p < paged.planes(); ++p) {
    touch = touch && paged.strides[p].head == paged.head_bytes;
  }
  return plan(paged, table, chunks, order, verb, 1, touch);
}

RowPlan plan_items(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                   Order order, ItemType type, Verb verb) {
  const std::int64_t size = item_size(type);
  require(paged.head_bytes % size == 0, "Paged: head_bytes is " + std::to_string(paged.head_bytes) +
                                            ", no whole number of items of " +
                                            std::to_string(size) + " bytes");
  require(paged.items() == 1 || paged.item_bytes == size,
          "Paged: item_bytes is " + std::to_string(paged.item_bytes) + ", but the dtype has " +
              std::to_string(size));
  return plan(paged, table, chunks, order, verb, size, false);
}

std::int64_t coded_chunk_bytes(std::int64_t rows, std::int64_t items) {
  std::int64_t codes, scales, bytes;
  if (__builtin_mul_overflow(rows, items, &codes) || codes > (std::int64_t{1} << 62) ||
      __builtin_mul_overflow(rows, 4, &scales) ||
      __builtin_add_overflow(static_cast<std::int64_t>(scales_offset(codes)), scales, &bytes)) {
    throw std::invalid_argument("a coded chunk is too large");
  }
  return bytes;
}

}  // namespace lmcache
