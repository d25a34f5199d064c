// offstage eval: how well a model predicts a text (mean NLL, perplexity).
#include <algorithm>
#include <cmath>
#include <memory>

#include "app/command.h"
#include "app/model_flags.h"
#include "app/open_runtime.h"
#include "app/run_report.h"
#include "app/terminal.h"
#include "runtime/session.h"

namespace offstage {
namespace {

struct EvalFlags {
  ModelFlags model;
  std::string file, prompt;
  uint32_t top = 0;
  bool json = false;
};

struct Best {
  TokenId id;
  double log_probability;
};

struct Scores {
  std::vector<double> nll;              // one per predicted position
  std::vector<std::vector<Best>> best;  // beside it, with --top
};

// log Σ exp(logit), in double: the reference's precision, outside the forward pass.
double log_sum_exp(std::span<const float> logits) {
  const double top = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - top);
  return top + std::log(sum);
}

std::vector<Best> best_of(std::span<const float> logits, double log_sum, uint32_t n) {
  std::vector<TokenId> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i);
  n = std::min<uint32_t>(n, static_cast<uint32_t>(ids.size()));
  const auto logit = [&](TokenId id) { return logits[static_cast<size_t>(id)]; };
  std::partial_sort(ids.begin(), ids.begin() + n, ids.end(), [&](TokenId a, TokenId b) {
    return logit(a) != logit(b) ? logit(a) > logit(b) : a < b;
  });
  std::vector<Best> best;
  for (uint32_t i = 0; i < n; ++i)
    best.push_back({ids[i], static_cast<double>(logit(ids[i])) - log_sum});
  return best;
}

// The text is cut into windows of the context; each is scored on its own, all but its first token.
Status score(Runtime& runtime, const std::vector<TokenId>& tokens, const EvalFlags& flags,
             const std::atomic<bool>& interrupted, Scores& scores) {
  ProgressBar bar("eval");
  const size_t context = runtime.options().context;
  for (size_t begin = 0; begin < tokens.size(); begin += context) {
    const size_t n = std::min(context, tokens.size() - begin);
    const std::span<const TokenId> window(tokens.data() + begin, n);
    Session session(runtime, SequenceId(0));
    const LogitsSink sink = [&](size_t i, std::span<const float> logits) {
      bar.update(begin + i, tokens.size());
      if (i + 1 >= window.size()) return;
      const double log_sum = log_sum_exp(logits);
      scores.nll.push_back(log_sum -
                           static_cast<double>(logits[static_cast<size_t>(window[i + 1])]));
      if (flags.top != 0) scores.best.push_back(best_of(logits, log_sum, flags.top));
    };
    OFFSTAGE_TRY_VOID(session.score(window, sink, &interrupted));
  }
  return {};
}

nlohmann::ordered_json eval_json(const Runtime& runtime, const std::vector<TokenId>& tokens,
                                 const Scores& scores, double mean, const Notices& notices) {
  nlohmann::ordered_json json;
  json["schema"] = "offstage.eval/1";
  json["model"] = runtime.file().gguf.path();
  json["context"] = runtime.options().context;
  json["tokens"] = tokens;
  json["nll"] = scores.nll;
  json["mean_nll"] = mean;
  json["perplexity"] = std::exp(mean);
  if (!scores.best.empty()) {
    auto top = nlohmann::ordered_json::array();
    for (const auto& position : scores.best) {
      auto entries = nlohmann::ordered_json::array();
      for (const Best& best : position)
        entries.push_back({{"id", best.id}, {"logprob", best.log_probability}});
      top.push_back(std::move(entries));
    }
    json["top"] = std::move(top);
  }
  json["isa"] = isa_name(runtime.kernels().isa);
  json["fallbacks"] = notices_json(notices);
  return json;
}

Result<int> eval(const EvalFlags& flags) {
  if (flags.model.context < 2)
    return make_error(ErrorCode::kInvalidArgument,
                      "-c: a context of {} has room for no prediction; at least 2 are needed",
                      flags.model.context);
  if (flags.prompt.empty() == flags.file.empty())
    return make_error(ErrorCode::kInvalidArgument, "give the text with -f or with -p");
  std::string text = flags.prompt;
  if (!flags.file.empty()) {
    OFFSTAGE_TRY(text, read_text_file(flags.file));
  }
  Notices notices;
  NoticePrinter printer(notices);
  OFFSTAGE_TRY(const auto runtime, open_runtime(flags.model, notices));
  printer.skip(notices.list().size());
  const auto tokens = runtime->tokenizer().encode(text, {true, false});
  if (tokens.size() < 2)
    return make_error(ErrorCode::kInvalidArgument,
                      "the text has {} tokens; at least 2 are needed to predict one",
                      tokens.size());
  const std::atomic<bool>& interrupted = install_interrupt_flag();
  Scores scores;
  OFFSTAGE_TRY_VOID(score(*runtime, tokens, flags, interrupted, scores));
  double sum = 0;
  for (const double nll : scores.nll) sum += nll;
  const double mean = sum / static_cast<double>(scores.nll.size());
  OFFSTAGE_TRY_VOID(runtime->save_index(notices));  // before the report, which lists what it says
  if (flags.json) {
    print_json(eval_json(*runtime, tokens, scores, mean, notices));
  } else {
    fmt::print("{} tokens, {} predicted: mean NLL {:.6f}, perplexity {:.4f}\n", tokens.size(),
               scores.nll.size(), mean, std::exp(mean));
  }
  printer.print();
  return kExitOk;
}

}  // namespace

void add_eval_command(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = app.add_subcommand("eval", "mean NLL and perplexity of a text");
  flags->model.add_to(*command);
  command->add_option("-f,--file", flags->file, "text from a file, - for stdin");
  command->add_option("-p,--prompt", flags->prompt, "text");
  command->add_option("--top", flags->top, "with --json: the best N ids of each position")
      ->check(CLI::Range(0u, 1000u));
  command->add_flag("--json", flags->json, "one JSON object with every position's NLL");
  command->callback([flags, &chosen] { chosen = [flags] { return eval(*flags); }; });
}

}  // namespace offstage
