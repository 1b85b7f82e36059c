#include "hash/xxh3.h"

#include "hash/xxh3_variant.h"

// Which vectors the header uses is decided when it is compiled: this file has what every CPU has.
#define XXH_INLINE_ALL
#include <arrow/vendored/xxhash/xxhash.h>

namespace lmcache {
namespace {

Hash128 plain(const void* data, std::size_t nbytes) {
  const XXH128_hash_t hash = XXH3_128bits(data, nbytes);
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  Hash128 bytes;
  __builtin_memcpy(bytes.data(), canonical.digest, bytes.size());
  return bytes;
}

#if defined(__x86_64__)
const auto fastest = __builtin_cpu_supports("avx2") ? xxh3_128_avx2 : plain;
#else
const auto fastest = plain;
#endif

}  // namespace

Hash128 xxh3_128(const void* data, std::size_t nbytes) { return fastest(data, nbytes); }

}  // namespace lmcache
