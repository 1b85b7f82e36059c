#include "stream.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)

#include <immintrin.h>

namespace lmcache {
namespace {

constexpr std::size_t kLine = 64;

// AVX-512's 64-byte stores measured no faster: memory is the limit, not instructions.
__attribute__((target("avx2"))) void stream_avx2(void* destination, const void* source,
                                                 std::size_t nbytes, const void* ahead) {
  auto* to = static_cast<char*>(destination);
  auto* from = static_cast<const char*>(source);
  // Non-temporal stores need aligned addresses, and whole lines to be worth it.
  std::size_t head = -reinterpret_cast<std::uintptr_t>(to) % kLine;
  if (head > nbytes) head = nbytes;
  std::memcpy(to, from, head);
  to += head, from += head, nbytes -= head;
  // Without anything ahead it fetches what it copies itself, which costs nothing.
  const auto* next = ahead == nullptr ? from : static_cast<const char*>(ahead);
  for (; nbytes >= kLine; to += kLine, from += kLine, next += kLine, nbytes -= kLine) {
    _mm_prefetch(next, _MM_HINT_T1);
    const auto* in = reinterpret_cast<const __m256i*>(from);
    auto* out = reinterpret_cast<__m256i*>(to);
    const __m256i low = _mm256_loadu_si256(in), high = _mm256_loadu_si256(in + 1);
    _mm256_stream_si256(out, low);
    _mm256_stream_si256(out + 1, high);
  }
  std::memcpy(to, from, nbytes);
}

void plain(void* destination, const void* source, std::size_t nbytes, const void*) {
  std::memcpy(destination, source, nbytes);
}

const auto copy = __builtin_cpu_supports("avx2") ? stream_avx2 : plain;

}  // namespace

void stream_copy(void* destination, const void* source, std::size_t nbytes, const void* ahead) {
  copy(destination, source, nbytes, ahead);
}

void stream_fence() { _mm_sfence(); }

}  // namespace lmcache

#else

namespace lmcache {

void stream_copy(void* destination, const void* source, std::size_t nbytes, const void*) {
  std::memcpy(destination, source, nbytes);
}

void stream_fence() {}

}  // namespace lmcache

#endif
