#include "runtime/layer_figures.h"

namespace offstage {

std::vector<LayerFigures> layer_figures(const Ring<LayerSample>& layers, uint32_t first_moe_layer,
                                        uint32_t n_used) {
  std::vector<LayerFigures> figures;
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerRecord& record = layers[i].record;
    if (record.token == kPromptToken) continue;
    while (figures.size() <= record.layer)
      figures.push_back({.layer = static_cast<uint32_t>(figures.size())});
    LayerFigures& layer = figures[record.layer];
    ++layer.visits;
    layer.calls += record.layer < first_moe_layer ? 0 : n_used;
    layer.misses += record.all_misses();
    layer.wall_ns += record.wall_ns;
    layer.wait_ns += record.wait_ns;
  }
  return figures;
}

}  // namespace offstage
