// A model as the planner sees it: spec, tensors with their sizes, and where its experts would lie.
//
// Of a GGUF it is the file's own directory. Of a shape it is the directory that a file of that
// shape and recipe would have, tensor by tensor under GGUF's names. From here on nothing knows
// which of the two it was: memory plan, slots, KV and reads are the runtime's own code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "cache/expert_layout.h"
#include "model/spec.h"
#include "model/tensors.h"
#include "plan/quant_mix.h"
#include "runtime/runtime.h"

namespace offstage {

struct PlannedModel {
  std::string name;
  std::string quant;  // a recipe's name; "file" for a GGUF's own mixture
  ModelSpec spec;
  bool tied_embedding = false;
  ModelTensors tensors;  // into `owner`
  ExpertLayout layout = ExpertLayout({}, 0);
  std::vector<uint64_t> file_bytes;     // by Extent::file
  std::vector<uint32_t> drive_of_file;  // likewise; empty: all are on one
  uint64_t total_params = 0;
  uint64_t active_params = 0;        // per token, counted as its makers do (model/tensors.h)
  uint64_t weights_bytes = 0;        // of all tensors
  std::optional<DriveChoice> drive;  // as a run of this file would ask its drive here, if known
  std::shared_ptr<const void> owner;

  uint64_t experts_bytes() const { return layout.total_expert_bytes(); }
  uint64_t expert_bytes() const {  // of one, in the first layer that has some
    return layout.n_layers() == 0 ? 0 : layout.expert_bytes(LayerIndex(0));
  }
  uint32_t n_drives() const {
    const auto last = std::max_element(drive_of_file.begin(), drive_of_file.end());
    return last == drive_of_file.end() ? 1 : *last + 1;
  }
  uint64_t embedding_params() const { return tensors.embedding->elements(); }
};

PlannedModel imagine_model(const ModelSpec& spec, bool tied_embedding, QuantMix mix);
PlannedModel planned_file(std::shared_ptr<const ModelFile> file);
// The same with its experts in the store that `offstage pack` would make over so many drives; of
// one drive, or without experts: as it is.
PlannedModel over_drives(const PlannedModel& model, uint32_t n_drives);

}  // namespace offstage
