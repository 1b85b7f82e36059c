#include "cuda/transfer.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "cuda/cuda_call.h"
#include "cuda/kernels.h"
#include "paged/moves.h"
#include "paged/pieces.h"
#include "cuda/transfer_parts.h"

namespace lmcache {

namespace {

// Of one batch. 51,828 at once have hung and crashed a machine with driver 580.159 (vLLM's issue
// 49276); a call for every so many costs nothing that shows.
constexpr std::size_t kMostInBatch = 4096;

}  // namespace

struct Transfer::State {
  int device;
  std::uint32_t ctas;
  std::size_t half_bytes;
  cudaStream_t stream = nullptr;
  bool batches;  // until the driver says that it has none

  // Used in turn: while a kernel reads one, the CPU fills the other.
  struct Side {
    Buffer<Pinned> parcel, staging;
    Buffer<OnDevice> sent;
    Event parcel_read, staging_free;
  };
  Side sides[2];
  int turn = 0;
  Event ordered;
  bool within = false;  // the chunks of this verb are the GPU's own

  ~State() {
    if (stream == nullptr) return;
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }

  // A few blocks fill the bus to the host; within the GPU's memory there is more to fill.
  Launch launch() const { return {stream, within ? 4 * ctas : ctas}; }

  // Sends `parcel`; returns where it is on the device.
  char* send(const Parcel& parcel) {
    Side& side = sides[turn ^= 1];
    side.parcel_read.wait();
    const std::size_t size = std::max(parcel.size(), kAlign);
    char* packed = side.parcel.need(size);
    char* sent = side.sent.need(size);
    parcel.pack(packed);
    check(cudaMemcpyAsync(sent, packed, size, cudaMemcpyHostToDevice, stream), "sending slots");
    return sent;
  }

  void check_device(const char* what, const cudaPointerAttributes& found) const {
    require(found.type != cudaMemoryTypeDevice || found.device == device,
            std::string(what) + " is memory of GPU " + std::to_string(found.device) +
                ", and this is a transfer of GPU " + std::to_string(device));
  }

  void check_engine(const Paged& paged) const {
    for (const auto* bases : {&paged.k_bases, &paged.v_bases}) {
      for (std::uint64_t base : *bases) {
        const cudaPointerAttributes found = attributes(base);
        require(reaches(found, base),
                "Paged: a base is not memory that the GPU can reach; give the GPU's KV");
        check_device("Paged: a base", found);
      }
    }
  }

  // Whether kernels can use all chunks where they are. Throws for chunks that neither they nor the
  // CPU can.
  bool reaches_all(const SlotTable& table, const std::uint64_t* chunks) {
    bool all = true, on_gpu = false;
    for (std::size_t i = 0; i < table.chunks; ++i) {
      if (!has_tokens(table, i)) continue;
      const cudaPointerAttributes found = attributes(chunks[i]);
      check_device("a chunk", found);
      on_gpu = on_gpu || found.type == cudaMemoryTypeDevice;
      all = all && reaches(found, chunks[i]);
    }
    require(all || !on_gpu, "chunks must be all on the GPU or all in host memory");
    within = on_gpu;
    return all;
  }

  // Calls `part` on all chunks at once if the GPU can reach them, else on as many at a time as a
  // half of the staging holds, with addresses there: part(table, chunks). `padded`: a
  // gather leaves bytes of a chunk as they are.
  using Part = std::function<void(const SlotTable&, const std::uint64_t*)>;
  void in_parts(const SlotTable& table, const std::uint64_t* chunks, std::size_t chunk_bytes,
                bool to_engine, bool padded, const Part& part) {
    if (reaches_all(table, chunks)) return part(table, chunks);
    const std::size_t step = (chunk_bytes + kAlign - 1) / kAlign * kAlign;
    const std::size_t fit = std::max<std::size_t>(1, half_bytes / step);
    const std::size_t at_once = std::min(table.chunks, fit);
    // The chunks of a half that have tokens, and where they are staged.
    struct Half {
      std::vector<std::uint64_t> chunks, staged;
    } halves[2];
    const auto carry = [&](const auto& to, const auto& from) {
      const std::vector<std::uint64_t> sizes(to.size(), chunk_bytes);
      lmcache::copy(to.data(), from.data(), sizes.data(), to.size(), kThreads);
    };
    const auto arrive = [&](int which) {
      sides[which].staging_free.wait();
      const Half arrived = std::exchange(halves[which], {});
      if (!to_engine) carry(arrived.chunks, arrived.staged);
    };
    std::vector<std::uint64_t> staged(at_once);
    int which = 0;
    for (std::size_t first = 0; first < table.chunks; first += at_once, which ^= 1) {
      const std::size_t count = std::min(at_once, table.chunks - first);
      const SlotTable some = {table.slots + first * table.chunk_tokens, count, table.chunk_tokens};
      arrive(which);
      Half& half = halves[which];
      const auto base = reinterpret_cast<std::uint64_t>(sides[which].staging.need(at_once * step, half_bytes));
      for (std::size_t i = 0; i < count; ++i) {
        staged[i] = base + i * step;
        if (!has_tokens(some, i)) continue;
        half.chunks.push_back(chunks[first + i]), half.staged.push_back(staged[i]);
      }
      const std::int64_t* end = some.slots + count * table.chunk_tokens;
      // What is left out keeps what the chunk has: it travels both ways.
      const bool kept = padded || std::find(some.slots, end, -1) != end;
      if (to_engine || kept) carry(half.staged, half.chunks);
      part(some, staged.data());
      sides[which].staging_free.record(stream);
    }
    if (!to_engine) arrive(which), arrive(which ^ 1);
  }

