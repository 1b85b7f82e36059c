// Python's view of csrc: checks what Python gave, lets go of the interpreter lock, calls the verb.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string_view.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "crc32c.h"
#include "disk.h"
#include "keys.h"
#include "moves.h"
#include "paged.h"
#include "sha256.h"
#include "slab.h"
#include "xxh3.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace lmcache;

// Lets other Python threads run for as long as it lives. Unlike nanobind's own, it survives an
// interpreter that shuts down meanwhile: up to Python 3.13 asking for the lock then ends a daemon
// thread by unwinding its stack, and an unwinding that meets C++ here aborts the process. So the
// thread stays here until the process is gone, which is what Python does from 3.14 on.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

// Always taken without conversion: a copy would cost more than the call, and int64 token ids would
// be cut to int32 without a word.
template <typename T, int Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Addresses = Array<std::uint64_t, 1>;
using Slots = Array<std::int64_t, 2>;

void require_length(std::string_view name, std::size_t length, std::size_t expected) {
  if (length == expected) return;
  throw std::invalid_argument(std::string(name) + " has " + std::to_string(length) +
                              " entries where " + std::to_string(expected) + " are needed");
}

Digest to_digest(std::string_view name, const nb::bytes& value) {
  Digest digest;
  if (value.size() != digest.size()) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(value.size()) +
                                " bytes; it must have 32, as a SHA-256 digest has");
  }
  std::memcpy(digest.data(), value.data(), digest.size());
  return digest;
}

// By Python's own calls: a list of its final length, filled in place, takes half the time.
nb::object to_list(const std::vector<Digest>& digests) {
  nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(digests.size())));
  if (!list.is_valid()) throw nb::python_error();
  for (std::size_t i = 0; i < digests.size(); ++i) {
    PyObject* item = PyBytes_FromStringAndSize(reinterpret_cast<const char*>(digests[i].data()),
                                               static_cast<Py_ssize_t>(digests[i].size()));
    if (item == nullptr) throw nb::python_error();
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), item);
  }
  return list;
}

nb::tuple py_chunk_keys(const Array<std::int32_t, 1>& tokens, std::int64_t chunk_tokens,
                        const nb::bytes& root, const nb::bytes& name_space, bool content,
                        bool portable) {
  if (chunk_tokens < 1) {
    throw std::invalid_argument("chunk_tokens is " + std::to_string(chunk_tokens) +
                                "; it must be at least 1");
  }
  const Digest root_digest = to_digest("root", root);
  const Digest space_digest = to_digest("namespace", name_space);
  const auto size = static_cast<std::size_t>(chunk_tokens);
  std::vector<Digest> prefix, alone;
  {
    const Unlocked unlocked;
    prefix.resize(tokens.size() / size);
    if (content) alone.resize(prefix.size());
    chunk_keys({tokens.data(), tokens.size()}, size, root_digest, space_digest, prefix, alone,
               sha256(portable));
  }
  return nb::make_tuple(to_list(prefix), to_list(alone));
}

std::vector<std::uint64_t> to_vector(const Addresses& addresses) {
  return {addresses.data(), addresses.data() + addresses.size()};
}

void make_paged(Paged* self, const Addresses& k_bases, const Addresses& v_bases,
                std::int64_t block_tokens, std::int64_t block_stride, std::int64_t token_stride,
                std::int64_t head_stride, std::int64_t kv_heads, std::int64_t head_bytes,
                std::int64_t num_slots) {
  Paged paged = {to_vector(k_bases), to_vector(v_bases), block_tokens, block_stride, token_stride,
                 head_stride,        kv_heads,           head_bytes,   num_slots};
  paged.check();
  new (self) Paged(std::move(paged));
}

Order to_order(std::string_view name) {
  if (name == "HND") return Order::kHeadsFirst;
  if (name == "NHD") return Order::kTokensFirst;
  throw std::invalid_argument("order is '" + std::string(name) + "'; it must be 'HND' or 'NHD'");
}

template <auto verb>
void py_move(const Paged& paged, const Slots& slots, const Addresses& chunks,
             std::string_view order, int threads) {
  require_length("chunks", chunks.size(), slots.shape(0));
  const Order parsed = to_order(order);
  const Unlocked unlocked;
  verb(paged, SlotTable{slots.data(), slots.shape(0), slots.shape(1)}, chunks.data(), parsed,
       threads);
}

void py_copy(const Addresses& dst, const Addresses& src, const Addresses& nbytes, int threads) {
  require_length("src", src.size(), dst.size());
  require_length("nbytes", nbytes.size(), dst.size());
  const Unlocked unlocked;
  copy(dst.data(), src.data(), nbytes.data(), dst.size(), threads);
}

