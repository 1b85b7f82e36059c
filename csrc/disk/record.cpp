#include "disk/record.h"

#include <bit>
#include <cstddef>

#include "disk/crc32c.h"

namespace lmcache {
namespace {

static_assert(std::endian::native == std::endian::little, "headers are written as they lie");

constexpr std::array<char, 8> kMagic = {'L', 'M', 'C', 'R', 'E', 'C', 'R', 'D'};

std::uint32_t checksum(const RecordHeader& header) {
  return crc32c(&header, offsetof(RecordHeader, crc));
}

}  // namespace

RecordHeader make_header(const Identity& identity, const Digest& name_space, const void* payload,
                         std::size_t payload_bytes) {
  RecordHeader header{};
  header.magic = kMagic;
  header.version = kRecordVersion;
  header.header_bytes = kBlock;
  header.sequence = identity.sequence;
  header.key = identity.key;
  header.name_space = name_space;
  header.payload_bytes = payload_bytes;
  header.payload_hash = xxh3_128(payload, payload_bytes);
  header.crc = checksum(header);
  return header;
}

bool sound(const RecordHeader& header) {
  return header.magic == kMagic && header.version == kRecordVersion &&
         header.header_bytes == kBlock && header.crc == checksum(header);
}

}  // namespace lmcache
