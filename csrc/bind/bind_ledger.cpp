// Python's view of the Ledger. Keeps the interpreter lock: every call is short, and callers hold a
// lock of their own.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "ledger/ledger.h"

namespace lmcache {

using namespace nanobind::literals;

namespace {

using Keys = Typed<"collections.abc.Iterable[bytes]">;
using Moves = Typed<"list[Move]">;
using MoveClass = Typed<"type[Move]">;
using Numbers = Typed<"list[int]">;

Digest key_of(nb::handle object) {
  if (!PyBytes_Check(object.ptr())) throw nb::type_error("a chunk's key must be bytes");
  return to_digest("a chunk's key", nb::borrow<nb::bytes>(object));
}

// Of any iterable; lists and tuples are read in place.
std::vector<Digest> keys_of(nb::handle iterable) {
  const nb::object fast =
      nb::steal(PySequence_Fast(iterable.ptr(), "keys must be a sequence of bytes"));
  if (!fast.is_valid()) throw nb::python_error();
  const auto n = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(fast.ptr()));
  PyObject** items = PySequence_Fast_ITEMS(fast.ptr());
  std::vector<Digest> keys(n);
  for (std::size_t i = 0; i < n; ++i) keys[i] = key_of(items[i]);
  return keys;
}

// Admissions in Python, one per tier or None.
class PythonGate final : public Ledger::Gate {
 public:
  explicit PythonGate(const nb::list& admissions) : admissions_(admissions) {}
  bool open(std::size_t tier) const override { return admissions_[tier].is_none(); }
  std::vector<bool> select(std::size_t tier, const std::vector<const Chunk*>& chunks) override {
    nb::list keys, times;
    for (const Chunk* chunk : chunks) {
      keys.append(to_bytes(chunk->key));
      times.append(chunk->times);
    }
    std::vector<bool> selected;
    for (nb::handle enters : admissions_[tier].attr("select")(keys, times)) {
      selected.push_back(nb::cast<bool>(enters));
    }
    return selected;
  }
  void entered(std::size_t tier, std::size_t chunks) override {
    admissions_[tier].attr("entered")(chunks);
  }

 private:
  const nb::list& admissions_;
};

// Instances of `move`, a subclass of tuple.
nb::object to_moves(const std::vector<Move>& plan, nb::handle move) {
  if (!PyType_Check(move.ptr()) ||
      !PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(move.ptr()), &PyTuple_Type)) {
    throw nb::type_error("move must be a subclass of tuple");
  }
  auto* type = reinterpret_cast<PyTypeObject*>(move.ptr());
  return to_list(plan, [type](const Move& move) {
    // As tuple.__new__ makes an instance of a subclass; a call of the class takes ten times as
    // long.
    nb::object made = nb::steal(type->tp_alloc(type, 4));
    if (!made.is_valid()) throw nb::python_error();
    PyTuple_SET_ITEM(made.ptr(), 0, to_bytes(move.key).release().ptr());
    PyTuple_SET_ITEM(made.ptr(), 1, nb::int_(move.source).release().ptr());
    PyTuple_SET_ITEM(made.ptr(), 2, nb::int_(move.target).release().ptr());
    PyTuple_SET_ITEM(made.ptr(), 3, nb::int_(move.index).release().ptr());
    // It can be in no cycle, so the garbage collector needs not walk a million of them.
    PyObject_GC_UnTrack(made.ptr());
    return made;
  });
}

static_assert(std::is_trivially_copyable_v<Move>);

// Moves as bytes, for other processes of the same build.
nb::bytes pack_moves(const nb::typed<nb::tuple, PyType<"Move, ...">>& moves) {
  std::vector<Move> packed;
  packed.reserve(moves.size());
  for (nb::handle item : moves) {
    if (!PyTuple_Check(item.ptr()) || PyTuple_GET_SIZE(item.ptr()) != 4) {
      throw nb::type_error("a move must be a tuple of four");
    }
    const auto move = nb::borrow<nb::tuple>(item);
    packed.push_back({key_of(move[0]), nb::cast<int>(move[1]), nb::cast<int>(move[2]),
                      nb::cast<std::int64_t>(move[3])});
  }
  return nb::bytes(reinterpret_cast<const char*>(packed.data()), packed.size() * sizeof(Move));
}

