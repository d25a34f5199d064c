#include "plan/planned_model.h"

#include <fmt/format.h>

#include <deque>
#include <initializer_list>
#include <numeric>

#include "base/checked_math.h"
#include "runtime/start_probe.h"

namespace offstage {
namespace {

// In front of the tensors: metadata and the vocabulary. Only where a read begins depends on it.
constexpr uint64_t kHeaderBytes = 6ull << 20;
constexpr uint64_t kAlignmentBytes = 32;  // GGUF's default

// Writes the directory that a file of the spec would have. Addresses stay: a deque.
class DirectoryWriter {
 public:
  DirectoryWriter(const ModelSpec& spec, bool tied, QuantMix mix, std::deque<GgufTensor>& directory)
      : spec_(spec), tied_(tied), mix_(mix), directory_(directory) {}

  const GgufTensor* add(std::string name, std::initializer_list<uint64_t> dims) {
    GgufTensor tensor;
    tensor.name = std::move(name);
    tensor.n_dims = static_cast<uint32_t>(dims.size());
    std::copy(dims.begin(), dims.end(), tensor.dims.begin());
    tensor.type = mixed_type(mix_, tensor, spec_, tied_);
    tensor.bytes = row_bytes(tensor.type, tensor.dims[0]) * (tensor.elements() / tensor.dims[0]);
    tensor.offset = end_;
    end_ = round_up(end_ + tensor.bytes, kAlignmentBytes);
    return &directory_.emplace_back(std::move(tensor));
  }
  const GgufTensor* add_if(bool present, std::string name, std::initializer_list<uint64_t> dims) {
    return present ? add(std::move(name), dims) : nullptr;
  }
  uint64_t end() const { return end_; }

