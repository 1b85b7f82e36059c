// Streams, events, and copies.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "machine.h"

namespace emulation {

CUstream_st* stream_of(cudaStream_t handle) {
  Machine& m = machine();
  if (reinterpret_cast<std::uint64_t>(handle) <= 2) {  // null, legacy, per thread
    auto& found = m.defaults[current_device()];
    if (!found) found.reset(new CUstream_st{current_device(), {}});
    return found.get();
  }
  return m.streams.count(handle) ? handle : nullptr;
}

std::shared_ptr<Mark> queue(CUstream_st& stream, Work work) {
  stream.queue.push_back(std::move(work));
  return stream.queue.back().mark;
}

bool step() {
  Machine& m = machine();
  std::vector<CUstream_st*> ready;
  const auto look = [&](CUstream_st* stream) {
    if (stream->queue.empty()) return;
    const auto& after = stream->queue.front().after;
    if (after == nullptr || after->done) ready.push_back(stream);
  };
  for (cudaStream_t stream : m.streams) look(stream);
  for (const auto& stream : m.ended) look(stream.get());
  for (const auto& [device, stream] : m.defaults) look(stream.get());
  if (ready.empty()) return false;
  CUstream_st& stream = *ready[m.random() % ready.size()];
  const Work work = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (work.run && !m.lost.count(stream.device)) {
    const Opened opened;
    const bool fails = ++m.works == m.fail_work;
    const cudaError_t error = fails ? cudaErrorLaunchFailure : work.run();
    if (error != cudaSuccess) m.lost[stream.device] = error;
  }
  work.mark->done = true;
  return true;
}

cudaError_t run_until(const std::shared_ptr<Mark>& mark, int device) {
  while (mark != nullptr && !mark->done) {
    if (step()) continue;
    violate("waits for what never comes");
    return cudaErrorLaunchFailure;
  }
  const auto lost = machine().lost.find(device);
  return lost == machine().lost.end() ? cudaSuccess : lost->second;
}

namespace {

// One copy, checked when it is asked for, and again when it runs: its memory must still be there.
struct Copy {
  std::uint64_t to, from, nbytes;
  const Range *to_range, *from_range;
  std::uint64_t to_number = 0, from_number = 0;
  std::shared_ptr<std::vector<char>> kept;  // what a pageable source had at the time of the call

  Copy(const void* to_, const void* from_, std::size_t nbytes)
      : to(reinterpret_cast<std::uint64_t>(to_)),
        from(reinterpret_cast<std::uint64_t>(from_)),
        nbytes(nbytes),
        to_range(range_of(to)),
        from_range(range_of(from)) {
    if (to_range != nullptr) to_number = to_range->number;
    if (from_range != nullptr) from_number = from_range->number;
  }
  bool good() const {
    return to != 0 && from != 0 && (to_range == nullptr || still_there(to_number, to, nbytes)) &&
           (from_range == nullptr || still_there(from_number, from, nbytes));
  }
  static bool on_device(const Range* range) {
    return range != nullptr && range->kind == Kind::kDevice;
  }
  cudaError_t run() const {
    if ((to_number != 0 && !still_there(to_number, to, nbytes)) ||
        (from_number != 0 && !kept && !still_there(from_number, from, nbytes))) {
      violate("a copy uses memory that was freed or unpinned after it was queued");
      return cudaErrorIllegalAddress;
    }
    const void* source = kept ? kept->data() : reinterpret_cast<const void*>(from);
    std::memmove(reinterpret_cast<void*>(to), source, nbytes);
    return cudaSuccess;
  }
  // Where a batch takes host addresses for the device's.
  bool aliased() const {
    const auto other = [](std::uint64_t number, std::uint64_t address) {
      const Range* range = number != 0 ? range_of(address) : nullptr;
      return range != nullptr && range->kind == Kind::kRegistered && machine().aliases;
    };
    return other(to_number, to) || other(from_number, from);
  }
};

bool overlap(const std::vector<Copy>& copies) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> written;
  for (const Copy& copy : copies) written.emplace_back(copy.to, copy.to + copy.nbytes);
  std::sort(written.begin(), written.end());
  for (std::size_t i = 1; i < written.size(); ++i) {
    if (written[i].first < written[i - 1].second) return true;
  }
  return false;
}

}  // namespace
}  // namespace emulation

