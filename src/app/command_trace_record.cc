// offstage trace record: the experts that a model's router calls for a text.
#include <algorithm>
#include <memory>

#include "app/command.h"
#include "app/model_flags.h"
#include "app/open_runtime.h"
#include "app/run_report.h"
#include "app/terminal.h"
#include "runtime/session.h"

namespace offstage {
namespace {

struct RecordFlags {
  ModelFlags model;
  std::string file, prompt, out;
  uint32_t n_predict = 0;
  bool gate_accuracy = false, json = false;
};

// The text is cut into windows that leave room for what is generated after each: a sequence of its
// own. All n tokens that a window is continued with go through the model too.
Status record(Runtime& runtime, std::span<const TokenId> tokens, uint32_t n_predict,
              const std::atomic<bool>& interrupted) {
  ProgressBar bar("record");
  Sampler sampler({.temperature = 0}, runtime.spec().n_vocab);
  GenerateOptions options;
  options.max_tokens = n_predict == 0 ? 0 : n_predict + 1;
  options.cancel = &interrupted;
  const size_t window = runtime.options().context - n_predict;
  for (size_t begin = 0; begin < tokens.size() && !interrupted; begin += window) {
    options.on_prefill = [&](uint32_t done, uint32_t) { bar.update(begin + done, tokens.size()); };
    Session session(runtime, SequenceId(0));
    OFFSTAGE_TRY(const Generation generation,
                 session.generate(tokens.subspan(begin, std::min(window, tokens.size() - begin)),
                                  sampler, options));
  }
  return {};
}

nlohmann::ordered_json gate_json(const GateAccuracy& gate, uint32_t n_layers) {
  auto json = nlohmann::ordered_json::array();
  for (uint32_t ahead = 1; ahead <= GateAccuracy::kAheadMax; ++ahead) {
    auto layers = nlohmann::ordered_json::array();
    for (uint32_t l = ahead; l < n_layers; ++l)
      layers.push_back({{"layer", l}, {"recall", gate.recall(ahead, LayerIndex(l)).value()}});
    json.push_back({{"layers_ahead", ahead},
                    {"recall", gate.mean(ahead).value()},
                    {"per_layer", std::move(layers)}});
  }
  return json;
}

void print_gate(const GateAccuracy& gate, const ModelSpec& spec) {
  fmt::print("{:>6} {:>12} {:>12}\n", "layer", "one ahead", "two ahead");
  const auto percent = [](const GateAccuracy::Recall& recall) {
    return recall.called == 0 ? std::string("-") : fmt::format("{:.1f} %", 100 * recall.value());
  };
  for (uint32_t l = 1; l < spec.n_moe_layers(); ++l)
    fmt::print("{:>6} {:>12} {:>12}\n", l, percent(gate.recall(1, LayerIndex(l))),
               percent(gate.recall(2, LayerIndex(l))));
  fmt::print("{:>6} {:>12} {:>12}\n", "all", percent(gate.mean(1)), percent(gate.mean(2)));
  fmt::print(
      "recall@{}: called experts that the layer's own gate named on the stream of one or "
      "two layers earlier; by chance {:.1f} %\n",
      spec.router.n_used, 100.0 * spec.router.n_used / spec.router.n_experts);
}

nlohmann::ordered_json record_json(const Runtime& runtime, const RecordFlags& flags,
                                   const GateAccuracy* gate, const Notices& notices) {
  const ModelSpec& spec = runtime.spec();
  nlohmann::ordered_json json;
  json["schema"] = "offstage.trace_record/1";
  json["model"] = runtime.file().gguf.path();
  json["trace"] = flags.out;
  json["tokens"] = runtime.route_recorder()->n_tokens();
  json["layers"] = spec.n_moe_layers();
  json["experts_per_layer"] = spec.router.n_experts;
  json["experts_used"] = spec.router.n_used;
  if (gate != nullptr) json["gate_accuracy"] = gate_json(*gate, spec.n_moe_layers());
  json["fallbacks"] = notices_json(notices);
  return json;
}

Result<std::string> text_of(const RecordFlags& flags) {
  if (flags.prompt.empty() == flags.file.empty())
    return make_error(ErrorCode::kInvalidArgument, "give the text with -f or with -p");
  if (flags.n_predict >= flags.model.context)
    return make_error(ErrorCode::kInvalidArgument,
                      "-n: {} tokens after each window leave no room for the text in a context of "
                      "{}; raise -c",
                      flags.n_predict, flags.model.context);
  if (!flags.file.empty()) return read_text_file(flags.file);
  return flags.prompt;
}

Result<int> trace_record(const RecordFlags& flags) {
  OFFSTAGE_TRY(const std::string text, text_of(flags));
  Notices notices;
  NoticePrinter printer(notices);
  OFFSTAGE_TRY(const auto runtime, open_runtime(flags.model, notices));
  printer.skip(notices.list().size());
  const auto tokens = runtime->tokenizer().encode(text, {true, false});
  if (tokens.empty()) return make_error(ErrorCode::kInvalidArgument, "the text has no token");
  OFFSTAGE_TRY_VOID(runtime->record_routes(flags.out));
  const GateAccuracy* gate = flags.gate_accuracy ? &runtime->measure_gate() : nullptr;
  const std::atomic<bool>& interrupted = install_interrupt_flag();
  OFFSTAGE_TRY_VOID(record(*runtime, tokens, flags.n_predict, interrupted));
  OFFSTAGE_TRY_VOID(runtime->close_route_record());
  OFFSTAGE_TRY_VOID(runtime->save_index(notices));  // before the report, which lists what it says
  if (flags.json) {
    print_json(record_json(*runtime, flags, gate, notices));
  } else if (gate != nullptr) {
    print_gate(*gate, runtime->spec());
  }
  printer.print();
  fmt::print(stderr, "{}: {} tokens, {} layers, top-{} of {} experts\n", flags.out,
             runtime->route_recorder()->n_tokens(), runtime->spec().n_moe_layers(),
             runtime->spec().router.n_used, runtime->spec().router.n_experts);
  return interrupted ? kExitInterrupted : kExitOk;
}

}  // namespace

void add_trace_record_command(CLI::App& trace, Command& chosen) {
  auto flags = std::make_shared<RecordFlags>();
  CLI::App* command = trace.add_subcommand("record", "what a model's router calls for a text");
  flags->model.add_to(*command);
  command->add_option("-f,--file", flags->file, "text from a file, - for stdin");
  command->add_option("-p,--prompt", flags->prompt, "text");
  command->add_option("-o,--output,--out", flags->out, "trace to write")->required();
  command
      ->add_option("-n,--n-predict", flags->n_predict,
                   "tokens to generate (greedily) after each window of the text")
      ->capture_default_str();
  command->add_flag("--gate-accuracy", flags->gate_accuracy,
                    "how well each layer's gate names its experts one and two layers ahead");
  command->add_flag("--json", flags->json, "one JSON object on stdout");
  command->callback([flags, &chosen] { chosen = [flags] { return trace_record(*flags); }; });
}

}  // namespace offstage
