#include "paged/paged.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace lmcache {
namespace {

// Nothing is mapped below this on any system that runs this.
constexpr std::uint64_t kFirstAddress = 4096;
// The upper half of the addresses is the kernel's.
constexpr std::uint64_t kEnd = std::uint64_t{1} << 63;
constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

void require(bool good, const std::string& what) {
  if (!good) throw std::invalid_argument("Paged: " + what);
}

void check_slot(std::int64_t slot, const Paged& paged, std::size_t chunk, std::size_t token) {
  if (slot >= -1 && slot < paged.num_slots) return;
  throw std::out_of_range("slots[" + std::to_string(chunk) + ", " + std::to_string(token) +
                          "] is " + std::to_string(slot) + ": the engine has the slots 0 to " +
                          std::to_string(paged.num_slots - 1) + ", and -1 leaves a token out");
}

std::int64_t times(std::int64_t a, std::int64_t b, const char* what) {
  std::int64_t product;
  require(!__builtin_mul_overflow(a, b, &product), std::string(what) + " is too large");
  return product;
}

// One axis of a plane's bytes.
struct Axis {
  std::int64_t stride, count;
};

// The bytes of one plane of one layer, relative to its base: axes by falling stride, and the bytes
// from the first to the last that the axes from i on reach (extent[4]: one item).
struct Shape {
  Axis axes[4];
  std::int64_t extent[5];
  bool nested = true;  // no axis steps into what the axes within it reach
};

Shape shape_of(const Paged& paged, std::size_t plane) {
  const Strides& by = paged.strides[plane];
  const std::int64_t blocks =
      paged.num_slots / paged.block_tokens + (paged.num_slots % paged.block_tokens != 0);
  Shape found = {{{by.block, blocks},
                  {by.token, std::min(paged.block_tokens, paged.num_slots)},
                  {by.head, paged.kv_heads},
                  {by.item, paged.items()}},
                 {}};
  for (Axis& axis : found.axes) {
    if (axis.count <= 1) axis = {kMost, 1};  // no step at all: at the front, out of the way
  }
  std::stable_sort(std::begin(found.axes), std::end(found.axes),
                   [](const Axis& a, const Axis& b) { return a.stride > b.stride; });
  found.extent[4] = paged.item_bytes;
  for (int i = 3; i >= 0; --i) {
    const auto [stride, count] = found.axes[i];
    found.nested = found.nested && (count == 1 || stride >= found.extent[i + 1]);
    const std::int64_t steps = count == 1 ? 0 : times(stride, count - 1, "stride");
    require(steps <= kMost - found.extent[i + 1], "a stride is too large");
    found.extent[i] = steps + found.extent[i + 1];
  }
  return found;
}

// Whether bytes of b, which begins `delta` behind a, may be bytes of a. Exact where both have the
// same axes; where these differ, what lies within is taken to fill its extent.
bool meet(const Shape& a, const Shape& b, std::int64_t delta, int axis) {
  if (delta >= a.extent[axis] || delta <= -b.extent[axis]) return false;
  if (axis == 4) return true;
  const auto [stride, count] = a.axes[axis];
  if (stride != b.axes[axis].stride || count != b.axes[axis].count) return true;
  if (count == 1) return meet(a, b, delta, axis + 1);
  const std::int64_t down = delta / stride - (delta % stride < 0);
  for (std::int64_t steps : {down, down + 1}) {
    if (std::abs(steps) < count && meet(a, b, delta - steps * stride, axis + 1)) return true;
  }
  return false;
}

bool any_overlap(const Paged& paged) {
  if (paged.num_slots == 0) return false;
  struct Plane {
    std::uint64_t base;
    const Shape* shape;
  };
  const Shape shapes[2] = {shape_of(paged, 0), shape_of(paged, paged.planes() - 1)};
  if (!shapes[0].nested || !shapes[1].nested) return true;
  std::vector<Plane> planes;
  for (std::uint64_t base : paged.k_bases) planes.push_back({base, &shapes[0]});
  for (std::uint64_t base : paged.v_bases) planes.push_back({base, &shapes[1]});
  std::sort(planes.begin(), planes.end(), [](auto& a, auto& b) { return a.base < b.base; });
  for (std::size_t i = 0; i < planes.size(); ++i) {
    const auto reach = static_cast<std::uint64_t>(planes[i].shape->extent[0]);
    for (std::size_t j = i + 1; j < planes.size(); ++j) {
      const std::uint64_t delta = planes[j].base - planes[i].base;
      if (delta >= reach) break;
      const auto apart = static_cast<std::int64_t>(delta);
      if (meet(*planes[i].shape, *planes[j].shape, apart, 0)) return true;
    }
  }
  return false;
}

}  // namespace

void Paged::check() {
  require(!k_bases.empty(), "k_bases is empty; give one address per layer");
  require(v_bases.empty() || v_bases.size() == k_bases.size(),
          "v_bases must have one address per layer, or none (MLA)");
  require(block_tokens > 0, "block_tokens must be at least 1");
  require(kv_heads > 0, "kv_heads must be at least 1");
  require(head_bytes > 0, "head_bytes must be at least 1");
  require(item_bytes > 0 && head_bytes % item_bytes == 0,
          "head_bytes must be a multiple of item_bytes, which must be at least 1");
  require(num_slots >= 0, "num_slots must not be negative");
  times(kv_heads, head_bytes, "kv_heads * head_bytes");
  for (std::size_t plane = 0; plane < planes(); ++plane) {
    const Strides& by = strides[plane];
    require(by.block >= 0 && by.token >= 0 && by.head >= 0 && by.item >= 0,
            "strides must not be negative");
    const auto reach = static_cast<std::uint64_t>(shape_of(*this, plane).extent[0]);
    for (std::uint64_t base : plane == 0 ? k_bases : v_bases) {
      require(base < kEnd && reach <= kEnd - base,
              "a base and its strides reach past the last address");
    }
  }
  overlaps = any_overlap(*this);
  const bool power_of_two = (block_tokens & (block_tokens - 1)) == 0;
  block_shift = power_of_two ? __builtin_ctzll(static_cast<std::uint64_t>(block_tokens)) : -1;
}

