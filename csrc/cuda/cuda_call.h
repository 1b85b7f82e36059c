// CUDA's errors as exceptions, its current device as a scope, its handles as objects.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "cuda/transfer.h"

namespace lmcache {

inline const char* remedy(cudaError_t error) {
  switch (error) {
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
      return "run where nvidia-smi lists that GPU (and see CUDA_VISIBLE_DEVICES)";
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorStubLibrary:
      return "there is no NVIDIA driver, or one older than this build's CUDA (see nvidia-smi): "
             "install a newer one, or rebuild with the CUDA toolkit that the driver has";
    case cudaErrorInitializationError:
      return "start this process by spawn if it was forked, since CUDA does not survive a fork; else "
             "see what nvidia-smi says";
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureImplicit:
      return "move KV before or after a CUDA graph is captured, not meanwhile";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return "rebuild for this GPU: pip install . -C cmake.define.LMCACHE_CUDA_ARCHITECTURES=native";
    case cudaErrorMemoryAllocation:
      return "free memory of the GPU or page-locked memory of the host: give the cpu tier or "
             "staging less";
    case cudaErrorHostMemoryAlreadyRegistered:
      return "memory is pinned already: pin each range once";
    case cudaErrorHostMemoryNotRegistered:
      return "memory is not pinned: unpin what was pinned, by its first address";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
      return "the process's CUDA context is lost: restart it, and check that all KV and chunks are "
             "still allocated when they are moved";
    default:
      return "restart the process; if it comes again, report it with this line";
  }
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw CudaError(std::string(what) + ": " + cudaGetErrorString(error) + " (" +
                  cudaGetErrorName(error) + "); " + remedy(error));
}

// Whether a device has a context of this process. To make one takes hundreds of MB of its memory.
inline bool has_context([[maybe_unused]] int device) {
#if CUDART_VERSION >= 12050
  // Not linked: this module loads without a driver.
  using State = int (*)(int device, unsigned* flags, int* active);
  static const State state = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
    const cudaError_t error = cudaGetDriverEntryPointByVersion(
        "cuDevicePrimaryCtxGetState", &found, 7000, cudaEnableDefault, &status);
    if (error != cudaSuccess) cudaGetLastError();
    return error == cudaSuccess ? reinterpret_cast<State>(found) : nullptr;
  }();
  unsigned flags = 0;
  int active = 1;
  if (state != nullptr && state(device, &flags, &active) == 0) return active != 0;
#endif
  return true;
}

// Makes a device current, and the one before again at its end, unless that has no context: since
// CUDA 12 choosing a device makes one, and a thread that chose none would fill GPU 0.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check(cudaGetDevice(&before_), "finding the current GPU");
    if (before_ != device) check(cudaSetDevice(device), "choosing a GPU");
  }
  // For destructors: goes on whatever happens.
  DeviceGuard(int device, std::nothrow_t) noexcept : device_(device) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = device;
    if (before_ != device) cudaSetDevice(device);
  }
  ~DeviceGuard() {
    if (before_ != device_ && has_context(before_)) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, before_ = 0;
};

class Event {
 public:
  Event() {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event");
  }
  ~Event() {
    if (cudaEventDestroy(event_) != cudaSuccess) cudaGetLastError();  // nobody else's to read
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream) const {
    check(cudaEventRecord(event_, stream), "recording an event");
  }
  void wait() const { check(cudaEventSynchronize(event_), "waiting for the GPU"); }
  void hold(cudaStream_t stream) const {
    check(cudaStreamWaitEvent(stream, event_, 0), "ordering streams");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// Memory that grows when it is asked for more. What it had before stays until the end: to free that
// would wait for all that the GPU does, the engine's work too. It doubles at least, up to `most` bytes,
// so it seldom grows, and what it had before is in all no more than what it has.
template <typename Kind>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() {
    for (void* one : all_) Kind::give(one);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* need(std::size_t nbytes, std::size_t most = std::numeric_limits<std::size_t>::max()) {
    if (nbytes > size_) {
      const std::size_t twice = std::min(std::max(2 * size_, kLeast), most);
      const std::size_t size = std::max(nbytes, twice);
      all_.reserve(all_.size() + 1);
      void* found = nullptr;
      check(Kind::take(&found, size), Kind::kWhat);
      all_.push_back(found);
      size_ = size;
    }
    return static_cast<char*>(all_.back());
  }

 private:
  static constexpr std::size_t kLeast = std::size_t{64} << 10;
  std::vector<void*> all_;  // the last one is used
  std::size_t size_ = 0;
};

// Page-locked host memory.
struct Pinned {
  static constexpr const char* kWhat = "allocating pinned memory";
  static cudaError_t take(void** found, std::size_t nbytes) {
    return cudaHostAlloc(found, nbytes, cudaHostAllocPortable);
  }
  static void give(void* one) { cudaFreeHost(one); }
};
// Memory of the current device.
struct OnDevice {
  static constexpr const char* kWhat = "allocating memory of the GPU";
  static cudaError_t take(void** found, std::size_t nbytes) { return cudaMalloc(found, nbytes); }
  static void give(void* one) { cudaFree(one); }
};

}  // namespace lmcache