void make_slab(Slab* self, std::int64_t nbytes) {
  if (nbytes < 1) {
    throw std::invalid_argument("nbytes is " + std::to_string(nbytes) + "; it must be at least 1");
  }
  const Unlocked unlocked;
  new (self) Slab(static_cast<std::size_t>(nbytes));
}

std::uintptr_t address(const Slab& slab) {
  return reinterpret_cast<std::uintptr_t>(slab.address());
}

using View = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>, nb::c_contig>;

View view(nb::handle_t<Slab> self) {
  const Slab& slab = nb::cast<const Slab&>(self);
  return View(slab.address(), {slab.nbytes()}, self);
}

using Statuses = nb::ndarray<nb::numpy, std::int32_t, nb::ndim<1>, nb::c_contig>;
using Fds = Array<std::int32_t, 1>;
using Offsets = Array<std::int64_t, 1>;
using Sequences = Array<std::uint64_t, 1>;
using Keys = nb::ndarray<const std::uint8_t, nb::shape<-1, 32>, nb::c_contig, nb::device::cpu>;

std::vector<Spot> to_spots(const Fds& fds, const Offsets& offsets) {
  require_length("offsets", offsets.size(), fds.size());
  std::vector<Spot> spots(fds.size());
  for (std::size_t i = 0; i < spots.size(); ++i) {
    const std::int64_t offset = offsets.data()[i];
    if (offset < 0 || offset % static_cast<std::int64_t>(kBlock) != 0) {
      throw std::invalid_argument("offsets[" + std::to_string(i) + "] is " +
                                  std::to_string(offset) + "; it must be a multiple of 4096");
    }
    spots[i] = {fds.data()[i], offset};
  }
  return spots;
}

std::vector<Identity> to_identities(const Keys& keys, const Sequences& sequences, std::size_t n) {
  require_length("keys", keys.shape(0), n);
  require_length("sequences", sequences.size(), n);
  std::vector<Identity> identities(n);
  for (std::size_t i = 0; i < n; ++i) {
    std::memcpy(identities[i].key.data(), keys.data() + i * sizeof(Digest), sizeof(Digest));
    identities[i].sequence = sequences.data()[i];
  }
  return identities;
}

std::size_t to_payload_bytes(std::int64_t value) {
  if (value >= 1) return static_cast<std::size_t>(value);
  throw std::invalid_argument("payload_bytes is " + std::to_string(value) +
                              "; it must be at least 1");
}

// An array that owns what the vector held.
template <typename Out, typename T>
Out to_array(std::vector<T>&& values, std::initializer_list<std::size_t> shape) {
  auto* kept = new std::vector<T>(std::move(values));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return Out(kept->data(), shape, owner);
}

template <auto verb>
Statuses py_records(const Fds& fds, const Offsets& offsets, const Addresses& addresses,
                    const Keys& keys, const Sequences& sequences, const nb::bytes& name_space,
                    std::int64_t payload_bytes, bool direct, int depth) {
  const std::vector<Spot> spots = to_spots(fds, offsets);
  require_length("addresses", addresses.size(), spots.size());
  const std::vector<Identity> identities = to_identities(keys, sequences, spots.size());
  const Digest digest = to_digest("namespace", name_space);
  const std::size_t nbytes = to_payload_bytes(payload_bytes);
  std::vector<std::int32_t> statuses(spots.size());
  {
    const Unlocked unlocked;
    verb(spots.data(), identities.data(), addresses.data(), spots.size(), digest, nbytes, direct,
         depth, statuses.data());
  }
  return to_array<Statuses>(std::move(statuses), {spots.size()});
}

nb::tuple py_scan_records(const Fds& fds, const Offsets& offsets, const nb::bytes& name_space,
                          std::int64_t payload_bytes, bool direct, int depth) {
  const std::vector<Spot> spots = to_spots(fds, offsets);
  const Digest digest = to_digest("namespace", name_space);
  const std::size_t nbytes = to_payload_bytes(payload_bytes), n = spots.size();
  std::vector<Identity> found(n);
  std::vector<std::int32_t> statuses(n);
  {
    const Unlocked unlocked;
    scan_records(spots.data(), found.data(), n, digest, nbytes, direct, depth, statuses.data());
  }
  std::vector<std::uint8_t> keys(n * sizeof(Digest));
  std::vector<std::uint64_t> sequences(n);
  for (std::size_t i = 0; i < n; ++i) {
    std::memcpy(keys.data() + i * sizeof(Digest), found[i].key.data(), sizeof(Digest));
    sequences[i] = found[i].sequence;
  }
  using OutKeys = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<2>, nb::c_contig>;
  using OutSequences = nb::ndarray<nb::numpy, std::uint64_t, nb::ndim<1>, nb::c_contig>;
  return nb::make_tuple(to_array<Statuses>(std::move(statuses), {n}),
                        to_array<OutKeys>(std::move(keys), {n, sizeof(Digest)}),
                        to_array<OutSequences>(std::move(sequences), {n}));
}

