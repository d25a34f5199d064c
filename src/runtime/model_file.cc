#include "base/check.h"
#include "runtime/runtime.h"

namespace offstage {
Result<std::unique_ptr<ModelFile>> ModelFile::open(const std::string& path,
                                                   const std::vector<std::string>& drives) {
  auto file = std::make_unique<ModelFile>();
  OFFSTAGE_TRY(file->gguf, GgufModel::open(path));
  OFFSTAGE_TRY(file->spec, ModelSpec::from_gguf(file->gguf));
  OFFSTAGE_TRY(file->tensors, ModelTensors::from_gguf(file->gguf, file->spec));
  if (drives.empty()) return file;
  OFFSTAGE_TRY(StoreLayout layout, file->store_layout(static_cast<uint32_t>(drives.size())));
  OFFSTAGE_TRY(file->store, open_store(std::move(layout), drives, file->gguf.path()));
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
  if (store) place_in_store(layers, n_experts, store->layout, gguf.shards().size());
  return ExpertLayout(std::move(layers), n_experts);
}

// Layer by layer, an expert's three matrices beside each other: what is called together, and what
// a prompt reads in order, lies together.
Result<StoreLayout> ModelFile::store_layout(uint32_t n_drives) const {
  if (n_drives > kStripesMax)
    return make_error(ErrorCode::kInvalidArgument, "--drive: {} drives, at most {} are possible",
                      n_drives, kStripesMax);
  if (spec.n_moe_layers() == 0)
    return make_error(ErrorCode::kUnsupported, "{}: a dense model has no experts to pack",
                      gguf.path());
  const std::vector<uint32_t> counts = pieces_per_tensor();
  OFFSTAGE_TRY(const IndexIdentity identity, identify(gguf, counts));
  uint64_t n_hashes = 0;
  for (const uint32_t count : counts) n_hashes += count;
  const uint32_t n_experts = spec.router.n_experts;
  std::vector<StorePiece> pieces;
  for (const LayerTensors& layer : tensors.layers) {
    if (!layer.has_experts()) continue;
    for (uint32_t e = 0; e < n_experts; ++e)
      for (const GgufTensor* tensor : {layer.gate_experts, layer.up_experts, layer.down_experts})
        pieces.push_back({{static_cast<uint32_t>(tensor - gguf.tensors().data()), e},
                          tensor->bytes / n_experts});
  }
  return lay_out_store(identity, n_hashes, std::move(pieces), n_drives);
}

Result<HashIndex> ModelFile::open_index(Notices& notices) const {
  OFFSTAGE_TRY(HashIndex index, HashIndex::open(gguf, pieces_per_tensor(), notices));
  if (!store) return index;
  if (store->model_changed)
    notices.add("store",
                fmt::format("{}: its time of change isn't the one it was packed with; what "
                            "is read is held against the store's hashes",
                            gguf.path()));
  const std::optional<PieceId> other = index.adopt(store->hashes);
  if (!other) return index;
  return make_error(ErrorCode::kHashMismatch,
                    "{}: stale: its hash of tensor '{}' expert {} isn't the one of {}; pack it "
                    "again",
                    store->paths.front(), gguf.tensors()[other->tensor].name, other->expert,
                    index.path());
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
  if (store) paths.insert(paths.end(), store->paths.begin(), store->paths.end());
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

uint64_t ModelFile::active_params() const { return offstage::active_params(spec, tensors); }

}  // namespace offstage