 private:
  const ModelSpec& spec_;
  const bool tied_;
  const QuantMix mix_;
  std::deque<GgufTensor>& directory_;
  uint64_t end_ = kHeaderBytes;
};

void write_gqa(const ModelSpec& spec, const std::string& block, DirectoryWriter& out,
               LayerTensors& layer) {
  const AttentionSpec& attention = spec.attention;
  const uint64_t hidden = spec.hidden;
  layer.q = out.add(block + "attn_q.weight", {hidden, spec.q_width()});
  layer.k = out.add(block + "attn_k.weight", {hidden, spec.k_width()});
  layer.v = out.add(block + "attn_v.weight", {hidden, spec.v_width()});
  layer.o = out.add(block + "attn_output.weight", {spec.o_width(), hidden});
  const bool whole = attention.qk_norm == QkNorm::kWhole;
  const bool normed = attention.qk_norm != QkNorm::kNone;
  layer.q_norm = out.add_if(normed, block + "attn_q_norm.weight",
                            {whole ? spec.q_width() : attention.head_dim_k});
  layer.k_norm = out.add_if(normed, block + "attn_k_norm.weight",
                            {whole ? spec.k_width() : attention.head_dim_k});
  layer.q_bias = out.add_if(attention.qkv_bias, block + "attn_q.bias", {spec.q_width()});
  layer.k_bias = out.add_if(attention.qkv_bias, block + "attn_k.bias", {spec.k_width()});
  layer.v_bias = out.add_if(attention.qkv_bias, block + "attn_v.bias", {spec.v_width()});
  layer.o_bias = out.add_if(attention.o_bias, block + "attn_output.bias", {hidden});
  layer.sinks = out.add_if(attention.sinks, block + "attn_sinks.weight", {attention.n_heads});
}

void write_mla(const ModelSpec& spec, const std::string& block, DirectoryWriter& out,
               LayerTensors& layer) {
  const MlaSpec& mla = spec.attention.mla;
  const uint64_t n_heads = spec.attention.n_heads, hidden = spec.hidden;
  const uint64_t q_width = n_heads * mla.head_dim();
  if (mla.q_rank == 0) {
    layer.q = out.add(block + "attn_q.weight", {hidden, q_width});
  } else {
    layer.mla.q_a = out.add(block + "attn_q_a.weight", {hidden, mla.q_rank});
    layer.mla.q_a_norm = out.add(block + "attn_q_a_norm.weight", {mla.q_rank});
    layer.mla.q_b = out.add(block + "attn_q_b.weight", {mla.q_rank, q_width});
  }
  layer.mla.kv_a = out.add(block + "attn_kv_a_mqa.weight", {hidden, mla.row_dim()});
  layer.mla.kv_a_norm = out.add(block + "attn_kv_a_norm.weight", {mla.kv_rank});
  layer.mla.k_b = out.add(block + "attn_k_b.weight", {mla.nope_dim, mla.kv_rank, n_heads});
  layer.mla.v_b = out.add(block + "attn_v_b.weight", {mla.kv_rank, mla.v_dim, n_heads});
  layer.o = out.add(block + "attn_output.weight", {n_heads * mla.v_dim, hidden});
}

FfnTensors write_ffn(const std::string& block, std::string_view suffix, uint64_t hidden,
                     uint64_t ffn, DirectoryWriter& out) {
  return {out.add(fmt::format("{}ffn_gate{}.weight", block, suffix), {hidden, ffn}),
          out.add(fmt::format("{}ffn_up{}.weight", block, suffix), {hidden, ffn}),
          out.add(fmt::format("{}ffn_down{}.weight", block, suffix), {ffn, hidden})};
}

void write_moe(const ModelSpec& spec, const std::string& block, DirectoryWriter& out,
               LayerTensors& layer) {
  const RouterSpec& router = spec.router;
  const uint64_t n = router.n_experts, ffn = spec.expert_ffn, hidden = spec.hidden;
  layer.router = out.add(block + "ffn_gate_inp.weight", {hidden, n});
  layer.router_bias = out.add_if(router.bias, block + "ffn_gate_inp.bias", {n});
  layer.selection_bias = out.add_if(router.selection_bias, block + "exp_probs_b.bias", {n});
  layer.gate_experts = out.add(block + "ffn_gate_exps.weight", {hidden, ffn, n});
  layer.up_experts = out.add(block + "ffn_up_exps.weight", {hidden, ffn, n});
  layer.down_experts = out.add(block + "ffn_down_exps.weight", {ffn, hidden, n});
  layer.gate_bias = out.add_if(spec.expert_bias, block + "ffn_gate_exps.bias", {ffn, n});
  layer.up_bias = out.add_if(spec.expert_bias, block + "ffn_up_exps.bias", {ffn, n});
  layer.down_bias = out.add_if(spec.expert_bias, block + "ffn_down_exps.bias", {hidden, n});
  if (spec.shared_ffn != 0) layer.shared = write_ffn(block, "_shexp", hidden, spec.shared_ffn, out);
  layer.shared_gate_input =
      out.add_if(spec.shared_gate, block + "ffn_gate_inp_shexp.weight", {hidden});
}

LayerTensors write_layer(const ModelSpec& spec, uint32_t index, DirectoryWriter& out) {
  const std::string block = fmt::format("blk.{}.", index);
  const bool biased = spec.norm == NormKind::kLayer;
  LayerTensors layer;
  layer.attn_norm = out.add(block + "attn_norm.weight", {spec.hidden});
  layer.attn_norm_bias = out.add_if(biased, block + "attn_norm.bias", {spec.hidden});
  if (spec.attention.mla.kv_rank != 0)
    write_mla(spec, block, out, layer);
  else
    write_gqa(spec, block, out, layer);
  layer.ffn_norm = out.add(block + "ffn_norm.weight", {spec.hidden});
  layer.ffn_norm_bias = out.add_if(biased, block + "ffn_norm.bias", {spec.hidden});
  if (spec.is_dense_layer(index))
    layer.dense = write_ffn(block, "", spec.hidden, spec.dense_ffn, out);
  else
    write_moe(spec, block, out, layer);
  return layer;
}

ModelTensors write_directory(const ModelSpec& spec, bool tied, DirectoryWriter& out) {
  const uint64_t hidden = spec.hidden, n_vocab = spec.n_vocab;
  ModelTensors tensors;
  tensors.embedding = out.add("token_embd.weight", {hidden, n_vocab});
  tensors.output_norm = out.add("output_norm.weight", {hidden});
  tensors.output_norm_bias =
      out.add_if(spec.norm == NormKind::kLayer, "output_norm.bias", {hidden});
  tensors.output = tied ? tensors.embedding : out.add("output.weight", {hidden, n_vocab});
  tensors.output_bias = out.add_if(spec.output_bias, "output.bias", {n_vocab});
  for (uint32_t l = 0; l < spec.n_layers; ++l) tensors.layers.push_back(write_layer(spec, l, out));
  return tensors;
}

// Experts' tensors are numbered by layer and matrix: no index of hashes is opened here.
ExpertLayout lay_out(const ModelSpec& spec, const ModelTensors& tensors) {
  const uint32_t n_experts = spec.router.n_experts;
  std::vector<ExpertLayerFacts> layers;
  for (const LayerTensors& layer : tensors.layers) {
    if (!layer.has_experts()) continue;
    ExpertLayerFacts facts;
    const GgufTensor* const matrices[] = {layer.gate_experts, layer.up_experts, layer.down_experts};
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      facts[m].name = matrices[m]->name;
      facts[m].tensor = static_cast<uint32_t>(layers.size() * kExpertMatrices + m);
      facts[m].offset = matrices[m]->offset;
      facts[m].bytes_per_expert = matrices[m]->bytes / n_experts;
    }
    layers.push_back(std::move(facts));
  }
  return ExpertLayout(std::move(layers), n_experts);
}

}  // namespace

