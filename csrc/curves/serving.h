// TTFT under load: a run over requests in an engine that batches continuously.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "curves/curves.h"

namespace lmcache {

// Loading n chunks of a tier takes call_s + n * chunk_s + tokens * token_s.
struct LoadCost {
  double call_s, chunk_s, token_s;
};

// Prefill of n tokens after m takes token_s * n + pair_s * n * (m + n / 2), a step step_s beside
// it, and decode_s + decode_token_s * (tokens there) more where it decodes.
struct EngineCost {
  double step_s, token_s, pair_s, decode_s, decode_token_s;
  bool overlap;          // load layers while others compute
  bool device;           // the first tier is the engine's own
  std::int64_t budget;   // tokens of a step
  std::int64_t most;     // requests of a step
  std::int64_t room;     // tokens of KV of those that run; negative without a bound
  std::int64_t clients;  // of a closed loop; 0: requests come when they come
  std::int64_t stages;   // of a pipeline: a prompt's last part goes through all of them
};

// `hits` are chunks of each request's leading held run by tier, `[size][tiers]`, as they would be
// if no two requests were under way at a time. `chunks` are named by numbers below their count.
// Request i is served by engine `replica[i]` of `replicas`, and chunks of different engines have
// different names. The last tier is all engines' where `pooled` (else null) names chunks as it does,
// by numbers below their count too.
struct Requests {
  References chunks;
  const double* at;  // seconds, never falling
  const std::int64_t *prompt, *output;
  const std::int32_t* hits;
  const LoadCost* tiers;
  std::size_t tier_count;
  std::int64_t chunk_tokens;
  const std::int64_t *replica, *pooled;
  std::size_t replicas;
};

struct Serving {
  std::vector<double> ttft, e2e;      // seconds since a request came
  std::vector<std::int32_t> hits;     // as they were
  std::vector<double> gaps;           // between tokens, in seconds: rounded to half a per cent
  std::vector<std::int64_t> counts;   // of each gap
  double busy_s = 0, answers = 0;     // of the busiest; tokens that others had, a mean over requests
  std::int64_t most_running = 0;
};

// First come, first served: a step has a token of each request that decodes and fills its budget
// with prompts. A request is looked up when its turn comes. What another computes is held by the
// device from the step on that computes it, and by the tiers below once that prompt is computed.
// Loads queue, one after another in each tier of an engine, beside it. Of a pool each engine has a
// link of its own.
Serving serve(const Requests& requests, const EngineCost& cost);

}  // namespace lmcache
