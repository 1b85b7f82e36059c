// XXH3-128 compiled for CPUs that have AVX2; only for those that do.
#pragma once

#include "hash/xxh3.h"

namespace lmcache {

Hash128 xxh3_128_avx2(const void* data, std::size_t nbytes);

}  // namespace lmcache
