// Verbs that move KV bytes between an engine's memory and flat chunks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "paged/paged.h"

namespace lmcache {

// The order of a chunk's bytes, with [layers][planes] in front of both.
enum class Order {
  kHeadsFirst,   // "HND": [kv_heads][tokens][head_bytes]
  kTokensFirst,  // "NHD": [tokens][kv_heads][head_bytes]
};

// Engine KV -> chunk bytes, and back: chunk i lies at chunks[i]. A token whose slot is -1 is left
// as it is on both sides. All memory must be this process's to use, for the length of the call; no
// two destinations may overlap. Throws std::out_of_range for a bad slot, before any byte moves.
void gather(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks, Order order,
            int threads);
void scatter(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks, Order order,
             int threads);

// Throws std::invalid_argument for addresses that no process has and destinations that overlap.
void check_flat(const std::uint64_t* destinations, const std::uint64_t* sources,
                const std::uint64_t* nbytes, std::size_t count);

// nbytes[i] bytes from sources[i] to destinations[i]. Throws as `check_flat`.
void copy(const std::uint64_t* destinations, const std::uint64_t* sources,
          const std::uint64_t* nbytes, std::size_t count, int threads);

}  // namespace lmcache