using namespace emulation;

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return call(Call::kPlain, [&] {
    if (stream == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    *stream = new CUstream_st{current_device(), {}};
    machine().streams.insert(*stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  const cudaError_t error = cudaStreamCreateWithFlags(stream, flags);
  if (error == cudaSuccess) (*stream)->priority = priority;  // CUDA clamps it
  return error;
}

// What is queued still runs, as on a GPU.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call(Call::kReturns, [&] {
    if (machine().streams.erase(stream) == 0) return cudaErrorInvalidResourceHandle;
    machine().ended.emplace_back(stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return call(Call::kPlain, [&] {
    CUstream_st* stream = stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    return run_until(stream->queue.empty() ? nullptr : stream->queue.back().mark, stream->device);
  });
}

cudaError_t cudaDeviceSynchronize() {
  return call(Call::kPlain, [&] {
    while (step()) {
    }
    return run_until(nullptr, current_device());
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags) {
  return call(Call::kPlain, [&] {
    CUstream_st* stream = stream_of(handle);
    if (flags != 0) return cudaErrorInvalidValue;
    if (stream == nullptr || machine().events.count(event) == 0) {
      return cudaErrorInvalidResourceHandle;
    }
    if (event->recorded) queue(*stream, {nullptr, event->recorded});
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return call(Call::kPlain, [&] {
    CUstream_st* stream = stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    *status = stream->captures ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call(Call::kPlain, [&] {
    if (event == nullptr || (flags & ~7u) != 0) return cudaErrorInvalidValue;
    *event = new CUevent_st{current_device(), nullptr};
    machine().events.insert(*event);
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call(Call::kReturns, [&] {
    if (machine().events.erase(event) == 0) return cudaErrorInvalidResourceHandle;
    delete event;
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return call(Call::kPlain, [&] {
    CUstream_st* stream = stream_of(handle);
    if (stream == nullptr || machine().events.count(event) == 0 ||
        stream->device != event->device) {
      return cudaErrorInvalidResourceHandle;
    }
    if (stream->captures) violate("an event was recorded in a stream that captures a graph");
    event->recorded = queue(*stream, {});
    return cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call(Call::kPlain, [&] {
    if (machine().events.count(event) == 0) return cudaErrorInvalidResourceHandle;
    return run_until(event->recorded, event->device);
  });
}

// From pageable memory the source is read before this returns; to pageable memory all is done.
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t nbytes, cudaMemcpyKind kind,
                            cudaStream_t handle) {
  return call(Call::kPlain, [&] {
    CUstream_st* stream = stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (nbytes == 0) return cudaSuccess;
    Copy copy(to, from, nbytes);
    const bool into = Copy::on_device(copy.to_range), out = Copy::on_device(copy.from_range);
    const bool fits = kind == cudaMemcpyDefault ||
                      (into == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
                       out == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice));
    if (!copy.good() || !fits) return cudaErrorInvalidValue;
    if (copy.from_range == nullptr) {
      const auto* source = static_cast<const char*>(from);
      copy.kept = std::make_shared<std::vector<char>>(source, source + nbytes);
    }
    const auto mark = queue(*stream, {[copy] { return copy.run(); }, nullptr});
    return copy.to_range == nullptr ? run_until(mark, stream->device) : cudaSuccess;
  });
}

// All of it is read and written when the stream comes to it, in any order.
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from,
                                 const std::size_t* nbytes, std::size_t count,
                                 cudaMemcpyAttributes* attributes, std::size_t* first,
                                 std::size_t attribute_count, cudaStream_t handle) {
  return call(Call::kPlain, [&] {
    ++machine().batch_calls;
    if (!machine().batches) return cudaErrorCallRequiresNewerDriver;
    const bool none = to == nullptr || from == nullptr || nbytes == nullptr || count == 0 ||
                      attributes == nullptr || first == nullptr || attribute_count == 0;
    if (none || attribute_count > count || first[0] != 0) return cudaErrorInvalidValue;
    if (reinterpret_cast<std::uint64_t>(handle) <= 1) return cudaErrorInvalidValue;
    for (std::size_t i = 0; i < attribute_count; ++i) {
      const bool rises = i == 0 || first[i] > first[i - 1];
      const int order = attributes[i].srcAccessOrder;
      if (!rises || first[i] >= count || order < 1 || order > 3 || attributes[i].flags > 1) {
        return cudaErrorInvalidValue;
      }
    }
    CUstream_st* stream = stream_of(handle);
    if (stream == nullptr || stream->device != current_device()) {
      return cudaErrorInvalidResourceHandle;
    }
    if (machine().refuses_batches) return cudaErrorInvalidValue;
    // Drivers that got 50,000 of them hung: vLLM's issue 49276.
    if (count > 4096) violate("a batch of more copies than any driver is known to bear");
    std::vector<Copy> copies;
    for (std::size_t i = 0; i < count; ++i) {
      copies.emplace_back(to[i], from[i], nbytes[i]);
      if (nbytes[i] == 0 || !copies.back().good()) return cudaErrorInvalidValue;
    }
    if (overlap(copies)) violate("copies of a batch overlap, which have no order");
    std::shuffle(copies.begin(), copies.end(), machine().random);
    const auto all = [copies] {
      for (const Copy& copy : copies) {
        if (copy.aliased()) return cudaErrorIllegalAddress;
        if (const cudaError_t error = copy.run(); error != cudaSuccess) return error;
      }
      return cudaSuccess;
    };
    queue(*stream, {all, nullptr});
    return cudaSuccess;
  });
}

}  // extern "C"
