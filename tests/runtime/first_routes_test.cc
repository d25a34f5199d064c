// The first rows' routing, prompts and tokens alike, and nothing after the first that wasn't kept.
#include "runtime/first_routes.h"

#include <gmock/gmock.h>

namespace offstage {
namespace {

using ::testing::ElementsAre;

class FirstRoutesTest : public ::testing::Test {
 protected:
  static Routing routing(const std::vector<uint32_t>& experts) {
    Routing routing;
    routing.n_rows = static_cast<uint32_t>(experts.size() / 2);
    routing.n_used = 2;
    for (const uint32_t expert : experts) routing.experts.push_back(ExpertId(expert));
    return routing;
  }
  void begin(uint32_t n_rows, uint32_t expert) {
    routes_.begin_forward(n_rows);
    for (uint32_t layer = 0; layer < 2; ++layer) {
      std::vector<uint32_t> experts;
      for (uint32_t i = 0; i < 2 * n_rows; ++i) experts.push_back(expert + 20 * layer + i);
      routes_.add_layer(LayerIndex(layer), routing(experts));
    }
  }
  void run(uint32_t n_rows, uint32_t expert) {
    begin(n_rows, expert);
    routes_.end_forward();
  }

  FirstRoutes routes_{{2, 64, 2}, 4};
};

TEST_F(FirstRoutesTest, PromptsAndTokensAreRowsInOrder) {
  EXPECT_EQ(routes_.log().n_tokens(), 0u);
  run(2, 0);
  run(1, 40);
  const RouteLog log = routes_.log();
  EXPECT_TRUE(check_route_log(log, "routes"));
  EXPECT_EQ(log.n_tokens(), 3u);
  EXPECT_THAT(log.experts, ElementsAre(0, 1, 20, 21, 2, 3, 22, 23, 40, 41, 60, 61));
}

// What follows a gap could not be gone through again.
TEST_F(FirstRoutesTest, NothingIsKeptAfterWhatDoesNotFit) {
  run(3, 0);
  run(2, 10);
  run(1, 30);
  EXPECT_EQ(routes_.log().n_tokens(), 3u);
  routes_.restart();
  run(1, 30);
  EXPECT_THAT(routes_.log().experts, ElementsAre(30, 31, 50, 51));
}

TEST_F(FirstRoutesTest, AForwardThatFailedIsNotKept) {
  run(1, 0);
  begin(1, 30);
  run(1, 10);
  EXPECT_THAT(routes_.log().experts, ElementsAre(0, 1, 20, 21, 10, 11, 30, 31));
}

TEST_F(FirstRoutesTest, MemoryIsBounded) {
  EXPECT_EQ(FirstRoutes::rows_for({0, 0, 0}), 4096u);  // a dense model's rows call nothing
  EXPECT_EQ(FirstRoutes::rows_for({48, 128, 8}), 4096u);
  EXPECT_EQ(FirstRoutes::rows_for({128, 512, 32}), 512u);
}

}  // namespace
}  // namespace offstage
