// CUDA's errors as exceptions, its current device as a scope, its handles as objects.
#pragma once

#include <cuda_runtime_api.h>

#include <new>
#include <string>

#include "transfer.h"

namespace lmcache {

inline const char* remedy(cudaError_t error) {
  switch (error) {
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
      return "run where nvidia-smi lists that GPU (and see CUDA_VISIBLE_DEVICES)";
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorStubLibrary:
      return "install an NVIDIA driver of CUDA 13 or later, or rebuild with the CUDA toolkit that "
             "the driver has";
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
  ~Event() { cudaEventDestroy(event_); }
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

// Page-locked host memory, and memory of the current device; they grow when asked for more, after
// `idle` says that nobody uses them.
class PinnedBuffer {
 public:
  ~PinnedBuffer() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  char* need(std::size_t nbytes) {
    if (nbytes <= size_) return data_;
    check(cudaFreeHost(data_), "freeing pinned memory");
    data_ = nullptr, size_ = 0;
    void* found = nullptr;
    check(cudaHostAlloc(&found, nbytes, cudaHostAllocPortable), "allocating pinned memory");
    data_ = static_cast<char*>(found), size_ = nbytes;
    return data_;
  }
  std::size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  std::size_t size_ = 0;
};

class DeviceBuffer {
 public:
  ~DeviceBuffer() {
    if (data_ != nullptr) cudaFree(data_);
  }
  char* need(std::size_t nbytes) {
    if (nbytes <= size_) return data_;
    check(cudaFree(data_), "freeing memory of the GPU");
    data_ = nullptr, size_ = 0;
    void* found = nullptr;
    check(cudaMalloc(&found, nbytes), "allocating memory of the GPU");
    data_ = static_cast<char*>(found), size_ = nbytes;
    return data_;
  }

 private:
  char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace lmcache
