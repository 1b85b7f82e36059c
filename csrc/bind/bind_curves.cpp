// Python's view of traces and what they tell.
#include <nanobind/stl/optional.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "curves/curves.h"
#include "curves/fleet.h"
#include "curves/serving.h"

namespace lmcache {

using namespace nanobind::literals;

using Numbers = Array<std::int64_t, 1>;

References to_references(const Numbers& ids, const Numbers& offsets) {
  const std::size_t n = offsets.size();
  if (n == 0) throw std::invalid_argument("offsets is empty; it must have one more than requests");
  const std::int64_t* const at = offsets.data();
  if (at[0] != 0) throw std::invalid_argument("offsets[0] is not 0");
  for (std::size_t i = 1; i < n; ++i) {
    if (at[i] >= at[i - 1]) continue;
    throw std::invalid_argument("offsets[" + std::to_string(i) + "] is " + std::to_string(at[i]) +
                                "; it must not be below the one before");
  }
  if (at[n - 1] != static_cast<std::int64_t>(ids.size())) {
    throw std::invalid_argument("offsets end at " + std::to_string(at[n - 1]) + " where ids has " +
                                std::to_string(ids.size()) + " entries");
  }
  return {ids.data(), at, n - 1};
}

namespace {

void require_positive(const char* name, std::int64_t value) {
  if (value >= 1) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                              "; it must be at least 1");
}

using Out = nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>, nb::c_contig>;

template <auto verb>
Out per_reference(const Numbers& ids, const Numbers& offsets) {
  const References references = to_references(ids, offsets);
  std::vector<std::int64_t> out(ids.size());
  {
    const Unlocked unlocked;
    verb(references, out.data());
  }
  return to_array<Out>(std::move(out), {ids.size()});
}

Typed<"Distances"> py_count_distances(
    const Numbers& ids, const Numbers& offsets, std::int64_t chunk_tokens,
    const std::optional<Numbers>& prompt_tokens, std::uint64_t threshold, std::uint64_t seed) {
  const References references = to_references(ids, offsets);
  require_positive("chunk_tokens", chunk_tokens);
  Weights weights{chunk_tokens, nullptr};
  if (prompt_tokens) {
    require_length("prompt_tokens", prompt_tokens->size(), references.size);
    weights.prompt_tokens = prompt_tokens->data();
  }
  Histograms found;
  {
    const Unlocked unlocked;
    found = count_distances(references, weights, threshold, seed);
  }
  const std::size_t n = found.prefix.size();
  nb::dict out;
  out["prefix"] = to_array<Out>(std::move(found.prefix), {n});
  out["any_position"] = to_array<Out>(std::move(found.any_position), {n});
  out["prefix_missed"] = found.prefix_missed;
  out["any_missed"] = found.any_missed;
  out["total"] = found.total;
  out["sampled"] = found.sampled;
  out["distinct"] = found.distinct;
  return out;
}

using Flags = nb::ndarray<nb::numpy, bool, nb::ndim<1>, nb::c_contig>;

Flags py_sampled(const Numbers& ids, std::uint64_t threshold, std::uint64_t seed) {
  auto taken = std::make_unique<bool[]>(ids.size());
  {
    const Unlocked unlocked;
    sampled(ids.data(), ids.size(), threshold, seed, taken.get());
  }
  bool* const data = taken.get();
  const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<bool*>(p); });
  taken.release();
  return Flags(data, {ids.size()}, owner);
}

nb::ndarray<nb::numpy, std::int32_t, nb::ndim<3>, nb::c_contig> py_tier_hits(
    const Numbers& distances, const Numbers& offsets, const Array<std::int64_t, 2>& capacities,
    bool exclusive, const std::optional<Numbers>& shared) {
  const References references = to_references(distances, offsets);
  if (shared) {
    require_length("shared", shared->size(), distances.size());
    require_positive("tiers", static_cast<std::int64_t>(capacities.shape(1)));
  }
  const std::size_t stacks = capacities.shape(0), tiers = capacities.shape(1);
  std::vector<std::int32_t> hits(stacks * references.size * tiers);
  {
    const Unlocked unlocked;
    tier_hits(distances.data(), shared ? shared->data() : nullptr, references, capacities.data(),
              stacks, tiers, exclusive, hits.data());
  }
  return to_array<nb::ndarray<nb::numpy, std::int32_t, nb::ndim<3>, nb::c_contig>>(
      std::move(hits), {stacks, references.size, tiers});
}

