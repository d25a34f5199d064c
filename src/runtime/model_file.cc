#include "base/check.h"
#include "runtime/runtime.h"

namespace offstage {

Result<std::unique_ptr<ModelFile>> ModelFile::open(const std::string& path) {
  auto file = std::make_unique<ModelFile>();
  OFFSTAGE_TRY(file->gguf, GgufModel::open(path));
  OFFSTAGE_TRY(file->spec, ModelSpec::from_gguf(file->gguf));
  OFFSTAGE_TRY(file->tensors, ModelTensors::from_gguf(file->gguf, file->spec));
  return file;
}

ExpertLayout ModelFile::expert_layout() const {
  const uint32_t n_experts = spec.router.n_experts;
  const auto facts_of = [&](const GgufTensor& tensor) {
    return ExpertTensorFacts{tensor.name, static_cast<uint32_t>(&tensor - gguf.tensors().data()),
                             tensor.shard, tensor.offset, tensor.bytes / n_experts};
  };
  std::vector<ExpertLayerFacts> layers;
  for (const LayerTensors& layer : tensors.layers)
    if (layer.has_experts())
      layers.push_back({facts_of(*layer.gate_experts), facts_of(*layer.up_experts),
                        facts_of(*layer.down_experts)});
  return ExpertLayout(std::move(layers), n_experts);
}

std::vector<uint32_t> ModelFile::pieces_per_tensor() const {
  std::vector<uint32_t> pieces(gguf.tensors().size(), 1);
  const auto split = [&](const GgufTensor* tensor) {
    pieces[static_cast<size_t>(tensor - gguf.tensors().data())] = spec.router.n_experts;
  };
  for (const LayerTensors& layer : tensors.layers) {
    if (!layer.has_experts()) continue;
    split(layer.gate_experts);
    split(layer.up_experts);
    split(layer.down_experts);
  }
  return pieces;
}

std::vector<std::string> ModelFile::paths() const {
  std::vector<std::string> paths;
  for (const GgufShard& shard : gguf.shards()) paths.push_back(shard.path);
  return paths;
}

std::vector<uint64_t> ModelFile::file_bytes() const {
  std::vector<uint64_t> bytes;
  for (const GgufShard& shard : gguf.shards()) bytes.push_back(shard.file_bytes);
  return bytes;
}

uint64_t ModelFile::total_params() const {
  uint64_t params = 0;
  for (const GgufTensor& tensor : gguf.tensors()) params += tensor.elements();
  return params;
}

uint64_t ModelFile::active_params() const {
  uint64_t params = 0;
  for (const GgufTensor* tensor : tensors.dense()) params += tensor->elements();
  // An embedding that isn't also the output is looked up, not multiplied.
  if (tensors.output != tensors.embedding) params -= tensors.embedding->elements();
  const uint64_t expert = 3 * uint64_t{spec.hidden} * spec.expert_ffn * spec.router.n_used;
  return params + expert * spec.n_moe_layers();
}

}  // namespace offstage
