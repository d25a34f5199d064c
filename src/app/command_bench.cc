// offstage bench: prompt and generation speed, latency between tokens, and why the slow ones were.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>

#include "app/bench_compare.h"
#include "app/bench_report.h"
#include "app/bench_run.h"
#include "app/command.h"
#include "app/model_flags.h"
#include "app/open_runtime.h"
#include "app/report_data.h"
#include "app/report_page.h"
#include "app/run_forecast.h"
#include "app/run_report.h"
#include "app/terminal.h"
#include "app/timeline.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

struct BenchFlags {
  ModelFlags model;
  std::vector<std::string> ram = {""}, vram = {""};
  std::vector<uint32_t> threads = {0}, n_prompt = {512}, n_gen = {128}, n_depth = {0};
  uint32_t repetitions = 5;
  uint64_t seed = 1;
  std::string output = "md", text_file, csv_file, timeline_file, report_file;
  std::vector<std::string> compare;
  bool cold = false, no_warmup = false, json = false;
  CLI::Option* context_option = nullptr;

  std::vector<BenchTest> tests() const {
    std::vector<BenchTest> tests;
    for (const uint32_t depth : n_depth) {
      for (const uint32_t n : n_prompt)
        if (n != 0) tests.push_back({n, 0, depth});
      for (const uint32_t n : n_gen)
        if (n != 0) tests.push_back({0, n, depth});
    }
    return tests;
  }
  // Every combination of the lists, the last one's the fastest to change.
  std::vector<ModelFlags> sweep() const {
    std::vector<ModelFlags> settings;
    for (const std::string& one_ram : ram) {
      for (const std::string& one_vram : vram) {
        for (const uint32_t one_threads : threads) {
          settings.push_back(model);
          settings.back().ram = one_ram;
          settings.back().vram = one_vram;
          settings.back().threads = one_threads;
        }
      }
    }
    return settings;
  }
};

Result<BenchTokens> bench_tokens(const Runtime& runtime, const BenchFlags& flags) {
  BenchTokens tokens;
  tokens.seed = flags.seed;
  tokens.n_vocab = static_cast<uint32_t>(runtime.tokenizer().vocabulary_size());
  if (flags.text_file.empty()) return tokens;
  OFFSTAGE_TRY(const std::string text, read_text_file(flags.text_file));
  tokens.text = runtime.tokenizer().encode(text, {true, false});
  if (tokens.text.empty())
    return make_error(ErrorCode::kInvalidArgument, "{}: no text", flags.text_file);
  return tokens;
}

std::string text_of(const BenchFlags& flags) {
  return flags.text_file.empty() ? fmt::format("random, seed {}", flags.seed) : flags.text_file;
}

// A runtime for one setting of the sweep; `cold` opens another for every repetition.
class Bench {
 public:
  struct Results {
    std::vector<Json> rows;
    std::vector<Json> report;  // of the same tests; empty without --report
  };
  Bench(const BenchFlags& flags, ModelFlags model, RunForecast& forecast, Results& results)
      : flags_(flags), model_(std::move(model)), forecast_(forecast), results_(results) {}

