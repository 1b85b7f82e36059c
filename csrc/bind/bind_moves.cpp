// Binds the verbs that move paged KV.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>

#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "bind/bind.h"
#include "bind/bind_moves.h"
#include "paged/codecs.h"
#include "paged/moves.h"
#include "paged/paged.h"
#include "paged/pieces.h"

namespace lmcache {

using namespace nb::literals;

namespace {

std::vector<std::uint64_t> to_vector(const Addresses& addresses) {
  return {addresses.data(), addresses.data() + addresses.size()};
}

void make_paged(Paged* self, const Addresses& k_bases, const Addresses& v_bases,
                std::int64_t block_tokens, std::int64_t block_stride, std::int64_t token_stride,
                std::int64_t head_stride, std::int64_t kv_heads, std::int64_t head_bytes,
                std::int64_t num_slots, std::optional<std::int64_t> item_bytes,
                std::optional<std::int64_t> item_stride, std::optional<std::int64_t> v_token_stride,
                std::optional<std::int64_t> v_item_stride) {
  const std::int64_t item = item_bytes.value_or(head_bytes);
  const Strides k = {block_stride, token_stride, head_stride, item_stride.value_or(item)};
  const Strides v = {block_stride, v_token_stride.value_or(token_stride), head_stride,
                     v_item_stride.value_or(k.item)};
  Paged paged = {to_vector(k_bases), to_vector(v_bases), block_tokens, {k, v},
                 kv_heads,           head_bytes,         item,         num_slots};
  paged.check();
  new (self) Paged(std::move(paged));
}

template <auto verb>
void py_move(const Paged& paged, const Slots& slots, const Addresses& chunks,
             const OrderName& order, int threads) {
  const SlotTable table = to_table(slots, chunks);
  const Order parsed = to_order(order);
  const Unlocked unlocked;
  verb(paged, table, chunks.data(), parsed, threads);
}

Typed<"tuple[int, int]"> py_pieces(const Paged& paged, const Slots& slots,
                                   const OrderName& order) {
  const SlotTable table = {slots.data(), slots.shape(0), slots.shape(1)};
  const Order parsed = to_order(order);
  PieceCount counted;
  {
    const Unlocked unlocked;
    counted = count_pieces(paged, table, parsed);
  }
  return nb::make_tuple(counted.pieces, counted.bytes);
}

template <bool kEncode>
void py_coded(const Paged& paged, const Slots& slots, const Addresses& chunks,
              const OrderName& order, const ItemName& dtype, const CodeName& codec, int threads,
              bool portable) {
  const SlotTable table = to_table(slots, chunks);
  const Order parsed = to_order(order);
  const ItemType type = to_item(dtype);
  const CodeType code = to_code(codec);
  const Unlocked unlocked;
  move_coded(paged, table, chunks.data(), parsed, type, code, kEncode, threads, portable);
}

template <bool kEncode>
void py_flat_coded(const Addresses& dst, const Addresses& src, std::int64_t rows,
                   std::int64_t items, const ItemName& dtype, const CodeName& codec, int threads,
                   bool portable) {
  require_length("src", src.size(), dst.size());
  const ItemType type = to_item(dtype);
  const CodeType code = to_code(codec);
  const auto [raw, coded] = kEncode ? std::pair(src, dst) : std::pair(dst, src);
  const Unlocked unlocked;
  recode(raw.data(), coded.data(), dst.size(), rows, items, type, code, kEncode, threads, portable);
}

std::int64_t py_coded_bytes(std::int64_t rows, std::int64_t items) {
  if (rows < 1 || items < 1) throw std::invalid_argument("rows and items must be at least 1");
  return coded_chunk_bytes(rows, items);
}

void py_copy(const Addresses& dst, const Addresses& src, const Addresses& nbytes, int threads) {
  require_length("src", src.size(), dst.size());
  require_length("nbytes", nbytes.size(), dst.size());
  const Unlocked unlocked;
  copy(dst.data(), src.data(), nbytes.data(), dst.size(), threads);
}

}  // namespace

void bind_moves(nb::module_& m) {
  nb::class_<Paged>(m, "Paged",
      R"(The layout of an engine's paged KV. ``item_bytes`` contiguous bytes lie at

      base[kv][layer] + (slot // block_tokens) * block_stride + (slot % block_tokens) * token_stride
      + head * head_stride + item * item_stride

      ``k_bases`` and ``v_bases`` are ``[layers]``; an empty ``v_bases`` says that there is one
      plane only (MLA). Slots are 0 to ``num_slots - 1``. A head is ``head_bytes // item_bytes``
      items; by default it is one. ``v_token_stride`` and ``v_item_stride`` are V's own, where K is
      kept transposed (vLLM's CPU backend). Raises ``ValueError``, naming the field, for what can't
      be a layout.)"_doc)
      .def("__init__", make_paged, "k_bases"_a.noconvert(), "v_bases"_a.noconvert(),
           "block_tokens"_a, "block_stride"_a, "token_stride"_a, "head_stride"_a, "kv_heads"_a,
           "head_bytes"_a, "num_slots"_a, "item_bytes"_a = nb::none(),
           "item_stride"_a = nb::none(), "v_token_stride"_a = nb::none(),
           "v_item_stride"_a = nb::none())
      .def_ro("overlaps", &Paged::overlaps,
              "Returns whether tokens, heads or planes share bytes: such KV can only be read.");

  m.def("pieces", py_pieces, "paged"_a, "slots"_a.noconvert(), "order"_a,
        R"(Counts the runs of bytes, each contiguous in the engine and in a chunk, that a move of
        ``slots`` ``[n, chunk_tokens]`` has, and their bytes in all. Raises ``IndexError`` for a
        slot that is not in the engine's KV.)"_doc);
  m.def("gather", py_move<gather>, "paged"_a, "slots"_a.noconvert(), "chunks"_a.noconvert(),
        "order"_a, "threads"_a = 1,
        R"(Copies engine KV to chunk i's bytes at ``chunks[i]``, for ``slots`` ``[n, chunk_tokens]``.

        A chunk's bytes are ``[layers][planes][kv_heads][chunk_tokens][head_bytes]`` for ``"HND"``,
        ``[layers][planes][chunk_tokens][kv_heads][head_bytes]`` for ``"NHD"``. A token with slot -1
        is left as it is on both sides. Raises ``IndexError`` for any other slot that the engine has
        not, ``ValueError`` for another order or number of chunks, for null addresses and for
        destinations that overlap, all before any byte moves.)"_doc);
  m.def("scatter", py_move<scatter>, "paged"_a, "slots"_a.noconvert(), "chunks"_a.noconvert(),
        "order"_a, "threads"_a = 1,
        R"(Copies chunk i's bytes at ``chunks[i]`` to engine KV: ``gather`` backwards. Raises
        ``IndexError`` for a slot that the engine has not, ``ValueError`` for another order or
        number of chunks, for null addresses and where a slot comes twice.)"_doc);
  m.def("gather_coded", py_coded<true>, "paged"_a, "slots"_a.noconvert(),
        "chunks"_a.noconvert(), "order"_a, "dtype"_a, "codec"_a, "threads"_a = 1,
        "portable"_a = false,
        R"(Copies as ``gather`` does, with each item of ``dtype`` coded in one byte.

        ``"fp8"`` is E4M3 (OCP 8-bit Floating Point Specification), ``"int8"`` symmetric. A row, one
        head of one token, has a float32 scale: its largest finite magnitude over 448 or 127. A
        coded chunk is the codes in the raw chunk's order, up to a multiple of 16 bytes, then the
        rows' scales in that order: :func:`coded_bytes`.)"_doc);
  m.def("scatter_coded", py_coded<false>, "paged"_a, "slots"_a.noconvert(),
        "chunks"_a.noconvert(), "order"_a, "dtype"_a, "codec"_a, "threads"_a = 1,
        "portable"_a = false,
        R"(Copies coded chunks to engine KV, ``gather_coded`` backwards: code times scale, rounded
        to ``dtype``.)"_doc);
  m.def("encode", py_flat_coded<true>, "dst"_a.noconvert(), "src"_a.noconvert(), "rows"_a,
        "items"_a, "dtype"_a, "codec"_a, "threads"_a = 1, "portable"_a = false,
        R"(Codes raw chunks of ``rows`` rows of ``items`` items at ``src`` to ``dst``, in the form
        that :func:`gather_coded` has. Raises ``ValueError`` for null addresses and destinations
        that overlap.)"_doc);
  m.def("decode", py_flat_coded<false>, "dst"_a.noconvert(), "src"_a.noconvert(), "rows"_a,
        "items"_a, "dtype"_a, "codec"_a, "threads"_a = 1, "portable"_a = false,
        R"(Decodes chunks that :func:`encode` made at ``src`` to raw ones at ``dst``. Raises
        ``ValueError`` for null addresses and destinations that overlap.)"_doc);
  m.def("coded_bytes", py_coded_bytes, "rows"_a, "items"_a,
        "Returns the bytes of a coded chunk. Raises ``ValueError`` for sizes below 1.");
  m.def("copy", py_copy, "dst"_a.noconvert(), "src"_a.noconvert(), "nbytes"_a.noconvert(),
        "threads"_a = 1,
        R"(Copies ``nbytes[i]`` bytes from ``src[i]`` to ``dst[i]``. Raises ``ValueError`` if the
        arrays differ in length, for addresses that no process has and for destinations that
        overlap.)"_doc);
}

}  // namespace lmcache
