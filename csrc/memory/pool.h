// Worker threads that live as long as the process.
#pragma once

#include <cstddef>
#include <functional>

namespace lmcache {

// Items [begin, end) of the work.
using Work = std::function<void(std::size_t begin, std::size_t end)>;

// Calls `work` on ranges that together are [0, items), on up to `threads` threads, the caller's
// among them; returns when all is done. With threads <= 1, or one item, all of it runs here, in
// one call. `work` must not throw.
//
// Safe from several threads at once: they share the workers, and each caller works itself, so none
// waits for a worker. Workers are started when first needed: importing this starts none. A forked
// child has no workers and starts its own. At exit workers are left sleeping, to die with the
// process: joining them could hang an interpreter that is shutting down.
void parallel(int threads, std::size_t items, const Work& work);

// The same for work that waits for a device: on workers of its own, `depth` at once.
void parallel_io(int depth, std::size_t items, const Work& work);

}  // namespace lmcache