  Status run(const std::atomic<bool>& interrupted) {
    for (const BenchTest& test : flags_.tests()) {
      BenchResult result;
      result.test = test;
      result.ram = model_.ram.empty() ? "default" : model_.ram;
      result.tokens_json = Json::array();
      OFFSTAGE_TRY_VOID(open());
      OFFSTAGE_TRY(const BenchTokens tokens, bench_tokens(*runtime_, flags_));
      std::optional<BenchSession> session;
      OFFSTAGE_TRY_VOID(begin(tokens, test, interrupted, session));
      if (!flags_.cold && !flags_.no_warmup) {
        BenchResult warmup = result;
        OFFSTAGE_TRY(const auto record, session->run_once(warmup));
        forecast_.add(record, test.n_depth, false);
      }
      std::vector<double> ram_ceilings;
      for (uint32_t r = 0; r < flags_.repetitions; ++r) {
        if (flags_.cold && r != 0) {
          session.reset();
          runtime_.reset();
          OFFSTAGE_TRY_VOID(open());
          OFFSTAGE_TRY_VOID(begin(tokens, test, interrupted, session));
        }
        ram_ceilings.push_back(measure_ram_ceiling(*runtime_));
        OFFSTAGE_TRY(const auto record, session->run_once(result));
        forecast_.add(record, test.n_depth);
      }
      if (!flags_.timeline_file.empty())
        OFFSTAGE_TRY_VOID(write_timeline(flags_.timeline_file, result.prompts.back(),
                                         std::span(result.tokens).last(test.n_gen), *runtime_));
      result.ceilings = measure_ceilings(*runtime_, ram_ceilings);
      result.spikes = explain_spikes(result.tokens, model_.spikes, runtime_->drive_names());
      OFFSTAGE_TRY_VOID(runtime_->save_index(*notices_));
      result.forecast = forecast_.make(*runtime_, "bench " + test.name(), *notices_);
      if (result.forecast) fmt::print(stderr, "{}", forecast_.line(result.forecast));
      results_.rows.push_back(
          bench_json(*runtime_, result, text_of(flags_), flags_.cold, *notices_));
      if (!flags_.report_file.empty()) OFFSTAGE_TRY_VOID(add_to_report(result));
      session.reset();
      if (flags_.cold) runtime_.reset();
    }
    return {};
  }

 private:
  Status open() {
    if (runtime_) return {};
    notices_.emplace();
    OFFSTAGE_TRY(runtime_, open_runtime(model_, *notices_));
    return {};
  }

  // What is in front of the repetitions counts as a forecast's warm-up.
  Status begin(const BenchTokens& tokens, const BenchTest& test,
               const std::atomic<bool>& interrupted, std::optional<BenchSession>& session) {
    forecast_.begin(*runtime_);
    session.emplace(*runtime_, tokens, test, interrupted);
    if (test.n_depth == 0) return {};
    OFFSTAGE_TRY(const auto record, session->fill());
    forecast_.add(record, 0, false);
    return {};
  }

  Status add_to_report(const BenchResult& result) {
    ReportRun run = {.ceilings = result.ceilings, .spikes = result.spikes, .notices = *notices_};
    run.name = fmt::format("{}, --ram {}{}, {} threads, cache {}", result.test.name(), result.ram,
                           model_.vram.empty() ? "" : fmt::format(", --vram {}", model_.vram),
                           runtime_->threads(), flags_.cold ? "cold" : "warm");
    run.are_prompts = result.test.n_gen == 0;
    run.records = run.are_prompts ? result.prompts : result.tokens;
    run.repetitions = static_cast<uint32_t>(result.samples_ns.size());
    const std::vector<double> ttft_ns(result.ttft_ns.begin(), result.ttft_ns.end());
    run.ttft_ms = mean_of(ttft_ns) / 1e6;
    run.tokens_per_s = result.mean_tokens_per_s();
    OFFSTAGE_TRY(results_.report.emplace_back(), report_run(*runtime_, run));
    return {};
  }

  const BenchFlags& flags_;
  ModelFlags model_;
  RunForecast& forecast_;
  Results& results_;
  std::optional<Notices> notices_;  // of the runtime, which refers to them
  std::unique_ptr<Runtime> runtime_;
};

void print_rows(const BenchFlags& flags, const std::vector<Json>& rows) {
  if (flags.json) {
    print_json({{"schema", kBenchSchema}, {"results", rows}});
  } else if (flags.output == "json") {
    print_json(Json(rows));
  } else if (flags.output == "jsonl") {
    for (const Json& row : rows) print_json(row);
  } else {
    fmt::print("{}", flags.output == "csv" ? bench_csv(rows) : bench_markdown(rows));
  }
  std::fflush(stdout);
}

Status write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return make_error(ErrorCode::kIo, "{}: cannot write {} bytes", path, text.size());
  return {};
}