Moves unpack_moves(const nb::bytes& packed, const MoveClass& move) {
  if (packed.size() % sizeof(Move)) throw std::invalid_argument("these are no packed moves");
  std::vector<Move> moves(packed.size() / sizeof(Move));
  std::memcpy(static_cast<void*>(moves.data()), packed.c_str(), packed.size());
  return to_moves(moves, move);
}

// The Ledger, and the class of the moves that it answers: a tuple of four.
struct Bound {
  Ledger ledger;
  nb::object move;

  Moves moves(const std::vector<Move>& plan) const { return to_moves(plan, move); }
};

std::size_t to_tier(const Bound& self, std::int64_t tier) {
  if (tier >= 0 && static_cast<std::size_t>(tier) < self.ledger.tiers().size()) {
    return static_cast<std::size_t>(tier);
  }
  throw std::out_of_range("tier " + std::to_string(tier) + " does not exist; the ledger has " +
                          std::to_string(self.ledger.tiers().size()));
}

using Capacities = nb::typed<nb::sequence, PyType<"int | None">>;

std::vector<std::optional<std::size_t>> bounds_of(const Capacities& capacities) {
  std::vector<std::optional<std::size_t>> bounds;
  for (nb::handle capacity : capacities) {
    bounds.push_back(nb::cast<std::optional<std::size_t>>(capacity));
  }
  return bounds;
}

void make(Bound* self, const Capacities& capacities, std::string_view policy,
          std::shared_ptr<Future> future, bool exclusive, const MoveClass& move) {
  to_moves({}, move);  // throws if it is no such class
  new (self) Bound{Ledger(bounds_of(capacities), policy, std::move(future), exclusive), move};
}

Numbers fastest(const Bound& self, const Keys& keys, bool run) {
  nb::list tiers;
  for (const Digest& key : keys_of(keys)) {
    const int tier = self.ledger.fastest(key);
    if (run && tier == Ledger::kNone) break;
    tiers.append(tier);
  }
  return tiers;
}

Moves prepare_store(Bound& self, const Keys& keys, std::size_t counted,
            const std::optional<nb::bytes>& parent, std::size_t depth,
            const nb::typed<nb::list, PyType<"Admission | None">>& admissions) {
  require_length("admissions", admissions.size(), self.ledger.tiers().size());
  const Digest before = parent ? key_of(*parent) : Digest{};
  PythonGate gate(admissions);
  return self.moves(
      self.ledger.prepare_store(keys_of(keys), counted, parent ? &before : nullptr, depth, gate));
}

void complete_store(Bound& self, const Typed<"collections.abc.Iterable[Move]">& moves,
            bool stored) {
  for (nb::handle move : nb::iter(moves)) {
    const auto target = nb::cast<std::int64_t>(nb::object(move[2]));
    if (target != Ledger::kNowhere) {
      self.ledger.complete_store(key_of(nb::object(move[0])), to_tier(self, target), stored);
    }
  }
}

// A number as a key: 32 bytes, little-endian, as Python's int.to_bytes writes it.
Digest numbered(std::int64_t number) {
  Digest key;
  key.fill(number < 0 ? 0xff : 0);
  for (std::size_t i = 0; i < sizeof number; ++i) {
    key[i] = static_cast<std::uint8_t>(static_cast<std::uint64_t>(number) >> (8 * i));
  }
  return key;
}

std::vector<Digest> numbered(const References& requests, std::size_t i) {
  std::vector<Digest> keys;
  keys.reserve(requests.length(i));
  for (std::int64_t at = requests.offsets[i]; at < requests.offsets[i + 1]; ++at) {
    keys.push_back(numbered(requests.ids[at]));
  }
  return keys;
}

using Ids = Array<std::int64_t, 1>;
using Hits = nb::ndarray<nb::numpy, std::int32_t, nb::ndim<2>, nb::c_contig>;
using Replayed = nb::typed<nb::tuple, Hits, Numbers>;

