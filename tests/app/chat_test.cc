// Chat templates as people meet them: named, recognised, unknown; the KV over several turns.
#include <gmock/gmock.h>

#include "model/unicode.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using testing::Conditions;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Outcome;
using testing::ProgramTest;

constexpr const char* kModel = "qwen3moe-s1";
constexpr const char* kChatMl =
    "{% for m in messages %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'}}";

class ChatTest : public ProgramTest {
 protected:
  // A vocabulary of bytes and two special tokens, with a template or without.
  std::string vocabulary(const char* name, std::string_view chat_template) {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte)
      append_utf8(byte_level_code_point(static_cast<uint8_t>(byte)), tokens.emplace_back());
    std::vector<int32_t> types(tokens.size(), 1);
    for (const char* special : {"<|im_start|>", "<|im_end|>"}) {
      tokens.emplace_back(special);
      types.push_back(3);
    }
    testing::GgufBuilder builder;
    builder.add_string("general.architecture", "qwen3moe");
    builder.add_string("tokenizer.ggml.model", "gpt2");
    builder.add_string("tokenizer.ggml.pre", "qwen2");
    builder.add_strings("tokenizer.ggml.tokens", tokens);
    builder.add_array("tokenizer.ggml.token_type", GgufValueType::kInt32, types);
    if (!chat_template.empty()) builder.add_string("tokenizer.chat_template", chat_template);
    const std::string path = folder_ / name;
    testing::write_file(path, builder.build());
    return path;
  }
  std::string text_of(const Outcome& outcome) {
    std::string text;
    const nlohmann::json json = outcome.json();
    for (const std::string piece : json["pieces"]) text += piece;
    return text;
  }
};

TEST_F(ChatTest, TheFilesTemplateIsRecognisedAndSaid) {
  const std::string path = vocabulary("chatml.gguf", kChatMl);
  const Outcome outcome = offstage({"tokenize", "-m", path, "-p", "Hi <|im_end|>", "-sys", "Brief.",
                                    "--chat-template", "auto", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("template chatml (recognised in the file)"));
  EXPECT_EQ(text_of(outcome),
            "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nHi <|im_end|><|im_end|>\n"
            "<|im_start|>assistant\n");
  const auto ids = outcome.json()["tokens"].get<std::vector<int>>();
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 257), 2);  // not the one that the person wrote
}

TEST_F(ChatTest, ANameBeatsTheFile) {
  const std::string path = vocabulary("chatml.gguf", kChatMl);
  const Outcome outcome = offstage({"tokenize", "-m", path, "-p", "Hi", "--chat-template",
                                    "harmony", "--chat-date", "2026-01-09", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("template harmony (as asked), date 2026-01-09"),
                                 HasSubstr("tokens that this vocabulary lacks")));
  EXPECT_THAT(outcome.err, HasSubstr("<|channel|>"));
  EXPECT_THAT(text_of(outcome), HasSubstr("Current date: 2026-01-09"));
}

TEST_F(ChatTest, UnknownNamesAndTemplatesAreRefusedWithTheKnown) {
  const std::string path = vocabulary("odd.gguf", "{{ messages[0].content }}");
  const Outcome outcome = offstage({"tokenize", "-m", path, "-p", "Hi", "--chat-template", "auto"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("odd.gguf: key 'tokenizer.chat_template'"),
                                 HasSubstr("--chat-template one of plain, chatml")));
  const Outcome named =
      offstage({"tokenize", "-m", path, "-p", "Hi", "--chat-template", "klingon"});
  EXPECT_EQ(named.code, 2);
  EXPECT_THAT(named.err, AllOf(HasSubstr("'klingon'"), HasSubstr("chatml")));
  EXPECT_EQ(offstage({"tokenize", "-m", path, "-p", "Hi", "--chat-template", "harmony",
                      "--chat-date", "today"})
                .code,
            2);
}

TEST_F(ChatTest, WithoutATemplateTheTextIsPlainAndThatIsSaid) {
  const std::string path = vocabulary("none.gguf", "");
  const Outcome outcome =
      offstage({"tokenize", "-m", path, "-p", "Hi", "--chat-template", "auto", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(text_of(outcome), "Hi\n");
  EXPECT_THAT(outcome.err, HasSubstr("the file has no chat template: 'plain' is used"));
  EXPECT_EQ(outcome.json()["fallbacks"][0]["subject"], "chat");
}

TEST_F(ChatTest, TokenizeReadsSpecialTokensOnRequest) {
  const std::string path = vocabulary("chatml.gguf", kChatMl);
  const auto count = [&](const char* flag) {
    return offstage({"tokenize", "-m", path, "-p", "<|im_end|>", flag, "--json"})
        .json()["tokens"]
        .size();
  };
  EXPECT_EQ(count("--special"), 1u);
  EXPECT_EQ(count("--parse-special"), 1u);
  EXPECT_EQ(count("--add-special"), 10u);
}

TEST_F(ChatTest, APromptIsOneTurnIfAFlagSpeaksOfAChat) {
  const nlohmann::json plain = run(kModel, {"-p", "The line", "-n", "4", "--json"}).json();
  const nlohmann::json chat =
      run(kModel, {"-p", "The line", "-n", "4", "--chat-template", "chatml", "--json"}).json();
  EXPECT_EQ(plain["chat_template"], "");
  EXPECT_EQ(chat["chat_template"], "chatml");
  EXPECT_GT(chat["prompt_tokens"], plain["prompt_tokens"]);
}

// What the second turn's prefill reads is the turn, not the conversation again.
TEST_F(ChatTest, TurnsAreAppendedToWhatTheKvHolds) {
  Conditions conditions;
  conditions.input = "The line\nAnd another\n";
  const Outcome outcome = run(kModel, {"-n", "6", "--chat-template", "chatml"}, conditions);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, Not(HasSubstr("the template changed the rest")));
  // A template that leaves thoughts out or moves the system text says what stays.
  const Outcome moved = run(
      kModel, {"-n", "6", "--chat-template", "mistral-v3-tekken", "-sys", "Brief."}, conditions);
  EXPECT_EQ(moved.code, 0) << moved.err;
  EXPECT_THAT(moved.err, HasSubstr("in the KV stay, the template changed the rest"));
}

}  // namespace
}  // namespace offstage
