#include "curves/curves.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "curves/recency.h"

namespace lmcache {

namespace {

constexpr std::int64_t kUnbounded = std::numeric_limits<std::int64_t>::max();

void put(std::vector<std::int64_t>& histogram, std::int64_t distance, std::int64_t tokens) {
  const auto at = static_cast<std::size_t>(distance);
  if (at >= histogram.size()) histogram.resize(std::max(at + 1, 2 * histogram.size()));
  histogram[at] += tokens;
}

std::int64_t tokens_of(const Weights& weights, std::size_t request, std::size_t place) {
  if (weights.prompt_tokens == nullptr) return weights.chunk_tokens;
  const std::int64_t before = static_cast<std::int64_t>(place) * weights.chunk_tokens;
  return std::clamp<std::int64_t>(weights.prompt_tokens[request] - before, 0,
                                  weights.chunk_tokens);
}

bool takes(std::int64_t id, std::uint64_t threshold, std::uint64_t salt) {
  return mix(static_cast<std::uint64_t>(id) ^ salt) <= threshold;
}

std::uint64_t chained(std::uint64_t before, std::int64_t name) {
  return mix(before ^ mix(static_cast<std::uint64_t>(name)));
}

}  // namespace

Histograms count_distances(const References& references, const Weights& weights,
                           std::uint64_t threshold, std::uint64_t seed) {
  const bool all = threshold == ~std::uint64_t{0};
  const std::uint64_t salt = mix(seed);
  Histograms out;
  Recency recency;
  std::vector<std::int64_t> ids, tokens, distances;
  for (std::size_t r = 0; r < references.size; ++r) {
    const std::int64_t* chunks = references.ids + references.offsets[r];
    std::size_t n = references.length(r), known = references.count() - (chunks - references.ids);
    ids.clear();
    tokens.clear();
    for (std::size_t i = 0; i < n; ++i) {
      const std::int64_t weight = tokens_of(weights, r, i);
      out.total += weight;
      if (!all) {
        if (!takes(chunks[i], threshold, salt)) continue;
        ids.push_back(chunks[i]);
      }
      tokens.push_back(weight);
      out.sampled += weight;
    }
    if (!all) {
      chunks = ids.data();
      known = n = ids.size();
    }
    distances.resize(n);
    recency.use(chunks, n, distances.data(), known);
    std::int64_t farthest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const std::int64_t distance = distances[i];
      if (distance == kNever) {
        farthest = kUnbounded;
        out.any_missed += tokens[i];
      } else {
        farthest = std::max(farthest, distance);
        put(out.any_position, distance, tokens[i]);
      }
      if (farthest == kUnbounded) {
        out.prefix_missed += tokens[i];
      } else {
        put(out.prefix, farthest, tokens[i]);
      }
    }
  }
  out.distinct = static_cast<std::int64_t>(recency.size());
  const std::size_t entries = recency.size() + 1;
  out.prefix.resize(entries);
  out.any_position.resize(entries);
  return out;
}

void sampled(const std::int64_t* ids, std::size_t n, std::uint64_t threshold, std::uint64_t seed,
             bool* taken) {
  const std::uint64_t salt = mix(seed);
  for (std::size_t i = 0; i < n; ++i) taken[i] = takes(ids[i], threshold, salt);
}

void stack_distances(const References& references, std::int64_t* distances) {
  Recency recency;
  for (std::size_t r = 0; r < references.size; ++r) {
    const std::int64_t from = references.offsets[r];
    recency.use(references.ids + from, references.length(r), distances + from,
                references.count() - static_cast<std::size_t>(from));
  }
}

void last_uses(const References& references, std::int64_t* requests) {
  std::unordered_map<std::int64_t, std::int64_t> latest;
  for (std::size_t r = 0; r < references.size; ++r) {
    for (std::int64_t i = references.offsets[r]; i < references.offsets[r + 1]; ++i) {
      const auto [at, is_new] = latest.try_emplace(references.ids[i], kNever);
      requests[i] = at->second;
      at->second = static_cast<std::int64_t>(r);
    }
  }
}

void tier_hits(const std::int64_t* distances, const std::int64_t* shared,
               const References& references,
               const std::int64_t* capacities, std::size_t stacks, std::size_t tiers,
               bool exclusive, std::int32_t* hits) {
  std::fill_n(hits, stacks * references.size * tiers, 0);
  const std::size_t own = shared != nullptr ? tiers - 1 : tiers;
  std::vector<std::int64_t> limits(tiers);
  for (std::size_t s = 0; s < stacks; ++s) {
    std::int64_t sum = 0;
    for (std::size_t t = 0; t < tiers; ++t) {
      const std::int64_t capacity = capacities[s * tiers + t];
      const std::int64_t chunks = capacity < 0 ? kUnbounded : capacity;
      sum = chunks > kUnbounded - sum ? kUnbounded : sum + chunks;
      limits[t] = exclusive && t < own ? sum : chunks;
    }
    for (std::size_t r = 0; r < references.size; ++r, hits += tiers) {
      for (std::int64_t i = references.offsets[r]; i < references.offsets[r + 1]; ++i) {
        std::size_t t = distances[i] == kNever ? own : 0;
        while (t < own && distances[i] > limits[t]) ++t;
        if (t == own) {
          if (own == tiers || shared[i] == kNever || shared[i] > limits[t]) break;
        }
        ++hits[t];
      }
    }
  }
}

void group_names(const References& references, std::size_t group, bool is_chained,
                 std::int64_t* names) {
  for (std::size_t r = 0; r < references.size; ++r) {
    const std::int64_t* const ids = references.ids + references.offsets[r];
    for (std::size_t end = group; end <= references.length(r); end += group) {
      if (is_chained) {
        *names++ = ids[end - 1];
        continue;
      }
      std::uint64_t name = group;
      for (std::size_t i = end - group; i < end; ++i) name = chained(name, ids[i]);
      *names++ = static_cast<std::int64_t>(name);
    }
  }
}

void chain_names(const References& references, std::int64_t* names) {
  for (std::size_t r = 0; r < references.size; ++r) {
    std::uint64_t name = 0;
    for (std::int64_t i = references.offsets[r]; i < references.offsets[r + 1]; ++i) {
      name = chained(name, references.ids[i]);
      names[i] = static_cast<std::int64_t>(name);
    }
  }
}

}  // namespace lmcache
