// Finds special tokens' text within a text: a trie of their bytes.
#pragma once

#include <bitset>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/types.h"

namespace offstage {

class SpecialTokens {
 public:
  struct Match {
    size_t begin;
    size_t end;
    TokenId id;
  };

  // `text` isn't empty.
  void add(std::string_view text, TokenId id);

  // The leftmost token at or after `from`; of those that begin there, the longest.
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  static constexpr uint32_t kRoot = 0;

  boost::unordered_flat_map<uint64_t, uint32_t> children_;  // node << 8 | byte → node
  std::vector<TokenId> token_of_{kNoToken};                 // by node
  std::bitset<256> first_bytes_;
};

}  // namespace offstage
