// What the files that bind share: Python's view of arrays and digests, and the interpreter lock.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "curves/curves.h"
#include "hash/sha256.h"

namespace lmcache {

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

namespace nb = nanobind;

// A type as Python writes it, for the stub; to C++ it is any object: Typed<"list[bytes]">.
template <std::size_t N>
struct Literal {
  constexpr Literal(const char (&from)[N]) { std::copy_n(from, N, text); }
  char text[N];
};
template <Literal name>
struct PyType {};
template <Literal name>
using Typed = nb::typed<nb::object, PyType<name>>;

// Documentation, without the spaces before its lines that are the source's.
template <Literal raw>
constexpr auto kDedented = [] {
  auto made = raw;
  bool margin = false;
  char* end = made.text;
  for (char c : raw.text) {
    margin = c == '\n' || (margin && c == ' ');
    if (c == '\n' || !margin) *end++ = c;
  }
  return made;
}();
template <Literal raw>
constexpr const char* operator""_doc() {
  return kDedented<raw>.text;
}

// Always taken without conversion: a copy would cost more than the call, and int64 token ids would
// be cut to int32 without a word.
template <typename T, int Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Addresses = Array<std::uint64_t, 1>;

inline void require_length(std::string_view name, std::size_t length, std::size_t expected) {
  if (length == expected) return;
  throw std::invalid_argument(std::string(name) + " has " + std::to_string(length) +
                              " entries where " + std::to_string(expected) + " are needed");
}

inline Digest to_digest(std::string_view name, const nb::bytes& value) {
  Digest digest;
  if (value.size() != digest.size()) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(value.size()) +
                                " bytes; it must have 32, as a SHA-256 digest has");
  }
  std::memcpy(digest.data(), value.data(), digest.size());
  return digest;
}

inline nb::object to_bytes(const Digest& key) {
  return nb::bytes(reinterpret_cast<const char*>(key.data()), key.size());
}

// A list of its final length, filled in place by `make`: half the time of appending.
template <typename T, typename Make>
nb::object to_list(const std::vector<T>& values, Make make) {
  nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(values.size())));
  if (!list.is_valid()) throw nb::python_error();
  for (std::size_t i = 0; i < values.size(); ++i) {
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), make(values[i]).release().ptr());
  }
  return list;
}

using KeyList = Typed<"list[bytes]">;
inline KeyList to_list(const std::vector<Digest>& keys) { return to_list(keys, to_bytes); }

// An array that owns what the vector held.
template <typename Out, typename T>
Out to_array(std::vector<T>&& values, std::initializer_list<std::size_t> shape) {
  auto* kept = new std::vector<T>(std::move(values));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return Out(kept->data(), shape, owner);
}

// Requests whose chunks are named by numbers. Throws std::invalid_argument for offsets that do not
// rise from 0 to the number of ids.
References to_references(const Array<std::int64_t, 1>& ids,
                         const Array<std::int64_t, 1>& offsets);

// Adds the verbs of one area to the module.
void bind_curves(nanobind::module_& m);
void bind_disk(nanobind::module_& m);
void bind_ledger(nanobind::module_& m);
void bind_moves(nanobind::module_& m);

}  // namespace lmcache

template <lmcache::Literal name>
struct nanobind::detail::type_caster<lmcache::PyType<name>> {
  static constexpr auto Name = const_name(name.text);
};
