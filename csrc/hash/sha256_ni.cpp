// SHA-256 with x86's SHA instructions, compiled for any x86-64 and chosen at run time.
#include "hash/sha256.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#define LMCACHE_SHA __attribute__((target("sha,ssse3,sse4.1")))

namespace lmcache {
namespace {

// The instructions want the eight state words as ABEF and CDGH, highest lane first.
struct Lanes {
  __m128i abef, cdgh;
};

LMCACHE_SHA inline Lanes load(const State& state) {
  const auto* words = reinterpret_cast<const __m128i*>(state.data());
  const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(words), 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(words + 1), 0x1B);
  return {_mm_alignr_epi8(cdab, efgh, 8), _mm_blend_epi16(efgh, cdab, 0xF0)};
}

LMCACHE_SHA inline void store(State& state, Lanes lanes) {
  auto* words = reinterpret_cast<__m128i*>(state.data());
  const __m128i feba = _mm_shuffle_epi32(lanes.abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(lanes.cdgh, 0xB1);
  _mm_storeu_si128(words, _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(words + 1, _mm_alignr_epi8(dchg, feba, 8));
}

template <int N>
LMCACHE_SHA inline void fold(Lanes (&states)[N], const std::uint8_t* block) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const auto* data = reinterpret_cast<const __m128i*>(block);
  const auto* constants = reinterpret_cast<const __m128i*>(kRoundConstants);
  Lanes now[N];
  for (int n = 0; n < N; ++n) now[n] = states[n];
  __m128i w[4];  // the last 16 words of the message schedule, a ring
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {  // four rounds each
    if (g < 4) {
      w[g] = _mm_shuffle_epi8(_mm_loadu_si128(data + g), big_endian);
    } else {
      const __m128i seven_back = _mm_alignr_epi8(w[(g + 3) & 3], w[(g + 2) & 3], 4);
      const __m128i partial = _mm_sha256msg1_epu32(w[g & 3], w[(g + 1) & 3]);
      w[g & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(partial, seven_back), w[(g + 3) & 3]);
    }
    const __m128i low = _mm_add_epi32(w[g & 3], _mm_load_si128(constants + g));
    const __m128i high = _mm_shuffle_epi32(low, 0x0E);
    for (int n = 0; n < N; ++n) {
      now[n].cdgh = _mm_sha256rnds2_epu32(now[n].cdgh, now[n].abef, low);
      now[n].abef = _mm_sha256rnds2_epu32(now[n].abef, now[n].cdgh, high);
    }
  }
  for (int n = 0; n < N; ++n) {
    states[n].abef = _mm_add_epi32(states[n].abef, now[n].abef);
    states[n].cdgh = _mm_add_epi32(states[n].cdgh, now[n].cdgh);
  }
}

LMCACHE_SHA void one(State& state, const std::uint8_t* data, std::size_t blocks) {
  Lanes lanes[1] = {load(state)};
  for (; blocks > 0; --blocks, data += kBlockBytes) fold(lanes, data);
  store(state, lanes[0]);
}

LMCACHE_SHA void two(State& first, State& second, const std::uint8_t* data, std::size_t blocks) {
  Lanes lanes[2] = {load(first), load(second)};
  for (; blocks > 0; --blocks, data += kBlockBytes) fold(lanes, data);
  store(first, lanes[0]);
  store(second, lanes[1]);
}

constexpr Sha256 kNative = {"sha-ni", one, two};

// By CPUID: older compilers' __builtin_cpu_supports does not know "sha".
bool cpu_has_sha() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  if (!(c & bit_SSSE3) || !(c & bit_SSE4_1)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}

}  // namespace

const Sha256* sha256_ni() { return cpu_has_sha() ? &kNative : nullptr; }

}  // namespace lmcache

#else

namespace lmcache {

const Sha256* sha256_ni() { return nullptr; }

}  // namespace lmcache

#endif
