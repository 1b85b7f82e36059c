// Python's view of csrc: checks what Python gave, lets go of the interpreter lock, calls the verb.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string_view.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bind/bind.h"
#include "hash/keys.h"
#include "hash/sha256.h"
#include "memory/slab.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace lmcache;

using ChunkKeys = Typed<"tuple[list[bytes], list[bytes]]">;

ChunkKeys py_chunk_keys(const Array<std::int32_t, 1>& tokens, std::int64_t chunk_tokens,
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

void make_slab(Slab* self, std::int64_t nbytes, int numa_node) {
  if (nbytes < 1) {
    throw std::invalid_argument("nbytes is " + std::to_string(nbytes) + "; it must be at least 1");
  }
  const Unlocked unlocked;
  new (self) Slab(static_cast<std::size_t>(nbytes), numa_node);
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

  m.doc() = R"(Declares what csrc does, as Python sees it. Sizes, strides and addresses are in bytes.

      All functions let go of the interpreter lock while they hash or move; the Ledger's keep it.
      Arrays are taken as they are, never converted: another dtype, rank or a gap between elements
      is a ``TypeError``. Addresses must be valid for the length of the call; nothing can check
      that. ``threads`` counts the caller's own; the rest come from one pool, which starts when
      first needed, is shared by all callers and is started anew in a forked child. A call that
      moves less than 256 KiB uses the caller's thread alone.

      ``CUDA`` is the state of the CUDA kernels: ``"built by CUDA ..."``, or ``"not built: "`` and
      why.)"_doc;
  m.attr("CUDA") = LMCACHE_CUDA_STATE;
  m.attr("PREFIX_DOMAIN") = nb::bytes(kPrefixDomain.data(), kPrefixDomain.size());
  m.attr("CONTENT_DOMAIN") = nb::bytes(kContentDomain.data(), kContentDomain.size());
  m.def("sha256_backend", [] { return std::string_view(sha256().name); },
        R"(Returns ``"sha-ni"`` where the CPU has SHA instructions, else ``"portable"``.)"_doc);
  m.def("chunk_keys", py_chunk_keys, "tokens"_a.noconvert(), "chunk_tokens"_a, "root"_a,
        "namespace"_a, "content"_a = true, "portable"_a = false,
        R"(Returns prefix keys and content keys, 32 bytes each, of the full chunks of ``tokens``
        ``[n]``.

        prefix[i] = sha256(PREFIX_DOMAIN | prefix[i-1], or root for i = 0 | int32 bytes of chunk i)
        content[i] = sha256(CONTENT_DOMAIN | namespace | int32 bytes of chunk i)

        Bytes are little-endian. Without ``content`` the second list is empty. ``portable`` leaves
        the CPU's SHA instructions out. Raises ``ValueError`` if ``chunk_tokens`` < 1 or ``root`` or
        ``namespace`` has not 32 bytes.)"_doc);

  nb::class_<Slab>(m, "Slab",
      R"(Zeroed memory, every page present, 4096-aligned, on huge pages where the kernel has them.

      Freed when the object and all its views are gone. Raises ``MemoryError`` if the machine has
      not that much available, ``ValueError`` if ``nbytes`` < 1.)"_doc)
      .def("__init__", make_slab, "nbytes"_a, "numa_node"_a = -1,
           "Takes the memory of ``numa_node``, as far as that has space; -1 for any.")
      .def_prop_ro("address", address)
      .def_prop_ro("nbytes", &Slab::nbytes)
      .def("view", view,
           "Returns the memory itself, ``[nbytes]``, writable; it keeps the slab alive.");

  bind_curves(m);
  bind_disk(m);
  bind_ledger(m);
  bind_moves(m);
}