Statuses py_copy_records(const Fds& from_fds, const Offsets& from_offsets, const Fds& to_fds,
                         const Offsets& to_offsets, std::int64_t payload_bytes, bool direct,
                         int depth) {
  const std::vector<Spot> from = to_spots(from_fds, from_offsets);
  const std::vector<Spot> to = to_spots(to_fds, to_offsets);
  require_length("to_fds", to.size(), from.size());
  const std::size_t nbytes = to_payload_bytes(payload_bytes);
  std::vector<std::int32_t> statuses(from.size());
  {
    const Unlocked unlocked;
    copy_records(from.data(), to.data(), from.size(), nbytes, direct, depth, statuses.data());
  }
  return to_array<Statuses>(std::move(statuses), {from.size()});
}

}  // namespace

NB_MODULE(_native, m) {
  // A slab that a daemon thread still holds when the interpreter exits is no news to the user.
  nb::set_leak_warnings(false);

  m.attr("PREFIX_DOMAIN") = nb::bytes(kPrefixDomain.data(), kPrefixDomain.size());
  m.attr("CONTENT_DOMAIN") = nb::bytes(kContentDomain.data(), kContentDomain.size());
  m.def("sha256_backend", [] { return std::string_view(sha256().name); });
  m.def("chunk_keys", py_chunk_keys, "tokens"_a.noconvert(), "chunk_tokens"_a, "root"_a,
        "namespace"_a, "content"_a = true, "portable"_a = false);

  nb::class_<Slab>(m, "Slab")
      .def("__init__", make_slab, "nbytes"_a)
      .def_prop_ro("address", address)
      .def_prop_ro("nbytes", &Slab::nbytes)
      .def("view", view);

  nb::class_<Paged>(m, "Paged")
      .def("__init__", make_paged, "k_bases"_a.noconvert(), "v_bases"_a.noconvert(),
           "block_tokens"_a, "block_stride"_a, "token_stride"_a, "head_stride"_a, "kv_heads"_a,
           "head_bytes"_a, "num_slots"_a);

  m.def("gather", py_move<gather>, "paged"_a, "slots"_a.noconvert(), "chunks"_a.noconvert(),
        "order"_a, "threads"_a = 1);
  m.def("scatter", py_move<scatter>, "paged"_a, "slots"_a.noconvert(), "chunks"_a.noconvert(),
        "order"_a, "threads"_a = 1);
  m.def("copy", py_copy, "dst"_a.noconvert(), "src"_a.noconvert(), "nbytes"_a.noconvert(),
        "threads"_a = 1);

  m.def("crc32c",
        [](const nb::bytes& data, std::uint32_t before, bool portable) {
          return crc32c(data.data(), data.size(), before, portable);
        },
        "data"_a, "before"_a = 0, "portable"_a = false);
  m.def("xxh3_128",
        [](const nb::bytes& data) {
          const Hash128 hash = xxh3_128(data.data(), data.size());
          return nb::bytes(hash.data(), hash.size());
        },
        "data"_a);
  m.def("write_records", py_records<write_records>, "fds"_a.noconvert(), "offsets"_a.noconvert(),
        "addresses"_a.noconvert(), "keys"_a.noconvert(), "sequences"_a.noconvert(), "namespace"_a,
        "payload_bytes"_a, "direct"_a, "depth"_a);
  m.def("read_records", py_records<read_records>, "fds"_a.noconvert(), "offsets"_a.noconvert(),
        "addresses"_a.noconvert(), "keys"_a.noconvert(), "sequences"_a.noconvert(), "namespace"_a,
        "payload_bytes"_a, "direct"_a, "depth"_a);
  m.def("scan_records", py_scan_records, "fds"_a.noconvert(), "offsets"_a.noconvert(),
        "namespace"_a, "payload_bytes"_a, "direct"_a, "depth"_a);
  m.def("copy_records", py_copy_records, "from_fds"_a.noconvert(), "from_offsets"_a.noconvert(),
        "to_fds"_a.noconvert(), "to_offsets"_a.noconvert(), "payload_bytes"_a, "direct"_a,
        "depth"_a);
}
