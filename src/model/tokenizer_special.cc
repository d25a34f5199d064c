#include "model/tokenizer_special.h"

namespace offstage {

void SpecialTokens::add(std::string_view text, TokenId id) {
  uint32_t node = kRoot;
  for (const char c : text) {
    const uint64_t edge = static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(c);
    const auto [child, is_new] = children_.emplace(edge, static_cast<uint32_t>(token_of_.size()));
    if (is_new) token_of_.push_back(kNoToken);
    node = child->second;
  }
  token_of_[node] = id;
  first_bytes_.set(static_cast<uint8_t>(text[0]));
}

std::optional<SpecialTokens::Match> SpecialTokens::find(std::string_view text, size_t from) const {
  if (first_bytes_.none()) return std::nullopt;
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_bytes_.test(static_cast<uint8_t>(text[begin]))) continue;
    std::optional<Match> longest;
    uint32_t node = kRoot;
    for (size_t at = begin; at < text.size(); ++at) {
      const auto child =
          children_.find(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(text[at]));
      if (child == children_.end()) break;
      node = child->second;
      if (token_of_[node] != kNoToken) longest = Match{begin, at + 1, token_of_[node]};
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

}  // namespace offstage
