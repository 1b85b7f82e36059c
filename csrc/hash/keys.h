// Chunk keys: SHA-256 over a domain, what came before or the namespace, and a chunk's tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "hash/sha256.h"

namespace lmcache {

// A name padded with zeros to half a SHA-256 block, so that a domain and a digest fill one block.
using Domain = std::array<std::uint8_t, 32>;

constexpr Domain domain(std::string_view name) {
  Domain bytes{};
  for (std::size_t i = 0; i < name.size(); ++i) bytes[i] = static_cast<std::uint8_t>(name[i]);
  return bytes;
}

constexpr Domain kPrefixDomain = domain("lmcache.prefix/1");
constexpr Domain kContentDomain = domain("lmcache.content/1");

// prefix[i]  = sha256(kPrefixDomain | prefix[i-1], or root for i = 0 | int32 bytes of chunk i)
// content[i] = sha256(kContentDomain | name_space | int32 bytes of chunk i)
//
// `prefix` has room for tokens.size() / chunk_tokens digests; `content` has as much, or is empty:
// then no content keys are made. Tokens behind the last full chunk have no key. chunk_tokens > 0.
void chunk_keys(std::span<const std::int32_t> tokens, std::size_t chunk_tokens, const Digest& root,
                const Digest& name_space, std::span<Digest> prefix, std::span<Digest> content,
                const Sha256& sha);

}  // namespace lmcache
