// Copies that go around the caches.
#pragma once

#include <cstddef>

namespace lmcache {

// memcpy with non-temporal stores where the CPU has AVX2, plain memcpy elsewhere. An ordinary store
// first reads the cache line that it overwrites; this doesn't, so it moves two bytes of memory
// traffic for each byte copied, not three. Any alignment. Call `stream_fence` before another thread
// may read the destination.
//
// `ahead`, if any, is what will be read soon, as many bytes: it is fetched meanwhile, a line for each
// line copied. The CPU's own prefetching follows one run of memory and knows nothing of the next.
void stream_copy(void* destination, const void* source, std::size_t nbytes,
                 const void* ahead = nullptr);
void stream_fence();

}  // namespace lmcache
