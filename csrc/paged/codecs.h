// Verbs that change KV on its way: coded in a byte an item.
#pragma once

#include <cstddef>
#include <cstdint>

#include "paged/row_plan.h"

namespace lmcache {

// Engine KV -> coded chunks, and back. Else as `gather` and `scatter`.
void gather_coded(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                  Order order, ItemType type, CodeType code, int threads, bool portable);
void scatter_coded(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                   Order order, ItemType type, CodeType code, int threads, bool portable);

// The same between raw chunks of `rows` rows of `items` items and coded ones. Throws
// std::invalid_argument for null addresses and destinations that overlap.
void encode(const std::uint64_t* coded, const std::uint64_t* raw, std::size_t chunks,
            std::int64_t rows, std::int64_t items, ItemType type, CodeType code, int threads,
            bool portable);
void decode(const std::uint64_t* raw, const std::uint64_t* coded, std::size_t chunks,
            std::int64_t rows, std::int64_t items, ItemType type, CodeType code, int threads,
            bool portable);

// gather and scatter by the very bodies and units that the GPU runs, as many groups of as many lanes
// one after another: what tests of those bodies call.
void move_by_rows(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                  Order order, bool gather, std::uint32_t groups, std::uint32_t lanes);

}  // namespace lmcache
