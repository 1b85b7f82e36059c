#include "memory/stream.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lmcache {
namespace {

void copy_plainly(const Piece* pieces, std::size_t count) {
  for (const Piece* piece = pieces; piece != pieces + count; ++piece) {
    std::memcpy(reinterpret_cast<void*>(piece->to), reinterpret_cast<const void*>(piece->from),
                piece->nbytes);
  }
}

#if defined(__x86_64__)

constexpr std::size_t kLine = 64, kPage = 4096;
constexpr std::size_t kStreamPiece = 1024;
// One line of each page of what will be written is fetched: it is the page's address that matters,
// which a store would stand still for.
constexpr std::size_t kPagesAhead = 4 * kPage;

// How to ask for what will be read, as measured in benchmarks/transfer.py's cases.
enum class Sources {
  kFollow,  // one after another: what the CPU fetches ahead itself, only nearer to it
  kLong,    // the same within a piece; towards its end, the beginning of the next one
  kShort,   // each line of what comes later
};
constexpr std::size_t kNear = 256, kFar = 8192;
constexpr std::size_t kLong = 24 << 10, kBeginning = 4096;

// A place that runs ahead of the copy, in its order.
class Ahead {
 public:
  Ahead(const Piece* pieces, std::size_t count, std::size_t lead)
      : at_(pieces), last_(pieces + count - 1) {
    step(lead);
  }
  // Stays within the last piece at the end.
  void step(std::size_t nbytes) {
    for (offset_ += nbytes; offset_ >= at_->nbytes; ++at_) {
      if (at_ == last_) {
        offset_ = 0;
        return;
      }
      offset_ -= at_->nbytes;
    }
  }
  const char* source() const { return reinterpret_cast<const char*>(at_->from) + offset_; }
  const char* destination() const { return reinterpret_cast<const char*>(at_->to) + offset_; }

 private:
  const Piece *at_, *last_;
  std::size_t offset_ = 0;
};

Sources kind_of(const Piece* pieces, std::size_t count) {
  std::size_t follow = 0;
  for (std::size_t i = 1; i < count; ++i) {
    follow += pieces[i].from == pieces[i - 1].from + pieces[i - 1].nbytes;
  }
  if (follow * 2 >= count - 1) return Sources::kFollow;
  return pieces->nbytes < kLong ? Sources::kShort : Sources::kLong;
}

// AVX-512's 64-byte stores measured no faster: memory is the limit, not instructions.
template <Sources kSources>
__attribute__((target("avx2"))) void stream_avx2(const Piece* pieces, std::size_t count) {
  Ahead page(pieces, count, kPagesAhead);
  Ahead line(pieces, count, kFar);
  for (const Piece* piece = pieces; piece != pieces + count; ++piece) {
    auto* to = reinterpret_cast<char*>(piece->to);
    const auto* from = reinterpret_cast<const char*>(piece->from);
    const auto* next = reinterpret_cast<const char*>(piece[piece + 1 != pieces + count].from);
    const std::size_t next_from = piece->nbytes - std::min(piece->nbytes, 2 * kBeginning);
    // Non-temporal stores need aligned addresses; a short piece has too few whole lines for them.
    const bool is_short = piece->nbytes < kStreamPiece;
    const std::size_t head = is_short ? piece->nbytes : -piece->to % kLine;
    const std::size_t end = head + (piece->nbytes - head) / kLine * kLine;
    if (head > 0) std::memcpy(to, from, head);
    for (std::size_t begin = head; begin < end; begin += kPage) {
      _mm_prefetch(page.destination(), _MM_HINT_T1);
      const std::size_t until = std::min(begin + kPage, end);
      page.step(until - begin);
      for (std::size_t i = begin; i < until; i += kLine) {
        if constexpr (kSources == Sources::kShort) {
          _mm_prefetch(line.source(), _MM_HINT_T1);
          line.step(kLine);
        } else {
          _mm_prefetch(from + i + kNear, _MM_HINT_NTA);
        }
        if constexpr (kSources == Sources::kLong) {
          if (i >= next_from) _mm_prefetch(next + (i - next_from) / 2, _MM_HINT_T1);
        }
        const auto* in = reinterpret_cast<const __m256i*>(from + i);
        auto* out = reinterpret_cast<__m256i*>(to + i);
        const __m256i low = _mm256_loadu_si256(in), high = _mm256_loadu_si256(in + 1);
        _mm256_stream_si256(out, low);
        _mm256_stream_si256(out + 1, high);
      }
    }
    if (end < piece->nbytes) std::memcpy(to + end, from + end, piece->nbytes - end);
    if (const std::size_t ends = piece->nbytes - (end - head); ends > 0) {
      page.step(ends);
      if constexpr (kSources == Sources::kShort) line.step(ends);
    }
  }
}

const bool has_avx2 = __builtin_cpu_supports("avx2");

#endif

}  // namespace

void stream_pieces(const Piece* pieces, std::size_t count) {
  if (count == 0) return;
#if defined(__x86_64__)
  if (has_avx2) {
    switch (kind_of(pieces, count)) {
      case Sources::kFollow: return stream_avx2<Sources::kFollow>(pieces, count);
      case Sources::kLong: return stream_avx2<Sources::kLong>(pieces, count);
      case Sources::kShort: return stream_avx2<Sources::kShort>(pieces, count);
    }
  }
#endif
  copy_plainly(pieces, count);
}

void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace lmcache
