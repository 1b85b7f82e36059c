// One chunk on disk: a header block, then the payload, padded to whole blocks.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "hash/sha256.h"
#include "hash/xxh3.h"

namespace lmcache {

constexpr std::size_t kBlock = 4096;  // the unit of O_DIRECT, and of everything in a segment
constexpr std::uint32_t kRecordVersion = 1;

// As it lies on disk, little-endian. The bytes between `payload_hash` and `crc` are zero and belong
// to later versions; `crc` covers all before it.
struct RecordHeader {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t header_bytes;
  std::uint64_t sequence;
  Digest key;
  Digest name_space;
  std::uint64_t payload_bytes;
  Hash128 payload_hash;
  std::array<std::uint8_t, kBlock - 116> reserved;
  std::uint32_t crc;
};
static_assert(sizeof(RecordHeader) == kBlock);

// What a record is asked to be.
struct Identity {
  Digest key;
  std::uint64_t sequence;
};

// Why a record is not served, if it is not. Above 0: errno of the call that failed.
enum Status : std::int32_t {
  kGood = 0,
  kBadHeader = -1,   // no header, or a damaged one
  kOther = -2,       // whole, but another record than was asked for
  kBadPayload = -3,  // the payload is not what was written
  kCut = -4,         // the file ends before the record does
  kEmpty = -5,       // nothing was written there; only a scan tells
};

constexpr std::size_t padded(std::size_t payload_bytes) {
  return (payload_bytes + kBlock - 1) / kBlock * kBlock;
}

RecordHeader make_header(const Identity& identity, const Digest& name_space, const void* payload,
                         std::size_t payload_bytes);

// Whether this is a header of this version, undamaged.
bool sound(const RecordHeader& header);

}  // namespace lmcache