  static constexpr int kThreads = 4;

  // Sends the arrays of the plan's rows along, and queues `kernel(rows)`, which reads them there.
  template <typename Kernel>
  void launch_rows(const RowPlan& plan, const SlotTable& table, const char* what,
                   const Kernel& kernel) {
    Parcel parcel;
    const std::size_t slot_count = table.chunks * table.chunk_tokens;
    const std::size_t base_bytes = plan.bases.size() * sizeof(std::uint64_t);
    const std::size_t bases = parcel.add(plan.bases.data(), base_bytes);
    const std::size_t slots = parcel.add(table.slots, slot_count * sizeof(std::int64_t));
    const std::size_t chunks = parcel.add(plan.rows.chunks, table.chunks * sizeof(std::uint64_t));
    const char* sent = send(parcel);
    Rows rows = plan.rows;
    rows.bases = reinterpret_cast<const std::uint64_t*>(sent + bases);
    rows.slots = reinterpret_cast<const std::int64_t*>(sent + slots);
    rows.chunks = reinterpret_cast<const std::uint64_t*>(sent + chunks);
    check(kernel(rows), what);
    sides[turn].parcel_read.record(stream);
  }

  // In one batch. False where the driver has no batches, or refuses this one: it has then done
  // nothing, and single copies tell whether anything is wrong with it.
  bool copy_batch([[maybe_unused]] void** to, [[maybe_unused]] void** from,
                  [[maybe_unused]] std::size_t* sizes, [[maybe_unused]] std::size_t count) const {
#if CUDART_VERSION >= 12080
    cudaMemcpyAttributes how{};
    how.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    how.flags = cudaMemcpyFlagPreferOverlapWithCompute;
    std::size_t first = 0;
#if CUDART_VERSION >= 13000
    const cudaError_t error =
        cudaMemcpyBatchAsync(to, from, sizes, count, &how, &first, 1, stream);
#else
    std::size_t failed = 0;
    const cudaError_t error =
        cudaMemcpyBatchAsync(to, from, sizes, count, &how, &first, 1, &failed, stream);
#endif
    const bool refused = error == cudaErrorNotSupported || error == cudaErrorInvalidValue ||
                         error == cudaErrorCallRequiresNewerDriver;
    if (!refused) return check(error, "copying a batch"), true;
    cudaGetLastError();
#endif
    return false;
  }

  void copy(std::vector<std::uint64_t>& to, std::vector<std::uint64_t>& from,
            std::vector<std::size_t>& sizes) {
    auto** destinations = reinterpret_cast<void**>(to.data());
    auto** sources = reinterpret_cast<void**>(from.data());
    std::size_t count;
    for (std::size_t first = 0; first < to.size(); first += count) {
      count = std::min(to.size() - first, kMostInBatch);
      if (batches && copy_batch(destinations + first, sources + first, &sizes[first], count)) {
        continue;
      }
      for (std::size_t i = first; i < first + count; ++i) {
        check(cudaMemcpyAsync(destinations[i], sources[i], sizes[i], cudaMemcpyDefault, stream),
              "copying");
      }
      batches = false;  // one by one it worked
    }
  }
};

Transfer::Transfer(int device, std::uint32_t ctas, std::size_t staging_bytes, bool urgent) {
  require(device >= 0, "device is " + std::to_string(device) + "; it must not be negative");
  const DeviceGuard guard(device);
  auto state = std::make_unique<State>();
  state->device = device;
  state->half_bytes = staging_bytes / 2;
  const auto look = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "looking at a GPU");
    return value;
  };
  const auto multiprocessors = static_cast<std::uint32_t>(look(cudaDevAttrMultiProcessorCount));
  state->ctas = std::min(ctas > 0 ? ctas : multiprocessors * 4, kMostCtas);
  // A batch takes addresses as the GPU has them.
  state->batches = look(cudaDevAttrCanUseHostPointerForRegisteredMem) != 0;
  int low = 0, high = 0;
  check(cudaDeviceGetStreamPriorityRange(&low, &high), "looking at a GPU");
  check(cudaStreamCreateWithPriority(&state->stream, cudaStreamNonBlocking, urgent ? high : low),
        "creating a stream");
  state_ = std::move(state);
}

Transfer::~Transfer() {
  const DeviceGuard guard(state_->device, std::nothrow);
  state_.reset();
  cudaGetLastError();  // nobody else's to read
}

