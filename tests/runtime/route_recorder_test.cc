// Routing written down: the router's own calls and weights, whatever the chunk.
#include "runtime/route_recorder.h"

#include <cmath>
#include <set>

#include "runtime_fixture.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

constexpr const char* kModel = "micro-qwen3moe-q4_k_m.gguf";

std::vector<TokenId> text() {
  std::vector<TokenId> tokens;
  for (TokenId t = 0; t < 40; ++t) tokens.push_back(3 + t * 7 % 290);
  return tokens;
}

RouteLog read(const std::string& path) {
  auto log = read_route_log(path);
  EXPECT_TRUE(log) << (log ? "" : log.error().message);
  return log ? std::move(*log) : RouteLog();
}

struct Recorded {
  std::vector<float> logits;
  RouteLog log;
};

Recorded record(uint32_t chunk_rows) {
  Recorded recorded;
  RuntimeOptions options = test_options(model_file(kModel));
  options.chunk_rows = chunk_rows;
  const auto model = open_model(options);
  if (model == nullptr) return recorded;
  const testing::TempFile file({});
  EXPECT_TRUE(model->runtime->record_routes(file.path()));
  recorded.logits = score(*model->runtime, text());
  score(*model->runtime, {5, 6, 7});
  EXPECT_TRUE(model->runtime->close_route_record());
  score(*model->runtime, {8, 9});  // isn't recorded any more
  recorded.log = read(file.path());
  return recorded;
}

// The weights are those of a router that is run here, on logits that are known.
TEST(RouteRecorder, WritesRowsLayersAndWeightsAsTheyAre) {
  const auto kernels = choose_kernels("");
  ASSERT_TRUE(kernels);
  RouterSpec spec;
  spec.n_experts = 4;
  spec.n_used = 2;
  spec.normalise_weights = true;
  Router router(spec, **kernels, 2);
  const testing::TempFile file({});
  auto recorder = RouteRecorder::create(file.path(), {2, 4, 2}, 2);
  ASSERT_TRUE(recorder);
  const Row failed[] = {{SequenceId(0), 0, 99}};
  (*recorder)->begin_forward(failed, true);  // and no end
  const Row rows[] = {{SequenceId(0), 0, 11}, {SequenceId(0), 1, 12}};
  (*recorder)->begin_forward(rows, true);
  std::vector<float> first = {0, 3, 1, 2, 5, 0, 0, 4}, second = {1, 0, 0, 2, 0, 9, 8, 0};
  (*recorder)->add_layer(LayerIndex(0), router.route(first.data(), 2));
  (*recorder)->add_layer(LayerIndex(1), router.route(second.data(), 2));
  ASSERT_TRUE((*recorder)->end_forward());
  ASSERT_TRUE((*recorder)->close());
  const RouteLog log = read(file.path());
  EXPECT_EQ(log.tokens, (std::vector<int32_t>{11, 12}));
  EXPECT_EQ(log.prefill, (std::vector<uint8_t>{1, 1}));
  EXPECT_EQ(log.starts, (std::vector<uint64_t>{0}));
  EXPECT_EQ(log.experts, (std::vector<uint16_t>{1, 3, 3, 0, 0, 3, 1, 2}));
  const double share = 1 / (1 + std::exp(-1.0));  // softmax of two logits that differ by one
  EXPECT_NEAR(log.weight(0, 0, 0), share, 1e-3);
  EXPECT_NEAR(log.weight(0, 0, 1), 1 - share, 1e-3);
  EXPECT_NEAR(log.weight(1, 1, 0), share, 1e-3);
}

TEST(RouteRecorder, TheChunkDoesntShow) {
  const Recorded whole = record(64), pieces = record(7);
  ASSERT_EQ(whole.log.n_tokens(), 43u);
  EXPECT_EQ(whole.log.starts, (std::vector<uint64_t>{0, 40}));
  EXPECT_EQ(whole.log.tokens[5], text()[5]);
  EXPECT_EQ(whole.log.tokens[41], 6);
  EXPECT_EQ(pieces.log.experts, whole.log.experts);
  EXPECT_EQ(pieces.log.probs, whole.log.probs);
  EXPECT_EQ(pieces.log.starts, whole.log.starts);
  EXPECT_TRUE(same_bits(pieces.logits, whole.logits));
  const std::set<uint16_t> called(whole.log.experts.begin(), whole.log.experts.end());
  EXPECT_GT(called.size(), 4u);
}

TEST(RouteRecorder, ChangesNoLogit) {
  const auto model = open_model(test_options(model_file(kModel)));
  ASSERT_NE(model, nullptr);
  EXPECT_TRUE(same_bits(score(*model->runtime, text()), record(64).logits));
}

TEST(RouteRecorder, ADenseModelHasNoRouting) {
  const auto model = open_model(test_options(model_file("qwen3-s1.gguf")));
  ASSERT_NE(model, nullptr);
  const testing::TempFile file({});
  const Status status = model->runtime->record_routes(file.path());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace offstage
