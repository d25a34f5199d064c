#include "app/chat.h"

#include <algorithm>
#include <ctime>

namespace offstage {
namespace {

// Only here does a date come from the clock.
std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  localtime_r(&now, &local);
  return fmt::format("{:04}-{:02}-{:02}", local.tm_year + 1900, local.tm_mon + 1, local.tm_mday);
}

std::string text_of(const Tokenizer& tokenizer, std::optional<uint32_t> id) {
  return id ? tokenizer.facts().tokens[*id] : std::string();
}

TokenId find_token(const Tokenizer& tokenizer, std::string_view text) {
  const auto& tokens = tokenizer.facts().tokens;
  const auto found = std::find(tokens.begin(), tokens.end(), text);
  return found == tokens.end() ? kNoToken : static_cast<TokenId>(found - tokens.begin());
}

void announce_missing_tokens(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                             Notices& notices) {
  std::string missing;
  for (const std::string_view token : chat_template.tokens) {
    if (find_token(tokenizer, token) == kNoToken)
      missing += fmt::format("{}{}", missing.empty() ? "" : " ", token);
  }
  if (missing.empty()) return;
  notices.add("chat", fmt::format("template {} writes tokens that this vocabulary lacks and that "
                                  "the model will read as text: {}",
                                  chat_template.name, missing));
}

Result<const ChatTemplate*> choose_template(const ChatFlags& flags, const GgufModel& gguf,
                                            const std::optional<std::string_view>& jinja,
                                            Notices& notices) {
  if (flags.chat_template != "auto") {
    if (const ChatTemplate* known = find_chat_template(flags.chat_template)) return known;
    return make_error(ErrorCode::kInvalidArgument,
                      "--chat-template '{}' is not known; expected auto or one of {}",
                      flags.chat_template, chat_template_names());
  }
  if (!jinja) {
    notices.add("chat",
                "the file has no chat template: 'plain' is used; --chat-template chooses another");
    return find_chat_template("plain");
  }
  if (const ChatTemplate* known = recognise_chat_template(*jinja)) return known;
  return make_error(ErrorCode::kUnsupported,
                    "{}: key 'tokenizer.chat_template' is none of the templates known here; choose "
                    "with --chat-template one of {}",
                    gguf.path(), chat_template_names());
}

}  // namespace

void ChatFlags::add_to(CLI::App& command) {
  template_option =
      command
          .add_option("--chat-template", chat_template,
                      "how a conversation is written: auto (as the file's own template is "
                      "recognised) or one of " +
                          chat_template_names())
          ->capture_default_str();
  system_option = command.add_option("--system-prompt", system_prompt,
                                     "what the system says at a conversation's start (-sys)");
  command.add_option("--chat-date", date,
                     "the date that some templates name, as 2026-01-31 (default: today)");
}

Result<Chat> choose_chat(const ChatFlags& flags, const GgufModel& gguf, const Tokenizer& tokenizer,
                         Notices& notices) {
  OFFSTAGE_TRY(const auto jinja, gguf.find_string("tokenizer.chat_template"));
  Chat chat;
  OFFSTAGE_TRY(chat.chat_template, choose_template(flags, gguf, jinja, notices));
  announce_missing_tokens(*chat.chat_template, tokenizer, notices);
  chat.context.bos = text_of(tokenizer, tokenizer.facts().bos);
  chat.context.eos = text_of(tokenizer, tokenizer.facts().eos);
  chat.context.date = flags.date.empty() ? today() : flags.date;
  if (jinja && flags.chat_template == "auto") {
    chat.context.default_system = default_system_of(*chat.chat_template, *jinja);
    chat.context.begins_with_bos = jinja->find("bos_token") != std::string_view::npos;
    if (jinja->find("default_system_message") != std::string_view::npos &&
        chat.chat_template->default_system.empty() && flags.system_option->count() == 0)
      notices.add("chat",
                  "the file's template has a system text of its own, which isn't used; "
                  "--system-prompt gives one");
  }
  for (const std::string_view stop : chat.chat_template->stops) {
    if (const TokenId id = find_token(tokenizer, stop); id != kNoToken) chat.stops.push_back(id);
  }
  chat.description = fmt::format("template {} ({})", chat.chat_template->name,
                                 flags.chat_template != "auto" ? "as asked"
                                 : jinja                       ? "recognised in the file"
                                                               : "no template in the file");
  if (!chat.chat_template->date_format.empty()) chat.description += ", date " + chat.context.date;
  return chat;
}

Conversation begin_conversation(const Chat& chat, const ChatFlags& flags) {
  Conversation conversation(*chat.chat_template, chat.context);
  if (flags.system_option->count() > 0) conversation.add_system(flags.system_prompt);
  return conversation;
}

}  // namespace offstage
