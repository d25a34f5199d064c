#include "cache/expert_layout.h"

#include <algorithm>

#include "base/check.h"

namespace offstage {
namespace {

// The longest span any expert of the tensor needs: where experts aren't a multiple of a sector,
// each starts at another place within its first one.
uint64_t span_bytes_max(const ExpertTensorFacts& facts, uint32_t n_experts) {
  uint64_t longest = 0;
  for (uint32_t e = 0; e < n_experts; ++e) longest = std::max(longest, span_bytes(facts.extent(e)));
  return longest;
}

}  // namespace

// A layer's experts follow each other at one distance.
void place_in_store(std::vector<ExpertLayerFacts>& layers, uint32_t n_experts,
                    const StoreLayout& store, size_t first_file) {
  size_t piece = 0;
  for (ExpertLayerFacts& layer : layers) {
    const size_t next_expert = piece + (n_experts == 1 ? 0 : kExpertMatrices);
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      const Extent& first = store.extents[piece + m];
      layer[m].file = static_cast<uint32_t>(first_file) + first.file;
      layer[m].offset = first.offset;
      const Extent& next = store.extents[next_expert + m];
      layer[m].stride_bytes = next.offset - first.offset;
      layer[m].stripe_bytes = first.stripe_bytes;
      layer[m].turn = first.turn;
      layer[m].turn_stride = next.turn - first.turn;
    }
    piece += size_t{n_experts} * kExpertMatrices;
  }
}

ExpertLayout::ExpertLayout(std::vector<ExpertLayerFacts> layers, uint32_t n_experts)
    : layers_(std::move(layers)), n_experts_(n_experts) {
  CHECK(n_experts_ > 0 || layers_.empty());
  std::vector<uint64_t> slot_bytes;
  for (const ExpertLayerFacts& layer : layers_) {
    std::array<uint64_t, kExpertMatrices> spans = {};
    uint64_t end = 0;
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      spans[m] = end;
      end += span_bytes_max(layer[m], n_experts_);
    }
    span_in_slot_.push_back(spans);
    slot_bytes.push_back(end);
  }
  class_bytes_ = slot_bytes;
  std::sort(class_bytes_.begin(), class_bytes_.end());
  class_bytes_.erase(std::unique(class_bytes_.begin(), class_bytes_.end()), class_bytes_.end());
  for (const uint64_t bytes : slot_bytes) {
    const auto found = std::lower_bound(class_bytes_.begin(), class_bytes_.end(), bytes);
    slot_class_.push_back(static_cast<uint32_t>(found - class_bytes_.begin()));
  }
}

Extent ExpertLayout::extent(LayerIndex layer, ExpertId expert, ExpertMatrix matrix) const {
  DCHECK(expert.value < n_experts_);
  return layers_[layer.value][static_cast<size_t>(matrix)].extent(expert.value);
}

PieceId ExpertLayout::piece(LayerIndex layer, ExpertId expert, ExpertMatrix matrix) const {
  return {layers_[layer.value][static_cast<size_t>(matrix)].tensor, expert.value};
}

const std::string& ExpertLayout::tensor_name(LayerIndex layer, ExpertMatrix matrix) const {
  return layers_[layer.value][static_cast<size_t>(matrix)].name;
}

uint32_t ExpertLayout::class_layers(uint32_t slot_class) const {
  return static_cast<uint32_t>(std::count(slot_class_.begin(), slot_class_.end(), slot_class));
}

uint64_t ExpertLayout::span_in_slot(LayerIndex layer, ExpertMatrix matrix) const {
  return span_in_slot_[layer.value][static_cast<size_t>(matrix)];
}

uint64_t ExpertLayout::expert_bytes(LayerIndex layer) const {
  uint64_t bytes = 0;
  for (const ExpertTensorFacts& facts : layers_[layer.value]) bytes += facts.bytes_per_expert;
  return bytes;
}

uint64_t ExpertLayout::total_expert_bytes() const {
  uint64_t bytes = 0;
  for (uint32_t l = 0; l < n_layers(); ++l) bytes += expert_bytes(LayerIndex(l)) * n_experts_;
  return bytes;
}

}  // namespace offstage
