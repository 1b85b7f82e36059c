// XXH3-128 of a chunk: not against an adversary, but against everything that disks and wires do.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace lmcache {

// Canonical (big-endian) bytes, as other implementations print them.
using Hash128 = std::array<std::uint8_t, 16>;

Hash128 xxh3_128(const void* data, std::size_t nbytes);

}  // namespace lmcache
