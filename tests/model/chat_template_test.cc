#include "model/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

namespace offstage {
namespace {

using nlohmann::json;
using testing::HasSubstr;

const json& golden() {
  static const json value = json::parse(std::ifstream(OFFSTAGE_TEST_DATA "/chat.json"));
  return value;
}

std::vector<ChatMessage> messages_of(const json& conversation) {
  std::vector<ChatMessage> messages;
  for (const json& message : conversation) {
    const std::string role = message["role"];
    messages.push_back({role == "system" ? ChatRole::kSystem
                        : role == "user" ? ChatRole::kUser
                                         : ChatRole::kAssistant,
                        message["text"]});
  }
  return messages;
}

std::string joined(const std::vector<ChatPart>& parts) {
  std::string text;
  for (const ChatPart& part : parts) text += part.text;
  return text;
}

std::string rendered(const ChatTemplate& family, const std::vector<ChatMessage>& messages,
                     const ChatContext& context) {
  auto parts = render_chat(family, messages, context);
  if (!parts) return "error: " + parts.error().message;
  return joined(*parts);
}

// Where ours differs on purpose.
bool is_exception(std::string_view family, std::string_view what,
                  const std::vector<ChatMessage>& messages) {
  // Mistral's own long system text isn't ours to say.
  if (family == "mistral-v7-tekken") return messages[0].role != ChatRole::kSystem;
  // White space between Llama 2's system text and the question isn't kept.
  if (family == "llama-2") return what == "white space around texts";
  // transformers' users keep Kimi's thoughts in a field of their own; here they are in the reply.
  return family == "kimi-k2-thinking" && what == "thoughts in an earlier reply";
}

TEST(ChatTemplate, WritesConversationsAsTransformersDoes) {
  size_t compared = 0;
  for (const auto& [name, family] : golden()["families"].items()) {
    const ChatTemplate* chat_template = find_chat_template(name);
    ASSERT_NE(chat_template, nullptr) << name;
    const ChatContext context{family["bos"], family["eos"], golden()["date"],
                              family["default_system"]};
    for (const auto& [what, expected] : family["texts"].items()) {
      const auto messages = messages_of(golden()["conversations"][what]);
      if (expected.is_null() || is_exception(name, what, messages)) continue;
      EXPECT_EQ(rendered(*chat_template, messages, context), expected.get<std::string>())
          << name << ": " << what;
      ++compared;
    }
  }
  EXPECT_GT(compared, 200u);
}

// Every family but those that no golden's model publishes, and their reasons.
TEST(ChatTemplate, EveryFamilyIsCompared) {
  for (const ChatTemplate& family : chat_templates()) {
    const std::set<std::string_view> not_compared = {"plain", "qwen3-thinking", "granite-3.1"};
    EXPECT_EQ(golden()["families"].contains(family.name), !not_compared.contains(family.name))
        << family.name;
    EXPECT_EQ(find_chat_template(family.name), &family);
    EXPECT_THAT(chat_template_names(), HasSubstr(family.name));
    EXPECT_FALSE(family.models.empty()) << family.name;
  }
  EXPECT_EQ(find_chat_template("no such"), nullptr);
}

// What a person or a model wrote is never markup, and all of it is said to be theirs.
TEST(ChatTemplate, TextsAreNoMarkup) {
  const std::vector<ChatMessage> messages = {{ChatRole::kSystem, "SYSTEM"},
                                             {ChatRole::kUser, "USER"},
                                             {ChatRole::kAssistant, "REPLY"},
                                             {ChatRole::kUser, "AGAIN"}};
  const ChatContext context{"<s>", "</s>", "2026-01-09", ""};
  for (const ChatTemplate& family : chat_templates()) {
    const auto parts = render_chat(family, messages, context);
    ASSERT_TRUE(parts) << family.name;
    std::set<size_t> seen;
    for (const ChatPart& part : *parts) {
      EXPECT_NE(part.is_markup, part.message.has_value()) << family.name << ": " << part.text;
      if (!part.message) continue;
      EXPECT_THAT(part.text, HasSubstr(messages[*part.message].text)) << family.name;
      seen.insert(*part.message);
    }
    EXPECT_EQ(seen.size(), messages.size()) << family.name;
  }
}

TEST(ChatTemplate, DatesAreWrittenAsTheFamilyWantsThem) {
  const std::vector<ChatMessage> question = {{ChatRole::kUser, "When?"}};
  const auto with_date = [&](std::string_view family, std::string date) {
    return rendered(*find_chat_template(family), question, {"", "", std::move(date), ""});
  };
  EXPECT_THAT(with_date("harmony", "2026-11-02"), HasSubstr("Current date: 2026-11-02\n"));
  EXPECT_THAT(with_date("llama-3.2", "2026-11-02"), HasSubstr("Today Date: 02 Nov 2026\n"));
  EXPECT_THAT(with_date("granite-3.1", "2026-11-02"), HasSubstr("Date: November 02, 2026.\n"));
  for (const char* bad : {"", "today", "2026-13-01", "2026-00-10", "2026-1-1", "02/11/2026"}) {
    EXPECT_THAT(with_date("harmony", bad), HasSubstr("expected year-month-day")) << bad;
    EXPECT_THAT(with_date("chatml", bad), testing::StartsWith("<|im_start|>")) << bad;
  }
}

TEST(ChatTemplate, RefusesConversationsThatAreNone) {
  const ChatTemplate& family = *find_chat_template("chatml");
  EXPECT_THAT(rendered(family, {}, {}), HasSubstr("found no message"));
  EXPECT_THAT(rendered(family, {{ChatRole::kUser, "a"}, {ChatRole::kAssistant, "b"}}, {}),
              HasSubstr("expected a user's message at the end"));
  EXPECT_THAT(
      rendered(family, {{ChatRole::kUser, "a"}, {ChatRole::kSystem, "b"}, {ChatRole::kUser, "c"}},
               {}),
      HasSubstr("message 1 is a system message"));
}

struct Published {
  const char* family;  // nullptr: none of those known
  const char* template_text;
};

// The characteristic lines of published templates, in the ways files write them.
constexpr Published kPublished[] = {
    {"chatml", "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'}}"},
    {"qwen3", "<|im_start|> <|im_end|> content.split('</think>')[-1].lstrip('\\n')"},
    {"qwen3-thinking", "</think> {{- '<|im_start|>assistant\\n<think>\\n' }}"},
    {"phi-4", "'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'"},
    {"llama-2", "'<<SYS>>\n' {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"},
    {"mistral", "{{ '[INST] ' + message['content'] + ' [/INST]' }}"},
    {"mistral-v1", "{{- ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}"},
    {"mistral-v3", "[AVAILABLE_TOOLS] {{- \"[INST] \" + system_message + \"\\n\\n\" }}"},
    {"mistral-v3-tekken", "[AVAILABLE_TOOLS] {{- \"[INST]\" + system_message }}"},
    {"mistral-v7", "'[SYSTEM_PROMPT] ' + message['content'] + '[/SYSTEM_PROMPT]' '[INST] '"},
    {"mistral-v7-tekken", "'[SYSTEM_PROMPT]' + system_prompt + '[/SYSTEM_PROMPT]' '[INST]'"},
    {"llama-3", "'<|start_header_id|>' + role + '<|end_header_id|>' content | trim <|eot_id|>"},
    {"llama-3.1", "<|start_header_id|> \"Cutting Knowledge Date: December 2023\\n\" date_string"},
    {"llama-3.2", "strftime_now(\"%d %b %Y\") <|start_header_id|> Cutting Knowledge Date"},
    {"deepseek-v2", "{{ 'Assistant: ' + message['content'] + eos_token }}"},
    {"deepseek-v3", "ns.system_prompt {{'<\uff5cAssistant\uff5c>'}}"},
    {"deepseek-r1",
     "{{'<\uff5cUser\uff5c>' + message['content']}}"
     "{{'<\uff5cAssistant\uff5c><think>\\n'}}"},
    {"deepseek-v3.1", "'<think>' {{'<\uff5cAssistant\uff5c>'}}{{'</think>'}}"},
    {"glm-4", "[gMASK]<sop> <|assistant|>\n"},
    {"glm-4.5", "[gMASK]<sop> <|user|>\n{{ '\\n<think></think>' }}"},
    {"glm-4.7", "[gMASK]<sop> '</think>' if not enable_thinking else '<think>'"},
    {"harmony", "\"<|start|>assistant<|channel|>final<|message|>\" # Valid channels: analysis"},
    {"granite-3.0", "'<|start_of_role|>system<|end_of_role|>' + message['content']"},
    {"granite-3.1", "<|start_of_role|> \"Knowledge Cutoff Date: April 2024.\\nToday's Date: \""},
    {"granite-3.3", "<|start_of_role|> \"Knowledge Cutoff Date: April 2024. Today's Date: \""},
    {"granite-4.0", "<|start_of_role|> g4_default_system_message"},
    {"phi-3", "'<|user|>\n' + message['content'] + '<|end|>\n' '<|assistant|>\n'"},
    {"minimax-m2", "']~!b[' ']~b]ai' '[e~['"},
    {"kimi-k2", "<|im_assistant|>assistant<|im_middle|>"},
    {"kimi-k2-thinking", "<|im_assistant|>{{role_name}}<|im_middle|> <think></think>"},
    {"zephyr", "{{ '<|user|>\n' + message['content'] + eos_token }} '<|assistant|>'"},
    {"tulu", "{{ '<|user|>\n' + message['content'] }} '<|assistant|>\n'  + content + eos_token"},
    {"gemma", "{% set role = 'model' %} '<start_of_turn>' + role message['content'] | trim"},
    {nullptr, "'<|user|>\n' '<|end|>\n' '<|assistant|>\n' with tools of its own"},
    {nullptr, "<|start_header_id|> content | trim <|eot_id|> with functions of its own"},
    {nullptr, ""},
    {nullptr, "{{ messages[0].content }}"},
    {nullptr, "'USER: ' + message['content'] + 'ASSISTANT: '"},
};

// Some files' templates write a BOS where their family has none, or the other way round.
TEST(ChatTemplate, WritesABosOnceWhereTheFileWantsOne) {
  ChatContext context{"<s>", "</s>", "2026-01-09", ""};
  context.begins_with_bos = true;
  const std::vector<ChatMessage> question = {{ChatRole::kUser, "?"}};
  for (const ChatTemplate& family : chat_templates()) {
    const std::string text = rendered(family, question, context);
    EXPECT_THAT(text, testing::StartsWith("<s>")) << family.name;
    EXPECT_EQ(text.find("<s>", 1), std::string::npos) << family.name;
  }
}

TEST(ChatTemplate, RecognisesFilesTemplates) {
  for (const Published& published : kPublished) {
    const ChatTemplate* found = recognise_chat_template(published.template_text);
    if (published.family == nullptr) {
      EXPECT_EQ(found, nullptr) << published.template_text;
      continue;
    }
    ASSERT_NE(found, nullptr) << published.family;
    EXPECT_EQ(found->name, published.family);
  }
}

TEST(ChatTemplate, FindsTheFilesOwnSystemText) {
  const ChatTemplate& chatml = *find_chat_template("chatml");
  EXPECT_EQ(default_system_of(chatml,
                              "{% if x %}{{ '<|im_start|>system\n' + x + '<|im_end|>' }}"
                              "{% else %}{{ '<|im_start|>system\\nDon't panic.<|im_end|>\\n' }}"),
            "Don't panic.");
  EXPECT_EQ(default_system_of(chatml, "{{ '<|im_start|>system\n' }}{{ x }}<|im_end|>"), "");
  EXPECT_EQ(default_system_of(chatml, "{{ '<|im_start|>system\n' + x + '<|im_end|>' }}"), "");
  EXPECT_EQ(default_system_of(chatml, "<|im_start|>system\ncut short"), "");
  const ChatContext context{"", "", "", "Don't panic."};
  EXPECT_THAT(rendered(chatml, {{ChatRole::kUser, "?"}}, context),
              testing::StartsWith("<|im_start|>system\nDon't panic.<|im_end|>\n<|im_start|>user"));
}

}  // namespace
}  // namespace offstage
