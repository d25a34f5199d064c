#include "app/chat.h"

#include <algorithm>

namespace offstage {

std::string_view chat_format_name(ChatFormat format) {
  switch (format) {
    case ChatFormat::kPlain: return "plain";
    case ChatFormat::kChatMl: return "chatml";
    case ChatFormat::kMistral: return "mistral";
  }
  return "unknown";
}

ChatFormat detect_chat_format(const GgufModel& gguf, const Tokenizer& tokenizer) {
  const auto text = gguf.find_string("tokenizer.chat_template");
  if (!text || !*text) return ChatFormat::kPlain;
  const auto& tokens = tokenizer.facts().tokens;
  const auto in_vocabulary = [&](std::string_view token) {
    return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
  };
  if ((*text)->find("<|im_start|>") != std::string_view::npos && in_vocabulary("<|im_start|>"))
    return ChatFormat::kChatMl;
  if ((*text)->find("[INST]") != std::string_view::npos) return ChatFormat::kMistral;
  return ChatFormat::kPlain;
}

std::string user_turn(ChatFormat format, std::string_view text, bool first) {
  switch (format) {
    case ChatFormat::kPlain: return std::string(text);
    case ChatFormat::kChatMl:
      return fmt::format("{}<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
                         first ? "" : "<|im_end|>\n", text);
    case ChatFormat::kMistral: return fmt::format("{}[INST] {} [/INST]", first ? "" : "</s>", text);
  }
  return std::string(text);
}

}  // namespace offstage
