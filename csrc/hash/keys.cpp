#include "hash/keys.h"

#include <bit>
#include <cstring>

namespace lmcache {
namespace {

static_assert(std::endian::native == std::endian::little, "tokens are hashed in place");

// The end of a message: the bytes that fill no block, SHA-256's padding and the length in bits.
// Both families' messages have one length and one end, so they share it.
class Tail {
 public:
  explicit Tail(std::size_t message_bytes) : rest_(message_bytes % kBlockBytes) {
    bytes_[rest_] = 0x80;
    blocks_ = rest_ + 9 <= kBlockBytes ? 1 : 2;
    const std::uint64_t bits = 8 * static_cast<std::uint64_t>(message_bytes);
    for (std::size_t i = 0; i < 8; ++i) {
      bytes_[blocks_ * kBlockBytes - 1 - i] = static_cast<std::uint8_t>(bits >> (8 * i));
    }
  }

  void fill(const std::uint8_t* rest) { std::memcpy(bytes_.data(), rest, rest_); }
  const std::uint8_t* data() const { return bytes_.data(); }
  std::size_t blocks() const { return blocks_; }

 private:
  std::array<std::uint8_t, 2 * kBlockBytes> bytes_{};
  std::size_t rest_;
  std::size_t blocks_;
};

using Head = std::array<std::uint8_t, kBlockBytes>;

Head head(const Domain& domain, const Digest& digest) {
  Head block;
  std::memcpy(block.data(), domain.data(), domain.size());
  std::memcpy(block.data() + domain.size(), digest.data(), digest.size());
  return block;
}

}  // namespace

void chunk_keys(std::span<const std::int32_t> tokens, std::size_t chunk_tokens, const Digest& root,
                const Digest& name_space, std::span<Digest> prefix, std::span<Digest> content,
                const Sha256& sha) {
  const std::size_t chunk_bytes = chunk_tokens * sizeof(std::int32_t);
  const std::size_t blocks = chunk_bytes / kBlockBytes;
  Tail tail(kBlockBytes + chunk_bytes);

  State salted = kInitialState;  // the content family's first block is the same in every message
  sha.one(salted, head(kContentDomain, name_space).data(), 1);

  const auto* data = reinterpret_cast<const std::uint8_t*>(tokens.data());
  const Digest* previous = &root;
  for (std::size_t i = 0; i < prefix.size(); ++i, data += chunk_bytes) {
    tail.fill(data + blocks * kBlockBytes);
    State chained = kInitialState;
    sha.one(chained, head(kPrefixDomain, *previous).data(), 1);
    if (content.empty()) {
      sha.one(chained, data, blocks);
      sha.one(chained, tail.data(), tail.blocks());
    } else {
      State alone = salted;
      sha.two(chained, alone, data, blocks);
      sha.two(chained, alone, tail.data(), tail.blocks());
      content[i] = to_digest(alone);
    }
    prefix[i] = to_digest(chained);
    previous = &prefix[i];
  }
}

}  // namespace lmcache
