#include "disk/disk.h"

#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>

#include "memory/pool.h"

namespace lmcache {
namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Aligned memory that grows to what was asked for and is used again.
class Scratch {
 public:
  // Null if the machine has not that much.
  char* room(std::size_t nbytes) {
    if (nbytes > size_) {
      memory_.reset(static_cast<char*>(std::aligned_alloc(kBlock, nbytes)));
      size_ = memory_ ? nbytes : 0;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<char, Free> memory_;
  std::size_t size_ = 0;
};

// One per thread of the pool, for the length of one call: what a huge chunk needed is given back.
struct Buffers {
  alignas(kBlock) RecordHeader header;
  alignas(kBlock) char tail[kBlock];
  Scratch payload;
};

// Moves all of `parts`, or says why not. Lengths are whole blocks, so that what is left after a part
// of them can be asked for again; with O_DIRECT only from a whole block on.
template <auto call>
std::int32_t transfer(int fd, std::span<iovec> parts, std::int64_t offset, bool direct) {
  while (!parts.empty()) {
    const ssize_t moved = call(fd, parts.data(), static_cast<int>(parts.size()), offset);
    if (moved < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    if (moved == 0) return kCut;
    offset += moved;
    if (direct && moved % static_cast<ssize_t>(kBlock) != 0) return kCut;
    auto left = static_cast<std::size_t>(moved);
    while (!parts.empty() && left >= parts.front().iov_len) {
      left -= parts.front().iov_len;
      parts = parts.subspan(1);
    }
    if (left == 0) continue;
    parts.front().iov_base = static_cast<char*>(parts.front().iov_base) + left;
    parts.front().iov_len -= left;
  }
  return kGood;
}

// The last block is apart where the payload does not fill it: the memory there is not ours.
std::size_t lay_out(iovec (&parts)[3], Buffers& buffers, char* payload, std::size_t payload_bytes) {
  const std::size_t whole = payload_bytes / kBlock * kBlock;
  std::size_t count = 0;
  parts[count++] = {&buffers.header, kBlock};
  if (whole > 0) parts[count++] = {payload, whole};
  if (whole < payload_bytes) parts[count++] = {buffers.tail, kBlock};
  return count;
}

bool needs_copy(const char* memory, bool direct) {
  return direct && reinterpret_cast<std::uintptr_t>(memory) % kBlock != 0;
}

// Header and payload of one record into `payload`; whether they are right is not asked here.
std::int32_t fetch(const Spot& spot, Buffers& buffers, char* payload, std::size_t payload_bytes,
                   bool direct) {
  iovec parts[3];
  const std::size_t count = lay_out(parts, buffers, payload, payload_bytes);
  const std::int32_t status = transfer<preadv>(spot.fd, {parts, count}, spot.offset, direct);
  const std::size_t rest = payload_bytes % kBlock;
  if (status == kGood) std::memcpy(payload + payload_bytes - rest, buffers.tail, rest);
  return status;
}

bool blank(const RecordHeader& header) {
  const auto* bytes = reinterpret_cast<const char*>(&header);
  return bytes[0] == 0 && std::memcmp(bytes, bytes + 1, sizeof header - 1) == 0;
}

std::int32_t read_one(const Spot& spot, const Identity& wanted, char* memory,
                      const Digest& name_space, std::size_t payload_bytes, bool direct,
                      Buffers& buffers) {
  const bool copied = needs_copy(memory, direct);
  char* payload = copied ? buffers.payload.room(padded(payload_bytes)) : memory;
  if (payload == nullptr) return ENOMEM;
  if (const auto status = fetch(spot, buffers, payload, payload_bytes, direct)) return status;
  const RecordHeader& header = buffers.header;
  if (!sound(header)) return kBadHeader;
  if (header.key != wanted.key || header.sequence != wanted.sequence ||
      header.name_space != name_space || header.payload_bytes != payload_bytes) {
    return kOther;
  }
  if (xxh3_128(payload, payload_bytes) != header.payload_hash) return kBadPayload;
  if (copied) std::memcpy(memory, payload, payload_bytes);
  return kGood;
}

std::int32_t write_one(const Spot& spot, const Identity& identity, const char* memory,
                       const Digest& name_space, std::size_t payload_bytes, bool direct,
                       Buffers& buffers) {
  char* payload = const_cast<char*>(memory);  // an iovec has no const; pwritev only reads
  if (needs_copy(memory, direct)) {
    payload = buffers.payload.room(padded(payload_bytes));
    if (payload == nullptr) return ENOMEM;
    std::memcpy(payload, memory, payload_bytes);
  }
  buffers.header = make_header(identity, name_space, payload, payload_bytes);
  const std::size_t rest = payload_bytes % kBlock;
  std::memcpy(buffers.tail, payload + payload_bytes - rest, rest);
  std::memset(buffers.tail + rest, 0, kBlock - rest);
  iovec parts[3];
  const std::size_t count = lay_out(parts, buffers, payload, payload_bytes);
  const std::int32_t status = transfer<pwritev>(spot.fd, {parts, count}, spot.offset, direct);
  return status == kCut ? ENOSPC : status;
}

// Calls `work(index, buffers)` for each record. Without memory for buffers, each status says so.
template <typename Each>
void each(std::size_t count, int depth, std::int32_t* statuses, const Each& work) {
  parallel_io(depth, count, [&](std::size_t begin, std::size_t end) {
    const std::unique_ptr<Buffers> buffers(new (std::nothrow) Buffers);
    for (std::size_t i = begin; i < end; ++i) {
      statuses[i] = buffers ? work(i, *buffers) : ENOMEM;
    }
  });
}

}  // namespace

void write_records(const Spot* spots, const Identity* identities, const std::uint64_t* addresses,
                   std::size_t count, const Digest& name_space, std::size_t payload_bytes,
                   bool direct, int depth, std::int32_t* statuses) {
  each(count, depth, statuses, [&](std::size_t i, Buffers& buffers) {
    return write_one(spots[i], identities[i], reinterpret_cast<const char*>(addresses[i]),
                     name_space, payload_bytes, direct, buffers);
  });
}

void read_records(const Spot* spots, const Identity* identities, const std::uint64_t* addresses,
                  std::size_t count, const Digest& name_space, std::size_t payload_bytes,
                  bool direct, int depth, std::int32_t* statuses) {
  each(count, depth, statuses, [&](std::size_t i, Buffers& buffers) {
    return read_one(spots[i], identities[i], reinterpret_cast<char*>(addresses[i]), name_space,
                    payload_bytes, direct, buffers);
  });
}

void scan_records(const Spot* spots, Identity* identities, std::size_t count,
                  const Digest& name_space, std::size_t payload_bytes, bool direct, int depth,
                  std::int32_t* statuses) {
  each(count, depth, statuses, [&](std::size_t i, Buffers& buffers) -> std::int32_t {
    // Most of a segment that was being written may be empty: look before reading it all.
    iovec head = {&buffers.header, kBlock};
    const auto& [fd, offset] = spots[i];
    if (const auto status = transfer<preadv>(fd, {&head, 1}, offset, direct)) return status;
    if (!sound(buffers.header)) return blank(buffers.header) ? kEmpty : kBadHeader;
    identities[i] = {buffers.header.key, buffers.header.sequence};
    char* payload = buffers.payload.room(padded(payload_bytes));
    if (payload == nullptr) return ENOMEM;
    return read_one(spots[i], identities[i], payload, name_space, payload_bytes, direct, buffers);
  });
}

void copy_records(const Spot* from, const Spot* to, std::size_t count, std::size_t payload_bytes,
                  bool direct, int depth, std::int32_t* statuses) {
  each(count, depth, statuses, [&](std::size_t i, Buffers& buffers) -> std::int32_t {
    const std::size_t nbytes = kBlock + padded(payload_bytes);
    char* record = buffers.payload.room(nbytes);
    if (record == nullptr) return ENOMEM;
    iovec in = {record, nbytes}, out = {record, nbytes};
    if (const auto status = transfer<preadv>(from[i].fd, {&in, 1}, from[i].offset, direct)) {
      return status;
    }
    const auto status = transfer<pwritev>(to[i].fd, {&out, 1}, to[i].offset, direct);
    return status == kCut ? ENOSPC : status;
  });
}

}  // namespace lmcache
