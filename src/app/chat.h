// Turns of an interactive chat as the text a model was trained on.
//
// Named formats recognised from the vocabulary; a model without one is continued as plain text.
#pragma once

#include <string>
#include <string_view>

#include "io/gguf.h"
#include "model/tokenizer.h"

namespace offstage {

enum class ChatFormat { kPlain, kChatMl, kMistral };
std::string_view chat_format_name(ChatFormat format);

// By the template string that the file carries (tokenizer.chat_template), checked against the
// vocabulary.
ChatFormat detect_chat_format(const GgufModel& gguf, const Tokenizer& tokenizer);

// What to append to the conversation for the user's turn, up to where the assistant speaks.
std::string user_turn(ChatFormat format, std::string_view text, bool first);

}  // namespace offstage
