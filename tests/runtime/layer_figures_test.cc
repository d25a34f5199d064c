// What layers called and missed, out of the ring of layers.
#include "runtime/layer_figures.h"

#include <gtest/gtest.h>

namespace offstage {
namespace {

LayerSample sample(uint32_t token, uint32_t layer, uint16_t misses, int64_t wait_ns) {
  LayerSample sample;
  sample.record.token = token;
  sample.record.layer = layer;
  sample.record.misses[1] = misses;
  sample.record.wall_ns = 100;
  sample.record.wait_ns = wait_ns;
  return sample;
}

TEST(LayerFigures, SumOverTokensWithoutPrompts) {
  Ring<LayerSample> ring(16);
  ring.push(sample(kPromptToken, 1, 8, 50));
  for (uint32_t token = 0; token < 3; ++token) {
    ring.push(sample(token, 0, 0, 0));
    ring.push(sample(token, 1, 2, 30));
    ring.push(sample(token, 2, 1, 0));
  }
  const auto figures = layer_figures(ring, 1, 4);
  ASSERT_EQ(figures.size(), 3u);
  EXPECT_EQ(figures[0].calls, 0u);  // a dense layer
  EXPECT_EQ(figures[0].visits, 3u);
  EXPECT_EQ(figures[1].layer, 1u);
  EXPECT_EQ(figures[1].calls, 12u);
  EXPECT_EQ(figures[1].misses, 6u);
  EXPECT_EQ(figures[1].wait_ns, 90);
  EXPECT_EQ(figures[2].misses, 3u);
  EXPECT_EQ(figures[2].wall_ns, 300);
}

TEST(LayerFigures, OfAnEmptyRing) {
  EXPECT_TRUE(layer_figures(Ring<LayerSample>(4), 0, 4).empty());
}

}  // namespace
}  // namespace offstage
