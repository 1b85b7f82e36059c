#include "disk/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace lmcache {
namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78;  // bits reversed

constexpr std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? kPolynomial : 0);
    table[byte] = value;
  }
  return table;
}

constexpr auto kTable = make_table();

std::uint32_t by_table(std::uint32_t state, const std::uint8_t* data, std::size_t nbytes) {
  for (; nbytes > 0; --nbytes, ++data) state = state >> 8 ^ kTable[(state ^ *data) & 0xff];
  return state;
}

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) std::uint32_t by_instruction(std::uint32_t state,
                                                               const std::uint8_t* data,
                                                               std::size_t nbytes) {
  std::uint64_t wide = state;
  for (; nbytes >= 8; nbytes -= 8, data += 8) {
    std::uint64_t word;
    std::memcpy(&word, data, sizeof word);
    wide = _mm_crc32_u64(wide, word);
  }
  state = static_cast<std::uint32_t>(wide);
  for (; nbytes > 0; --nbytes, ++data) state = _mm_crc32_u8(state, *data);
  return state;
}

const auto fastest = __builtin_cpu_supports("sse4.2") ? by_instruction : by_table;

#else

const auto fastest = by_table;

#endif

}  // namespace

std::uint32_t crc32c(const void* data, std::size_t nbytes, std::uint32_t before, bool portable) {
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  return ~(portable ? by_table : fastest)(~before, bytes, nbytes);
}

}  // namespace lmcache
