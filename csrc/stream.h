// Copies that go around the caches.
#pragma once

#include <cstddef>

namespace lmcache {

// memcpy with non-temporal stores where the CPU has AVX2, plain memcpy elsewhere. An ordinary store
// first reads the cache line that it overwrites; this doesn't, so it moves two bytes of memory
// traffic for each byte copied, not three. Any alignment. Call `stream_fence` before another thread
// may read the destination.
void stream_copy(void* destination, const void* source, std::size_t nbytes);
void stream_fence();

}  // namespace lmcache
