// The last tokens' routing, and nothing of prompts or of forwards that failed.
#include "runtime/route_memory.h"

#include <gmock/gmock.h>

namespace offstage {
namespace {

using ::testing::ElementsAre;

class RouteMemoryTest : public ::testing::Test {
 protected:
  static Routing routing(std::vector<uint32_t> experts) {
    Routing routing;
    routing.n_rows = static_cast<uint32_t>(experts.size() / 2);
    routing.n_used = 2;
    for (const uint32_t expert : experts) routing.experts.push_back(ExpertId(expert));
    return routing;
  }
  void visit(uint32_t position, uint32_t expert, bool is_prefill = false) {
    const Row row = {SequenceId(0), position, static_cast<TokenId>(expert + 100)};
    memory_.begin_forward({&row, 1}, is_prefill);
    memory_.add_layer(LayerIndex(0), routing({expert, expert + 1}));
    memory_.add_layer(LayerIndex(1), routing({expert + 2, expert + 3}));
  }
  void decode(uint32_t position, uint32_t expert) {
    visit(position, expert);
    memory_.end_forward();
  }

  RouteMemory memory_{{2, 64, 2}, 3};
};

TEST_F(RouteMemoryTest, KeepsTheLastTokensInOrder) {
  EXPECT_EQ(memory_.log().n_tokens(), 0u);
  for (uint32_t i = 0; i < 5; ++i) decode(7 + i, 10 * i);
  const RouteLog log = memory_.log();
  EXPECT_EQ(memory_.n_tokens(), 5u);
  EXPECT_TRUE(check_route_log(log, "memory"));
  EXPECT_THAT(log.tokens, ElementsAre(120, 130, 140));
  EXPECT_THAT(log.starts, ElementsAre(0));
  EXPECT_THAT(log.experts, ElementsAre(20, 21, 22, 23, 30, 31, 32, 33, 40, 41, 42, 43));
}

TEST_F(RouteMemoryTest, APromptIsNotKept) {
  decode(1, 0);
  visit(2, 50, true);
  memory_.end_forward();
  decode(0, 10);
  EXPECT_THAT(memory_.log().experts, ElementsAre(0, 1, 2, 3, 10, 11, 12, 13));
  EXPECT_THAT(memory_.log().starts, ElementsAre(0, 1));
}

// Nor the token whose place it took.
TEST_F(RouteMemoryTest, AForwardThatFailedIsNotKept) {
  for (uint32_t i = 0; i < 3; ++i) decode(i, 10 * i);
  visit(3, 50);
  EXPECT_THAT(memory_.log().tokens, ElementsAre(110, 120));
  decode(3, 30);
  EXPECT_THAT(memory_.log().tokens, ElementsAre(110, 120, 130));
}

TEST_F(RouteMemoryTest, RowsOfAForwardAreTokensOneByOne) {
  const Row rows[] = {{SequenceId(0), 4, 1}, {SequenceId(0), 5, 2}};
  memory_.begin_forward(rows, false);
  memory_.add_layer(LayerIndex(0), routing({1, 2, 3, 4}));
  memory_.add_layer(LayerIndex(1), routing({5, 6, 7, 8}));
  memory_.end_forward();
  EXPECT_THAT(memory_.log().experts, ElementsAre(1, 2, 5, 6, 3, 4, 7, 8));
}

}  // namespace
}  // namespace offstage
