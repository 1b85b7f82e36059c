// Memory of devices, and host memory that they reach.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "machine.h"

namespace emulation {
namespace {

constexpr std::uint64_t kPage = 4096, kFill = 4 << 20, kDeviceBytes = std::uint64_t{2} << 30;
constexpr std::uint64_t kAlias = std::uint64_t{1} << 46;

// Ends where its pages end, between pages that nobody may touch, and is full of rubbish.
cudaError_t take(void** found, std::uint64_t nbytes, Kind kind) {
  if (found == nullptr) return cudaErrorInvalidValue;
  Machine& m = machine();
  *found = nullptr;
  if (nbytes == 0) return cudaSuccess;
  if (nbytes > kDeviceBytes) return cudaErrorMemoryAllocation;
  const std::uint64_t room = (nbytes + kPage - 1) / kPage * kPage, all = room + 2 * kPage;
  void* mapped = mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return cudaErrorMemoryAllocation;
  char* pages = static_cast<char*>(mapped) + kPage;
  mprotect(pages, room, PROT_READ | PROT_WRITE);
  std::memset(pages, 0xa5, std::min(room, kFill));
  if (kind == Kind::kDevice) mprotect(pages, room, PROT_NONE);
  const auto begin = reinterpret_cast<std::uint64_t>(pages) + room - (nbytes + 255) / 256 * 256;
  m.ranges[begin] = {begin, nbytes, kind, current_device(), ++m.last_number,
                     reinterpret_cast<std::uint64_t>(mapped), all};
  *found = reinterpret_cast<void*>(begin);
  return cudaSuccess;
}

cudaError_t give(void* address, Kind kind) {
  if (address == nullptr) return cudaSuccess;
  Machine& m = machine();
  // A driver waits here for the device; the emulation only counts, and lets work be late.
  const auto busy = [](const CUstream_st* stream) {
    return stream->device == current_device() && !stream->queue.empty();
  };
  m.waits += std::any_of(m.streams.begin(), m.streams.end(), busy);
  const auto found = m.ranges.find(reinterpret_cast<std::uint64_t>(address));
  if (found == m.ranges.end() || found->second.kind != kind) {
    violate("freed what is no such memory");
    return cudaErrorInvalidValue;
  }
  munmap(reinterpret_cast<void*>(found->second.mapped), found->second.mapped_bytes);
  m.ranges.erase(found);
  return cudaSuccess;
}

void protect(int how) {
  for (const auto& [begin, range] : machine().ranges) {
    if (range.kind != Kind::kDevice) continue;
    mprotect(reinterpret_cast<void*>(range.mapped + kPage), range.mapped_bytes - 2 * kPage, how);
  }
}

int opened = 0;

}  // namespace

Opened::Opened() {
  if (opened++ == 0) protect(PROT_READ | PROT_WRITE);
}
Opened::~Opened() {
  if (--opened == 0) protect(PROT_NONE);
}

const Range* range_of(std::uint64_t address) {
  const auto& ranges = machine().ranges;
  auto after = ranges.upper_bound(address);
  if (after == ranges.begin()) return nullptr;
  const Range& found = std::prev(after)->second;
  return address - found.begin < found.size ? &found : nullptr;
}

bool still_there(std::uint64_t number, std::uint64_t address, std::uint64_t nbytes) {
  const Range* found = range_of(address);
  return found != nullptr && found->number == number &&
         nbytes <= found->begin + found->size - address;
}

bool device_reaches(int device, std::uint64_t address, std::uint64_t nbytes) {
  const Range* found = range_of(address);
  if (found == nullptr || nbytes > found->begin + found->size - address) return false;
  if (found->kind == Kind::kDevice) return found->device == device;
  return found->kind == Kind::kHost || !machine().aliases;
}

}  // namespace emulation

using namespace emulation;

extern "C" {

cudaError_t cudaMalloc(void** found, std::size_t nbytes) {
  return call(Call::kPlain, [&] { return take(found, nbytes, Kind::kDevice); });
}
cudaError_t cudaFree(void* address) {
  return call(Call::kReturns, [&] { return give(address, Kind::kDevice); });
}
cudaError_t cudaHostAlloc(void** found, std::size_t nbytes, unsigned flags) {
  return call(Call::kPlain, [&] {
    return flags == cudaHostAllocPortable ? take(found, nbytes, Kind::kHost) : cudaErrorInvalidValue;
  });
}
cudaError_t cudaFreeHost(void* address) {
  return call(Call::kReturns, [&] { return give(address, Kind::kHost); });
}

cudaError_t cudaHostRegister(void* address, std::size_t nbytes, unsigned flags) {
  return call(Call::kPlain, [&] {
    Machine& m = machine();
    const auto begin = reinterpret_cast<std::uint64_t>(address);
    if (begin == 0 || nbytes == 0 || (flags & ~7u) != 0) return cudaErrorInvalidValue;
    const std::uint64_t first = begin / kPage * kPage;
    const std::uint64_t end = (begin + nbytes + kPage - 1) / kPage * kPage;
    std::vector<unsigned char> pages((end - first) / kPage);
    if (mincore(reinterpret_cast<void*>(first), end - first, pages.data()) != 0) {
      return cudaErrorInvalidValue;  // not all of it is mapped
    }
    // Whole pages are locked: a neighbour on the same page is registered already.
    for (const auto& [at, range] : m.ranges) {
      if (at / kPage * kPage < end && at + range.size > first) {
        return cudaErrorHostMemoryAlreadyRegistered;
      }
    }
    m.ranges[begin] = {begin, nbytes, Kind::kRegistered, current_device(), ++m.last_number, 0, 0};
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* address) {
  return call(Call::kReturns, [&] {
    auto& ranges = machine().ranges;
    const auto found = ranges.find(reinterpret_cast<std::uint64_t>(address));
    if (found == ranges.end() || found->second.kind != Kind::kRegistered) {
      return cudaErrorHostMemoryNotRegistered;
    }
    unsigned char there;
    void* page = reinterpret_cast<void*>(found->second.begin / kPage * kPage);
    if (mincore(page, 1, &there) != 0) violate("memory went before it was unpinned");
    ranges.erase(found);
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
  return call(Call::kPlain, [&] {
    const auto at = reinterpret_cast<std::uint64_t>(address);
    if (at == 0) return cudaErrorInvalidValue;
    const Range* range = range_of(at);
    if (range == nullptr) {
      *found = {cudaMemoryTypeUnregistered, -2, nullptr, const_cast<void*>(address)};
      return cudaSuccess;
    }
    const bool device = range->kind == Kind::kDevice;
    const bool alias = range->kind == Kind::kRegistered && machine().aliases;
    const bool reached = !device || range->device == current_device();
    *found = {device ? cudaMemoryTypeDevice : cudaMemoryTypeHost, range->device,
              reached ? reinterpret_cast<void*>(at + (alias ? kAlias : 0)) : nullptr,
              device ? nullptr : const_cast<void*>(address)};
    return cudaSuccess;
  });
}

}  // extern "C"