Out py_group_names(const Numbers& ids, const Numbers& offsets, std::int64_t group, bool chained) {
  const References references = to_references(ids, offsets);
  require_positive("group", group);
  const auto size = static_cast<std::size_t>(group);
  std::size_t groups = 0;
  for (std::size_t i = 0; i < references.size; ++i) groups += references.length(i) / size;
  std::vector<std::int64_t> names(groups);
  {
    const Unlocked unlocked;
    group_names(references, size, chained, names.data());
  }
  return to_array<Out>(std::move(names), {groups});
}

void require_replicas(const Numbers& replica, std::size_t requests, std::int64_t replicas) {
  require_positive("replicas", replicas);
  require_length("replica", replica.size(), requests);
  for (std::size_t i = 0; i < requests; ++i) {
    if (replica.data()[i] >= 0 && replica.data()[i] < replicas) continue;
    throw std::invalid_argument("replica[" + std::to_string(i) + "] is no number below replicas");
  }
}

Out py_route(const Numbers& ids, const Numbers& offsets, const Array<double, 1>& at,
             const Numbers& prompt, const Numbers& output, const Numbers& session,
             std::int64_t routing, std::int64_t replicas, const Array<double, 1>& seconds,
             std::int64_t chunk_tokens, std::int64_t holds) {
  const References references = to_references(ids, offsets);
  const std::size_t n = references.size;
  require_length("at", at.size(), n);
  require_length("prompt", prompt.size(), n);
  require_length("output", output.size(), n);
  require_length("session", session.size(), n);
  require_length("seconds", seconds.size(), 4);
  require_positive("replicas", replicas);
  require_positive("chunk_tokens", chunk_tokens);
  if (routing < 0 || routing > static_cast<std::int64_t>(Routing::kPrefix)) {
    throw std::invalid_argument("routing " + std::to_string(routing) + " is not known");
  }
  const double* const s = seconds.data();
  const Routed requests{references, at.data(), prompt.data(), output.data(), session.data()};
  const Router router{static_cast<Routing>(routing), replicas, s[0], s[1], s[2], s[3],
                      chunk_tokens, holds};
  std::vector<std::int64_t> replica(n);
  {
    const Unlocked unlocked;
    route(requests, router, replica.data());
  }
  return to_array<Out>(std::move(replica), {n});
}

Out py_replica_distances(const Numbers& ids, const Numbers& offsets, const Numbers& replica,
                         std::int64_t replicas) {
  const References references = to_references(ids, offsets);
  require_replicas(replica, references.size, replicas);
  std::vector<std::int64_t> out(ids.size());
  {
    const Unlocked unlocked;
    replica_distances(references, replica.data(), replicas, out.data());
  }
  return to_array<Out>(std::move(out), {ids.size()});
}

void require_numbers(const char* name, const Numbers& values, std::size_t count) {
  require_length(name, values.size(), count);
  for (std::size_t i = 0; i < count; ++i) {
    if (values.data()[i] >= 0 && values.data()[i] < static_cast<std::int64_t>(count)) continue;
    throw std::invalid_argument(std::string(name) + "[" + std::to_string(i) +
                                "] is no number below their count");
  }
}

Out py_replica_names(const Numbers& ids, const Numbers& offsets, const Numbers& replica,
                     std::int64_t replicas) {
  const References references = to_references(ids, offsets);
  require_numbers("ids", ids, ids.size());
  require_replicas(replica, references.size, replicas);
  std::vector<std::int64_t> out(ids.size());
  {
    const Unlocked unlocked;
    replica_names(references, replica.data(), replicas, out.data());
  }
  return to_array<Out>(std::move(out), {ids.size()});
}

using Seconds = nb::ndarray<nb::numpy, double, nb::ndim<1>, nb::c_contig>;
using Hits = nb::ndarray<nb::numpy, std::int32_t, nb::ndim<2>, nb::c_contig>;

