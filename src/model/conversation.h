// A conversation as tokens: what was said, how a family of models wants it written, and which ids
// the model itself wrote.
//
// prompt() encodes the whole of it anew each time, so that whatever a template changes about the
// past (reasoning left out, a system text that moves) is changed. Replies keep the ids they were
// generated with, so that what a model has in its KV stays a prefix of the next prompt wherever
// the template leaves the past alone.
#pragma once

#include <string>
#include <vector>

#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace offstage {

class Conversation {
 public:
  // `chat_template` outlives the conversation.
  Conversation(const ChatTemplate& chat_template, ChatContext context)
      : template_(chat_template), context_(std::move(context)) {}

  void add_system(std::string text) { add(ChatRole::kSystem, std::move(text), {}); }
  void add_user(std::string text) { add(ChatRole::kUser, std::move(text), {}); }
  // `ids` are what the model generated, without the token that ended it; `text` is theirs.
  void add_reply(std::string text, std::vector<TokenId> ids) {
    add(ChatRole::kAssistant, std::move(text), std::move(ids));
  }

  // The ids up to where the model is to reply. One BOS at the front if the template or the file
  // wants one. Nothing that was said makes a special token. Errors: those of render_chat().
  Result<std::vector<TokenId>> prompt(const Tokenizer& tokenizer) const;

 private:
  void add(ChatRole role, std::string text, std::vector<TokenId> ids);

  const ChatTemplate& template_;
  ChatContext context_;
  std::vector<ChatMessage> messages_;
  std::vector<std::vector<TokenId>> ids_;  // by message; empty where nobody generated it
};

// Reads a reply token by token and says what of it a person is to see. Most families' replies are
// their text, thoughts included; gpt-oss's come in channels, of which the final one is for people.
class ReplyReader {
 public:
  ReplyReader(const ChatTemplate& chat_template, const Tokenizer& tokenizer)
      : in_channels_(chat_template.replies_in_channels), tokenizer_(tokenizer) {}

  // What the token adds to what is shown; nothing for what isn't.
  std::string read(TokenId id);

  // What was shown, and its ids.
  const std::string& text() const { return text_; }
  const std::vector<TokenId>& ids() const { return ids_; }
  size_t hidden_tokens() const { return hidden_tokens_; }

 private:
  enum class At { kHeader, kChannel, kMessage };
  bool is_shown(TokenId id);

  bool in_channels_;
  const Tokenizer& tokenizer_;
  At at_ = At::kHeader;
  std::string channel_;
  std::string text_;
  std::vector<TokenId> ids_;
  size_t hidden_tokens_ = 0;
};

}  // namespace offstage
