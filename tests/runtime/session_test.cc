#include "runtime/session.h"

#include <gtest/gtest.h>

#include "tests/runtime/runtime_fixture.h"

namespace offstage {
namespace {

std::vector<TokenId> generated(OpenModel& model, Session& session, std::vector<TokenId> prompt,
                               GenerateOptions options = {}) {
  options.max_tokens = 8;
  options.ignore_eos = options.stops.empty();
  Sampler sampler({.temperature = 0}, model.runtime->spec().n_vocab);
  auto generation = session.generate(prompt, sampler, options);
  if (!generation) ADD_FAILURE() << generation.error().message;
  return generation ? generation->tokens : std::vector<TokenId>();
}

// Tokens that follow a rewind give what they give a session that never knew others.
TEST(SessionTest, RewindingForgets) {
  const auto model = open_model(test_options(model_file("qwen3moe-s1.gguf")));
  ASSERT_NE(model, nullptr);
  const std::vector<TokenId> begin = {5, 9, 2, 7, 11, 3}, other = {30, 31, 32}, next = {8, 4};
  std::vector<TokenId> whole(begin.begin(), begin.begin() + 4);
  whole.insert(whole.end(), next.begin(), next.end());
  std::vector<TokenId> expected;
  {
    Session session(*model->runtime, SequenceId(0));
    expected = generated(*model, session, whole);
  }
  Session session(*model->runtime, SequenceId(0));
  generated(*model, session, begin);
  generated(*model, session, other);
  session.rewind(4);
  EXPECT_EQ(session.history().size(), 4u);
  EXPECT_EQ(generated(*model, session, next), expected);
}

TEST(SessionTest, StopsEndAGeneration) {
  const auto model = open_model(test_options(model_file("qwen3moe-s1.gguf")));
  ASSERT_NE(model, nullptr);
  std::vector<TokenId> free_run;
  {
    Session session(*model->runtime, SequenceId(0));
    free_run = generated(*model, session, {5, 9, 2});
  }
  ASSERT_EQ(free_run.size(), 8u);
  const auto first = std::find(free_run.begin(), free_run.end(), free_run[3]);
  const TokenId stop = free_run[3];
  Session session(*model->runtime, SequenceId(0));
  GenerateOptions options;
  options.stops = {&stop, 1};
  EXPECT_EQ(generated(*model, session, {5, 9, 2}, options),
            std::vector<TokenId>(free_run.begin(), first));
}

}  // namespace
}  // namespace offstage
