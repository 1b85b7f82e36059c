#include "paged.h"

#include <stdexcept>
#include <string>

namespace lmcache {
namespace {

void require(bool good, const char* what) {
  if (!good) throw std::invalid_argument(std::string("Paged: ") + what);
}

void check_slot(std::int64_t slot, const Paged& paged, std::size_t chunk, std::size_t token) {
  if (slot >= -1 && slot < paged.num_slots) return;
  throw std::out_of_range("slots[" + std::to_string(chunk) + ", " + std::to_string(token) +
                          "] is " + std::to_string(slot) + ": the engine has the slots 0 to " +
                          std::to_string(paged.num_slots - 1) + ", and -1 leaves a token out");
}

}  // namespace

void Paged::check() const {
  require(!k_bases.empty(), "k_bases is empty; give one address per layer");
  require(v_bases.empty() || v_bases.size() == k_bases.size(),
          "v_bases must have one address per layer, or none (MLA)");
  require(block_tokens > 0, "block_tokens must be at least 1");
  require(kv_heads > 0, "kv_heads must be at least 1");
  require(head_bytes > 0, "head_bytes must be at least 1");
  require(num_slots >= 0, "num_slots must not be negative");
  require(block_stride >= 0 && token_stride >= 0 && head_stride >= 0,
          "strides must not be negative");
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
        found.runs.push_back({static_cast<std::int64_t>(t), 1, paged.offset(slot)});
      }
      next = across_blocks || (slot + 1) % paged.block_tokens != 0 ? slot + 1 : -1;
      ++found.tokens;
    }
    found.first.push_back(found.runs.size());
  }
  return found;
}

}  // namespace lmcache
