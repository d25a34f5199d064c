// How a conversation is written for a model: the chat templates people's files carry, as named
// families of data.
//
// In: messages. Out: the conversation's text up to where the model replies, in parts that are
// either the template's own (markup, which may hold special tokens) or what a person or the model
// wrote (which never does: Tokenizer::encode_parts). The strings are those of transformers'
// apply_chat_template (tests/data/chat, scripts/make_chat_goldens.py); the exceptions are in the
// families' `models`. A file's template string serves to recognise the family; it isn't run.
//
// Nothing here knows today's date: templates that name it get it from the caller.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace offstage {

enum class ChatRole { kSystem, kUser, kAssistant };

struct ChatMessage {
  ChatRole role = ChatRole::kUser;
  std::string text;
};

struct ChatPart {
  std::string text;
  bool is_markup = false;
  std::optional<size_t> message;  // whose text this is, where it is a message's
};

// What stands around one message. "{bos}", "{eos}" and "{date}" stand for the ChatContext's.
struct ChatTurn {
  std::string_view before = {}, after = {};
};

enum class SystemPlace {
  kTurn,       // a turn of its own
  kFirstUser,  // in front of the first user's text
  kLastUser,   // in front of the last user's text: it moves as the conversation goes on
};

enum class ChatTrim { kNothing, kReplies, kEverything };  // white space around messages

enum class PastReasoning {
  kKept,
  kDropped,          // a reply's text up to and with "</think>" is left out
  kDroppedAndLines,  // and the newlines after it
};

struct ChatTemplate {
  std::string_view name;
  std::string_view models;      // for --help
  std::string_view start = {};  // before everything else
  ChatTurn system = {}, user = {}, assistant = {};
  std::string_view generation = {};  // where the model is to reply
  SystemPlace system_place = SystemPlace::kTurn;
  // What the system's turn begins with, whether or not there is a system message.
  std::string_view system_preamble = {};
  // What the system says in conversations without a system message.
  std::string_view default_system = {};
  bool has_default_in_file = false;   // default_system_of() may find it
  bool treats_empty_as_none = false;  // an empty system message is none
  // Between `assistant.before` and a reply. Models make it part of the reply's first token.
  std::string_view reply_lead = {};
  ChatTrim trim = ChatTrim::kNothing;
  PastReasoning past_reasoning = PastReasoning::kKept;
  bool replies_in_channels = false;   // gpt-oss: the final channel is for the person
  std::string_view date_format = {};  // "%Y-%m-%d", "%d %b %Y", "%B %d, %Y"; empty: no date
  std::span<const std::string_view> tokens = {};  // special tokens in the markup
  std::span<const std::string_view> stops = {};   // tokens that end a reply, beside the file's own
};

std::span<const ChatTemplate> chat_templates();

// nullptr for a name nobody here knows.
const ChatTemplate* find_chat_template(std::string_view name);

// The family of a file's template (tokenizer.chat_template), by what is characteristic in its text;
// nullptr if it is none of those known here.
const ChatTemplate* recognise_chat_template(std::string_view jinja);

// What the file's template makes the system say where nobody else does, if it says so in one
// literal; empty otherwise.
std::string default_system_of(const ChatTemplate& chat_template, std::string_view jinja);

// All names, comma separated, for messages.
std::string chat_template_names();

struct ChatContext {
  std::string bos, eos;          // the vocabulary's texts, empty where it has none
  std::string date;              // "2026-11-22"; needed where the template has a date_format
  std::string default_system;    // beats the template's own if not empty
  bool begins_with_bos = false;  // the file's template writes a BOS, whatever the family does
};

// Errors (kInvalidArgument): no message, a system message that isn't the first, a last message that
// isn't the user's, a date that isn't one.
Result<std::vector<ChatPart>> render_chat(const ChatTemplate& chat_template,
                                          std::span<const ChatMessage> messages,
                                          const ChatContext& context);

}  // namespace offstage
