// Devices, errors, and what tests ask of the emulation.
#include "machine.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <utility>

namespace emulation {

Machine& machine() {
  static Machine& all = *new Machine;  // outlives all who may still call
  return all;
}
int& current_device() {
  thread_local int device = 0;
  return device;
}
cudaError_t& last_error() {
  thread_local cudaError_t error = cudaSuccess;
  return error;
}
void violate(const std::string& what) {
  if (machine().violation.empty()) machine().violation = what;
}

cudaError_t call(Call how, const std::function<cudaError_t()>& body) {
  Machine& m = machine();
  const std::lock_guard<std::recursive_mutex> guard(m.lock);
  const auto refuse = [](cudaError_t error) { return last_error() = error; };
  if (m.owner == 0) m.owner = getpid();
  if (m.owner != getpid()) return refuse(cudaErrorInitializationError);
  if (m.devices == 0) return refuse(cudaErrorNoDevice);
  if (how != Call::kNoContext) m.contexts.insert(current_device());
  cudaError_t error = ++m.calls == m.fail_call ? m.fail_error : cudaSuccess;
  const auto lost = m.lost.find(current_device());
  if (error == cudaSuccess && lost != m.lost.end() && how != Call::kNoContext) error = lost->second;
  if (error == cudaSuccess || how == Call::kReturns) {
    const cudaError_t own = body();
    if (error == cudaSuccess) error = own;
  }
  if (m.pace == Machine::kEager) {
    while (step()) {
    }
  } else if (m.pace == Machine::kMixed) {
    for (unsigned i = m.random() % 3; i > 0 && step(); --i) {
    }
  }
  return error == cudaSuccess ? error : refuse(error);
}

namespace {

int primary_context_state(int device, unsigned* flags, int* active) {
  *flags = 0, *active = static_cast<int>(machine().contexts.count(device));
  return 0;
}

bool is_device(int device) { return device >= 0 && device < machine().devices; }

}  // namespace
}  // namespace emulation

using namespace emulation;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last_error(), cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error(); }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError: return "cudaErrorInitializationError";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorHostMemoryAlreadyRegistered: return "cudaErrorHostMemoryAlreadyRegistered";
    case cudaErrorHostMemoryNotRegistered: return "cudaErrorHostMemoryNotRegistered";
    case cudaErrorMisalignedAddress: return "cudaErrorMisalignedAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureImplicit: return "cudaErrorStreamCaptureImplicit";
    default: return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }

cudaError_t cudaGetDeviceCount(int* count) {
  return call(Call::kNoContext, [&] { return *count = machine().devices, cudaSuccess; });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call(Call::kNoContext, [&] {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    *properties = {{}, std::size_t{2} << 30, 9, 0, 2};
    std::snprintf(properties->name, sizeof properties->name, "emulated GPU");
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call(Call::kNoContext, [&] {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : !machine().aliases;
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call(Call::kNoContext, [&] { return *least = 0, *greatest = -5, cudaSuccess; });
}
cudaError_t cudaDeviceGetPCIBusId(char* address, int length, int device) {
  return call(Call::kNoContext, [&] {
    if (!is_device(device) || length < 13) return cudaErrorInvalidValue;
    std::snprintf(address, static_cast<std::size_t>(length), "0000:%02X:00.0", 0xa0 + device);
    return cudaSuccess;
  });
}
cudaError_t cudaGetDevice(int* device) {
  return call(Call::kNoContext, [&] { return *device = current_device(), cudaSuccess; });
}
// Since CUDA 12 this makes the device's context, which takes hundreds of MB of it.
cudaError_t cudaSetDevice(int device) {
  return call(Call::kNoContext, [&] {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    machine().contexts.insert(current_device() = device);
    return cudaSuccess;
  });
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* status) {
  return call(Call::kNoContext, [&] {
    const bool known = std::strcmp(symbol, "cuDevicePrimaryCtxGetState") == 0;
    if (flags != cudaEnableDefault) return cudaErrorInvalidValue;
    *function = known ? reinterpret_cast<void*>(primary_context_state) : nullptr;
    *status = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
  });
}

// For tests, through ctypes.
#pragma GCC visibility push(default)

// As a fresh process, but for what is still allocated. Odd seeds run work at once or now and then.
void emulation_reset(unsigned seed) {
  Machine& m = machine();
  const std::lock_guard<std::recursive_mutex> guard(m.lock);
  while (step()) {
  }
  m.ended.clear(), m.lost.clear(), m.contexts.clear(), m.violation.clear();
  m.calls = m.works = m.fail_call = m.fail_work = 0;
  m.waits = m.batch_calls = m.blocks = m.written = 0;
  m.aliases = m.refuses_batches = false, m.batches = true, m.devices = 2;
  m.random.seed(seed);
  m.pace = seed % 2 == 0 ? Machine::kLazy : seed % 4 == 1 ? Machine::kEager : Machine::kMixed;
  last_error() = cudaSuccess, current_device() = 0;
}
void emulation_devices(int count) { machine().devices = count; }
void emulation_no_batches() { machine().batches = false; }
void emulation_refuses_batches() { machine().refuses_batches = true; }
int emulation_priority(cudaStream_t stream) { return stream->priority; }
// See Machine.
void emulation_counts(long long (&counts)[4]) {
  const Machine& m = machine();
  counts[0] = m.waits, counts[1] = m.batch_calls, counts[2] = m.blocks, counts[3] = m.written;
}
// Bytes of pinned memory that CUDA allocated, and of devices.
void emulation_bytes(long long (&counts)[2]) {
  counts[0] = counts[1] = 0;
  for (const auto& [begin, range] : machine().ranges) {
    if (range.kind != Kind::kRegistered) counts[range.kind == Kind::kDevice] += range.size;
  }
}
void emulation_aliases() { machine().aliases = true; }
void emulation_captures(cudaStream_t stream, int captures) { stream->captures = captures != 0; }
// The n-th call from now fails with this error, or the n-th thing that a device does.
void emulation_fail_call(long long n, int error) {
  machine().fail_call = machine().calls + n;
  machine().fail_error = static_cast<cudaError_t>(error);
}
void emulation_fail_work(long long n) { machine().fail_work = machine().works + n; }
int emulation_failed() { return machine().calls >= machine().fail_call; }
const char* emulation_violation() { return machine().violation.c_str(); }
int emulation_has_context(int device) { return static_cast<int>(machine().contexts.count(device)); }
// What is alive: streams, events, memory of devices and of the host, and registrations.
void emulation_live(int (&counts)[5]) {
  const Machine& m = machine();
  counts[0] = static_cast<int>(m.streams.size()), counts[1] = static_cast<int>(m.events.size());
  counts[2] = counts[3] = counts[4] = 0;
  for (const auto& [begin, range] : m.ranges) ++counts[2 + static_cast<int>(range.kind)];
}
// Work that has not run.
int emulation_pending() {
  std::size_t found = 0;
  for (cudaStream_t stream : machine().streams) found += stream->queue.size();
  return static_cast<int>(found);
}
#pragma GCC visibility pop

}  // extern "C"
