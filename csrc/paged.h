// Where an engine keeps the KV of a token: one affine description for all paged layouts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lmcache {

// Address of (layer l, plane kv, slot s, head h), where `head_bytes` contiguous bytes lie:
//   base[kv][l] + (s / block_tokens) * block_stride + (s % block_tokens) * token_stride
//               + h * head_stride
// Strides and sizes in bytes. One plane (v_bases empty) where K and V are one latent row (MLA).
struct Paged {
  std::vector<std::uint64_t> k_bases, v_bases;
  std::int64_t block_tokens, block_stride, token_stride, head_stride;
  std::int64_t kv_heads, head_bytes, num_slots;

  // Throws std::invalid_argument, naming the field, for what can't be a layout.
  void check() const;

  std::size_t layers() const { return k_bases.size(); }
  std::size_t planes() const { return v_bases.empty() ? 1 : 2; }
  std::int64_t token_bytes() const { return kv_heads * head_bytes; }  // in one plane of one layer
  std::uint64_t base(std::size_t layer, std::size_t plane) const {
    return plane == 0 ? k_bases[layer] : v_bases[layer];
  }
  std::int64_t offset(std::int64_t slot) const {
    return slot / block_tokens * block_stride + slot % block_tokens * token_stride;
  }
  // Slots at either side of a block's end are as far apart as two within a block.
  bool blocks_touch() const { return block_stride == block_tokens * token_stride; }
};

// Chunk i's tokens lie in the slots [i * chunk_tokens, (i + 1) * chunk_tokens) of this table.
struct SlotTable {
  const std::int64_t* slots;
  std::size_t chunks, chunk_tokens;
};

// Tokens [token, token + tokens) of a chunk whose slots are evenly spaced, token_stride apart, from
// `offset` behind a layer's base on.
struct Run {
  std::int64_t token, tokens, offset;
};

struct Runs {
  std::vector<Run> runs;
  std::vector<std::size_t> first;  // chunk i has the runs [first[i], first[i + 1])
  std::size_t tokens = 0;          // in all runs
};

// The longest runs; slots of -1 are in none. Throws std::out_of_range, with the place in the table,
// for a slot that is less than -1 or not in the engine's KV.
Runs find_runs(const Paged& paged, const SlotTable& table);

}  // namespace lmcache