Result<int> bench(BenchFlags flags) {
  if (!flags.compare.empty()) {
    OFFSTAGE_TRY(const std::string text, compare_benches(flags.compare[0], flags.compare[1]));
    fmt::print("{}", text);
    return kExitOk;
  }
  const std::vector<BenchTest> tests = flags.tests();
  if (tests.empty()) return make_error(ErrorCode::kInvalidArgument, "-p 0 and -n 0: no test");
  uint32_t positions = 0;
  for (const BenchTest& test : tests) positions = std::max(positions, test.positions());
  if (flags.context_option->count() == 0) flags.model.context = positions;
  if (!flags.timeline_file.empty()) flags.model.record = "read";
  if (!flags.report_file.empty()) flags.model.record_layers();
  if (flags.cold) flags.model.no_warm_start = flags.model.no_preload = true;

  const std::atomic<bool>& interrupted = install_interrupt_flag();
  RunForecast forecast(!flags.model.no_forecast);
  flags.model.keep_first_routes = forecast.is_on();
  // What isn't a size is said before anything is measured.
  const std::vector<ModelFlags> sweep = flags.sweep();
  for (const ModelFlags& setting : sweep) OFFSTAGE_TRY_VOID(setting.parse());
  Bench::Results results;
  Status status;
  for (const ModelFlags& setting : sweep) {
    if (status) status = Bench(flags, setting, forecast, results).run(interrupted);
  }
  if (!forecast.is_on()) fmt::print(stderr, "{}", forecast.line(std::nullopt));
  const std::vector<Json>& rows = results.rows;
  if (status || !rows.empty()) print_rows(flags, rows);  // what was measured before an error too
  if (status && !flags.csv_file.empty()) status = write_file(flags.csv_file, records_csv(rows));
  if (status && !flags.report_file.empty())
    status = write_report(flags.report_file, report_json(std::move(results.report)));
  OFFSTAGE_TRY_VOID(std::move(status));
  return kExitOk;
}

}  // namespace

void add_bench_command(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command =
      app.add_subcommand("bench", "speed, latency between tokens, and the cause of the slow ones");
  flags->model.add_to(*command);
  flags->model.add_measuring_to(*command);
  flags->context_option = command->get_option("--ctx-size");
  // Lists here: a sweep over all of them.
  command->remove_option(command->get_option("--ram"));
  const std::string vram_help = command->get_option("--vram")->get_description();
  command->remove_option(command->get_option("--vram"));
  command->remove_option(command->get_option("--threads"));
  command->add_option("--ram", flags->ram, "host memory, or a list of it: 2G,4G")->delimiter(',');
  command->add_option("--vram", flags->vram, vram_help + "; or a list of it: 0,8G")->delimiter(',');
  command->add_option("-t,--threads", flags->threads, "compute threads, or a list")
      ->check(CLI::Range(0u, 1024u))
      ->delimiter(',');
  command->add_option("-p,--n-prompt", flags->n_prompt, "prompt lengths; 0: none")
      ->check(CLI::Range(0u, 1u << 24))
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("-n,--n-gen", flags->n_gen, "tokens one by one; 0: none")
      ->check(CLI::Range(0u, 1u << 24))
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("-d,--n-depth", flags->n_depth,
                   "tokens in front of each test, which don't count")
      ->check(CLI::Range(0u, 1u << 24))
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("-r,--repetitions", flags->repetitions, "of each test")
      ->check(CLI::Range(1u, 1u << 20))
      ->capture_default_str();
  command->add_option("-o,--output", flags->output, "md, csv, json or jsonl")
      ->check(CLI::IsMember({"md", "csv", "json", "jsonl"}))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "one object with all results");
  command->add_option("-f,--file", flags->text_file, "a text to read (default: random tokens)");
  command->add_option("-s,--seed", flags->seed, "of the random tokens")->capture_default_str();
  command->add_option("--csv", flags->csv_file,
                      "write a line per token, or per prompt in tests of prompts, to this file");
  command->add_option("--timeline", flags->timeline_file,
                      "write the last repetition for Perfetto to this file");
  command->add_option("--report", flags->report_file,
                      "write charts of all tests to this HTML file, for a browser; sets --record "
                      "layer");
  command->add_flag("--cold", flags->cold,
                    "start anew for every repetition (default: experts stay as the run before left "
                    "them, after one that isn't counted)");
  command->add_flag("--no-warmup", flags->no_warmup, "without the run that isn't counted");
  command->add_option("--compare", flags->compare, "two results of -o json: which is faster?")
      ->expected(2);
  command->callback([flags, &chosen] { chosen = [flags] { return bench(*flags); }; });
}

}  // namespace offstage
