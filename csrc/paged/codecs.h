// Verbs that change KV on its way: coded in a byte an item.
#pragma once

#include <cstddef>
#include <cstdint>

#include "paged/row_plan.h"

namespace lmcache {

// Engine KV -> coded chunks (`encode`), or back. Else as `gather` and `scatter`.
void move_coded(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                Order order, ItemType type, CodeType code, bool encode, int threads, bool portable);

// The same between raw chunks of `rows` rows of `items` items and coded ones. Throws
// std::invalid_argument for null addresses and destinations that overlap.
void recode(const std::uint64_t* raw, const std::uint64_t* coded, std::size_t chunks,
            std::int64_t rows, std::int64_t items, ItemType type, CodeType code, bool encode,
            int threads, bool portable);

}  // namespace lmcache
