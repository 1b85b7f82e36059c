// The module `_cuda`: the verbs on GPUs. Built where there is a CUDA toolkit; loads without a driver.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <exception>

#include "bind/bind.h"
#include "bind/bind_moves.h"
#include "cuda/transfer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace lmcache;

nb::list py_devices() {
  nb::list found;
  for (const DeviceInfo& info : cuda_devices()) {
    nb::dict entry;
    entry["name"] = info.name;
    entry["capability"] = nb::make_tuple(info.major, info.minor);
    entry["multiprocessors"] = info.multiprocessors;
    entry["memory_bytes"] = info.memory;
    found.append(entry);
  }
  return found;
}

template <bool kGather, bool kDma>
void py_move(Transfer& transfer, const Paged& paged, const Slots& slots, const Addresses& chunks,
             const OrderName& order) {
  const SlotTable table = to_table(slots, chunks);
  const Order parsed = to_order(order);
  const Unlocked unlocked;
  if constexpr (kDma) {
    transfer.move_by_dma(paged, table, chunks.data(), parsed, kGather);
  } else {
    transfer.move(paged, table, chunks.data(), parsed, kGather);
  }
}

template <bool kEncode>
void py_code(Transfer& transfer, const Paged& paged, const Slots& slots, const Addresses& chunks,
             const OrderName& order, const ItemName& dtype, const CodeName& codec) {
  const SlotTable table = to_table(slots, chunks);
  const Order parsed = to_order(order);
  const ItemType type = to_item(dtype);
  const CodeType code = to_code(codec);
  const Unlocked unlocked;
  transfer.code(paged, table, chunks.data(), parsed, type, code, kEncode);
}

void py_copy(Transfer& transfer, const Addresses& dst, const Addresses& src,
             const Addresses& nbytes) {
  require_length("src", src.size(), dst.size());
  require_length("nbytes", nbytes.size(), dst.size());
  const Unlocked unlocked;
  transfer.copy(dst.data(), src.data(), nbytes.data(), dst.size());
}

}  // namespace

NB_MODULE(_cuda, m) {
  nb::set_leak_warnings(false);
  nb::module_::import_("cache_core._native");  // knows what a Paged is
  nb::exception<CudaError>(m, "CudaError", PyExc_RuntimeError);

  m.attr("ARCHITECTURES") = LMCACHE_CUDA_ARCHITECTURES;
  m.attr("TOOLKIT") = LMCACHE_CUDA_TOOLKIT;
  m.def("devices", py_devices);
  m.def("pci_address", pci_address, "device"_a);
  m.def("pin", pin, "address"_a, "nbytes"_a, "device"_a = 0, nb::call_guard<Unlocked>());
  m.def("unpin", unpin, "address"_a, "device"_a = 0, nb::call_guard<Unlocked>());

  nb::class_<DeviceMemory>(m, "DeviceMemory")
      .def(nb::init<int, std::size_t>(), "device"_a, "nbytes"_a)
      .def_prop_ro("address", &DeviceMemory::address)
      .def_prop_ro("nbytes", &DeviceMemory::nbytes);

  nb::class_<PinnedSlab>(m, "PinnedSlab")
      .def(nb::init<std::size_t, int, int>(), "nbytes"_a, "device"_a, "numa_node"_a = -1,
           nb::call_guard<Unlocked>())
      .def_prop_ro("address",
                   [](const PinnedSlab& slab) {
                     return reinterpret_cast<std::uintptr_t>(slab.address());
                   })
      .def_prop_ro("nbytes", &PinnedSlab::nbytes)
      .def("unpin", &PinnedSlab::unpin, nb::call_guard<Unlocked>());

  // Unlocked: a stream that is full waits for the GPU, which may wait for a Python callback.
  nb::class_<Mark>(m, "Mark")
      .def(nb::init<int, std::uint64_t>(), "device"_a, "stream"_a, nb::call_guard<Unlocked>())
      .def("hold", &Mark::hold, "stream"_a, nb::call_guard<Unlocked>());

  nb::class_<Transfer>(m, "Transfer")
      .def(nb::init<int, std::uint32_t, std::size_t, bool>(), "device"_a, "ctas"_a = 0,
           "staging_bytes"_a = std::size_t{64} << 20, "urgent"_a = false)
      .def("gather", py_move<true, false>, "paged"_a, "slots"_a.noconvert(),
           "chunks"_a.noconvert(), "order"_a)
      .def("scatter", py_move<false, false>, "paged"_a, "slots"_a.noconvert(),
           "chunks"_a.noconvert(), "order"_a)
      .def("gather_dma", py_move<true, true>, "paged"_a, "slots"_a.noconvert(),
           "chunks"_a.noconvert(), "order"_a)
      .def("scatter_dma", py_move<false, true>, "paged"_a, "slots"_a.noconvert(),
           "chunks"_a.noconvert(), "order"_a)
      .def("gather_coded", py_code<true>, "paged"_a, "slots"_a.noconvert(),
           "chunks"_a.noconvert(), "order"_a, "dtype"_a, "codec"_a)
      .def("scatter_coded", py_code<false>, "paged"_a, "slots"_a.noconvert(),
           "chunks"_a.noconvert(), "order"_a, "dtype"_a, "codec"_a)
      .def("copy", py_copy, "dst"_a.noconvert(), "src"_a.noconvert(), "nbytes"_a.noconvert())
      .def_prop_ro("stream", &Transfer::stream)
      .def("wait_for", &Transfer::wait_for, "stream"_a, nb::call_guard<Unlocked>())
      .def("release_to", &Transfer::release_to, "stream"_a, nb::call_guard<Unlocked>())
      .def("synchronize", &Transfer::synchronize, nb::call_guard<Unlocked>());
}
