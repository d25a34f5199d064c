// Where every expert lies on the drives, and how it lies in a slot.
//
// An expert is three matrices (gate, up, down), each one extent: of a file, or striped over the
// files of a packed store. A slot holds the three
// sector-rounded spans one after another. Layers whose experts have the same size share a size
// class: in a mixed file (Q4_K_M) a layer's down matrix may be a third larger than its neighbour's.
// Layers without experts aren't counted: LayerIndex 0 is the first that has some, and a dense model
// has none.
// Immutable after creation.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/types.h"
#include "io/extent.h"
#include "io/hash_index.h"
#include "io/store.h"

namespace offstage {

enum class ExpertMatrix : uint8_t { kGate = 0, kUp = 1, kDown = 2 };
inline constexpr uint32_t kExpertMatrices = 3;

// One experts' tensor of one layer: expert e's matrix is at offset + e · stride.
struct ExpertTensorFacts {
  std::string name;     // "blk.3.ffn_down_exps.weight"
  uint32_t tensor = 0;  // its place in the model's directory (PieceId)
  uint32_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes_per_expert = 0;
  uint64_t stride_bytes = 0;  // 0: bytes_per_expert, as in a GGUF
  uint64_t stripe_bytes = 0;  // Extent::stripe_bytes
  uint32_t turn = 0;          // Extent::turn, of expert 0
  uint32_t turn_stride = 0;   // from an expert's to the next one's

  Extent extent(uint32_t expert) const {
    const uint64_t stride = stride_bytes == 0 ? bytes_per_expert : stride_bytes;
    return {file, offset + expert * stride, bytes_per_expert, stripe_bytes,
            turn + expert * turn_stride};
  }
};

using ExpertLayerFacts = std::array<ExpertTensorFacts, kExpertMatrices>;

// From where experts lie in the GGUF to where they lie in a store, whose files are the engine's
// from `first_file` on. The store's pieces are the experts, layer by layer, each's three matrices.
void place_in_store(std::vector<ExpertLayerFacts>& layers, uint32_t n_experts,
                    const StoreLayout& store, size_t first_file);

class ExpertLayout {
 public:
  ExpertLayout(std::vector<ExpertLayerFacts> layers, uint32_t n_experts);

  uint32_t n_layers() const { return static_cast<uint32_t>(layers_.size()); }
  uint32_t n_experts() const { return n_experts_; }

  Extent extent(LayerIndex layer, ExpertId expert, ExpertMatrix matrix) const;
  PieceId piece(LayerIndex layer, ExpertId expert, ExpertMatrix matrix) const;
  const std::string& tensor_name(LayerIndex layer, ExpertMatrix matrix) const;

  // Size classes, smallest first.
  uint32_t n_classes() const { return static_cast<uint32_t>(class_bytes_.size()); }
  uint32_t slot_class(LayerIndex layer) const { return slot_class_[layer.value]; }
  uint64_t class_bytes(uint32_t slot_class) const { return class_bytes_[slot_class]; }
  uint32_t class_layers(uint32_t slot_class) const;  // layers of this class

  // Where a matrix's span starts in a slot of its layer; multiple of kSectorBytes.
  uint64_t span_in_slot(LayerIndex layer, ExpertMatrix matrix) const;

  uint64_t expert_bytes(LayerIndex layer) const;  // without rounding
  uint64_t total_expert_bytes() const;            // all experts of all layers, without rounding

 private:
  std::vector<ExpertLayerFacts> layers_;
  uint32_t n_experts_;
  std::vector<std::array<uint64_t, kExpertMatrices>> span_in_slot_;  // per layer
  std::vector<uint32_t> slot_class_;                                 // per layer
  std::vector<uint64_t> class_bytes_;
};

}  // namespace offstage
