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
             std::string_view order, int threads) {
  const SlotTable table = to_table(slots, chunks);
  const Order parsed = to_order(order);
  const Unlocked unlocked;
  verb(paged, table, chunks.data(), parsed, threads);
}

nb::tuple py_pieces(const Paged& paged, const Slots& slots, std::string_view order) {
  const SlotTable table = {slots.data(), slots.shape(0), slots.shape(1)};
  const Order parsed = to_order(order);
  PieceCount counted;
  {
    const Unlocked unlocked;
    counted = count_pieces(paged, table, parsed);
  }
  return nb::make_tuple(counted.pieces, counted.bytes);
}

template <bool kGather>
void py_move_by_rows(const Paged& paged, const Slots& slots, const Addresses& chunks,
                     std::string_view order, std::uint32_t groups, std::uint32_t lanes) {
  const SlotTable table = to_table(slots, chunks);
  const Order parsed = to_order(order);
  const Unlocked unlocked;
  move_by_rows(paged, table, chunks.data(), parsed, kGather, groups, lanes);
}

template <auto verb>
void py_coded(const Paged& paged, const Slots& slots, const Addresses& chunks,
              std::string_view order, std::string_view dtype, std::string_view codec, int threads,
              bool portable) {
  const SlotTable table = to_table(slots, chunks);
  const Order parsed = to_order(order);
  const ItemType type = to_item(dtype);
  const CodeType code = to_code(codec);
  const Unlocked unlocked;
  verb(paged, table, chunks.data(), parsed, type, code, threads, portable);
}

template <auto verb>
void py_flat_coded(const Addresses& dst, const Addresses& src, std::int64_t rows,
                   std::int64_t items, std::string_view dtype, std::string_view codec, int threads,
                   bool portable) {
  require_length("src", src.size(), dst.size());
  const ItemType type = to_item(dtype);
  const CodeType code = to_code(codec);
  const Unlocked unlocked;
  verb(dst.data(), src.data(), dst.size(), rows, items, type, code, threads, portable);
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
  nb::class_<Paged>(m, "Paged")
      .def("__init__", make_paged, "k_bases"_a.noconvert(), "v_bases"_a.noconvert(),
           "block_tokens"_a, "block_stride"_a, "token_stride"_a, "head_stride"_a, "kv_heads"_a,
           "head_bytes"_a, "num_slots"_a, "item_bytes"_a = nb::none(),
           "item_stride"_a = nb::none(), "v_token_stride"_a = nb::none(),
           "v_item_stride"_a = nb::none())
      .def_ro("overlaps", &Paged::overlaps);

  m.def("pieces", py_pieces, "paged"_a, "slots"_a.noconvert(), "order"_a);
  m.def("gather", py_move<gather>, "paged"_a, "slots"_a.noconvert(), "chunks"_a.noconvert(),
        "order"_a, "threads"_a = 1);
  m.def("scatter", py_move<scatter>, "paged"_a, "slots"_a.noconvert(), "chunks"_a.noconvert(),
        "order"_a, "threads"_a = 1);
  m.def("gather_rows", py_move_by_rows<true>, "paged"_a, "slots"_a.noconvert(),
        "chunks"_a.noconvert(), "order"_a, "groups"_a = 3, "lanes"_a = 4);
  m.def("scatter_rows", py_move_by_rows<false>, "paged"_a, "slots"_a.noconvert(),
        "chunks"_a.noconvert(), "order"_a, "groups"_a = 3, "lanes"_a = 4);
  m.def("gather_coded", py_coded<gather_coded>, "paged"_a, "slots"_a.noconvert(),
        "chunks"_a.noconvert(), "order"_a, "dtype"_a, "codec"_a, "threads"_a = 1,
        "portable"_a = false);
  m.def("scatter_coded", py_coded<scatter_coded>, "paged"_a, "slots"_a.noconvert(),
        "chunks"_a.noconvert(), "order"_a, "dtype"_a, "codec"_a, "threads"_a = 1,
        "portable"_a = false);
  m.def("encode", py_flat_coded<encode>, "dst"_a.noconvert(), "src"_a.noconvert(), "rows"_a,
        "items"_a, "dtype"_a, "codec"_a, "threads"_a = 1, "portable"_a = false);
  m.def("decode", py_flat_coded<decode>, "dst"_a.noconvert(), "src"_a.noconvert(), "rows"_a,
        "items"_a, "dtype"_a, "codec"_a, "threads"_a = 1, "portable"_a = false);
  m.def("coded_bytes", py_coded_bytes, "rows"_a, "items"_a);
  m.def("copy", py_copy, "dst"_a.noconvert(), "src"_a.noconvert(), "nbytes"_a.noconvert(),
        "threads"_a = 1);
}

}  // namespace lmcache
