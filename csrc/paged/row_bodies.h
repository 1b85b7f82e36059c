// The bodies of rows.h, run on the CPU. Compiled twice, once for CPUs that have AVX2: each gives the
// same bits.
#pragma once

#include <cstdint>

#include "paged/row_plan.h"

namespace lmcache {

// Rows [first, last) of a chunk.
struct RowRange {
  std::uint32_t chunk, first, last;
};

struct RowBodies {
  void (*encode)(const Rows&, ItemType, CodeType, RowRange);
  void (*decode)(const Rows&, ItemType, CodeType, RowRange);
};

extern const RowBodies kRowBodies, kRowBodiesAvx2;

}  // namespace lmcache
