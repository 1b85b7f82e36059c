// What kernels.cu needs of a CUDA compiler and its runtime. CMake compiles this alone: where it can't,
// there are no kernels.
#include <concepts>

#include "cuda/kernels.h"

namespace {

template <std::unsigned_integral Number>
__global__ void __launch_bounds__(256)
    trial_kernel(const __grid_constant__ lmcache::Rows rows, Number lanes) {
  lmcache::move_rows<true, 16>(rows, blockIdx.y, blockIdx.x, gridDim.x, threadIdx.x, lanes);
}

}  // namespace

int main() {
  const lmcache::Rows rows{};
  cudaLaunchConfig_t how{};
  how.gridDim = how.blockDim = dim3(1);
  // Compiled and linked, never run.
  return cudaLaunchKernelEx(&how, trial_kernel<std::uint32_t>, rows, 1u) == cudaSuccess ? 0 : 1;
}
