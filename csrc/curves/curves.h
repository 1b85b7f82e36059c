// What one pass over a trace tells of every capacity at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lmcache {

// Request i uses chunks ids[offsets[i]] to ids[offsets[i + 1]] (without it), in prompt order.
struct References {
  const std::int64_t* ids;
  const std::int64_t* offsets;  // [size + 1]
  std::size_t size;

  std::size_t count() const { return static_cast<std::size_t>(offsets[size]); }
  std::size_t length(std::size_t i) const {
    return static_cast<std::size_t>(offsets[i + 1] - offsets[i]);
  }
};

// Tokens of a request's chunks: chunk_tokens each, as far as the prompt goes. Without prompts
// (null) every chunk is whole.
struct Weights {
  std::int64_t chunk_tokens;
  const std::int64_t* prompt_tokens;  // [requests], or null
};

// Tokens by the smallest LRU capacity that hits them: entry d is what capacities from d on hit.
// `prefix`: a chunk hits if it and all in front of it are held. `any_position`: each on its own.
struct Histograms {
  std::vector<std::int64_t> prefix, any_position;
  std::int64_t prefix_missed = 0, any_missed = 0;  // at every capacity
  std::int64_t total = 0;                          // seen and skipped
  std::int64_t sampled = 0;                        // of total, those that are in the histograms
  std::int64_t distinct = 0;                       // sampled chunks
};

// Only chunks with a hash of at most `threshold` count (all ones: each does). Mixed with `seed`.
Histograms count_distances(const References& references, const Weights& weights,
                           std::uint64_t threshold, std::uint64_t seed);

// Whether a sample takes each of these chunks.
void sampled(const std::int64_t* ids, std::size_t n, std::uint64_t threshold, std::uint64_t seed,
             bool* taken);

// Each reference's distance, kNever for a chunk that was never used before.
void stack_distances(const References& references, std::int64_t* distances);

// Which request used each reference's chunk before: kNever if none, the request itself for a chunk
// that stood further in front in it.
void last_uses(const References& references, std::int64_t* requests);

// For each request, how many chunks of its leading held run each tier serves. `capacities` are
// `[stacks][tiers]`, negative without a bound; hits `[stacks][requests][tiers]`. Exclusive tiers
// hold what the faster ones no longer do, inclusive ones all that fits. With `shared` distances (else
// null) the last tier is behind the others and goes by these.
void tier_hits(const std::int64_t* distances, const std::int64_t* shared,
               const References& references,
               const std::int64_t* capacities, std::size_t stacks, std::size_t tiers,
               bool exclusive, std::int32_t* hits);

// Names of chunks of `group` times the length, of `references`' full groups, request after request.
// Chained: `ids` name whole prefixes, so that a group's last name is its name. Else ids name a
// chunk's own content, and a group is named by a 64-bit hash of its chunks' names.
void group_names(const References& references, std::size_t group, bool chained,
                 std::int64_t* names);

// From names of content to names of prefixes: a 64-bit hash of all names up to each chunk.
void chain_names(const References& references, std::int64_t* names);

}  // namespace lmcache
