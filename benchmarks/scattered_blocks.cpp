// Ways for one core to read, write and copy blocks, those that csrc/memory/stream.cpp took and those that it
// did not. Orders are block numbers; all memory is aligned to 64 bytes.
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#define AVX2 __attribute__((target("avx2")))

namespace {

constexpr std::size_t kLine = 64, kPage = 4096;

struct Job {
  char *to, *from;
  const std::int64_t *to_order, *from_order;
  std::size_t count, block;

  char* destination(std::size_t i) const { return to + to_order[i] * block; }
  const char* source(std::size_t i) const { return from + from_order[i] * block; }
};

AVX2 inline void stream(char* to, const char* from, std::size_t nbytes) {
  for (std::size_t at = 0; at < nbytes; at += 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + at),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at)));
  }
}

// Asks for the line `ahead` bytes later in the order of blocks.
inline void ask(const Job& job, std::size_t i, std::size_t at, std::size_t ahead) {
  const std::size_t later = at + ahead, j = i + later / job.block;
  if (j < job.count) _mm_prefetch(job.source(j) + later % job.block, _MM_HINT_T1);
}

AVX2 void read(const Job& job, std::size_t ahead) {
  __m256i bits = _mm256_setzero_si256();
  for (std::size_t i = 0; i < job.count; ++i) {
    for (std::size_t at = 0; at < job.block; at += kLine) {
      if (ahead > 0) ask(job, i, at, ahead);
      const auto* in = reinterpret_cast<const __m256i*>(job.source(i) + at);
      bits = _mm256_xor_si256(bits, _mm256_xor_si256(_mm256_loadu_si256(in),
                                                    _mm256_loadu_si256(in + 1)));
    }
  }
  asm volatile("" : : "x"(bits));
}

AVX2 void write(const Job& job) {
  const __m256i zero = _mm256_setzero_si256();
  for (std::size_t i = 0; i < job.count; ++i) {
    for (std::size_t at = 0; at < job.block; at += 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(job.destination(i) + at), zero);
    }
  }
}

AVX2 void copy(const Job& job, std::size_t ahead) {
  for (std::size_t i = 0; i < job.count; ++i) {
    for (std::size_t at = 0; at < job.block; at += kLine) {
      if (ahead > 0) ask(job, i, at, ahead);
      stream(job.destination(i) + at, job.source(i) + at, kLine);
    }
  }
}

// A line of each page that is written `ahead` bytes later, for the sake of its address.
AVX2 void copy_with_pages(const Job& job, std::size_t ahead) {
  for (std::size_t i = 0; i < job.count; ++i) {
    for (std::size_t begin = 0; begin < job.block; begin += kPage) {
      const std::size_t j = i + (begin + ahead) / job.block;
      if (j < job.count) {
        _mm_prefetch(job.destination(j) + (begin + ahead) % job.block, _MM_HINT_T1);
      }
      const std::size_t end = std::min(begin + kPage, job.block);
      for (std::size_t at = begin; at < end; at += kLine) {
        _mm_prefetch(job.source(i) + at + 256, _MM_HINT_NTA);
        stream(job.destination(i) + at, job.source(i) + at, kLine);
      }
    }
  }
}

// Several blocks in turns, line by line: more addresses for the CPU to follow.
AVX2 void copy_in_turns(const Job& job, std::size_t turns) {
  for (std::size_t i = 0; i < job.count; i += turns) {
    const std::size_t end = std::min(i + turns, job.count);
    for (std::size_t at = 0; at < job.block; at += kLine) {
      for (std::size_t j = i; j < end; ++j) {
        stream(job.destination(j) + at, job.source(j) + at, kLine);
      }
    }
  }
}

// Reads `batch` bytes into the cache, then writes them from there.
AVX2 void copy_in_phases(const Job& job, std::size_t batch) {
  const std::size_t step = std::max<std::size_t>(1, batch / job.block);
  for (std::size_t i = 0; i < job.count; i += step) {
    Job part = job;
    part.from_order += i, part.to_order += i, part.count = std::min(step, job.count - i);
    read(part, 8192);
    copy(part, 0);
  }
}

void copy_by_movsb(const Job& job) {
  for (std::size_t i = 0; i < job.count; ++i) {
    void* to = job.destination(i);
    const void* from = job.source(i);
    std::size_t nbytes = job.block;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(nbytes) : : "memory");
  }
}

}  // namespace

extern "C" void run(char way, std::size_t number, char* to, char* from,
                    const std::int64_t* to_order, const std::int64_t* from_order,
                    std::size_t count, std::size_t block) {
  const Job job = {to, from, to_order, from_order, count, block};
  switch (way) {
    case 'r': read(job, number); break;
    case 'w': write(job); break;
    case 'c': copy(job, number); break;
    case 'p': copy_with_pages(job, number); break;
    case 't': copy_in_turns(job, number); break;
    case 'b': copy_in_phases(job, number); break;
    case 'm': copy_by_movsb(job); break;
  }
  _mm_sfence();
}
