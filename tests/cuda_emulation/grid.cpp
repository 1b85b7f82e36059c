// Kernels: each thread is a fiber, so that the lanes of a warp can wait for one another.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cuda_runtime.h"
#include "machine.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define BEFORE_SWITCH(kept, stack, size) __sanitizer_start_switch_fiber(kept, stack, size)
#define AFTER_SWITCH(kept) __sanitizer_finish_switch_fiber(kept, &host_stack, &host_stack_size)
#else
#define BEFORE_SWITCH(kept, stack, size)
#define AFTER_SWITCH(kept)
#endif

namespace emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = 128 << 10;

struct Lane {
  ucontext_t context;
  void* kept = nullptr;  // AddressSanitizer's
  bool ended = false, waits = false;
  unsigned mask = 0, other = 0;
  float value = 0, received = 0;
};

Lane lanes[kWarp];
unsigned now;  // the lane that runs
ucontext_t host;
[[maybe_unused]] void* host_kept;
[[maybe_unused]] const void* host_stack;
[[maybe_unused]] std::size_t host_stack_size;
const std::function<void()>* body;
int device;
unsigned first_thread;
cudaError_t failed;

char* stacks() {
  static char* all = static_cast<char*>(mmap(nullptr, kWarp * kStack, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  return all;
}

void leave(bool for_good) {
  Lane& lane = lanes[now];
  BEFORE_SWITCH(for_good ? nullptr : &lane.kept, host_stack, host_stack_size);
  swapcontext(&lane.context, &host);
  AFTER_SWITCH(lane.kept);
}

void enter() {
  AFTER_SWITCH(nullptr);
  (*body)();
  lanes[now].ended = true;
  leave(true);
}

void resume(unsigned number) {
  now = number;
  threadIdx = dim3(first_thread + number, 0, 0);
  BEFORE_SWITCH(&host_kept, stacks() + number * kStack, kStack);
  swapcontext(&host, &lanes[number].context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(host_kept, nullptr, nullptr);
#endif
}

// Hands out what lanes gave, once no lane can run on: all of each mask must have come.
void hand_out() {
  for (unsigned i = 0; i < kWarp; ++i) {
    Lane& lane = lanes[i];
    if (lane.ended) continue;
    const unsigned from = i ^ lane.other;
    bool good = (lane.mask >> i & 1) != 0 && from < kWarp && (lane.mask >> from & 1) != 0;
    for (unsigned j = 0; j < kWarp; ++j) {
      if ((lane.mask >> j & 1) == 0) continue;
      good = good && lanes[j].waits && !lanes[j].ended && lanes[j].mask == lane.mask;
    }
    if (!good) {
      violate("a lane waits for another that does not come, or is in no mask of its own");
      failed = cudaErrorLaunchFailure;
      return;
    }
    lane.received = lanes[from].value;
  }
  for (Lane& lane : lanes) lane.waits = false;
}

void run_warp() {
  for (unsigned i = 0; i < kWarp; ++i) {
    Lane& lane = lanes[i];
    lane.ended = lane.waits = false;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = stacks() + i * kStack;
    lane.context.uc_stack.ss_size = kStack;
    lane.context.uc_link = nullptr;
    makecontext(&lane.context, enter, 0);
  }
  unsigned order[kWarp];
  std::iota(order, order + kWarp, 0u);
  for (;;) {
    std::shuffle(order, order + kWarp, machine().random);
    for (unsigned number : order) {
      if (!lanes[number].ended) resume(number);
      if (failed != cudaSuccess) return;
    }
    if (std::all_of(lanes, lanes + kWarp, [](const Lane& lane) { return lane.ended; })) return;
    hand_out();
    if (failed != cudaSuccess) return;
  }
}

cudaError_t run_grid(const cudaLaunchConfig_t& config, int on, const std::function<void()>& kernel) {
  body = &kernel, device = on, failed = cudaSuccess, gridDim = config.gridDim;
  std::vector<unsigned> blocks(config.gridDim.x * config.gridDim.y);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), machine().random);
  for (unsigned number : blocks) {
    blockIdx = dim3(number % config.gridDim.x, number / config.gridDim.x, 0);
    for (first_thread = 0; first_thread < config.blockDim.x; first_thread += kWarp) {
      run_warp();
      if (failed != cudaSuccess) return failed;
    }
  }
  return cudaSuccess;
}

}  // namespace

void check_access(std::uint64_t address, std::size_t nbytes, bool write) {
  if (write) machine().written += nbytes;
  if (address % nbytes != 0) failed = cudaErrorMisalignedAddress;
  if (!device_reaches(device, address, nbytes)) failed = cudaErrorIllegalAddress;
  if (failed != cudaSuccess) leave(true);  // and never comes back
}

void check_argument(const void* argument, std::size_t nbytes) {
  const auto* words = static_cast<const char*>(argument);
  std::uint64_t word;
  // Not the last one: it ends in padding, which may hold anything.
  for (std::size_t at = 0; at + sizeof word < nbytes; at += sizeof word) {
    std::memcpy(&word, words + at, sizeof word);
    unsigned char there;
    void* page = reinterpret_cast<void*>(word / 4096 * 4096);
    // Strides and counts are less than where Linux puts anything, and no addresses that are mapped.
    if (word >> 45 == 0 || range_of(word) != nullptr || mincore(page, 1, &there) != 0) continue;
    violate("a kernel gets a pointer to memory that the GPU can't reach");
  }
}

float exchange(unsigned mask, float value, unsigned lane_mask) {
  Lane& lane = lanes[now];
  lane.mask = mask, lane.value = value, lane.other = lane_mask, lane.waits = true;
  leave(false);
  return lane.received;
}

cudaError_t launch(const cudaLaunchConfig_t& config, std::function<void()> kernel) {
  return call(Call::kPlain, [&] {
    const dim3 grid = config.gridDim, block = config.blockDim;
    const bool good = grid.x > 0 && grid.x < 1u << 31 && grid.y > 0 && grid.y <= 65535 &&
                      grid.z == 1 && block.x > 0 && block.x <= 1024 && block.x % kWarp == 0 &&
                      block.y == 1 && block.z == 1 && config.numAttrs == 0 &&
                      config.dynamicSmemBytes == 0;
    if (!good) return cudaErrorInvalidConfiguration;
    CUstream_st* stream = stream_of(config.stream);
    if (stream == nullptr || stream->device != current_device()) {
      return cudaErrorInvalidResourceHandle;
    }
    const int on = stream->device;
    Machine& m = machine();
    m.blocks = std::max<std::int64_t>(m.blocks, std::int64_t{grid.x} * grid.y);
    queue(*stream, {[config, on, kernel] { return run_grid(config, on, kernel); }, nullptr});
    return cudaSuccess;
  });
}

}  // namespace emulation
