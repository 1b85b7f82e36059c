// Records to and from files, many at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "disk/record.h"

namespace lmcache {

// Where a record is: a file and the offset of its header in it, a multiple of kBlock.
struct Spot {
  int fd;
  std::int64_t offset;
};

// All take `count` records and answer for each in `statuses`; none throws for trouble with a file.
// Up to `depth` are under way at once, each on a thread of its own. `direct` says that the files are
// open with O_DIRECT: memory that is not aligned to kBlock then goes through a copy. Exactly
// `payload_bytes` bytes of memory are read or written at each address.

// Payloads from memory. What lies at a spot whose status is not kGood is undefined, but no record.
void write_records(const Spot* spots, const Identity* identities, const std::uint64_t* addresses,
                   std::size_t count, const Digest& name_space, std::size_t payload_bytes,
                   bool direct, int depth, std::int32_t* statuses);

// Payloads to memory, which is right where the status is kGood and undefined elsewhere.
void read_records(const Spot* spots, const Identity* identities, const std::uint64_t* addresses,
                  std::size_t count, const Digest& name_space, std::size_t payload_bytes,
                  bool direct, int depth, std::int32_t* statuses);

// Finds out what is at the spots, payloads too, and says so in `identities`.
void scan_records(const Spot* spots, Identity* identities, std::size_t count,
                  const Digest& name_space, std::size_t payload_bytes, bool direct, int depth,
                  std::int32_t* statuses);

// Records as they are, damage and all, from file to file. A status above 0 does not say which of the
// two files was at fault.
void copy_records(const Spot* from, const Spot* to, std::size_t count, std::size_t payload_bytes,
                  bool direct, int depth, std::int32_t* statuses);

}  // namespace lmcache
