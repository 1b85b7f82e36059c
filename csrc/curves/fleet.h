// Replicas that serve one trace: which of them takes each request, and what it holds then.
#pragma once

#include <cstddef>
#include <cstdint>

#include "curves/curves.h"

namespace lmcache {

enum class Routing : std::int64_t { kRoundRobin, kLeastLoaded, kSession, kPrefix };

// What a router knows of a request when it comes. `at` never falls; a `session` below 0 is none.
struct Routed {
  References chunks;
  const double* at;
  const std::int64_t *prompt, *output, *session;
};

// Seconds of a request alone on a replica: prefill of n tokens after m takes
// step_s + token_s * n + pair_s * n * (m + n / 2), each further token of an answer decode_s.
// A replica holds the `holds` chunks that it used last; negative is without a bound.
struct Router {
  Routing by;
  std::int64_t replicas;
  double step_s, token_s, pair_s, decode_s;
  std::int64_t chunk_tokens, holds;
};

// Writes each request's replica. Replicas compute one prompt after another, as far as a router
// reckons. Round-robin: each in turn. Session: by a hash of it, in turn without one. Least loaded:
// the fewest requests under way. Prefix: where the first token comes first, which a prefix that is
// held and a short queue make; then the fewest under way. Equal ones in turn.
void route(const Routed& requests, const Router& router, std::int64_t* replica);

// Each reference's distance in the order of uses of its own replica alone.
void replica_distances(const References& references, const std::int64_t* replica,
                       std::int64_t replicas, std::int64_t* distances);

// Names of chunks that differ from replica to replica, numbers below their count: each replica's in
// the order of their first uses. Ids are numbers below their count too.
void replica_names(const References& references, const std::int64_t* replica, std::int64_t replicas,
                   std::int64_t* names);

}  // namespace lmcache
