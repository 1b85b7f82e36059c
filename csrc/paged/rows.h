// The verbs' bodies, for the CPU and the GPU alike. A row is one head of one token in one plane of
// one layer (or all heads of it, where they touch on both sides); a group of lanes works on a row
// together, and a CPU thread is a group with one lane.
#pragma once

#include <cstdint>

#include "paged/floats.h"

namespace lmcache {

enum class ItemType { kFloat32, kBFloat16, kFloat16 };
enum class CodeType { kFp8, kInt8 };

struct Strides {
  std::int64_t block, token, head, item;
};

// How often a number that is known before goes into others, by a multiplication and two shifts
// (Granlund and Montgomery 1994, figure 4.1), right for all numbers of 32 bits: GPUs can't divide.
struct Divisor {
  std::uint32_t number, multiplier, shift, then;
};
LMCACHE_HD std::uint32_t divide(std::uint32_t value, const Divisor& by) {
  const auto high = static_cast<std::uint32_t>(std::uint64_t{value} * by.multiplier >> 32);
  return (high + ((value - high) >> by.shift)) >> by.then;
}

struct Rows {
  const std::uint64_t* bases;   // [layers][planes]
  const std::int64_t* slots;    // [chunks][tokens]
  const std::uint64_t* chunks;  // [chunks]
  Strides strides[2];
  Divisor block_tokens, inner, outer;  // what varies fastest in a chunk, heads or tokens; the other
  std::uint32_t planes, heads, tokens, items;  // items of a row
  std::uint32_t per_chunk;                     // rows
  std::uint32_t chunk_count;
  std::uint32_t row_bytes;  // of the engine's items
  bool heads_first;         // in a chunk
};

struct Row {
  std::uint64_t engine, chunk;
  std::uint32_t number, plane;  // in its chunk
  bool there;                   // its token is not left out
};

// Row `number` of a chunk, in the order in which the chunk has them.
LMCACHE_HD Row row_at(const Rows& rows, std::uint32_t chunk, std::uint32_t number) {
  const std::uint32_t outer = divide(number, rows.inner);
  const std::uint32_t within = number - outer * rows.inner.number;
  const std::uint32_t layer_plane = divide(outer, rows.outer);
  const std::uint32_t index = outer - layer_plane * rows.outer.number;
  const std::uint32_t token = rows.heads_first ? within : index;
  const std::uint32_t head = rows.heads_first ? index : within;
  const std::int64_t slot = rows.slots[std::uint64_t{chunk} * rows.tokens + token];
  const std::uint32_t plane = rows.planes == 2 ? layer_plane & 1 : 0;
  const Strides& by = rows.strides[plane];
  // Nobody has more than 2^32 slots: the plan sees to it.
  const auto where = static_cast<std::uint32_t>(slot);
  const std::uint32_t block = divide(where, rows.block_tokens);
  const std::uint32_t offset = where - block * rows.block_tokens.number;
  // Unsigned, since the block of a token that is left out is anything.
  const std::uint64_t at = std::uint64_t{block} * static_cast<std::uint64_t>(by.block) +
                           std::uint64_t{offset} * static_cast<std::uint64_t>(by.token) +
                           std::uint64_t{head} * static_cast<std::uint64_t>(by.head);
  return {rows.bases[layer_plane] + at, rows.chunks[chunk], number, plane, slot >= 0};
}

// What a lane moves at a time. On a GPU a struct of 16 bytes moves in one access only if it is
// aligned to as many.
template <int Bytes>
struct alignas(Bytes < 16 ? Bytes : 16) Unit {
  std::uint32_t words[Bytes / 4];
};
template <>
struct alignas(2) Unit<2> {
  std::uint16_t word;
};
template <>
struct alignas(1) Unit<1> {
  std::uint8_t word;
};

// Addresses are integers throughout: on the CPU they need no alignment, on the GPU that of the unit.
#if defined(__CUDA_ARCH__)
// Around the L1 cache: no byte is used twice.
template <int Bytes>
LMCACHE_HD void carry(std::uint64_t to, Unit<Bytes> unit) {
  if constexpr (Bytes == 16) {
    __stcs(reinterpret_cast<uint4*>(to),
           make_uint4(unit.words[0], unit.words[1], unit.words[2], unit.words[3]));
  } else if constexpr (Bytes == 8) {
    __stcs(reinterpret_cast<uint2*>(to), make_uint2(unit.words[0], unit.words[1]));
  } else if constexpr (Bytes == 4) {
    __stcs(reinterpret_cast<unsigned*>(to), unit.words[0]);
  } else if constexpr (Bytes == 2) {
    __stcs(reinterpret_cast<unsigned short*>(to), unit.word);
  } else {
    __stcs(reinterpret_cast<unsigned char*>(to), unit.word);
  }
}
template <int Bytes>
LMCACHE_HD Unit<Bytes> fetch(std::uint64_t from) {
  if constexpr (Bytes == 16) {
    const uint4 found = __ldcs(reinterpret_cast<const uint4*>(from));
    return {{found.x, found.y, found.z, found.w}};
  } else if constexpr (Bytes == 8) {
    const uint2 found = __ldcs(reinterpret_cast<const uint2*>(from));
    return {{found.x, found.y}};
  } else if constexpr (Bytes == 4) {
    return {{__ldcs(reinterpret_cast<const unsigned*>(from))}};
  } else if constexpr (Bytes == 2) {
    return {__ldcs(reinterpret_cast<const unsigned short*>(from))};
  } else {
    return {__ldcs(reinterpret_cast<const unsigned char*>(from))};
  }
}
#else
template <int Bytes>
LMCACHE_HD void carry(std::uint64_t to, Unit<Bytes> unit) {
  __builtin_memcpy(reinterpret_cast<void*>(to), &unit, Bytes);
}
template <int Bytes>
LMCACHE_HD Unit<Bytes> fetch(std::uint64_t from) {
  Unit<Bytes> unit;
  __builtin_memcpy(&unit, reinterpret_cast<const void*>(from), Bytes);
  return unit;
}
#endif

// N items from `address` on, `stride` bytes apart; side by side for N > 1.
template <typename Item, int N>
struct Items {
  using Bits = typename Item::Bits;
  Bits values[N];

