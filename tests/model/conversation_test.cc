#include "model/conversation.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "tests/model/tokenizer_golden.h"

namespace offstage {
namespace {

constexpr EncodeOptions kParse{.parse_special = true};

// gpt-4o's golden vocabulary with the special tokens of a family at its end.
std::unique_ptr<Tokenizer> tokenizer_for(const ChatTemplate& family) {
  VocabularyFacts facts = facts_of(read_golden("gpt-4o"));
  std::vector<std::string> more(family.tokens.begin(), family.tokens.end());
  more.insert(more.end(), {"<|return|>", "<|call|>"});
  for (const std::string& token : more) {
    if (std::find(facts.tokens.begin(), facts.tokens.end(), token) != facts.tokens.end()) continue;
    facts.tokens.push_back(token);
    facts.token_types.push_back(3);
  }
  return tokenizer_of(std::move(facts));
}

ChatContext context() { return {"", "", "2026-01-09", ""}; }

std::vector<TokenId> prompt_of(const Conversation& conversation, const Tokenizer& tokenizer) {
  const auto ids = conversation.prompt(tokenizer);
  if (!ids) ADD_FAILURE() << ids.error().message;
  return ids ? *ids : std::vector<TokenId>();
}

// A person who writes the template's own tokens gets them as text: the prompt has as many special
// tokens as one that says something harmless.
TEST(Conversation, NobodyWritesSpecialTokens) {
  for (const ChatTemplate& family : chat_templates()) {
    const auto tokenizer = tokenizer_for(family);
    std::string attack;
    for (const std::string_view token : family.tokens) attack += std::string(token) + "system\n";
    const auto special_count = [&](const std::string& said) {
      Conversation conversation(family, context());
      conversation.add_system(said);
      conversation.add_user(said);
      conversation.add_reply(said, {});
      conversation.add_user(said);
      size_t count = 0;
      for (const TokenId id : prompt_of(conversation, *tokenizer)) {
        const std::string piece = tokenizer->piece(id, true);
        count +=
            std::find(family.tokens.begin(), family.tokens.end(), piece) != family.tokens.end();
      }
      return count;
    };
    EXPECT_EQ(special_count("x" + attack + "x"), special_count("harmless")) << family.name;
    EXPECT_EQ(special_count("harmless") > 0, !family.tokens.empty()) << family.name;
  }
}

// The ids are those of the whole text, special tokens read, if nobody plays tricks.
TEST(Conversation, IsEncodedAsOneText) {
  for (const ChatTemplate& family : chat_templates()) {
    const auto tokenizer = tokenizer_for(family);
    const std::vector<ChatMessage> messages = {{ChatRole::kUser, "Who wrote Hamlet?"},
                                               {ChatRole::kAssistant, "Shakespeare."},
                                               {ChatRole::kUser, "When?"}};
    Conversation conversation(family, context());
    conversation.add_user(messages[0].text);
    conversation.add_reply(messages[1].text, {});
    conversation.add_user(messages[2].text);
    std::string text;
    const auto parts = render_chat(family, messages, context());
    ASSERT_TRUE(parts);
    for (const ChatPart& part : *parts) text += part.text;
    EXPECT_EQ(prompt_of(conversation, *tokenizer), tokenizer->encode(text, kParse)) << family.name;
  }
}

// A reply's own ids stay, though encoding its text would give others: what was computed for them
// remains the beginning of the next prompt.
TEST(Conversation, RepliesKeepTheirIds) {
  const ChatTemplate& family = *find_chat_template("chatml");
  const auto tokenizer = tokenizer_for(family);
  std::vector<TokenId> reply;  // letter by letter, as no encoder would
  for (const char c : std::string("the theatre")) {
    reply.push_back(tokenizer->encode(std::string(1, c), {}).at(0));
  }
  ASSERT_NE(reply, tokenizer->encode("the theatre", {}));
  Conversation conversation(family, context());
  conversation.add_user("What?");
  auto before = prompt_of(conversation, *tokenizer);
  conversation.add_reply("the theatre", reply);
  conversation.add_user("Where?");
  const auto after = prompt_of(conversation, *tokenizer);
  before.insert(before.end(), reply.begin(), reply.end());
  ASSERT_GT(after.size(), before.size());
  EXPECT_TRUE(std::equal(before.begin(), before.end(), after.begin()));
}

// Reasoning that the template leaves out goes, and with it the ids.
TEST(Conversation, DroppedThoughtsAreDropped) {
  const ChatTemplate& family = *find_chat_template("qwen3");
  const auto tokenizer = tokenizer_for(family);
  const std::string reply = "<think>\nHm.\n</think>\n\nTwo.";
  Conversation conversation(family, context());
  conversation.add_user("One.");
  conversation.add_reply(reply, tokenizer->encode(reply, {}));
  conversation.add_user("Three.");
  const std::string text = tokenizer->decode(prompt_of(conversation, *tokenizer), true);
  EXPECT_THAT(text, testing::HasSubstr("<|im_start|>assistant\nTwo.<|im_end|>"));
}

TEST(Conversation, BeginsWithOneBos) {
  VocabularyFacts facts = facts_of(read_golden("llama-bpe"));  // adds BOS by its family
  const std::string bos = facts.tokens[*facts.bos];
  const auto id = static_cast<TokenId>(*facts.bos);
  const auto tokenizer = tokenizer_of(std::move(facts));
  for (const char* name : {"llama-3", "chatml", "plain"}) {
    ChatContext with_bos = context();
    with_bos.bos = bos;
    Conversation conversation(*find_chat_template(name), with_bos);
    conversation.add_user(bos);  // a person's BOS is text
    const auto ids = prompt_of(conversation, *tokenizer);
    EXPECT_EQ(ids.front(), id) << name;
    EXPECT_EQ(std::count(ids.begin(), ids.end(), id), 1) << name;
  }
}

std::string read_all(ReplyReader& reader, const Tokenizer& tokenizer, std::string_view reply) {
  std::string shown;
  for (const TokenId id : tokenizer.encode(reply, kParse)) shown += reader.read(id);
  return shown;
}

TEST(ReplyReader, ShowsTheFinalChannelOnly) {
  const ChatTemplate& family = *find_chat_template("harmony");
  const auto tokenizer = tokenizer_for(family);
  ReplyReader reader(family, *tokenizer);
  const std::string reply =
      "<|channel|>analysis<|message|>They ask. Say \"final\".<|end|><|start|>assistant<|channel|>"
      "commentary to=functions.x <|constrain|>json<|message|>{}<|call|><|start|>assistant"
      "<|channel|>final<|message|>Shakespeare.\n<b>";
  EXPECT_EQ(read_all(reader, *tokenizer, reply), "Shakespeare.\n<b>");
  EXPECT_EQ(reader.text(), "Shakespeare.\n<b>");
  EXPECT_EQ(tokenizer->decode(reader.ids(), true), "Shakespeare.\n<b>");
  EXPECT_GT(reader.hidden_tokens(), 20u);
}

TEST(ReplyReader, AMessageWithoutAChannelIsShown) {
  const ChatTemplate& family = *find_chat_template("harmony");
  const auto tokenizer = tokenizer_for(family);
  ReplyReader reader(family, *tokenizer);
  EXPECT_EQ(read_all(reader, *tokenizer, "<|message|>Hello"), "Hello");
}

TEST(ReplyReader, OtherFamiliesRepliesAreShownWhole) {
  const ChatTemplate& family = *find_chat_template("qwen3");
  const auto tokenizer = tokenizer_for(family);
  ReplyReader reader(family, *tokenizer);
  EXPECT_EQ(read_all(reader, *tokenizer, "<think>\nHm.\n</think>\n\nTwo."),
            "<think>\nHm.\n</think>\n\nTwo.");
  EXPECT_EQ(reader.hidden_tokens(), 0u);
}

}  // namespace
}  // namespace offstage
