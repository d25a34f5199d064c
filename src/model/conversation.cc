#include "model/conversation.h"

#include <utility>

namespace offstage {
namespace {

// The text but for white space at its ends, which templates trim and models generate.
std::string_view core(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

}  // namespace

void Conversation::add(ChatRole role, std::string text, std::vector<TokenId> ids) {
  messages_.push_back({role, std::move(text)});
  ids_.push_back(std::move(ids));
}

Result<std::vector<TokenId>> Conversation::prompt(const Tokenizer& tokenizer) const {
  OFFSTAGE_TRY(const auto parts, render_chat(template_, messages_, context_));
  std::vector<TokenId> ids;
  const VocabularyFacts& facts = tokenizer.facts();
  const bool writes_bos = !context_.bos.empty() && parts[0].is_markup &&
                          std::string_view(parts[0].text).starts_with(context_.bos);
  if (*facts.add_bos && !writes_bos) ids.push_back(static_cast<TokenId>(*facts.bos));
  std::vector<TextPart> pending;
  const auto encode_pending = [&] {
    const auto more = tokenizer.encode_parts(pending, false);
    ids.insert(ids.end(), more.begin(), more.end());
    pending.clear();
  };
  for (const ChatPart& part : parts) {
    const size_t message = part.message.value_or(messages_.size());
    const bool is_as_generated = message < messages_.size() && !ids_[message].empty() &&
                                 core(part.text) == core(messages_[message].text);
    if (!is_as_generated) {
      pending.push_back({part.text, part.is_markup});
      continue;
    }
    encode_pending();
    ids.insert(ids.end(), ids_[message].begin(), ids_[message].end());
  }
  encode_pending();
  return ids;
}

bool ReplyReader::is_shown(TokenId id) {
  if (!in_channels_) return true;
  const std::string token = tokenizer_.piece(id, true);
  if (token == "<|start|>" || token == "<|end|>" || token == "<|constrain|>") {
    at_ = At::kHeader;
    if (token != "<|constrain|>") channel_.clear();
    return false;
  }
  if (token == "<|channel|>") {
    at_ = At::kChannel;
    channel_.clear();
    return false;
  }
  if (token == "<|message|>") {
    at_ = At::kMessage;
    return false;
  }
  if (at_ == At::kChannel) channel_ += token;
  // A message without a channel is for the person: there is nothing else it could be.
  return at_ == At::kMessage && (channel_.empty() || channel_ == "final");
}

std::string ReplyReader::read(TokenId id) {
  if (!is_shown(id)) {
    ++hidden_tokens_;
    return {};
  }
  std::string piece = tokenizer_.piece(id, false);
  text_ += piece;
  ids_.push_back(id);
  return piece;
}

}  // namespace offstage
