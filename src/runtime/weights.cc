#include "runtime/weights.h"

#include <array>
#include <unordered_map>

#include "base/check.h"
#include "base/units.h"
#include "runtime/joint_kv_b.h"

namespace offstage {
namespace {

constexpr uint32_t kTensorsInFlight = 8;

Extent extent_of(const GgufTensor& tensor) { return {tensor.shard, tensor.offset, tensor.bytes}; }

uint64_t vector_bytes(const GgufTensor& tensor) {
  return round_up(tensor.elements() * sizeof(float), 64);
}

// One tensor's way from the drive to verified bytes in the arena.
class VerifiedReader {
 public:
  VerifiedReader(const std::vector<const GgufTensor*>& tensors, HostArena& arena,
                 const DenseStore::Loader& loader)
      : tensors_(tensors), loader_(loader), data_(tensors.size()), buffers_(tensors.size()) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      buffers_[i] = arena.take(span_bytes(extent_of(*tensors[i])), kSectorBytes);
      total_bytes_ += tensors[i]->bytes;
    }
  }

  Status run() {
    std::array<ReadDone, kTensorsInFlight> done;
    std::array<PieceHash, kTensorsInFlight> hashes;
    while (n_verified_ < tensors_.size()) {
      while (next_ < tensors_.size() && loader_.reads.unfinished() < kTensorsInFlight)
        start(next_++);
      const size_t n = loader_.reads.reap(done, 1'000'000'000);
      for (size_t i = 0; i < n; ++i) {
        if (!done[i].status) return tl::unexpected(done[i].status.error());
      }
      loader_.workers.parallel_for(static_cast<uint32_t>(n), 1,
                                   [&](uint32_t begin, uint32_t end, uint32_t) {
                                     for (uint32_t i = begin; i < end; ++i)
                                       hashes[i] = hash_piece({done[i].data, done[i].extent.bytes});
                                   });
      for (size_t i = 0; i < n; ++i) OFFSTAGE_TRY_VOID(judge(done[i], hashes[i]));
    }
    return {};
  }

  const std::byte* data(size_t i) const { return data_[i]; }

 private:
  void start(size_t i) {
    ReadJob job;
    job.extent = extent_of(*tensors_[i]);
    job.buffer = buffers_[i];
    job.cookie = i;
    loader_.reads.start(job);
  }

  Status judge(const ReadDone& done, PieceHash hash) {
    const GgufTensor& tensor = *tensors_[done.cookie];
    const auto place = static_cast<uint32_t>(&tensor - loader_.gguf.tensors().data());
    const HashVerdict verdict = loader_.index.judge({place, 0}, hash);
    const std::string& path = loader_.gguf.shards()[tensor.shard].path;
    if (verdict == HashVerdict::kConfirmed || verdict == HashVerdict::kProvisional) {
      data_[done.cookie] = done.data;
      ++n_verified_;
      verified_bytes_ += tensor.bytes;
      if (loader_.progress) loader_.progress(verified_bytes_, total_bytes_);
      return {};
    }
    const bool second = verdict == HashVerdict::kMismatch && ++mismatches_[done.cookie] == 2;
    if (second)
      return make_error(ErrorCode::kHashMismatch,
                        "{}: tensor '{}' at offset {}: {} bytes were read twice and don't match "
                        "the index (found {:016x})",
                        path, tensor.name, tensor.offset, tensor.bytes, hash);
    loader_.notices.add("hash", fmt::format("{}: tensor '{}' at offset {}: {}; reading it again",
                                            path, tensor.name, tensor.offset,
                                            verdict == HashVerdict::kConflict
                                                ? "two reads gave different bytes, a third decides"
                                                : "bytes don't match the index"));
    start(done.cookie);
    return {};
  }

  const std::vector<const GgufTensor*>& tensors_;
  const DenseStore::Loader& loader_;
  std::vector<const std::byte*> data_;
  std::vector<std::byte*> buffers_;
  std::unordered_map<uint64_t, int> mismatches_;
  size_t next_ = 0, n_verified_ = 0;
  uint64_t verified_bytes_ = 0, total_bytes_ = 0;
};

// Roles of tensors → where their bytes are.
class Placer {
 public:
  void put(const GgufTensor* tensor, const std::byte* data) { place_[tensor] = data; }
  const std::byte* data(const GgufTensor* tensor) const { return place_.at(tensor); }
  Matrix matrix(const GgufTensor* tensor) const {
    if (tensor == nullptr) return {};
    // Of three dimensions (one matrix per head): the rows of all, one after another.
    return {tensor->type, place_.at(tensor),
            static_cast<uint32_t>(tensor->dims[1] * tensor->dims[2]),
            static_cast<uint32_t>(tensor->dims[0])};
  }
  const float* vector(const GgufTensor* tensor) const {
    return tensor == nullptr ? nullptr : reinterpret_cast<const float*>(place_.at(tensor));
  }