Typed<"dict[str, typing.Any]"> py_serve(
    const Array<double, 1>& at, const Numbers& prompt, const Numbers& output,
    const Array<std::int32_t, 2>& hits, const Numbers& chunks, const Numbers& offsets,
    const Array<double, 2>& loads, std::int64_t chunk_tokens, const Array<double, 1>& seconds,
    bool overlap, bool device, std::int64_t budget, std::int64_t most, std::int64_t room,
    std::int64_t clients, std::int64_t stages, std::int64_t replicas,
    const std::optional<Numbers>& replica, const std::optional<Numbers>& pooled) {
  const References references = to_references(chunks, offsets);
  const std::size_t n = references.size, tiers = hits.shape(1);
  require_positive("stages", stages);
  require_positive("replicas", replicas);
  if (replica) require_replicas(*replica, n, replicas);
  if (pooled) {
    require_numbers("pooled", *pooled, chunks.size());
    require_positive("tiers", static_cast<std::int64_t>(tiers));
  }
  require_length("at", at.size(), n);
  require_length("prompt", prompt.size(), n);
  require_length("output", output.size(), n);
  require_length("hits", hits.shape(0), n);
  require_length("loads", loads.size(), 3 * tiers);
  require_length("seconds", seconds.size(), 5);
  require_positive("chunk_tokens", chunk_tokens);
  require_positive("budget", budget);
  require_positive("most", most);
  require_numbers("chunks", chunks, chunks.size());
  std::vector<LoadCost> costs;
  for (std::size_t t = 0; t < tiers; ++t) {
    const double* const row = loads.data() + 3 * t;
    costs.push_back({row[0], row[1], row[2]});
  }
  for (std::size_t i = 0; i < n; ++i) {
    std::int64_t held = 0;
    for (std::size_t t = 0; t < tiers; ++t) {
      const std::int32_t some = hits.data()[i * tiers + t];
      if (some < 0) {
        throw std::invalid_argument("hits[" + std::to_string(i) + "] are negative");
      }
      held += some;
    }
    if (held <= static_cast<std::int64_t>(references.length(i))) continue;
    throw std::invalid_argument("hits[" + std::to_string(i) + "] are more than its chunks");
  }
  const double* const s = seconds.data();
  const EngineCost cost{s[0],  s[1],   s[2],   s[3], s[4],    overlap,
                        device, budget, most, room, clients, stages};
  const Requests requests{references,
                          at.data(),
                          prompt.data(),
                          output.data(),
                          hits.data(),
                          costs.data(),
                          tiers,
                          chunk_tokens,
                          replica ? replica->data() : nullptr,
                          pooled ? pooled->data() : nullptr,
                          static_cast<std::size_t>(replicas)};
  Serving found;
  {
    const Unlocked unlocked;
    found = serve(requests, cost);
  }
  const std::size_t gaps = found.gaps.size();
  nb::dict out;
  out["ttft"] = to_array<Seconds>(std::move(found.ttft), {n});
  out["e2e"] = to_array<Seconds>(std::move(found.e2e), {n});
  out["hits"] = to_array<Hits>(std::move(found.hits), {n, tiers});
  out["gaps"] = to_array<Seconds>(std::move(found.gaps), {gaps});
  out["counts"] = to_array<Out>(std::move(found.counts), {gaps});
  out["busy_s"] = found.busy_s;
  out["answers"] = found.answers;
  out["most_running"] = found.most_running;
  return out;
}

}  // namespace

