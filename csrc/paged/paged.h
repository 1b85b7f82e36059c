// Where an engine keeps the KV of a token: one affine description for all paged layouts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "paged/rows.h"

namespace lmcache {

// Address of (layer l, plane kv, slot s, head h, item d), where `item_bytes` bytes lie:
//   base[kv][l] + (s / block_tokens) * strides[kv].block + (s % block_tokens) * strides[kv].token
//               + h * strides[kv].head + d * strides[kv].item
// Strides and sizes in bytes. A head has head_bytes / item_bytes items; where it is contiguous it
// may as well be one item. One plane (v_bases empty) where K and V are one latent row (MLA). The
// planes have strides of their own, for engines that keep K transposed (vLLM's CPU backend).
struct Paged {
  std::vector<std::uint64_t> k_bases, v_bases;
  std::int64_t block_tokens;
  Strides strides[2];
  std::int64_t kv_heads, head_bytes, item_bytes, num_slots;
  bool overlaps = false;  // two tokens, heads or planes share bytes: it can be read, not written
  int block_shift = -1;   // block_tokens as a power of two, if it is one: a division takes longer

  // Throws std::invalid_argument, naming the field, for what can't be a layout; finds the last two.
  void check();

  std::size_t layers() const { return k_bases.size(); }
  std::size_t planes() const { return v_bases.empty() ? 1 : 2; }
  std::int64_t token_bytes() const { return kv_heads * head_bytes; }  // in one plane of one layer
  std::int64_t items() const { return head_bytes / item_bytes; }
  std::uint64_t base(std::size_t layer, std::size_t plane) const {
    return plane == 0 ? k_bases[layer] : v_bases[layer];
  }
  std::int64_t offset(std::int64_t slot, std::size_t plane) const {
    const Strides& by = strides[plane];
    const std::int64_t block = block_shift >= 0 ? slot >> block_shift : slot / block_tokens;
    return block * by.block + (slot - block * block_tokens) * by.token;
  }
  // Slots at either side of a block's end are as far apart as two within a block.
  bool blocks_touch() const;
  // Each head is one run of bytes.
  bool contiguous_heads() const;
};

// Chunk i's tokens lie in the slots [i * chunk_tokens, (i + 1) * chunk_tokens) of this table.
struct SlotTable {
  const std::int64_t* slots;
  std::size_t chunks, chunk_tokens;
};

// Tokens [token, token + tokens) of a chunk whose slots, from `slot` on, are evenly spaced.
struct Run {
  std::int64_t token, tokens, slot;
};

struct Runs {
  std::vector<Run> runs;
  std::vector<std::size_t> first;  // chunk i has the runs [first[i], first[i + 1])
  std::size_t tokens = 0;          // in all runs
};

// The longest runs; slots of -1 are in none. Throws std::out_of_range, with the place in the table,
// for a slot that is less than -1 or not in the engine's KV.
Runs find_runs(const Paged& paged, const SlotTable& table);

// Throws std::invalid_argument where a move of these runs could not be right: memory at a null
// address, or a destination that another one overlaps. `chunk_bytes` are what the move touches of a
// chunk. `into_engine`: the engine's KV is what is written.
void check_move(const Paged& paged, const Runs& found, const std::uint64_t* chunks,
                std::int64_t chunk_bytes, bool into_engine);

// layers * planes * tokens * token_bytes. Throws std::invalid_argument where that is no int64.
std::int64_t raw_chunk_bytes(const Paged& paged, std::size_t chunk_tokens);

}  // namespace lmcache