 private:
  std::unordered_map<const GgufTensor*, const std::byte*> place_;
};

FfnWeights place_ffn(const FfnTensors& t, const Placer& at) {
  return {at.matrix(t.gate), at.matrix(t.up), at.matrix(t.down)};
}

MlaWeights place_mla(const MlaTensors& t, const Placer& at) {
  MlaWeights w;
  w.q_a = at.matrix(t.q_a);
  w.q_b = at.matrix(t.q_b);
  w.kv_a = at.matrix(t.kv_a);
  w.k_b = at.matrix(t.k_b);
  w.v_b = at.matrix(t.v_b);
  w.q_a_norm = at.vector(t.q_a_norm);
  w.kv_a_norm = at.vector(t.kv_a_norm);
  return w;
}

void place_experts(const LayerTensors& t, const Placer& at, LayerWeights& w) {
  w.router = at.matrix(t.router);
  w.router_bias = at.vector(t.router_bias);
  w.selection_bias = at.vector(t.selection_bias);
  w.gate_bias = at.vector(t.gate_bias);
  w.up_bias = at.vector(t.up_bias);
  w.down_bias = at.vector(t.down_bias);
  w.gate_type = t.gate_experts->type;
  w.up_type = t.up_experts->type;
  w.down_type = t.down_experts->type;
}

LayerWeights place_layer(const LayerTensors& t, const Placer& at) {
  LayerWeights w;
  w.attn_norm = at.vector(t.attn_norm);
  w.attn_norm_bias = at.vector(t.attn_norm_bias);
  w.ffn_norm = at.vector(t.ffn_norm);
  w.ffn_norm_bias = at.vector(t.ffn_norm_bias);
  w.q_bias = at.vector(t.q_bias);
  w.k_bias = at.vector(t.k_bias);
  w.v_bias = at.vector(t.v_bias);
  w.o_bias = at.vector(t.o_bias);
  w.q_norm = at.vector(t.q_norm);
  w.k_norm = at.vector(t.k_norm);
  w.sinks = at.vector(t.sinks);
  w.shared_gate_input = at.vector(t.shared_gate_input);
  w.q = at.matrix(t.q);
  w.k = at.matrix(t.k);
  w.v = at.matrix(t.v);
  w.o = at.matrix(t.o);
  w.mla = place_mla(t.mla, at);
  w.dense = place_ffn(t.dense, at);
  w.shared = place_ffn(t.shared, at);
  if (t.has_experts()) place_experts(t, at, w);
  return w;
}

// What older DeepSeek files need on top; 0 for all others.
uint64_t split_kv_b_bytes(const ModelSpec& spec, const ModelTensors& tensors) {
  uint64_t bytes = 0;
  for (const LayerTensors& layer : tensors.layers)
    if (layer.mla.kv_b != nullptr) bytes += split_kv_b_bytes(spec.attention, layer.mla.kv_b->type);
  return bytes;
}

void split_joint_matrices(const ModelTensors& tensors, const Placer& at,
                          const DenseStore::Loader& loader, HostArena& arena,
                          DenseWeights& weights) {
  for (size_t i = 0; i < tensors.layers.size(); ++i) {
    const GgufTensor* joint = tensors.layers[i].mla.kv_b;
    if (joint == nullptr) continue;
    const SplitKvB split =
        split_kv_b(loader.spec.attention, at.matrix(joint), loader.kernels, arena);
    weights.layers[i].mla.k_b = split.k_b;
    weights.layers[i].mla.v_b = split.v_b;
  }
  const uint64_t bytes = split_kv_b_bytes(loader.spec, tensors);
  if (bytes != 0)
    loader.notices.add("mla", fmt::format("the file keeps K and V's matrices as one ({}): split "
                                          "ones are made beside it, {} more",
                                          tensors.layers[0].mla.kv_b->name, format_bytes(bytes)));
}

}  // namespace

uint64_t DenseStore::bytes_needed(const ModelSpec& spec, const ModelTensors& tensors) {
  uint64_t bytes = 0;
  for (const GgufTensor* tensor : tensors.dense()) bytes += span_bytes(extent_of(*tensor));
  for (const GgufTensor* tensor : tensors.vectors()) bytes += vector_bytes(*tensor);
  return bytes + split_kv_b_bytes(spec, tensors);
}

Result<DenseStore> DenseStore::load(const ModelTensors& tensors, HostArena arena,
                                    const Loader& loader) {
  DenseStore store(std::move(arena));
  const std::vector<const GgufTensor*> dense = tensors.dense();
  VerifiedReader reader(dense, store.arena_, loader);
  OFFSTAGE_TRY_VOID(reader.run());

  Placer at;
  for (size_t i = 0; i < dense.size(); ++i) at.put(dense[i], reader.data(i));
  // What kernels take as floats becomes floats. By role, not by shape: a file may give a vector a
  // second dimension of 1, or leave it out of a matrix of one row.
  for (const GgufTensor* tensor : tensors.vectors()) {
    auto* floats = reinterpret_cast<float*>(store.arena_.take(vector_bytes(*tensor), 64));
    loader.kernels.dequantise(tensor->type, at.data(tensor),
                              static_cast<uint32_t>(tensor->elements()), floats);
    at.put(tensor, reinterpret_cast<const std::byte*>(floats));
  }
  DenseWeights& weights = store.weights_;
  weights.embedding = at.matrix(tensors.embedding);
  weights.output = at.matrix(tensors.output);
  weights.output_norm = at.vector(tensors.output_norm);
  weights.output_norm_bias = at.vector(tensors.output_norm_bias);
  weights.output_bias = at.vector(tensors.output_bias);
  weights.rope_factors = at.vector(tensors.rope_factors);
  weights.rope_factors_short = at.vector(tensors.rope_factors_short);
  weights.rope_factors_long = at.vector(tensors.rope_factors_long);
  for (const LayerTensors& layer : tensors.layers) weights.layers.push_back(place_layer(layer, at));
  split_joint_matrices(tensors, at, loader, store.arena_, weights);
  return store;
}

}  // namespace offstage