// Looks up, admits and settles request after request in a ledger that starts empty.
Replayed replay(const Ids& ids, const Ids& offsets, const Capacities& capacities,
                std::string_view policy, std::shared_ptr<Future> future, bool exclusive,
                const nb::typed<nb::list, PyType<"Admission | None">>& admissions,
                const Typed<"collections.abc.Callable[[int], None]">& on_request) {
  const References requests = to_references(ids, offsets);
  Ledger ledger(bounds_of(capacities), policy, std::move(future), exclusive);
  const std::size_t tiers = ledger.tiers().size();
  require_length("admissions", admissions.size(), tiers);
  PythonGate gate(admissions);
  std::vector<std::int32_t> hits(requests.size * tiers);
  std::vector<std::int64_t> written(tiers);
  for (std::size_t i = 0; i < requests.size; ++i) {
    if (!on_request.is_none()) on_request(i);
    if (i % 1024 == 0 && PyErr_CheckSignals() != 0) throw nb::python_error();
    const std::vector<Digest> keys = numbered(requests, i);
    for (const Digest& key : keys) {
      const int tier = ledger.fastest(key);
      if (tier == Ledger::kNone) break;
      ++hits[i * tiers + static_cast<std::size_t>(tier)];
    }
    for (const Move& move : ledger.prepare_store(keys, 0, nullptr, 0, gate)) {
      if (move.target == Ledger::kNowhere) continue;
      ++written[static_cast<std::size_t>(move.target)];
      ledger.complete_store(move.key, static_cast<std::size_t>(move.target), true);
    }
  }
  nb::list counts;
  for (const std::int64_t count : written) counts.append(count);
  return nb::make_tuple(to_array<Hits>(std::move(hits), {requests.size, tiers}), counts);
}

template <auto counter>
Numbers counts(const Bound& self) {
  nb::list list;
  for (const Ledger::Tier& tier : self.ledger.tiers()) list.append(tier.*counter);
  return list;
}

}  // namespace

