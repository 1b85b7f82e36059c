#include "curves/fleet.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <tuple>
#include <vector>

#include "curves/recency.h"

namespace lmcache {

namespace {

class Fleet {
 public:
  Fleet(const Routed& requests, const Router& router)
      : in_(requests),
        router_(router),
        count_(static_cast<std::size_t>(router.replicas)),
        free_(count_, 0.0),
        under_way_(count_),
        used_(router.by == Routing::kPrefix ? count_ : 0) {}

  std::size_t send(std::size_t i) {
    std::size_t chosen = 0;
    std::int64_t cached = 0;
    switch (router_.by) {
      case Routing::kRoundRobin:
        chosen = turn_;
        break;
      case Routing::kSession: {
        const std::int64_t session = in_.session[i];
        chosen = session < 0 ? turn_ : mix(static_cast<std::uint64_t>(session)) % count_;
        break;
      }
      case Routing::kLeastLoaded:
        chosen = least([&](std::size_t r) { return std::tuple(loaded(r, in_.at[i])); });
        break;
      case Routing::kPrefix:
        chosen = least([&](std::size_t r) {
          const double first = wait(r, i) + seconds(i, tokens_held(r, i));
          return std::tuple(first, loaded(r, in_.at[i]));
        });
        cached = tokens_held(chosen, i);
        use(chosen, i);
        break;
    }
    const bool in_turn = router_.by != Routing::kSession || in_.session[i] < 0;
    if (in_turn) turn_ = (chosen + 1) % count_;
    free_[chosen] = std::max(in_.at[i], free_[chosen]) + seconds(i, cached);
    const auto more = static_cast<double>(std::max<std::int64_t>(0, in_.output[i] - 1));
    under_way_[chosen].push(free_[chosen] + router_.decode_s * more);
    return chosen;
  }

 private:
  // The first of those with the least figure, from the one in turn on.
  template <typename Figure>
  std::size_t least(const Figure& figure) {
    std::size_t best = turn_;
    auto lowest = figure(best);
    for (std::size_t k = 1; k < count_; ++k) {
      const std::size_t r = (turn_ + k) % count_;
      if (const auto found = figure(r); found < lowest) {
        lowest = found;
        best = r;
      }
    }
    return best;
  }

  std::size_t loaded(std::size_t r, double now) {
    auto& ends = under_way_[r];
    while (!ends.empty() && ends.top() <= now) ends.pop();
    return ends.size();
  }

  double wait(std::size_t r, std::size_t i) const { return std::max(0.0, free_[r] - in_.at[i]); }

  double seconds(std::size_t i, std::int64_t cached) const {
    const auto n = static_cast<double>(std::max<std::int64_t>(1, in_.prompt[i] - cached));
    const auto m = static_cast<double>(cached);
    return router_.step_s + router_.token_s * n + router_.pair_s * n * (m + n / 2);
  }

  // Chunks have names of prefixes, so what is in front of one that is held is held.
  std::int64_t tokens_held(std::size_t r, std::size_t i) const {
    const std::int64_t* const chunks = in_.chunks.ids + in_.chunks.offsets[i];
    std::size_t low = 0, high = in_.chunks.length(i);
    while (low < high) {
      const std::size_t middle = low == 0 ? 0 : (low + high) / 2;  // most hold none of it
      const std::int64_t distance = used_[r].distance(chunks[middle]);
      const bool held = distance != kNever && (router_.holds < 0 || distance <= router_.holds);
      (held ? low : high) = held ? middle + 1 : middle;
    }
    const std::int64_t most = std::max<std::int64_t>(0, in_.prompt[i] - 1);
    return std::min(static_cast<std::int64_t>(low) * router_.chunk_tokens, most);
  }

  void use(std::size_t r, std::size_t i) {
    const std::size_t n = in_.chunks.length(i);
    distances_.resize(n);
    used_[r].use(in_.chunks.ids + in_.chunks.offsets[i], n, distances_.data(), n);
  }

  const Routed in_;
  const Router router_;
  const std::size_t count_;
  std::size_t turn_ = 0;
  std::vector<double> free_;  // when a replica has computed the prompts that it has
  std::vector<std::priority_queue<double, std::vector<double>, std::greater<double>>> under_way_;
  std::vector<Recency> used_;
  std::vector<std::int64_t> distances_;
};

}  // namespace

void route(const Routed& requests, const Router& router, std::int64_t* replica) {
  Fleet fleet(requests, router);
  for (std::size_t i = 0; i < requests.chunks.size; ++i) {
    replica[i] = static_cast<std::int64_t>(fleet.send(i));
  }
}

void replica_distances(const References& references, const std::int64_t* replica,
                       std::int64_t replicas, std::int64_t* distances) {
  std::vector<Recency> used(static_cast<std::size_t>(replicas));
  for (std::size_t r = 0; r < references.size; ++r) {
    const std::int64_t from = references.offsets[r];
    const std::size_t n = references.length(r);
    used[static_cast<std::size_t>(replica[r])].use(references.ids + from, n, distances + from, n);
  }
}

void replica_names(const References& references, const std::int64_t* replica, std::int64_t replicas,
                   std::int64_t* names) {
  std::int64_t most = -1, next = 0;
  const std::size_t count = references.count();
  for (std::size_t k = 0; k < count; ++k) most = std::max(most, references.ids[k]);
  std::vector<std::int64_t> named(static_cast<std::size_t>(most + 1), -1);
  for (std::int64_t r = 0; r < replicas; ++r) {
    const std::int64_t first = next;  // names below it are of other replicas
    for (std::size_t i = 0; i < references.size; ++i) {
      if (replica[i] != r) continue;
      for (std::int64_t k = references.offsets[i]; k < references.offsets[i + 1]; ++k) {
        std::int64_t& name = named[static_cast<std::size_t>(references.ids[k])];
        if (name < first) name = next++;
        names[k] = name;
      }
    }
  }
}

}  // namespace lmcache
