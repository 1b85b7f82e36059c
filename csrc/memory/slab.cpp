#include "memory/slab.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

namespace lmcache {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// What can be had without the kernel killing a process for it: Linux promises more than it has.
std::optional<std::size_t> available_bytes() {
  std::optional<std::size_t> available;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    if (line.rfind("MemAvailable:", 0) == 0) available = std::stoull(line.substr(13)) * 1024;
  }
  // A container's limit; "max" where there is none.
  std::ifstream limit("/sys/fs/cgroup/memory.max");
  if (std::size_t bytes = 0; limit >> bytes) {
    available = std::min(bytes, available.value_or(bytes));
  }
  return available;
}

std::string mib(std::size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

[[noreturn]] void refuse(std::size_t nbytes, const std::string& why) {
  throw OutOfMemory("can't map a slab of " + mib(nbytes) + ": " + why + "; ask for less");
}

// Pages of this node first. Not it alone: a node that is full would end the process. Refused where a
// sandbox forbids the call, or without such a node; then pages are where the kernel puts them.
void prefer_node([[maybe_unused]] void* address, [[maybe_unused]] std::size_t nbytes,
                 [[maybe_unused]] int node) {
#if defined(SYS_mbind)
  constexpr int kPreferred = 1;  // MPOL_PREFERRED of linux/mempolicy.h, which is libnuma's to have
  constexpr std::size_t kBits = 8 * sizeof(unsigned long);
  unsigned long nodes[1024 / kBits] = {};
  if (node < 0 || node >= 1024) return;
  nodes[node / kBits] = 1ul << node % kBits;
  syscall(SYS_mbind, address, nbytes, kPreferred, nodes, 1024ul + 1, 0u);
#endif
}

// Writes to every page, so that the kernel provides it now. False if it can't.
bool fault_in(char* address, std::size_t nbytes) {
#if defined(MADV_POPULATE_WRITE)
  if (madvise(address, nbytes, MADV_POPULATE_WRITE) == 0) return true;
  if (errno != EINVAL) return false;
#endif
  // A kernel older than Linux 5.14: no call for it that comes after MADV_HUGEPAGE.
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  for (std::size_t at = 0; at < nbytes; at += page) {
    static_cast<volatile char*>(address)[at] = 0;
  }
  return true;
}

}  // namespace

Slab::Slab(std::size_t nbytes, int numa_node) : nbytes_(nbytes) {
  if (nbytes == 0) throw std::invalid_argument("a slab needs at least 1 byte");
  if (const auto available = available_bytes(); available && nbytes > *available) {
    refuse(nbytes, "this machine has " + mib(*available) + " available");
  }
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  mapped_ = (nbytes + page - 1) / page * page;

  // Huge pages need 2 MiB alignment, and the kernel need not give it: map more, cut the ends off.
  const std::size_t slack = mapped_ >= kHugePage ? kHugePage : 0;
  void* raw = mmap(nullptr, mapped_ + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
  if (raw == MAP_FAILED) refuse(nbytes, std::strerror(errno));
  auto* start = static_cast<char*>(raw);
  const std::size_t before = slack == 0 ? 0 : -reinterpret_cast<std::uintptr_t>(raw) % kHugePage;
  if (before > 0) munmap(start, before);
  if (slack > before) munmap(start + before + mapped_, slack - before);
  address_ = start + before;

  // Not MAP_POPULATE: it faults in small pages before MADV_HUGEPAGE can be said. The advice may
  // be refused; then pages are small.
  madvise(address_, mapped_, MADV_HUGEPAGE);
  prefer_node(address_, mapped_, numa_node);
  if (!fault_in(static_cast<char*>(address_), mapped_)) {
    const int error = errno;
    munmap(address_, mapped_);
    refuse(nbytes, std::strerror(error));
  }
}

Slab::~Slab() { munmap(address_, mapped_); }

}  // namespace lmcache
