// All who look on at a run see the same calls.
#include "runtime/routing_watchers.h"

#include "runtime_fixture.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

TEST(RoutingWatchersTest, AllSeeTheSameCalls) {
  RuntimeOptions options = test_options(model_file("micro-qwen3moe-q4_k_m.gguf"));
  options.chunk_rows = 16;
  options.record = RecordLevel::kLayer;
  options.keep_first_routes = true;
  const auto model = open_model(options);
  ASSERT_NE(model, nullptr);
  const testing::TempFile file({});
  ASSERT_TRUE(model->runtime->record_routes(file.path()));
  constexpr size_t kPrompt = 20, kThen = 8;
  std::vector<TokenId> tokens;
  for (size_t i = 0; i < kPrompt + kThen; ++i) tokens.push_back(static_cast<TokenId>(3 + 7 * i));
  Session session(*model->runtime, SequenceId(0));
  ASSERT_TRUE(session.feed(std::span(tokens).first(kPrompt), std::span(tokens).last(kThen), {}));
  ASSERT_TRUE(model->runtime->close_route_record());

  const auto recorded = read_route_log(file.path());
  ASSERT_TRUE(recorded);
  ASSERT_EQ(recorded->tokens, tokens);
  const auto then =
      recorded->experts.end() - static_cast<ptrdiff_t>(kThen * recorded->shape.calls_per_token());
  EXPECT_EQ(model->runtime->first_routes()->log().experts, recorded->experts);
  const RouteLog last = model->runtime->route_memory()->log();
  EXPECT_EQ(last.tokens, std::vector(tokens.end() - kThen, tokens.end()));
  EXPECT_EQ(last.experts, std::vector(then, recorded->experts.end()));
}

}  // namespace
}  // namespace offstage
