// Compiled with -mavx2 (see CMakeLists.txt). Includes as little as it can: an inline function of the
// standard library that were compiled here could be the one that the linker keeps for all.
#include "hash/xxh3_variant.h"

#if defined(__x86_64__)

#define XXH_INLINE_ALL
#include <arrow/vendored/xxhash/xxhash.h>

namespace lmcache {

Hash128 xxh3_128_avx2(const void* data, std::size_t nbytes) {
  const XXH128_hash_t hash = XXH3_128bits(data, nbytes);
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  Hash128 bytes;
  __builtin_memcpy(&bytes, canonical.digest, sizeof bytes);
  return bytes;
}

}  // namespace lmcache

#endif
