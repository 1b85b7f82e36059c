// Python's view of csrc: checks what Python gave, lets go of the interpreter lock, calls the verb.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bind.h"
#include "keys.h"
#include "moves.h"
#include "paged.h"
#include "sha256.h"
#include "slab.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace lmcache;

using Slots = Array<std::int64_t, 2>;

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

  bind_curves(m);
  bind_disk(m);
}
