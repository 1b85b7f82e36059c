// What a transfer looks at before it moves, how long a verb lasts, and what kernels are sent.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/cuda_call.h"
#include "paged/paged.h"

namespace lmcache {

constexpr std::size_t kAlign = 16;

inline cudaStream_t to_stream(std::uint64_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

// What a pointer is to the GPU.
inline cudaPointerAttributes attributes(std::uint64_t address) {
  cudaPointerAttributes found{};
  check(cudaPointerGetAttributes(&found, reinterpret_cast<const void*>(address)),
        "looking at a pointer");
  return found;
}

// Whether a kernel can use these attributes' address as it is: under WSL, memory that was pinned
// after it was allocated has another one there.
inline bool reaches(const cudaPointerAttributes& found, std::uint64_t address) {
  return found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged ||
         (found.type == cudaMemoryTypeHost &&
          reinterpret_cast<std::uint64_t>(found.devicePointer) == address);
}

// Whether a chunk has any token: one without may have any address.
inline bool has_tokens(const SlotTable& table, std::size_t chunk) {
  const std::int64_t* slots = table.slots + chunk * table.chunk_tokens;
  return std::any_of(slots, slots + table.chunk_tokens, [](std::int64_t s) { return s != -1; });
}

inline void require(bool good, const std::string& what) {
  if (!good) throw std::invalid_argument(what);
}

inline void refuse_capture(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status), "looking at a stream");
  require(status == cudaStreamCaptureStatusNone,
          "the stream captures a CUDA graph; order transfers before or after it");
}

// A verb's time: its device is current. If the verb throws, what it queued before may still use
// parcels, staging and the caller's memory, and no event tells when: waits for it.
class Scope {
 public:
  Scope(int device, cudaStream_t stream) : guard_(device), stream_(stream) {}
  ~Scope() {
    if (std::uncaught_exceptions() == before_) return;
    cudaStreamSynchronize(stream_);
    cudaGetLastError();
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  DeviceGuard guard_;
  cudaStream_t stream_;
  int before_ = std::uncaught_exceptions();
};

// Small arrays that a kernel reads, sent along in one copy.
class Parcel {
 public:
  // Where these bytes will be, once sent to `device`; sizes are in bytes.
  std::size_t add(const void* data, std::size_t nbytes) {
    const std::size_t at = size_;
    parts_.push_back({data, nbytes, at});
    size_ += (nbytes + kAlign - 1) / kAlign * kAlign;
    return at;
  }
  std::size_t size() const { return size_; }
  void pack(char* to) const {
    for (const Part& part : parts_) {
      if (part.nbytes > 0) std::memcpy(to + part.at, part.data, part.nbytes);  // null has no bytes
    }
  }

 private:
  struct Part {
    const void* data;
    std::size_t nbytes, at;
  };
  std::vector<Part> parts_;
  std::size_t size_ = 0;
};

}  // namespace lmcache
