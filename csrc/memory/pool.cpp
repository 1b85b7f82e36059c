#include "memory/pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

namespace lmcache {
namespace {

constexpr std::size_t kMostHelpers = 63;
// Ranges per thread: enough to even out threads that get less of a core, few enough to be cheap.
constexpr std::size_t kRangesPerThread = 8;

// One call of parallel(), on its caller's stack.
struct Job {
  Job(std::size_t items, std::size_t helpers, const Work& work)
      : items(items),
        grain(std::max<std::size_t>(1, items / ((helpers + 1) * kRangesPerThread))),
        work(work),
        seats(helpers) {}

  void drain() {
    for (;;) {
      const std::size_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= items) return;
      work(begin, std::min(begin + grain, items));
    }
  }

  const std::size_t items, grain;
  const Work& work;
  std::atomic<std::size_t> next{0};
  // Under the pool's lock:
  std::size_t seats;       // helpers that may still join
  std::size_t active = 0;  // helpers that joined and have not left
  std::condition_variable left;
};

class Pool {
 public:
  void run(std::size_t helpers, std::size_t items, const Work& work) {
    Job job(items, helpers, work);
    {
      const std::lock_guard lock(mutex_);
      grow(helpers);
      jobs_.push_back(&job);
    }
    for (std::size_t i = 0; i < helpers; ++i) offered_.notify_one();
    job.drain();
    std::unique_lock lock(mutex_);
    std::erase(jobs_, &job);
    job.left.wait(lock, [&] { return job.active == 0; });
  }

 private:
  void grow(std::size_t helpers) {
    // Python handles signals on its main thread, and only promptly if they are delivered there.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; workers_ < helpers; ++workers_) std::thread(&Pool::serve, this).detach();
    } catch (const std::exception&) {
      // No more threads to be had: the work is done by those there are.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      offered_.wait(lock, [&] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      ++job.active;
      if (--job.seats == 0) jobs_.pop_front();
      lock.unlock();
      job.drain();
      lock.lock();
      // Under the lock: once it is free, the caller may return and the job is gone.
      if (--job.active == 0) job.left.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable offered_;
  std::deque<Job*> jobs_;
  std::size_t workers_ = 0;
};

// Never destroyed: their workers use them for as long as the process lives. One for work and one for
// waiting, so that a slow disk never keeps a copy from its cores.
std::atomic<Pool*> computing{nullptr}, waiting{nullptr};

// A child process has the parent's memory but not its threads, and the lock may have been held.
const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  computing.store(nullptr);
  waiting.store(nullptr);
});

Pool& pool(std::atomic<Pool*>& current) {
  Pool* found = current.load();
  if (found == nullptr) {
    auto* fresh = new Pool;
    if (current.compare_exchange_strong(found, fresh)) return *fresh;
    delete fresh;  // another thread was first
  }
  return *found;
}

void share(std::atomic<Pool*>& current, int threads, std::size_t items, const Work& work) {
  if (items == 0) return;
  if (threads <= 1 || items == 1) {
    work(0, items);
    return;
  }
  const std::size_t wanted = std::min(static_cast<std::size_t>(threads), items) - 1;
  pool(current).run(std::min(wanted, kMostHelpers), items, work);
}

}  // namespace

void parallel(int threads, std::size_t items, const Work& work) {
  share(computing, threads, items, work);
}

void parallel_io(int depth, std::size_t items, const Work& work) {
  share(waiting, depth, items, work);
}

}  // namespace lmcache