  static LMCACHE_HD_MEMBER Items at(std::uint64_t address) {
    const auto unit = fetch<sizeof(Bits) * N>(address);
    Items found;
    __builtin_memcpy(&found, &unit, sizeof found);
    return found;
  }
  LMCACHE_HD_MEMBER void store(std::uint64_t address) const {
    Unit<sizeof(Bits) * N> unit;
    __builtin_memcpy(&unit, this, sizeof unit);
    carry(address, unit);
  }
};

// gather and scatter: rows first, first + step, ... of a chunk, in units of `Bytes`, some rows at a
// time, so that as many reads are under way.
constexpr int kRowsTogether = 4;
template <bool Gather, int Bytes>
LMCACHE_HD void move_rows(const Rows& rows, std::uint32_t chunk, std::uint32_t first,
                          std::uint32_t step, std::uint32_t lane, std::uint32_t lanes) {
  const std::uint32_t units = rows.row_bytes / Bytes;
  // 64 bits: the last step may go past 2^32.
  for (std::uint64_t r = first; r < rows.per_chunk; r += std::uint64_t{step} * kRowsTogether) {
    std::uint64_t from[kRowsTogether], to[kRowsTogether];
    bool there[kRowsTogether];
    LMCACHE_UNROLL for (int k = 0; k < kRowsTogether; ++k) {
      // What lies behind the end is not moved, but looked for at the first of the four: no branch,
      // so that they look at once.
      const std::uint64_t ahead = std::uint64_t{step} * k;
      const bool inside = ahead < rows.per_chunk - r;
      const auto number = static_cast<std::uint32_t>(inside ? r + ahead : r);
      const Row row = row_at(rows, chunk, number);
      const std::uint64_t chunk_row = row.chunk + std::uint64_t{number} * rows.row_bytes;
      there[k] = row.there && inside;
      from[k] = Gather ? row.engine : chunk_row;
      to[k] = Gather ? chunk_row : row.engine;
    }
    for (std::uint32_t u = lane; u < units; u += lanes) {
      Unit<Bytes> pieces[kRowsTogether] = {};
      LMCACHE_UNROLL for (int k = 0; k < kRowsTogether; ++k) {
        if (there[k]) pieces[k] = fetch<Bytes>(from[k] + std::uint64_t{u} * Bytes);
      }
      LMCACHE_UNROLL for (int k = 0; k < kRowsTogether; ++k) {
        if (there[k]) carry(to[k] + std::uint64_t{u} * Bytes, pieces[k]);
      }
    }
  }
}

// A coded chunk: one byte for each item, in the chunk's order, then a float32 for each row, what its
// codes are multiplied by. Codes end at a multiple of 16.
LMCACHE_HD std::uint64_t scales_offset(std::uint64_t items) { return (items + 15) / 16 * 16; }

LMCACHE_HD std::uint64_t scale_address(const Rows& rows, const Row& row) {
  const std::uint64_t items = std::uint64_t{rows.per_chunk} * rows.items;
  return row.chunk + scales_offset(items) + std::uint64_t{row.number} * sizeof(float);
}

// The largest finite magnitude among the items of this lane; the group's is the largest of these.
template <typename Item, int N>
LMCACHE_HD float largest_of(const Rows& rows, std::uint64_t from, std::int64_t stride,
                            std::uint32_t lane, std::uint32_t lanes) {
  std::uint32_t most = 0;  // magnitudes as integers: they have the same order
  for (std::uint32_t i = lane * N; i < rows.items; i += lanes * N) {
    const auto some = Items<Item, N>::at(from + i * stride);
    for (int k = 0; k < N; ++k) {
      const std::uint32_t magnitude = bits_of(Item::read(some.values[k])) & 0x7fffffff;
      const std::uint32_t finite = magnitude < 0x7f800000 ? magnitude : 0;
      most = finite > most ? finite : most;
    }
  }
  return float_of(most);
}

template <typename Item, typename Code, int N>
LMCACHE_HD void encode_row(const Rows& rows, const Row& row, float largest, std::uint32_t lane,
                           std::uint32_t lanes) {
  const Scale scale = scale_of(largest, Code::kLargest);
  const std::int64_t stride = rows.strides[row.plane].item;
  const std::uint64_t to = row.chunk + std::uint64_t{row.number} * rows.items;
  for (std::uint32_t i = lane * N; i < rows.items; i += lanes * N) {
    const auto some = Items<Item, N>::at(row.engine + i * stride);
    Unit<N> codes;
    std::uint8_t bytes[N];
    for (int k = 0; k < N; ++k) {
      bytes[k] = Code::encode(times(Item::read(some.values[k]), scale.down));
    }
    __builtin_memcpy(&codes, bytes, N);
    carry(to + i, codes);
  }
  if (lane == 0) carry(scale_address(rows, row), Unit<4>{{bits_of(scale.up)}});
}

template <typename Item, typename Code, int N>
LMCACHE_HD void decode_row(const Rows& rows, const Row& row, std::uint32_t lane,
                           std::uint32_t lanes) {
  const float up = float_of(fetch<4>(scale_address(rows, row)).words[0]);
  const std::int64_t stride = rows.strides[row.plane].item;
  const std::uint64_t from = row.chunk + std::uint64_t{row.number} * rows.items;
  for (std::uint32_t i = lane * N; i < rows.items; i += lanes * N) {
    const auto codes = fetch<N>(from + i);
    std::uint8_t bytes[N];
    __builtin_memcpy(bytes, &codes, N);
    Items<Item, N> some;
    for (int k = 0; k < N; ++k) some.values[k] = Item::write(times(Code::decode(bytes[k]), up));
    some.store(row.engine + i * stride);
  }
}

}  // namespace lmcache
