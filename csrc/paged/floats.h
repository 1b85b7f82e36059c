// Number formats of KV, for the CPU and the GPU alike: both round as these few lines do.
// Plain C++ without branches, so that compilers turn it into vector code, and without fused
// multiply-adds (see CMakeLists.txt), so that all machines agree to the bit.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define LMCACHE_HD static __host__ __device__ __forceinline__
#define LMCACHE_HD_MEMBER __host__ __device__ __forceinline__
#define LMCACHE_UNROLL _Pragma("unroll")
#else
// Never a function of its own: what is compiled with -mavx2 must not be what the linker keeps for
// all.
#define LMCACHE_HD static inline __attribute__((always_inline))
#define LMCACHE_HD_MEMBER inline __attribute__((always_inline))
#define LMCACHE_UNROLL
#endif

namespace lmcache {

LMCACHE_HD std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

LMCACHE_HD float float_of(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

#if defined(__CUDA_ARCH__)
LMCACHE_HD float times(float a, float b) { return __fmul_rn(a, b); }
LMCACHE_HD float plus(float a, float b) { return __fadd_rn(a, b); }
LMCACHE_HD float over(float a, float b) { return __fdiv_rn(a, b); }
#else
LMCACHE_HD float times(float a, float b) { return a * b; }
LMCACHE_HD float plus(float a, float b) { return a + b; }
LMCACHE_HD float over(float a, float b) { return a / b; }
#endif

// The item types: `Bits` as stored, read and written as float; to nearest, ties to even.
struct Float32 {
  using Bits = std::uint32_t;
  static LMCACHE_HD_MEMBER float read(Bits bits) { return float_of(bits); }
  static LMCACHE_HD_MEMBER Bits write(float value) { return bits_of(value); }
};

struct BFloat16 {
  using Bits = std::uint16_t;
  static LMCACHE_HD_MEMBER float read(Bits bits) { return float_of(std::uint32_t{bits} << 16); }
  static LMCACHE_HD_MEMBER Bits write(float value) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const std::uint32_t nan = (bits >> 16) | 0x40;
    return static_cast<Bits>((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
  }
};

struct Float16 {
  using Bits = std::uint16_t;
  static LMCACHE_HD_MEMBER float read(Bits bits) {
    const std::uint32_t sign = (std::uint32_t{bits} & 0x8000) << 16;
    const std::uint32_t magnitude = (std::uint32_t{bits} & 0x7fff) << 13;
    // The exponent's bias is 15 instead of 127; the product is exact, for subnormals too.
    const std::uint32_t finite = bits_of(times(float_of(magnitude), float_of(239u << 23)));
    const std::uint32_t other = magnitude | 0x7f800000;  // infinity and NaN
    return float_of(sign | (magnitude >= 0x7c00u << 13 ? other : finite));
  }
  static LMCACHE_HD_MEMBER Bits write(float value) {
    const std::uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
    const std::uint32_t other = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    // 0.5 has the unit in the last place that a subnormal half has: the sum rounds.
    const std::uint32_t small = bits_of(plus(float_of(magnitude), 0.5f)) - (126u << 23);
    const std::uint32_t normal =
        (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    const std::uint32_t finite = magnitude < 113u << 23 ? small : normal;
    const std::uint32_t half = magnitude >= 143u << 23 ? other : finite;
    return static_cast<Bits>(half | ((bits >> 16) & 0x8000));
  }
};

// Codes of one byte. `kLargest` is what a row's largest item becomes.

// OCP 8-bit floating point, E4M3: no infinities, so larger values become the largest, 448.
struct Fp8 {
  static constexpr float kLargest = 448.0f;
  static LMCACHE_HD_MEMBER std::uint8_t encode(float value) {
    const std::uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
    // As above: 2^14 has the unit in the last place of an E4M3 subnormal, 2^-9.
    const std::uint32_t small = bits_of(plus(float_of(magnitude), 16384.0f)) - (141u << 23);
    const std::uint32_t normal =
        (magnitude + 0x7ffff + ((magnitude >> 20) & 1) - (120u << 23)) >> 20;
    std::uint32_t code = magnitude < 121u << 23 ? small : normal;
    code = magnitude >= 0x43e00000 ? 0x7e : code;  // from 448 on
    code = magnitude > 0x7f800000 ? 0x7f : code;   // NaN
    return static_cast<std::uint8_t>(code | ((bits >> 24) & 0x80));
  }
  static LMCACHE_HD_MEMBER float decode(std::uint8_t code) {
    const std::uint32_t sign = (std::uint32_t{code} & 0x80) << 24;
    const std::uint32_t magnitude = (std::uint32_t{code} & 0x7f) << 20;
    const std::uint32_t finite = bits_of(times(float_of(magnitude), float_of(247u << 23)));
    return float_of(sign | ((code & 0x7f) == 0x7f ? 0x7fc00000 : finite));
  }
};

// Symmetric; NaN becomes 0.
struct Int8 {
  static constexpr float kLargest = 127.0f;
  static LMCACHE_HD_MEMBER std::uint8_t encode(float value) {
    const float above = value > 127.0f ? 127.0f : value;
    const float within = above < -127.0f ? -127.0f : above;
    const float known = within == within ? within : 0.0f;
    // 1.5 * 2^23 has a unit in the last place of 1: the sum rounds, and its low byte is the code.
    return static_cast<std::uint8_t>(bits_of(plus(known, 12582912.0f)));
  }
  static LMCACHE_HD_MEMBER float decode(std::uint8_t code) {
    return static_cast<float>(static_cast<std::int8_t>(code));
  }
};

// A row's largest finite magnitude -> what its codes are multiplied by, 0 for a row of zeros (or of
// values so small that the quotient would be no normal number), and what its items are.
struct Scale {
  float up, down;
};

LMCACHE_HD Scale scale_of(float largest, float code_largest) {
  const bool zero = largest < 1e-30f;
  const float up = zero ? 0.0f : over(largest, code_largest);
  return {up, zero ? 0.0f : over(1.0f, up)};
}

}  // namespace lmcache
