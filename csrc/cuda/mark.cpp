// Order between streams, without waiting on the host.
#include "cuda/transfer.h"
#include "cuda/transfer_parts.h"

namespace lmcache {

struct Mark::State {
  int device;
  Event event;
};

Mark::Mark(int device, std::uint64_t stream) {
  const DeviceGuard guard(device);
  refuse_capture(to_stream(stream));
  auto state = std::make_unique<State>();
  state->device = device;
  state->event.record(to_stream(stream));
  state_ = std::move(state);
}

Mark::~Mark() = default;

void Mark::hold(std::uint64_t stream) const {
  const DeviceGuard guard(state_->device);
  refuse_capture(to_stream(stream));
  state_->event.hold(to_stream(stream));
}

}  // namespace lmcache
