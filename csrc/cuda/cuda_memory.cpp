// GPUs, their memory, and host memory that they reach.
#include <cctype>

#include "cuda/transfer.h"
#include "cuda/transfer_parts.h"

namespace lmcache {
std::vector<DeviceInfo> cuda_devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) {
    cudaGetLastError();
    return {};
  }
  check(error, "looking for GPUs");
  std::vector<DeviceInfo> found;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, i), "looking at a GPU");
    found.push_back({properties.name, properties.major, properties.minor,
                     properties.multiProcessorCount, properties.totalGlobalMem});
  }
  return found;
}

void pin(std::uint64_t address, std::size_t nbytes, int device) {
  require(address >= 4096 && address >> 63 == 0 && nbytes > 0 && nbytes >> 62 == 0,
          "there is no such memory to pin");
  const DeviceGuard guard(device);
  check(cudaHostRegister(reinterpret_cast<void*>(address), nbytes,
                         cudaHostRegisterPortable | cudaHostRegisterMapped),
        "pinning memory");
}

void unpin(std::uint64_t address, int device) {
  const DeviceGuard guard(device);
  check(cudaHostUnregister(reinterpret_cast<void*>(address)), "unpinning memory");
}

std::string pci_address(int device) {
  char found[32] = {};
  check(cudaDeviceGetPCIBusId(found, sizeof found, device), "looking at a GPU");
  std::string address = found;
  for (char& c : address) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return address;
}

PinnedSlab::PinnedSlab(std::size_t nbytes, int device, int numa_node)
    : Slab(nbytes, numa_node), device_(device) {
  pin(reinterpret_cast<std::uint64_t>(address()), nbytes, device);
}

PinnedSlab::~PinnedSlab() {
  if (!pinned_) return;
  const DeviceGuard guard(device_, std::nothrow);
  cudaHostUnregister(address());
  cudaGetLastError();  // nobody else's to read
}

void PinnedSlab::unpin() {
  if (!pinned_) return;
  const DeviceGuard guard(device_);
  pinned_ = false;  // not before: where the guard throws, the end has it to do
  check(cudaHostUnregister(address()), "unpinning memory");
}

DeviceMemory::DeviceMemory(int device, std::size_t nbytes) : device_(device), nbytes_(nbytes) {
  require(nbytes > 0, "nbytes must be at least 1");
  const DeviceGuard guard(device);
  void* found = nullptr;
  check(cudaMalloc(&found, nbytes), "allocating memory of the GPU");
  address_ = reinterpret_cast<std::uint64_t>(found);
}

DeviceMemory::~DeviceMemory() {
  const DeviceGuard guard(device_, std::nothrow);
  cudaFree(reinterpret_cast<void*>(address_));
  cudaGetLastError();  // nobody else's to read
}

}  // namespace lmcache