void Transfer::move(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                    Order order, bool gather) {
  State& s = *state_;
  const Scope scope(s.device, s.stream);
  const Verb verb = gather ? Verb::kGather : Verb::kScatter;
  const RowPlan whole = plan_moves(paged, table, chunks, order, verb);
  if (whole.tokens == 0) return;
  s.check_engine(paged);
  const auto bytes = static_cast<std::size_t>(whole.chunk_bytes);
  s.in_parts(table, chunks, bytes, !gather, false,
             [&](const SlotTable& some, const std::uint64_t* there) {
               const RowPlan plan = plan_moves(paged, some, there, order, verb);
               s.launch_rows(plan, some, "moving KV", [&](const Rows& rows) {
                 return launch_move(rows, gather, plan.alignment, s.launch());
               });
             });
}

void Transfer::code(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                    Order order, ItemType type, CodeType code, bool encode) {
  State& s = *state_;
  const Scope scope(s.device, s.stream);
  const Verb verb = encode ? Verb::kEncode : Verb::kDecode;
  const RowPlan whole = plan_items(paged, table, chunks, order, type, verb);
  if (whole.tokens == 0) return;
  s.check_engine(paged);
  const auto bytes = static_cast<std::size_t>(whole.chunk_bytes);
  const std::uint64_t items = std::uint64_t{whole.rows.per_chunk} * whole.rows.items;
  s.in_parts(table, chunks, bytes, !encode, scales_offset(items) != items,
             [&](const SlotTable& some, const std::uint64_t* there) {
               const RowPlan plan = plan_items(paged, some, there, order, type, verb);
               bool floats = true;
               for (std::size_t i = 0; i < some.chunks; ++i) floats = floats && there[i] % 4 == 0;
               require(plan.alignment >= item_size(type) && floats,
                       "KV must be aligned to its items, and coded chunks to 4 bytes");
               const bool wide = plan.alignment == 16 && paged.contiguous_heads() &&
                                 plan.rows.items % wide_items(type) == 0;
               s.launch_rows(plan, some, "coding KV", [&](const Rows& rows) {
                 return launch_code(rows, encode, type, code, wide, s.launch());
               });
             });
}

void Transfer::move_by_dma(const Paged& paged, const SlotTable& table, const std::uint64_t* chunks,
                           Order order, bool gather) {
  State& s = *state_;
  const Scope scope(s.device, s.stream);
  const std::int64_t chunk_bytes = raw_chunk_bytes(paged, table.chunk_tokens);
  const Runs found = find_runs(paged, table);
  check_move(paged, found, chunks, chunk_bytes, !gather);
  if (found.tokens == 0) return;
  s.check_engine(paged);
  s.in_parts(table, chunks, static_cast<std::size_t>(chunk_bytes), !gather, false,
             [&](const SlotTable& some, const std::uint64_t* there) {
               std::vector<std::uint64_t> to, from, sizes;
               for_pieces(paged, some, there, order,
                          [&](std::uint64_t engine, std::uint64_t chunk, std::int64_t bytes) {
                            to.push_back(gather ? chunk : engine);
                            from.push_back(gather ? engine : chunk);
                            sizes.push_back(static_cast<std::uint64_t>(bytes));
                          });
               copy(to.data(), from.data(), sizes.data(), to.size());
             });
}

void Transfer::copy(const std::uint64_t* destinations, const std::uint64_t* sources,
                    const std::uint64_t* nbytes, std::size_t count) {
  State& s = *state_;
  const Scope scope(s.device, s.stream);
  check_flat(destinations, sources, nbytes, count);
  std::vector<std::uint64_t> to, from;
  std::vector<std::size_t> sizes;
  for (std::size_t i = 0; i < count; ++i) {
    if (nbytes[i] == 0) continue;
    const bool joins = !to.empty() && to.back() + sizes.back() == destinations[i] &&
                       from.back() + sizes.back() == sources[i];
    if (joins) {
      sizes.back() += nbytes[i];
    } else {
      to.push_back(destinations[i]), from.push_back(sources[i]), sizes.push_back(nbytes[i]);
    }
  }
  s.copy(to, from, sizes);
}

void Transfer::wait_for(std::uint64_t stream) {
  const DeviceGuard guard(state_->device);
  refuse_capture(to_stream(stream));
  state_->ordered.record(to_stream(stream));
  state_->ordered.hold(state_->stream);
}

void Transfer::release_to(std::uint64_t stream) {
  const DeviceGuard guard(state_->device);
  refuse_capture(to_stream(stream));
  state_->ordered.record(state_->stream);
  state_->ordered.hold(to_stream(stream));
}

std::uint64_t Transfer::stream() const {
  return reinterpret_cast<std::uint64_t>(state_->stream);
}

void Transfer::synchronize() {
  const DeviceGuard guard(state_->device);
  check(cudaStreamSynchronize(state_->stream), "waiting for the GPU");
}

}  // namespace lmcache
