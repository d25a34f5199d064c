// Which chat template a conversation is written with, and what people may say about it.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "base/notices.h"
#include "io/gguf.h"
#include "model/conversation.h"

namespace offstage {

struct ChatFlags {
  std::string chat_template = "auto", system_prompt, date;
  CLI::Option* template_option = nullptr;
  CLI::Option* system_option = nullptr;

  void add_to(CLI::App& command);
  // Any of them makes a prompt one turn of a chat.
  bool given() const { return template_option->count() + system_option->count() > 0; }
};

struct Chat {
  const ChatTemplate* chat_template = nullptr;
  ChatContext context;
  std::string description;     // the template's name and where it comes from, for stderr
  std::vector<TokenId> stops;  // tokens that end a reply
};

// By name, or by the template that the file carries (tokenizer.chat_template). Errors: an unknown
// name (kInvalidArgument), a template that is none of those known (kUnsupported), both with the
// names there are. Notices (subject "chat"): no template in the file, so that it is plain text;
// tokens of the template that the vocabulary lacks, which become text; a system text of the file's
// template that isn't used.
Result<Chat> choose_chat(const ChatFlags& flags, const GgufModel& gguf, const Tokenizer& tokenizer,
                         Notices& notices);

// A conversation that begins with the system text of the flags, if they have one.
Conversation begin_conversation(const Chat& chat, const ChatFlags& flags);

}  // namespace offstage
