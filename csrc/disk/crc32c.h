// CRC-32C (Castagnoli), as iSCSI and ext4 use it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmcache {

// Of `nbytes` bytes; `before` continues an earlier call's result. With the CPU's instruction where
// it has one, unless `portable`.
std::uint32_t crc32c(const void* data, std::size_t nbytes, std::uint32_t before = 0,
                     bool portable = false);

}  // namespace lmcache
