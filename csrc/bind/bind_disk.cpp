// Python's view of records on disk.
#include <cstddef>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "disk/crc32c.h"
#include "disk/disk.h"
#include "hash/xxh3.h"

namespace lmcache {

using namespace nanobind::literals;

namespace {

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

using Scanned = Typed<"tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.uint8], "
                      "numpy.typing.NDArray[numpy.uint64]]">;

Scanned py_scan_records(const Fds& fds, const Offsets& offsets, const nb::bytes& name_space,
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

void bind_disk(nanobind::module_& m) {
  m.def("crc32c",
        [](const nb::bytes& data, std::uint32_t before, bool portable) {
          return crc32c(data.data(), data.size(), before, portable);
        },
        "data"_a, "before"_a = 0, "portable"_a = false,
        R"(Returns the CRC-32C of ``data``; ``before`` continues an earlier result. ``portable``
        leaves the CPU's instruction out.)"_doc);
  m.def("xxh3_128",
        [](const nb::bytes& data) {
          const Hash128 hash = xxh3_128(data.data(), data.size());
          return nb::bytes(hash.data(), hash.size());
        },
        "data"_a, "Returns the XXH3-128 of ``data``, 16 bytes in canonical order.");
  m.def("write_records", py_records<write_records>, "fds"_a.noconvert(), "offsets"_a.noconvert(),
        "addresses"_a.noconvert(), "keys"_a.noconvert(), "sequences"_a.noconvert(), "namespace"_a,
        "payload_bytes"_a, "direct"_a, "depth"_a,
        R"(Writes record i, header and payload, at ``offsets[i]`` of file ``fds[i]``, up to
        ``depth`` at once. ``keys`` is ``[n, 32]``. ``direct`` says that files are open with
        O_DIRECT.

        Returns 0 or errno for each. Raises ``ValueError`` for arrays of different lengths, offsets
        that are no multiple of 4096 and sizes below 1, before any byte moves.)"_doc);
  m.def("read_records", py_records<read_records>, "fds"_a.noconvert(), "offsets"_a.noconvert(),
        "addresses"_a.noconvert(), "keys"_a.noconvert(), "sequences"_a.noconvert(), "namespace"_a,
        "payload_bytes"_a, "direct"_a, "depth"_a,
        R"(Reads payload i to ``addresses[i]`` and proves that it is the record that was asked for.

        Returns for each: 0, or errno, or -1 (no sound header), -2 (another record), -3 (the payload
        does not match its hash), -4 (the file ends); memory is undefined then. Raises
        ``ValueError`` for arrays of different lengths, offsets that are no multiple of 4096 and
        sizes below 1.)"_doc);
  m.def("scan_records", py_scan_records, "fds"_a.noconvert(), "offsets"_a.noconvert(),
        "namespace"_a, "payload_bytes"_a, "direct"_a, "depth"_a,
        R"(Returns what is at the offsets: statuses as from :func:`read_records`, or -5 where a
        header's bytes are all zeros; keys ``[n, 32]``; sequences. Only where the status is 0 do the
        others mean anything. Raises ``ValueError`` for arrays of different lengths, offsets that
        are no multiple of 4096 and sizes below 1.)"_doc);
  m.def("copy_records", py_copy_records, "from_fds"_a.noconvert(), "from_offsets"_a.noconvert(),
        "to_fds"_a.noconvert(), "to_offsets"_a.noconvert(), "payload_bytes"_a, "direct"_a,
        "depth"_a,
        R"(Copies records as they are, damage and all; statuses as from :func:`read_records`. Raises
        ``ValueError`` for arrays of different lengths, offsets that are no multiple of 4096 and
        sizes below 1.)"_doc);
}

}  // namespace lmcache
