#include "model/chat_template.h"

#include <array>
#include <charconv>

namespace offstage {
namespace {

constexpr std::string_view kSpace = " \t\n\v\f\r";

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// An ISO date in one of the formats that templates use.
Result<std::string> format_date(std::string_view iso, std::string_view format) {
  static constexpr std::array<std::string_view, 12> kMonths = {
      "January", "February", "March",     "April",   "May",      "June",
      "July",    "August",   "September", "October", "November", "December"};
  const auto number = [iso](size_t at, size_t digits) {
    int value = -1;
    const char* end = iso.data() + at + digits;
    return std::from_chars(iso.data() + at, end, value).ptr == end ? value : -1;
  };
  const bool has_shape = iso.size() == 10 && iso[4] == '-' && iso[7] == '-';
  const int month = has_shape ? number(5, 2) : -1;
  const int day = has_shape ? number(8, 2) : -1;
  if (month < 1 || month > 12 || day < 1 || day > 31 || number(0, 4) < 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "chat date: expected year-month-day as in 2026-01-31, found '{}'", iso);
  }
  const std::string_view name = kMonths[static_cast<size_t>(month - 1)];
  std::string text(format);
  replace_all(text, "%Y", iso.substr(0, 4));
  replace_all(text, "%m", iso.substr(5, 2));
  replace_all(text, "%d", iso.substr(8, 2));
  replace_all(text, "%b", name.substr(0, 3));
  replace_all(text, "%B", name);
  return text;
}

Status check_order(std::span<const ChatMessage> messages) {
  if (messages.empty() || messages.back().role != ChatRole::kUser) {
    return make_error(ErrorCode::kInvalidArgument,
                      "chat: expected a user's message at the end, found {}",
                      messages.empty() ? "no message" : "another's");
  }
  for (size_t i = 1; i < messages.size(); ++i) {
    if (messages[i].role != ChatRole::kSystem) continue;
    return make_error(ErrorCode::kInvalidArgument,
                      "chat: message {} is a system message; expected it in front of all others",
                      i);
  }
  return {};
}

class Renderer {
 public:
  Renderer(const ChatTemplate& chat_template, std::span<const ChatMessage> messages,
           const ChatContext& context, std::string date)
      : template_(chat_template), messages_(messages), context_(context), date_(std::move(date)) {}

  std::vector<ChatPart> render() {
    const bool has_bos =
        template_.start.starts_with("{bos}") || template_.user.before.starts_with("{bos}");
    if (context_.begins_with_bos && !has_bos) add_markup("{bos}");
    add_markup(template_.start);
    find_system();
    if (template_.system_place == SystemPlace::kTurn) add_system_turn();
    const size_t first_user = has_system_message() ? 1 : 0;
    const size_t last_user = messages_.size() - 1;
    for (size_t i = first_user; i < messages_.size(); ++i) {
      if (messages_[i].role == ChatRole::kAssistant) {
        add_reply(i);
        continue;
      }
      add_markup(template_.user.before);
      if ((i == first_user && template_.system_place == SystemPlace::kFirstUser) ||
          (i == last_user && template_.system_place == SystemPlace::kLastUser)) {
        add_system_in_user();
      }
      add_text(
          template_.trim == ChatTrim::kEverything ? trimmed(messages_[i].text) : messages_[i].text,
          i);
      add_markup(template_.user.after);
    }
    add_markup(template_.generation);
    return std::move(parts_);
  }

 private:
  bool has_system_message() const { return messages_[0].role == ChatRole::kSystem; }

  // What the system says, whoever wrote it; nullopt: nothing, not even an empty message.
  void find_system() {
    if (has_system_message() && !(template_.treats_empty_as_none && messages_[0].text.empty())) {
      system_ = template_.trim == ChatTrim::kEverything ? std::string(trimmed(messages_[0].text))
                                                        : messages_[0].text;
      return;
    }
    system_is_ours_ = true;
    if (!context_.default_system.empty()) {
      system_ = context_.default_system;
    } else if (!template_.default_system.empty()) {
      system_ = filled(template_.default_system);
    }
  }

  void add_system_turn() {
    if (!system_ && template_.system_preamble.empty()) return;
    add_markup(template_.system.before);
    add_markup(template_.system_preamble);
    if (system_) add_system_text();
    add_markup(template_.system.after);
  }

  void add_system_in_user() {
    if (!system_) return;
    add_markup(template_.system.before);
    add_system_text();
    add_markup(template_.system.after);
  }

  // A default is no markup either: a file may say anything there.
  void add_system_text() {
    add_text(*system_, system_is_ours_ ? std::nullopt : std::optional<size_t>(0));
  }

  void add_reply(size_t i) {
    std::string_view text = messages_[i].text;
    if (template_.past_reasoning != PastReasoning::kKept) {
      constexpr std::string_view kEnd = "</think>";
      if (const size_t end = text.rfind(kEnd); end != std::string_view::npos) {
        text.remove_prefix(end + kEnd.size());
        if (template_.past_reasoning == PastReasoning::kDroppedAndLines) {
          text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
        }
      }
    }
    if (template_.trim != ChatTrim::kNothing) text = trimmed(text);
    add_markup(template_.assistant.before);
    add_text(std::string(template_.reply_lead).append(text), i);
    add_markup(template_.assistant.after);
  }

  std::string filled(std::string_view markup) const {
    std::string text(markup);
    replace_all(text, "{bos}", context_.bos);
    replace_all(text, "{eos}", context_.eos);
    replace_all(text, "{date}", date_);
    return text;
  }

  void add_markup(std::string_view markup) {
    std::string text = filled(markup);
    if (text.empty()) return;
    if (!parts_.empty() && parts_.back().is_markup) {
      parts_.back().text += text;
    } else {
      parts_.push_back({std::move(text), true, std::nullopt});
    }
  }

  void add_text(std::string_view text, std::optional<size_t> message) {
    parts_.push_back({std::string(text), false, message});
  }

  const ChatTemplate& template_;
  std::span<const ChatMessage> messages_;
  const ChatContext& context_;
  std::string date_;
  std::optional<std::string> system_;
  bool system_is_ours_ = false;
  std::vector<ChatPart> parts_;
};

}  // namespace

Result<std::vector<ChatPart>> render_chat(const ChatTemplate& chat_template,
                                          std::span<const ChatMessage> messages,
                                          const ChatContext& context) {
  OFFSTAGE_TRY_VOID(check_order(messages));
  std::string date;
  if (!chat_template.date_format.empty()) {
    OFFSTAGE_TRY(date, format_date(context.date, chat_template.date_format));
  }
  return Renderer(chat_template, messages, context, std::move(date)).render();
}

const ChatTemplate* find_chat_template(std::string_view name) {
  for (const ChatTemplate& chat_template : chat_templates()) {
    if (chat_template.name == name) return &chat_template;
  }
  return nullptr;
}

std::string chat_template_names() {
  std::string list;
  for (const ChatTemplate& chat_template : chat_templates()) {
    if (!list.empty()) list += ", ";
    list += chat_template.name;
  }
  return list;
}

}  // namespace offstage
