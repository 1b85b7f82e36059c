// The verbs on a GPU: kernels, copy engines and staging, on a stream of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "paged/row_plan.h"
#include "memory/slab.h"

namespace lmcache {

// What CUDA refused, and what to do about it, in one line.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct DeviceInfo {
  std::string name;
  int major, minor, multiprocessors;
  std::size_t memory;
};

// Throws CudaError where there is no driver; empty where it sees no GPU.
std::vector<DeviceInfo> cuda_devices();
// The device's address on the PCI bus, as the files of /sys name it. Makes no context.
std::string pci_address(int device);

// Host memory that the GPU may reach while the CPU goes on: page-locked as a whole, for all devices,
// by the context of `device`.
void pin(std::uint64_t address, std::size_t nbytes, int device);
void unpin(std::uint64_t address, int device);

// A slab that is pinned for as long as it is there: its pages go after the GPU has let go of them.
class PinnedSlab : public Slab {
 public:
  PinnedSlab(std::size_t nbytes, int device, int numa_node);
  ~PinnedSlab();

  // Now, instead of at its end, with CudaError where that fails. Does nothing the second time.
  void unpin();

 private:
  int device_;
  bool pinned_ = true;
};

// Memory of a device, for measurements and tests; an engine brings its own.
class DeviceMemory {
 public:
  DeviceMemory(int device, std::size_t nbytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  std::uint64_t address() const { return address_; }
  std::size_t nbytes() const { return nbytes_; }

 private:
  int device_;
  std::size_t nbytes_;
  std::uint64_t address_;
};

// A point in a stream of a device: all that it has queued when this is made. Throws
// std::invalid_argument for a stream that captures a graph, when made and when held.
class Mark {
 public:
  Mark(int device, std::uint64_t stream);
  ~Mark();
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;

  // What `stream`, of the same device, queues next comes after it. Returns at once.
  void hold(std::uint64_t stream) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// One stream of one device. Verbs return when their work is queued. They throw what the CPU's verbs
// throw, std::invalid_argument for memory that the GPU can't reach or that is not aligned to its
// items, and CudaError; then nothing of theirs is under way. Memory must stay until `synchronize`.
// Chunks in pageable memory pass through two halves of pinned staging, in turn; those calls return
// when the last half is queued (to the engine) or arrived (from it). Chunks are all on the GPU or
// all on the host; one without tokens is not touched. One thread at a time.
class Transfer {
 public:
  // `ctas`: thread blocks of a kernel that moves, 0 for 4 per multiprocessor; four times as many
  // where chunks are the GPU's own, and of the verbs that take a row at a time, not four.
  // `staging_bytes`: both halves. `urgent`: the GPU prefers its kernels to those of other streams.
  Transfer(int device, std::uint32_t ctas, std::size_t staging_bytes, bool urgent);
  ~Transfer();
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  void move(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks, Order order,
            bool gather);
  void code(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks, Order order,
            ItemType type, CodeType code, bool encode);
  // The same as `move`, by copy engines: one copy for each piece that is contiguous on both sides.
  void move_by_dma(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                   Order order, bool gather);
  // Flat copies of any direction, neighbours joined, in one batch where the driver has batches.
  void copy(const std::uint64_t* destinations, const std::uint64_t* sources,
            const std::uint64_t* nbytes, std::size_t count);

  // What this queues next comes after all that `stream` has queued so far; and the other way round.
  // Throws std::invalid_argument for a stream that captures a graph: it would take this one along.
  void wait_for(std::uint64_t stream);
  void release_to(std::uint64_t stream);
  void synchronize();
  std::uint64_t stream() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lmcache
