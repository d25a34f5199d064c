// Which family a file's template is of. The first row whose texts are all there (and whose others
// are not) names it; rows of one lineage stand together, the particular before the general.
#include <array>

#include "model/chat_template.h"

namespace offstage {
namespace {

struct Mark {
  std::string_view name;
  std::array<std::string_view, 3> has;
  std::array<std::string_view, 2> lacks = {};
};

#define DS_USER "<\xef\xbd\x9cUser\xef\xbd\x9c>"
#define DS_ASSISTANT \
  "<\xef\xbd\x9c"    \
  "Assistant\xef\xbd\x9c>"

// Newlines are newlines here, whether a file writes them so or as "\n".
constexpr Mark kMarks[] = {
    {"phi-4", {"<|im_start|>", "<|im_sep|>", "<|im_end|>"}},
    {"qwen3-thinking",
     {"<|im_start|>", "<|im_start|>assistant\n<think>\n", "</think>"},
     {"enable_thinking"}},
    {"qwen3",
     {"<|im_start|>", "<|im_end|>", "split('</think>')"},
     {"assistant\n<think>\n", "|trim"}},
    {"chatml", {"<|im_start|>", "<|im_end|>"}, {"</think>", "<end_of_utterance>"}},
    {"mistral-v7", {"[INST]", "[SYSTEM_PROMPT] "}},
    {"mistral-v7-tekken", {"[INST]", "[SYSTEM_PROMPT]"}, {"[THINK]"}},
    {"mistral-v1", {"' [INST] ' + system_message"}},
    {"mistral-v1", {"\" [INST] \" + system_message"}},
    {"mistral-v3-tekken", {"\"[INST]\" + system_message", "[AVAILABLE_TOOLS]"}},
    {"mistral-v3", {"\"[INST] \" + system_message", "[AVAILABLE_TOOLS]"}},
    {"llama-2", {"[INST] ", "<<SYS>>", ".strip()"}},
    {"mistral", {"'[INST] ' + message['content'] + ' [/INST]'"}, {"<<SYS>>"}},
    {"llama-3.2", {"<|start_header_id|>", "Cutting Knowledge Date", "strftime_now"}},
    {"llama-3.1", {"<|start_header_id|>", "Cutting Knowledge Date", "date_string"}},
    {"llama-3", {"<|start_header_id|>", "<|eot_id|>", "trim"}, {"tools", "functions"}},
    {"harmony", {"<|start|>", "<|channel|>final<|message|>", "Valid channels"}},
    {"kimi-k2-thinking", {"<|im_middle|>", "<|im_assistant|>", "<think></think>"}},
    {"kimi-k2", {"<|im_middle|>", "<|im_assistant|>"}, {"<think>"}},
    {"minimax-m2", {"]~b]ai", "]~!b[", "[e~["}},
    {"glm-4.7", {"[gMASK]<sop>", "else '<think>'", "'</think>'"}},
    {"glm-4.5", {"[gMASK]<sop>", "<think></think>", "<|user|>\n"}},
    {"glm-4", {"[gMASK]<sop>", "<|assistant|>\n"}, {"</think>"}},
    {"deepseek-r1",
     {DS_ASSISTANT "<think>\n", "'" DS_USER "' + message['content']}}"},
     {"enable_thinking"}},
    {"deepseek-v3.1", {DS_ASSISTANT, "{{'</think>'}}"}},
    {"deepseek-v3", {DS_ASSISTANT, "system_prompt", "{{'" DS_ASSISTANT "'}}"}, {"<think>"}},
    {"deepseek-v2", {"'Assistant: ' + message['content'] + eos_token"}},
    {"granite-4.0", {"<|start_of_role|>", "g4_default_system_message"}},
    {"granite-3.3", {"<|start_of_role|>", "Knowledge Cutoff Date: April 2024. Today"}},
    {"granite-3.1", {"<|start_of_role|>", "Knowledge Cutoff Date: April 2024.\nToday"}},
    {"granite-3.0", {"<|start_of_role|>", "<|end_of_role|>"}, {"Knowledge Cutoff", "tools_system"}},
    {"phi-3", {"<|user|>\n", "<|end|>\n", "<|assistant|>\n"}, {"tools"}},
    {"gemma", {"<start_of_turn>", "'model'", "trim"}},
    {"zephyr", {"'<|user|>\n' + message['content'] + eos_token"}},
    {"tulu", {"'<|user|>\n' + message['content']", "'<|assistant|>\n'", "eos_token"}},
};

std::string with_newlines(std::string_view jinja) {
  std::string text;
  text.reserve(jinja.size());
  for (size_t at = 0; at < jinja.size(); ++at) {
    const bool is_escaped = jinja.substr(at).starts_with("\\n");
    text.push_back(is_escaped ? '\n' : jinja[at]);
    at += is_escaped;
  }
  return text;
}

bool fits(const Mark& mark, std::string_view text) {
  for (const std::string_view has : mark.has) {
    if (text.find(has) == std::string_view::npos) return false;
  }
  for (const std::string_view lacks : mark.lacks) {
    if (!lacks.empty() && text.find(lacks) != std::string_view::npos) return false;
  }
  return true;
}

}  // namespace

const ChatTemplate* recognise_chat_template(std::string_view jinja) {
  const std::string text = with_newlines(jinja);
  for (const Mark& mark : kMarks) {
    if (fits(mark, text)) return find_chat_template(mark.name);
  }
  return nullptr;
}

std::string default_system_of(const ChatTemplate& chat_template, std::string_view jinja) {
  if (!chat_template.has_default_in_file) return {};
  const std::string text = with_newlines(jinja);
  const std::string_view before = chat_template.system.before;
  std::string_view after = chat_template.system.after;
  after = after.substr(0, after.find_last_not_of('\n') + 1);
  for (size_t at = text.find(before); at != std::string::npos; at = text.find(before, at + 1)) {
    const size_t begin = at + before.size();
    const size_t end = text.find(after, begin);
    if (end == std::string::npos) break;
    const std::string_view said = std::string_view(text).substr(begin, end - begin);
    // An expression or a statement of the template's language: not one literal.
    const bool is_literal = said.find_first_of("{}") == std::string_view::npos &&
                            said.find("' +") == std::string_view::npos &&
                            said.find("\" +") == std::string_view::npos &&
                            said.find("\\") == std::string_view::npos;
    if (is_literal && !said.empty()) return std::string(said);
  }
  return {};
}

}  // namespace offstage
