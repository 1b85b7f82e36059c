// SHA-256 compression of whole blocks, into one or two states at once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace lmcache {

using Digest = std::array<std::uint8_t, 32>;
using State = std::array<std::uint32_t, 8>;

constexpr std::size_t kBlockBytes = 64;
constexpr State kInitialState = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

alignas(64) extern const std::uint32_t kRoundConstants[64];

// Both functions fold `blocks` blocks of 64 bytes, at any alignment, into the states. `two` folds
// the same bytes into two states: the message schedule is computed once, and the two chains of
// dependent rounds fill each other's gaps.
struct Sha256 {
  const char* name;
  void (*one)(State& state, const std::uint8_t* data, std::size_t blocks);
  void (*two)(State& first, State& second, const std::uint8_t* data, std::size_t blocks);
};

// With the SHA instructions if this CPU has them, else (or when asked) portable code.
const Sha256& sha256(bool portable = false);

// The CPU's instructions, or null where it has none.
const Sha256* sha256_ni();

Digest to_digest(const State& state);

}  // namespace lmcache