void bind_ledger(nanobind::module_& m) {
  m.def("pack_moves", pack_moves, "moves"_a,
        R"(Returns moves as bytes, for other processes of the same build. Raises ``TypeError`` or
        ``ValueError`` for what is no move.)"_doc);
  m.def("unpack_moves", unpack_moves, "packed"_a, "move"_a,
        R"(Returns the moves that :func:`pack_moves` packed. Raises ``ValueError`` for other
        bytes.)"_doc);
  m.def("replay", replay, "ids"_a.noconvert(), "offsets"_a.noconvert(), "capacities"_a, "policy"_a,
        "future"_a.none(), "exclusive"_a, "admissions"_a, "on_request"_a.none(),
        R"(Looks up, admits and settles requests in turn, in an empty ledger: request i has the keys
        of :meth:`Future.numbered`. Returns the chunks of each one's leading held run that each tier
        served, ``[requests, tiers]``, and how many each took. Raises ``ValueError`` for what does
        not fit together.)"_doc);
  using Requests = nb::typed<nb::sequence, PyType<"collections.abc.Sequence[bytes]">>;
  nb::class_<Future>(m, "Future",
      R"(Knows when each chunk will be used: request i has the keys ``requests[i]``. Raises
      ``ValueError`` for keys of other than 32 bytes.)"_doc).def(nb::new_([](const Requests& requests) {
    auto future = std::make_shared<Future>();
    std::uint32_t turn = 0;
    for (nb::handle keys : requests) future->add(turn++, keys_of(keys));
    return future;
  }), "requests"_a)
      .def_static("numbered", [](const Ids& ids, const Ids& offsets) {
        auto future = std::make_shared<Future>();
        const References requests = to_references(ids, offsets);
        for (std::size_t i = 0; i < requests.size; ++i) {
          future->add(static_cast<std::uint32_t>(i), numbered(requests, i));
        }
        return future;
      }, "ids"_a.noconvert(), "offsets"_a.noconvert(),
      R"(Makes it of requests whose chunks are numbers, ``ids`` from ``offsets[i]`` to before
      ``offsets[i + 1]``; keys are 32 bytes, little-endian.)"_doc);
  nb::class_<Bound>(m, "Ledger",
      R"(The books of :class:`cache_core.ledger.Ledger`, which has the same methods. ``future`` is
      for the policy ``"belady"`` alone; ``move`` is the class of what is answered, a tuple of four.
      Raises ``ValueError`` for more than 8 tiers, for unknown policies and for keys of other than
      32 bytes, ``IndexError`` for a tier that does not exist.)"_doc)
      .def("__init__", make, "capacities"_a, "policy"_a, "future"_a.none(), "exclusive"_a, "move"_a)
      .def("__len__", [](const Bound& self) { return self.ledger.size(); })
      .def_prop_ro("evictions", counts<&Ledger::Tier::evictions>)
      .def_prop_ro("refusals", counts<&Ledger::Tier::refusals>)
      .def_prop_ro("records", [](const Bound& self) { return self.ledger.records(); },
                   R"(Returns how many chunks are known: held, pending, remembered, or before such a
                   one.)"_doc)
      .def_prop_ro("arriving", counts<&Ledger::Tier::pending>)
      .def_prop_ro("pinned", [](const Bound& self) { return self.ledger.pinned(); })
      .def_prop_ro("steps", [](const Bound& self) { return self.ledger.steps(); })
      .def("count",
           [](const Bound& self, std::int64_t tier) {
             return self.ledger.tiers()[to_tier(self, tier)].order->size();
           },
           "tier"_a)
      .def("keys",
           [](Bound& self, std::int64_t tier) {
             return to_list(self.ledger.keys(to_tier(self, tier)));
           },
           "tier"_a)
      .def("holds",
           [](const Bound& self, const nb::bytes& key, std::int64_t tier) {
             return self.ledger.holds(key_of(key), to_tier(self, tier));
           },
           "key"_a, "tier"_a)
      .def("where",
           [](const Bound& self, const Keys& keys) -> Typed<"list[tuple[int, int]]"> {
             return to_list(keys_of(keys), [&self](const Digest& key) {
               const auto [held, pending] = self.ledger.where(key);
               return nb::object(nb::make_tuple(held, pending));
             });
           },
           "keys"_a)
      .def("follow", [](Bound& self) { self.ledger.follow(); })
      .def("changed", [](Bound& self) { return to_list(self.ledger.changed()); })
      .def("fastest", fastest, "keys"_a, "run"_a,
           R"(Returns the fastest tier that can serve each key, -1 for none; of a ``run`` only the
           leading ones that some tier can.)"_doc)
      .def("pending", [](const Bound& self, const Keys& keys) {
        return self.ledger.pending(keys_of(keys)); }, "keys"_a)
      .def("pin", [](Bound& self, const Keys& keys) { return self.ledger.pin(keys_of(keys)); },
           "keys"_a,
           R"(Pins the leading run of chunks that is held. Returns how many chunks it has.)"_doc)
      .def("unpin", [](Bound& self, const Keys& keys) { self.ledger.unpin(keys_of(keys)); },
           "keys"_a)
      .def("restore",
           [](Bound& self, std::int64_t tier, const Keys& keys) {
             return to_list(self.ledger.restore(to_tier(self, tier), keys_of(keys)));
           },
           "tier"_a, "keys"_a)
      .def("prepare_store", prepare_store, "keys"_a, "counted"_a, "parent"_a.none(), "depth"_a, "admissions"_a)
      .def("touch",
           [](Bound& self, const Keys& keys, std::size_t counted) {
             self.ledger.touch(keys_of(keys), counted);
           },
           "keys"_a, "counted"_a)
      .def("register",
           [](Bound& self, const Keys& keys, std::int64_t tier) {
             return self.moves(self.ledger.register_chunks(keys_of(keys), to_tier(self, tier)));
           },
           "keys"_a, "tier"_a)
      .def("complete_store", complete_store, "moves"_a, "stored"_a)
      .def("forget",
           [](Bound& self, const nb::bytes& key, std::int64_t tier) {
             return self.ledger.forget(key_of(key), to_tier(self, tier));
           },
           "key"_a, "tier"_a)
      .def("clear", [](Bound& self) { return self.moves(self.ledger.clear()); })
      .def("broken", [](Bound& self) { return self.ledger.broken(); },
           R"(Returns the first invariant that does not hold, in words; None if all hold.)"_doc)
      .def("spoil",
           [](Bound& self, const nb::bytes& key, std::uint8_t held, std::uint8_t pending) {
             self.ledger.spoil(key_of(key), held, pending);
           },
           "key"_a, "held"_a, "pending"_a,
           R"(Overwrites the tiers, a bit each, that a chunk's record says can serve it and are being
           written to: a means of testing :meth:`broken`.)"_doc);
}

}  // namespace lmcache
