// Launches of the bodies of rows.h on a GPU. All pointers in `rows` are the device's.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "paged/rows.h"

namespace lmcache {

// More than any GPU runs at once, and their threads are counted in 32 bits.
constexpr std::uint32_t kMostCtas = 1u << 20;

// `ctas`: thread blocks in all, however much there is to move. A few leave the rest of the GPU to
// the model. Of verbs that take a row at a time, not four, four times as many: as much is under way.
struct Launch {
  cudaStream_t stream;
  std::uint32_t ctas;
};

// `unit`: 16, 8, 4, 2 or 1 bytes at a time; all addresses and rows must be multiples of it.
cudaError_t launch_move(const Rows& rows, bool gather, int unit, Launch launch);
// `wide`: 16 bytes of items at a time, for addresses that are multiples of 16 and rows that are
// whole numbers of these; else an item at a time.
cudaError_t launch_code(const Rows& rows, bool encode, ItemType type, CodeType code, bool wide,
                        Launch launch);

// Items in 16 bytes.
constexpr std::uint32_t wide_items(ItemType type) { return type == ItemType::kFloat32 ? 4 : 8; }

}  // namespace lmcache