void bind_curves(nanobind::module_& m) {
  m.def("count_distances", py_count_distances, "ids"_a.noconvert(), "offsets"_a.noconvert(),
        "chunk_tokens"_a = 1, "prompt_tokens"_a.noconvert() = nb::none(),
        "threshold"_a = ~std::uint64_t{0}, "seed"_a = 0,
        R"(Counts tokens of ``ids`` ``[references]`` by the smallest LRU capacity that hits them:
        request i has those from ``offsets[i]`` to before ``offsets[i + 1]``. A chunk has
        ``chunk_tokens``, as far as ``prompt_tokens[i]`` reach. Only chunks whose hash with ``seed``
        is at most ``threshold`` count.

        Memory is O(distinct chunks). Raises ``ValueError`` for offsets that do not rise from 0 to
        ``len(ids)``, prompts of another number than requests, and ``chunk_tokens`` < 1.)"_doc);
  m.def("stack_distances", per_reference<stack_distances>, "ids"_a.noconvert(),
        "offsets"_a.noconvert(),
        R"(Returns the smallest LRU capacity that holds each reference's chunk when its request
        comes; -1 where none does. Raises ``ValueError`` for offsets that do not rise from 0 to
        ``len(ids)``.)"_doc);
  m.def("last_uses", per_reference<last_uses>, "ids"_a.noconvert(), "offsets"_a.noconvert(),
        R"(Returns the request that used each reference's chunk before; its own where the chunk
        stood in it already, -1 if none did. Raises ``ValueError`` for offsets that do not rise from
        0 to ``len(ids)``.)"_doc);
  m.def("chain_names", per_reference<chain_names>, "ids"_a.noconvert(), "offsets"_a.noconvert(),
        R"(Returns for each name a 64-bit hash of all names of its request up to it. Raises
        ``ValueError`` for offsets that do not rise from 0 to ``len(ids)``.)"_doc);
  m.def("group_names", py_group_names, "ids"_a.noconvert(), "offsets"_a.noconvert(), "group"_a,
        "chained"_a,
        R"(Returns names of chunks ``group`` times as long, of full groups only: the last name of
        each if names are ``chained``, else a 64-bit hash of all. Raises ``ValueError`` for offsets
        that do not rise from 0 to ``len(ids)`` and for ``group`` < 1.)"_doc);
  m.def("sampled", py_sampled, "ids"_a.noconvert(), "threshold"_a, "seed"_a,
        "Returns which chunks a sample takes: hashes with ``seed`` of at most ``threshold``.");
  m.def("tier_hits", py_tier_hits, "distances"_a.noconvert(), "offsets"_a.noconvert(),
        "capacities"_a.noconvert(), "exclusive"_a, "shared"_a.noconvert() = nb::none(),
        R"(Returns how many chunks of each request's leading held run each tier serves, ``[stacks,
        requests, tiers]``, for ``capacities`` ``[stacks, tiers]``; negative is without a bound. The
        last tier goes by ``shared`` distances, if given. Raises ``ValueError``.)"_doc);
  m.def("serve", py_serve, "at"_a.noconvert(), "prompt"_a.noconvert(), "output"_a.noconvert(),
        "hits"_a.noconvert(), "chunks"_a.noconvert(), "offsets"_a.noconvert(),
        "loads"_a.noconvert(), "chunk_tokens"_a, "seconds"_a.noconvert(), "overlap"_a, "device"_a,
        "budget"_a, "most"_a, "room"_a, "clients"_a, "stages"_a = 1, "replicas"_a = 1,
        "replica"_a.noconvert() = nb::none(), "pooled"_a.noconvert() = nb::none(),
        R"(Runs requests in engines that batch continuously; ``csrc/curves/serving.h`` says what each
        argument is, ``loads`` ``[tiers, 3]`` and ``seconds`` ``[5]`` in its order. Raises ``ValueError``.)"_doc);
  m.def("route", py_route, "ids"_a.noconvert(), "offsets"_a.noconvert(), "at"_a.noconvert(),
        "prompt"_a.noconvert(), "output"_a.noconvert(), "session"_a.noconvert(), "routing"_a,
        "replicas"_a, "seconds"_a.noconvert(), "chunk_tokens"_a, "holds"_a,
        R"(Returns the replica that takes each request (``csrc/curves/fleet.h``): ``routing`` is 0
        round-robin, 1 least-loaded, 2 session, 3 prefix; ``seconds`` ``[4]`` of a step, a token, a
        pair of them, a further token of an answer. Raises ``ValueError``.)"_doc);
  m.def("replica_distances", py_replica_distances, "ids"_a.noconvert(), "offsets"_a.noconvert(),
        "replica"_a.noconvert(), "replicas"_a,
        "Returns each reference's distance among those of its ``replica``. Raises ``ValueError``.");
  m.def("replica_names", py_replica_names, "ids"_a.noconvert(), "offsets"_a.noconvert(),
        "replica"_a.noconvert(), "replicas"_a,
        "Returns names of chunks that differ by ``replica``, as ``ids`` are. Raises ``ValueError``.");
}

}  // namespace lmcache
