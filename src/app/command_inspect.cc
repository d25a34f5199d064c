// offstage inspect: what a file holds, where every expert lies, and whether its bytes are right.
#include <memory>

#include "app/command.h"
#include "app/default_model.h"
#include "app/model_flags.h"
#include "app/run_report.h"
#include "app/terminal.h"
#include "base/units.h"
#include "runtime/kv_cache.h"
#include "runtime/verify.h"

namespace offstage {
namespace {

struct InspectFlags {
  std::string model;
  std::vector<std::string> drives;
  bool tensors = false, experts = false, verify = false, json = false;
};

// The figures a person asks for first.
struct Card {
  const ModelFile& file;
  ExpertLayout layout;
  uint64_t dense_bytes = 0, kv_bytes_per_1k = 0;
  uint64_t expert_bytes = 0;  // of one; 0 in a dense model
  uint32_t windowed_layers = 0;

  explicit Card(const ModelFile& f) : file(f), layout(f.expert_layout()) {
    for (const GgufTensor* tensor : f.tensors.dense()) dense_bytes += tensor->bytes;
    const auto shape = KvCache::shape_of(f.spec, KvType::kF16, KvType::kF16);
    kv_bytes_per_1k = shape.page_bytes() * (1024 / kKvBlockPositions);
    if (layout.n_layers() != 0) expert_bytes = layout.expert_bytes(LayerIndex(0));
    for (uint32_t l = 0; l < f.spec.n_layers; ++l)
      if (f.spec.attention.window_of(l) != 0) ++windowed_layers;
  }
};

std::string heads_of(const AttentionSpec& attention) {
  const MlaSpec& mla = attention.mla;
  if (mla.kv_rank == 0)
    return fmt::format("{} heads ({} KV) of {}", attention.n_heads, attention.n_kv_heads,
                       attention.head_dim_k);
  return fmt::format("{} heads of {} (K) and {} (V) on one latent of {} + {}", attention.n_heads,
                     mla.head_dim(), mla.v_dim, mla.kv_rank, mla.rope_dim);
}

void print_ffn(const ModelSpec& spec) {
  if (spec.n_dense_layers != 0)
    fmt::print("  dense FFN      {} of {} layers, width {}\n", spec.n_dense_layers, spec.n_layers,
               spec.dense_ffn);
  if (spec.n_moe_layers() != 0)
    fmt::print("  experts        {} per layer in {} layers, top-{}, width {}{}\n",
               spec.router.n_experts, spec.n_moe_layers(), spec.router.n_used, spec.expert_ffn,
               spec.shared_ffn == 0 ? "" : fmt::format(", shared width {}", spec.shared_ffn));
  if (spec.n_unused_layers != 0)
    fmt::print("  not computed   {} layer(s) that predict further tokens\n", spec.n_unused_layers);
}

void print_card(const Card& card) {
  const ModelSpec& spec = card.file.spec;
  fmt::print("{}\n", spec.name);
  fmt::print("  architecture   {}\n", spec.architecture);
  fmt::print("  parameters     {} total, {} active per token\n",
             format_count(card.file.total_params()), format_count(card.file.active_params()));
  fmt::print("  layers         {} of width {}, {}\n", spec.n_layers, spec.hidden,
             heads_of(spec.attention));
  print_ffn(spec);
  fmt::print("  vocabulary     {}, context {}\n", spec.n_vocab, spec.context_train);
  fmt::print("  file           {} in {} shard(s)\n",
             format_bytes(card.file.gguf.total_file_bytes()), card.file.gguf.shards().size());
  if (card.file.store)
    fmt::print("  packed         {} in each of {} drive(s): {}\n",
               format_bytes(card.file.store->layout.file_bytes), card.file.store->paths.size(),
               fmt::join(card.file.store->paths, ", "));
  if (card.layout.n_layers() != 0)
    fmt::print("  on the drive   {} of experts ({} each), cached in RAM\n",
               format_bytes(card.layout.total_expert_bytes()), format_bytes(card.expert_bytes));
  fmt::print("  always in RAM  {}\n", format_bytes(card.dense_bytes));
  // Every position is kept in every layer: another sequence's rows may still need an old one.
  fmt::print("  KV cache       {} per 1k tokens (f16){}\n", format_bytes(card.kv_bytes_per_1k),
             card.windowed_layers == 0
                 ? ""
                 : fmt::format("; {} of {} layers read only the last {} positions of it",
                               card.windowed_layers, spec.n_layers, spec.attention.window));
}

void print_tensors(const GgufModel& gguf) {
  for (const GgufTensor& tensor : gguf.tensors())
    fmt::print("{:<40} {:<6} [{}] shard {} offset {} bytes {}\n", tensor.name,
               tensor_type_traits(tensor.type).name,
               fmt::join(tensor.dims.begin(), tensor.dims.begin() + tensor.n_dims, ", "),
               tensor.shard, tensor.offset, tensor.bytes);
}

// Layers are counted as the file counts its blocks.
template <typename Each>
void for_each_expert_extent(const Card& card, Each&& each) {
  const ExpertLayout& layout = card.layout;
  const uint32_t first = card.file.spec.n_dense_layers;
  for (uint32_t l = 0; l < layout.n_layers(); ++l)
    for (uint32_t e = 0; e < layout.n_experts(); ++e)
      for (uint32_t m = 0; m < kExpertMatrices; ++m) {
        const auto matrix = static_cast<ExpertMatrix>(m);
        each(first + l, e, layout.tensor_name(LayerIndex(l), matrix),
             layout.extent(LayerIndex(l), ExpertId(e), matrix));
      }
}

nlohmann::ordered_json card_json(const Card& card) {
  const ModelSpec& spec = card.file.spec;
  nlohmann::ordered_json json;
  json["schema"] = "offstage.inspect/1";
  json["model"] = card.file.gguf.path();
  json["name"] = spec.name;
  json["architecture"] = spec.architecture;
  json["total_params"] = card.file.total_params();
  json["active_params"] = card.file.active_params();
  json["layers"] = spec.n_layers;
  json["hidden"] = spec.hidden;
  json["dense_layers"] = spec.n_dense_layers;
  json["unused_layers"] = spec.n_unused_layers;
  json["experts_per_layer"] = spec.router.n_experts;
  json["experts_used"] = spec.router.n_used;
  json["expert_width"] = spec.expert_ffn;
  json["shared_width"] = spec.shared_ffn;
  json["dense_width"] = spec.dense_ffn;
  json["vocabulary"] = spec.n_vocab;
  json["context"] = spec.context_train;
  json["file_bytes"] = card.file.gguf.total_file_bytes();
  json["experts_bytes"] = card.layout.total_expert_bytes();
  json["expert_bytes"] = card.expert_bytes;
  json["dense_bytes"] = card.dense_bytes;
  json["kv_bytes_per_1k_tokens"] = card.kv_bytes_per_1k;
  json["windowed_layers"] = card.windowed_layers;
  json["window"] = spec.attention.window;
  return json;
}

void add_listings(const InspectFlags& flags, const Card& card, nlohmann::ordered_json& json) {
  if (flags.tensors) {
    auto list = nlohmann::ordered_json::array();
    for (const GgufTensor& tensor : card.file.gguf.tensors())
      list.push_back(
          {{"name", tensor.name},
           {"type", tensor_type_traits(tensor.type).name},
           {"shape", std::vector(tensor.dims.begin(), tensor.dims.begin() + tensor.n_dims)},
           {"shard", tensor.shard},
           {"offset", tensor.offset},
           {"bytes", tensor.bytes}});
    json["tensors"] = std::move(list);
  }
  if (flags.experts) {
    auto list = nlohmann::ordered_json::array();
    for_each_expert_extent(card, [&](uint32_t layer, uint32_t expert, const std::string& tensor,
                                     const Extent& extent) {
      list.push_back({{"layer", layer},
                      {"expert", expert},
                      {"tensor", tensor},
                      {"shard", extent.file},
                      {"offset", extent.offset},
                      {"bytes", extent.bytes}});
      if (extent.stripe_bytes == 0) return;
      list.back()["stripe_bytes"] = extent.stripe_bytes;
      list.back()["first_stripe_shard"] = stripe_file(extent, 0);
    });
    json["expert_extents"] = std::move(list);
  }
}

Result<VerifyReport> verify(const ModelFile& file, Notices& notices) {
  OFFSTAGE_TRY(HashIndex index, file.open_index(notices));
  IoEngineOptions io;
  io.paths = file.paths();
  OFFSTAGE_TRY(const auto engine, open_io_engine(io, notices));
  ProgressBar bar("verify");
  OFFSTAGE_TRY(VerifyReport report,
               verify_model(file, index, *engine, notices, &install_interrupt_flag(),
                            [&](uint64_t done, uint64_t total) { bar.update(done, total); }));
  bar.finish();
  OFFSTAGE_TRY_VOID(index.save(notices));
  return report;
}

void print_verify(const VerifyReport& report) {
  fmt::print("  verified       {} pieces, {}: {} agree with the index, {} added, {} mismatches\n",
             report.pieces, format_bytes(report.bytes), report.already_known, report.added,
             report.mismatch_count);
  for (const std::string& line : report.mismatches) fmt::print("  mismatch       {}\n", line);
}

nlohmann::ordered_json verify_json(const VerifyReport& report) {
  return {{"pieces", report.pieces},
          {"bytes", report.bytes},
          {"already_known", report.already_known},
          {"added", report.added},
          {"mismatch_count", report.mismatch_count},
          {"mismatches", report.mismatches}};
}

Result<int> inspect(const InspectFlags& flags) {
  OFFSTAGE_TRY(const std::string model, model_or_default(flags.model));
  OFFSTAGE_TRY(const auto file, ModelFile::open(model, flags.drives));
  const Card card(*file);
  Notices notices;
  NoticePrinter printer(notices);
  nlohmann::ordered_json json = card_json(card);
  if (!flags.json) print_card(card);
  VerifyReport report;
  if (flags.verify) {
    OFFSTAGE_TRY(report, verify(*file, notices));
    printer.print();
    json["verify"] = verify_json(report);
    if (!flags.json) print_verify(report);
  }
  if (flags.json) {
    add_listings(flags, card, json);
    json["fallbacks"] = notices_json(notices);
    print_json(json);
  } else {
    if (flags.tensors) print_tensors(file->gguf);
    if (flags.experts)
      for_each_expert_extent(card, [](uint32_t layer, uint32_t expert, const std::string& tensor,
                                      const Extent& extent) {
        fmt::print("layer {} expert {} {} shard {} offset {} bytes {}{}\n", layer, expert, tensor,
                   extent.file, extent.offset, extent.bytes,
                   extent.stripe_bytes == 0
                       ? ""
                       : fmt::format(" in stripes of {}, the first in shard {}",
                                     extent.stripe_bytes, stripe_file(extent, 0)));
      });
  }
  return report.mismatch_count == 0 ? kExitOk : kExitError;
}

}  // namespace

void add_inspect_command(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = app.add_subcommand("inspect", "model card, tensors, experts, hashes");
  add_model_flag(*command, flags->model);
  add_drive_flag(*command, flags->drives, kReadDrivesHelp);
  command->add_flag("--tensors", flags->tensors, "list every tensor");
  command->add_flag("--experts", flags->experts, "list every expert's extents");
  command->add_flag("--verify", flags->verify,
                    "read the whole file against the hash index, and fill the index");
  command->add_flag("--json", flags->json, "one JSON object");
  command->callback([flags, &chosen] { chosen = [flags] { return inspect(*flags); }; });
}

}  // namespace offstage