bool Paged::blocks_touch() const {
  for (std::size_t plane = 0; plane < planes(); ++plane) {
    std::int64_t block;
    if (__builtin_mul_overflow(block_tokens, strides[plane].token, &block)) return false;
    if (strides[plane].block != block) return false;
  }
  return true;
}

bool Paged::contiguous_heads() const {
  if (items() == 1) return true;
  for (std::size_t plane = 0; plane < planes(); ++plane) {
    if (strides[plane].item != item_bytes) return false;
  }
  return true;
}

Runs find_runs(const Paged& paged, const SlotTable& table) {
  const bool across_blocks = paged.blocks_touch();
  Runs found;
  found.first.reserve(table.chunks + 1);
  found.first.push_back(0);
  for (std::size_t chunk = 0; chunk < table.chunks; ++chunk) {
    const std::int64_t* slots = table.slots + chunk * table.chunk_tokens;
    std::int64_t next = -1;  // the slot that continues the run; -1 continues none
    for (std::size_t t = 0; t < table.chunk_tokens; ++t) {
      const std::int64_t slot = slots[t];
      check_slot(slot, paged, chunk, t);
      if (slot == -1) {
        next = -1;
        continue;
      }
      if (slot == next) {
        ++found.runs.back().tokens;
      } else {
        found.runs.push_back({static_cast<std::int64_t>(t), 1, slot});
      }
      next = across_blocks || (slot + 1) % paged.block_tokens != 0 ? slot + 1 : -1;
      ++found.tokens;
    }
    found.first.push_back(found.runs.size());
  }
  return found;
}

std::int64_t raw_chunk_bytes(const Paged& paged, std::size_t chunk_tokens) {
  std::int64_t bytes = paged.token_bytes();
  for (std::size_t count : {chunk_tokens, paged.layers(), paged.planes()}) {
    bytes = times(bytes, static_cast<std::int64_t>(count), "a chunk");
  }
  return bytes;
}

namespace {

[[noreturn]] void refuse_twice(std::int64_t slot) {
  throw std::invalid_argument("slot " + std::to_string(slot) +
                              " is in slots twice: its token can be written once only");
}

// Throws where two runs have a slot in common.
void check_once(const Paged& paged, const Runs& found) {
  // A mark for each slot is the fastest, as long as marks are not many more than what is moved.
  if (static_cast<std::uint64_t>(paged.num_slots) <= 64 * std::uint64_t{found.tokens}) {
    std::vector<bool> taken(static_cast<std::size_t>(paged.num_slots));
    for (const Run& run : found.runs) {
      for (std::int64_t slot = run.slot; slot < run.slot + run.tokens; ++slot) {
        if (taken[static_cast<std::size_t>(slot)]) refuse_twice(slot);
        taken[static_cast<std::size_t>(slot)] = true;
      }
    }
    return;
  }
  std::vector<std::pair<std::int64_t, std::int64_t>> slots;
  for (const Run& run : found.runs) slots.emplace_back(run.slot, run.slot + run.tokens);
  std::sort(slots.begin(), slots.end());
  for (std::size_t i = 1; i < slots.size(); ++i) {
    if (slots[i].first < slots[i - 1].second) refuse_twice(slots[i].first);
  }
}

}  // namespace

void check_move(const Paged& paged, const Runs& found, const std::uint64_t* chunks,
                std::int64_t chunk_bytes, bool into_engine) {
  std::vector<std::pair<std::uint64_t, std::size_t>> moved;
  for (std::size_t i = 0; i + 1 < found.first.size(); ++i) {
    if (found.first[i] != found.first[i + 1]) moved.emplace_back(chunks[i], i);
  }
  if (moved.empty()) return;
  const auto size = static_cast<std::uint64_t>(chunk_bytes);
  std::sort(moved.begin(), moved.end());
  for (std::size_t i = 0; i < moved.size(); ++i) {
    const auto [address, chunk] = moved[i];
    const std::string name = "chunks[" + std::to_string(chunk) + "] ";
    if (address < kFirstAddress || address >= kEnd || size > kEnd - address) {
      throw std::invalid_argument(name + "is at " + std::to_string(address) +
                                  ", where no chunk can be");
    }
    if (!into_engine && i > 0 && address - moved[i - 1].first < size) {
      throw std::invalid_argument(name + "overlaps chunks[" + std::to_string(moved[i - 1].second) +
                                  "]: a chunk has " + std::to_string(size) + " bytes");
    }
  }
  for (const auto* bases : {&paged.k_bases, &paged.v_bases}) {
    for (std::uint64_t base : *bases) require(base >= kFirstAddress, "a base is null");
  }
  if (!into_engine) return;
  require(!paged.overlaps, "tokens, heads or planes share bytes; it can be read but not written");
  check_once(paged, found);
}

}  // namespace lmcache
