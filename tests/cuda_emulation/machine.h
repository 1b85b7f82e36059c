// The emulated GPUs. Nothing that is queued runs before somebody waits for it, unless the seed says
// so; then what may run is drawn at random. See docs/decisions for what this can and can't show.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

// A point in a stream: what waits for it waits for all before it.
struct Mark {
  bool done = false;
};

struct Work {
  std::function<cudaError_t()> run;  // may be empty
  std::shared_ptr<Mark> after;       // or null: runs when this is done
  std::shared_ptr<Mark> mark = std::make_shared<Mark>();
};

struct CUstream_st {
  int device;
  std::deque<Work> queue;
  bool captures = false;
  int priority = 0;
};

struct CUevent_st {
  int device;
  std::shared_ptr<Mark> recorded;  // null: never
};

namespace emulation {

enum class Kind { kDevice, kHost, kRegistered };

// Memory that CUDA knows of.
struct Range {
  std::uint64_t begin, size;
  Kind kind;
  int device;
  std::uint64_t number;  // no two have the same
  std::uint64_t mapped, mapped_bytes;
};

struct Machine {
  std::recursive_mutex lock;
  int devices = 2;
  std::mt19937 random;
  enum { kLazy, kEager, kMixed } pace = kLazy;
  bool batches = true;   // the driver knows cudaMemcpyBatchAsync
  bool refuses_batches = false;  // it knows them, and finds each one wrong
  bool aliases = false;  // the GPU sees registered memory at other addresses, as under WSL

  std::map<std::uint64_t, Range> ranges;  // by begin
  std::uint64_t last_number = 0;
  std::set<cudaStream_t> streams;
  std::set<cudaEvent_t> events;
  std::vector<std::unique_ptr<CUstream_st>> ended;       // destroyed, with work left
  std::map<int, std::unique_ptr<CUstream_st>> defaults;  // by device

  std::set<int> contexts;           // devices that have one
  std::map<int, cudaError_t> lost;  // devices whose context is gone, and why
  // Since the last reset: calls that wait for all that a device does, batches asked for, the blocks
  // of the largest grid, and bytes that kernels wrote.
  std::int64_t waits = 0, batch_calls = 0, blocks = 0, written = 0;
  std::int64_t calls = 0, works = 0, fail_call = 0, fail_work = 0;
  cudaError_t fail_error = cudaSuccess;
  std::string violation;  // the first thing that CUDA would not notice, but that is wrong
  long owner = 0;         // the process that came first: CUDA does not survive a fork
};
Machine& machine();
int& current_device();
cudaError_t& last_error();
void violate(const std::string& what);

// Runs the body of a call as CUDA would: with failures that tests asked for, errors of a lost
// context, and the last error kept. What gives something back does so in any case.
enum class Call { kPlain, kReturns, kNoContext };
cudaError_t call(Call how, const std::function<cudaError_t()>& body);

// The range that has the address, or null.
const Range* range_of(std::uint64_t address);
// Whether the range with this number is still there, and has all of these bytes.
bool still_there(std::uint64_t number, std::uint64_t address, std::uint64_t nbytes);
// Whether kernels of the device may use the bytes.
bool device_reaches(int device, std::uint64_t address, std::uint64_t nbytes);

// Device memory can be used only while one of these lives; else a touch is a segmentation fault.
class Opened {
 public:
  Opened();
  ~Opened();
};

// Null for a handle that is none.
CUstream_st* stream_of(cudaStream_t handle);
std::shared_ptr<Mark> queue(CUstream_st& stream, Work work);
// One thing that can run, of any stream; false if there is none.
bool step();
cudaError_t run_until(const std::shared_ptr<Mark>& mark, int device);

}  // namespace emulation
