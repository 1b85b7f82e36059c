// What kernels.cu uses of CUDA C++, as plain C++: a kernel is a function that runs once per thread.
// Accesses by __ldcs and __stcs are checked: alignment, and that the GPU has such memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <tuple>
#include <type_traits>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

namespace emulation {

void check_access(std::uint64_t address, std::size_t nbytes, bool write = false);
// What a kernel reads otherwise it finds by pointers among its arguments: none may be the host's.
void check_argument(const void* argument, std::size_t nbytes);
float exchange(unsigned mask, float value, unsigned lane_mask);
cudaError_t launch(const cudaLaunchConfig_t& config, std::function<void()> kernel);

}  // namespace emulation

inline dim3 threadIdx, blockIdx, gridDim;  // of the thread that runs: one at a time

template <typename T>
T __ldcs(const T* from) {
  emulation::check_access(reinterpret_cast<std::uint64_t>(from), sizeof(T));
  return *from;
}
template <typename T>
void __stcs(T* to, std::common_type_t<T> value) {
  emulation::check_access(reinterpret_cast<std::uint64_t>(to), sizeof(T), true);
  *to = value;
}
// A GPU has one NaN, whatever NaNs went in.
inline float one_nan(float value) {
  if (value == value) return value;
  const std::uint32_t bits = 0x7fffffff;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline float __fmul_rn(float a, float b) { return one_nan(a * b); }
inline float __fadd_rn(float a, float b) { return one_nan(a + b); }
inline float __fdiv_rn(float a, float b) { return one_nan(a / b); }
inline float __shfl_xor_sync(unsigned mask, float value, int lane_mask) {
  return emulation::exchange(mask, value, static_cast<unsigned>(lane_mask));
}

// The arguments are copied now; the kernel runs when its stream comes to it.
template <typename... Wanted, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Wanted...),
                               Given&&... given) {
  std::tuple<std::decay_t<Wanted>...> kept(given...);
  (emulation::check_argument(&given, sizeof given), ...);
  return emulation::launch(*config, [kernel, kept] { std::apply(kernel, kept); });
}
