// What the verbs that move paged KV take from Python, on the CPU and on the GPU.
#pragma once

#include <nanobind/stl/string_view.h>

#include <string>
#include <string_view>

#include "bind/bind.h"
#include "paged/row_plan.h"

namespace lmcache {

using Slots = Array<std::int64_t, 2>;

inline SlotTable to_table(const Slots& slots, const Addresses& chunks) {
  require_length("chunks", chunks.size(), slots.shape(0));
  return {slots.data(), slots.shape(0), slots.shape(1)};
}

using OrderName = Typed<"typing.Literal['HND', 'NHD']">;
using ItemName = Typed<"typing.Literal['float32', 'bfloat16', 'float16']">;
using CodeName = Typed<"typing.Literal['fp8', 'int8']">;

inline std::string_view to_text(const nb::object& word) {
  if (!nb::isinstance<nb::str>(word)) throw nb::type_error("order, dtype and codec must be str");
  return nb::cast<std::string_view>(word);
}

inline Order to_order(const OrderName& word) {
  const std::string_view name = to_text(word);
  if (name == "HND") return Order::kHeadsFirst;
  if (name == "NHD") return Order::kTokensFirst;
  throw std::invalid_argument("order is '" + std::string(name) + "'; it must be 'HND' or 'NHD'");
}

inline ItemType to_item(const ItemName& word) {
  const std::string_view name = to_text(word);
  if (name == "float32") return ItemType::kFloat32;
  if (name == "bfloat16") return ItemType::kBFloat16;
  if (name == "float16") return ItemType::kFloat16;
  throw std::invalid_argument("dtype is '" + std::string(name) +
                              "'; it must be 'float32', 'bfloat16' or 'float16'");
}

inline CodeType to_code(const CodeName& word) {
  const std::string_view name = to_text(word);
  if (name == "fp8") return CodeType::kFp8;
  if (name == "int8") return CodeType::kInt8;
  throw std::invalid_argument("codec is '" + std::string(name) + "'; it must be 'fp8' or 'int8'");
}

}  // namespace lmcache
