// Grid-stride loops around the bodies of rows.h; nothing else runs on the GPU.
#include "cuda/kernels.h"

namespace lmcache {
namespace {

constexpr std::uint32_t kThreads = 256;
constexpr std::uint32_t kWarp = 32;

// The group that a thread belongs to, of a power of two of lanes, at most a warp.
struct Group {
  std::uint32_t number, count, lane, lanes;

  __device__ __forceinline__ explicit Group(std::uint32_t lanes) : lanes(lanes) {
    const std::uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
    number = thread / lanes;
    lane = thread & (lanes - 1);
    count = gridDim.x * kThreads / lanes;
  }

  // The largest of the group's values, which are not negative.
  __device__ __forceinline__ float largest(float value) const {
    const std::uint32_t mine = threadIdx.x % kWarp & ~(lanes - 1);
    const std::uint32_t mask = (lanes == kWarp ? ~0u : (1u << lanes) - 1) << mine;
    for (std::uint32_t step = lanes / 2; step > 0; step /= 2) {
      value = fmaxf(value, __shfl_xor_sync(mask, value, static_cast<int>(step)));
    }
    return value;
  }
};

template <bool Gather, int Bytes>
__global__ void __launch_bounds__(kThreads)
    move_kernel(const __grid_constant__ Rows rows, std::uint32_t lanes) {
  const Group group(lanes);
  for (std::uint32_t chunk = blockIdx.y; chunk < rows.chunk_count; chunk += gridDim.y) {
    move_rows<Gather, Bytes>(rows, chunk, group.number, group.count, group.lane, lanes);
  }
}

// Calls `body` for each row that is there: all lanes of a group together.
template <typename Body>
__device__ __forceinline__ void for_rows(const Rows& rows, const Group& group, Body body) {
  for (std::uint32_t chunk = blockIdx.y; chunk < rows.chunk_count; chunk += gridDim.y) {
    // 64 bits: the last step may go past 2^32.
    for (std::uint64_t r = group.number; r < rows.per_chunk; r += group.count) {
      const Row row = row_at(rows, chunk, static_cast<std::uint32_t>(r));
      if (row.there) body(row, chunk);
    }
  }
}

template <typename Item, typename Code, int N>
__global__ void __launch_bounds__(kThreads)
    encode_kernel(const __grid_constant__ Rows rows, std::uint32_t lanes) {
  const Group group(lanes);
  for_rows(rows, group, [&](const Row& row, std::uint32_t) {
    const std::int64_t stride = rows.strides[row.plane].item;
    const float own = largest_of<Item, N>(rows, row.engine, stride, group.lane, lanes);
    encode_row<Item, Code, N>(rows, row, group.largest(own), group.lane, lanes);
  });
}

template <typename Item, typename Code, int N>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const __grid_constant__ Rows rows, std::uint32_t lanes) {
  const Group group(lanes);
  for_rows(rows, group, [&](const Row& row, std::uint32_t) {
    decode_row<Item, Code, N>(rows, row, group.lane, lanes);
  });
}

// As many lanes as a row has units, up to a warp.
std::uint32_t lanes_for(std::uint32_t units) {
  std::uint32_t lanes = 1;
  while (lanes < kWarp && lanes < units) lanes *= 2;
  return lanes;
}

// Blocks along the rows of a chunk, and along the chunks: no more than there is work for.
dim3 grid(const Rows& rows, std::uint32_t lanes, std::uint32_t rows_at_once, const Launch& launch) {
  const std::uint64_t wanted = std::uint64_t{launch.ctas} * (kRowsTogether / rows_at_once);
  const auto ctas = static_cast<std::uint32_t>(wanted < kMostCtas ? wanted : kMostCtas);
  const std::uint32_t per_block = kThreads / lanes * rows_at_once;
  const std::uint32_t needed = (rows.per_chunk - 1) / per_block + 1;
  const std::uint32_t x = ctas < needed ? ctas : needed;
  std::uint32_t y = ctas / x;
  y = y < rows.chunk_count ? y : rows.chunk_count;
  return dim3(x, y < 65535 ? y : 65535);
}

// Its own result, unlike that of <<<>>>: an error that another library left unread stays that one's.
template <typename... Wanted, typename... Given>
cudaError_t start(void (*kernel)(Wanted...), dim3 blocks, const Launch& launch,
                  const Given&... given) {
  cudaLaunchConfig_t how{};
  how.gridDim = blocks;
  how.blockDim = dim3(kThreads);
  how.stream = launch.stream;
  return cudaLaunchKernelEx(&how, kernel, given...);
}

template <bool Gather, int Bytes>
cudaError_t start_move(const Rows& rows, const Launch& launch) {
  const std::uint32_t lanes = lanes_for(rows.row_bytes / Bytes);
  const dim3 blocks = grid(rows, lanes, kRowsTogether, launch);
  return start(move_kernel<Gather, Bytes>, blocks, launch, rows, lanes);
}

template <bool Gather>
cudaError_t start_move(const Rows& rows, int unit, const Launch& launch) {
  switch (unit) {
    case 16: return start_move<Gather, 16>(rows, launch);
    case 8: return start_move<Gather, 8>(rows, launch);
    case 4: return start_move<Gather, 4>(rows, launch);
    case 2: return start_move<Gather, 2>(rows, launch);
    default: return start_move<Gather, 1>(rows, launch);
  }
}

template <typename Item, typename Code, int N>
cudaError_t start_code(const Rows& rows, bool encode, const Launch& launch) {
  const std::uint32_t lanes = lanes_for(rows.items / N);
  const dim3 blocks = grid(rows, lanes, 1, launch);
  return encode ? start(encode_kernel<Item, Code, N>, blocks, launch, rows, lanes)
                : start(decode_kernel<Item, Code, N>, blocks, launch, rows, lanes);
}

template <typename Item, int N>
cudaError_t start_code(const Rows& rows, bool encode, CodeType code, bool wide,
                       const Launch& launch) {
  if (code == CodeType::kFp8) {
    return wide ? start_code<Item, Fp8, N>(rows, encode, launch)
                : start_code<Item, Fp8, 1>(rows, encode, launch);
  }
  return wide ? start_code<Item, Int8, N>(rows, encode, launch)
              : start_code<Item, Int8, 1>(rows, encode, launch);
}

// There is nothing to launch: a grid of no blocks is an error.
bool nothing(const Rows& rows) { return rows.per_chunk == 0 || rows.chunk_count == 0; }

}  // namespace

cudaError_t launch_move(const Rows& rows, bool gather, int unit, Launch launch) {
  if (nothing(rows)) return cudaSuccess;
  return gather ? start_move<true>(rows, unit, launch) : start_move<false>(rows, unit, launch);
}

cudaError_t launch_code(const Rows& rows, bool encode, ItemType type, CodeType code, bool wide,
                        Launch launch) {
  if (nothing(rows)) return cudaSuccess;
  switch (type) {
    case ItemType::kFloat32: return start_code<Float32, 4>(rows, encode, code, wide, launch);
    case ItemType::kBFloat16: return start_code<BFloat16, 8>(rows, encode, code, wide, launch);
    default: return start_code<Float16, 8>(rows, encode, code, wide, launch);
  }
}

}  // namespace lmcache