PlannedModel imagine_model(const ModelSpec& spec, bool tied_embedding, QuantMix mix) {
  auto directory = std::make_shared<std::deque<GgufTensor>>();
  DirectoryWriter writer(spec, tied_embedding, mix, *directory);
  PlannedModel model;
  model.name = spec.name;
  model.quant = quant_mix_name(mix);
  model.spec = spec;
  model.tied_embedding = tied_embedding;
  model.tensors = write_directory(spec, tied_embedding, writer);
  model.layout = lay_out(spec, model.tensors);
  model.file_bytes = {writer.end()};
  for (const GgufTensor& tensor : *directory) {
    model.total_params += tensor.elements();
    model.weights_bytes += tensor.bytes;
  }
  model.active_params = active_params(spec, model.tensors);
  model.owner = std::move(directory);
  return model;
}

PlannedModel planned_file(std::shared_ptr<const ModelFile> file) {
  PlannedModel model;
  model.name = file->spec.name;
  model.quant = "file";
  model.spec = file->spec;
  model.tensors = file->tensors;
  model.tied_embedding = file->tensors.output == file->tensors.embedding;
  model.layout = file->expert_layout();
  model.file_bytes = file->file_bytes();
  model.total_params = file->total_params();
  model.active_params = file->active_params();
  for (const GgufTensor& tensor : file->gguf.tensors()) model.weights_bytes += tensor.bytes;
  model.drive = kept_choice(*file);
  model.owner = std::move(file);
  return model;
}

PlannedModel over_drives(const PlannedModel& model, uint32_t n_drives) {
  const ExpertLayout& layout = model.layout;
  if (n_drives <= 1 || layout.n_layers() == 0) return model;
  std::vector<StorePiece> pieces;
  std::vector<ExpertLayerFacts> layers(layout.n_layers());
  for (uint32_t l = 0; l < layout.n_layers(); ++l)
    for (uint32_t e = 0; e < layout.n_experts(); ++e)
      for (uint32_t m = 0; m < kExpertMatrices; ++m) {
        const auto matrix = static_cast<ExpertMatrix>(m);
        const PieceId id = layout.piece(LayerIndex(l), ExpertId(e), matrix);
        const uint64_t bytes = layout.extent(LayerIndex(l), ExpertId(e), matrix).bytes;
        pieces.push_back({id, bytes});
        layers[l][m].name = layout.tensor_name(LayerIndex(l), matrix);
        layers[l][m].tensor = id.tensor;
        layers[l][m].bytes_per_expert = bytes;
      }
  const uint64_t n_hashes = pieces.size() + model.tensors.dense().size();
  const StoreLayout store = lay_out_store({}, n_hashes, std::move(pieces), n_drives);
  place_in_store(layers, layout.n_experts(), store, 0);
  PlannedModel striped = model;
  striped.layout = ExpertLayout(std::move(layers), layout.n_experts());
  striped.file_bytes.assign(n_drives, store.file_bytes);
  striped.drive_of_file.resize(n_drives);
  std::iota(striped.drive_of_file.begin(), striped.drive_of_file.end(), 0);
  return striped;
}

}  // namespace offstage
