// From a descriptor and slots to the rows that bodies run on.
#pragma once

#include <cstdint>
#include <vector>

#include "paged/moves.h"
#include "paged/paged.h"
#include "paged/rows.h"

namespace lmcache {

inline std::int64_t item_size(ItemType type) { return type == ItemType::kFloat32 ? 4 : 2; }

// `rows` points into the vectors, and at the caller's slots and chunks.
struct RowPlan {
  Rows rows;
  std::vector<std::uint64_t> bases;
  std::int64_t chunk_bytes;  // that a move touches: raw or coded
  std::size_t tokens;        // that are not left out
  int alignment;             // of all that is touched, a power of two up to 16
};

// What the plan is for.
enum class Verb { kGather, kScatter, kEncode, kDecode };

// For moves of bytes, whose rows are as long as they can be. Throws as the verbs do, and
// std::invalid_argument where heads are not contiguous.
RowPlan plan_moves(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                   Order order, Verb verb);
// For verbs that know items; `verb` says which side is written, and whether chunks are coded.
// Throws std::invalid_argument, too, for heads that are no whole number of items.
RowPlan plan_items(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                   Order order, ItemType type, Verb verb);

// Bytes of a coded chunk: see rows.h.
std::int64_t coded_chunk_bytes(std::int64_t rows, std::int64_t items);

}  // namespace lmcache
