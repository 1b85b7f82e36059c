// Reads blocks and keeps nothing but their bits' exclusive or: what a copy of them can't be faster
// than. `ahead`: how many bytes later in the order of blocks are asked for meanwhile; 0 leaves it
// to the CPU.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

extern "C" __attribute__((target("avx2"))) std::uint64_t read_blocks(const char* base,
                                                                    const std::int64_t* order,
                                                                    std::size_t count,
                                                                    std::size_t block,
                                                                    std::size_t ahead) {
  constexpr std::size_t kLine = 64;
  __m256i bits = _mm256_setzero_si256();
  const std::size_t skip = ahead / block, inside = ahead % block;
  for (std::size_t i = 0; i < count; ++i) {
    const char* from = base + order[i] * block;
    for (std::size_t at = 0; at < block; at += kLine) {
      if (ahead > 0) {
        const std::size_t later = at + inside, j = i + skip + (later >= block);
        if (j < count) _mm_prefetch(base + order[j] * block + later % block, _MM_HINT_T1);
      }
      const auto* in = reinterpret_cast<const __m256i*>(from + at);
      bits = _mm256_xor_si256(bits, _mm256_xor_si256(_mm256_loadu_si256(in),
                                                    _mm256_loadu_si256(in + 1)));
    }
  }
  return static_cast<std::uint64_t>(_mm256_extract_epi64(bits, 0) ^ _mm256_extract_epi64(bits, 3));
}
