#include "plan/past_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/histogram.h"
#include "plan/cells.h"
#include "plan/token_simulation.h"

namespace offstage {
namespace {

double per_second(uint64_t n, int64_t ns) {
  return n == 0 ? 0 : static_cast<double>(n) * 1e9 / static_cast<double>(std::max<int64_t>(ns, 1));
}

// The profile's drive of that name, or its first.
DriveSpeed drive_named(const std::string& name, const HardwareProfile& profile, Notices& notices) {
  for (const DriveSpeed& drive : profile.drives)
    if (drive.name == name) return drive;
  notices.add("forecast", fmt::format("no drive {} in the profile; {} stands in (`offstage probe "
                                      "--on` a file on each)",
                                      name, profile.drives.front().name));
  DriveSpeed drive = profile.drives.front();
  drive.name = name;
  return drive;
}

// What the run ran on: its own drives at its pace, its number of threads.
HardwareProfile machine_of(const PastRun& run, const HardwareProfile& profile, Notices& notices) {
  HardwareProfile machine = profile;
  Notices unheard;
  const bool reads = !run.plan.all_resident(run.file->expert_layout());
  machine.drives.clear();
  for (const std::string& name : run.drive_names)
    machine.drives.push_back(drive_named(name, profile, reads ? notices : unheard));
  if (run.options.pace_bytes_per_s != 0)
    machine = with_drives_paced(machine, run.options.pace_bytes_per_s);
  if (run.threads == profile.threads) return machine;
  notices.add(
      "forecast",
      fmt::format("the profile was measured with {} threads, this run has {}: arithmetic is "
                  "taken to be {}/{} as fast",
                  profile.threads, run.threads, run.threads, profile.threads));
  const double ratio = static_cast<double>(run.threads) / std::max(profile.threads, 1u);
  machine.threads = run.threads;
  for (KernelSpeed& kernel : machine.kernels) {
    kernel.decode_bytes_per_s *= ratio;
    kernel.prefill_params_per_s *= ratio;
  }
  return machine;
}

PlannedModel model_of(const PastRun& run) {
  PlannedModel model = planned_file(run.file);
  model.drive_of_file = run.drive_of_file;
  if (run.file->store)
    model.file_bytes.resize(run.drive_of_file.size(), run.file->store->layout.file_bytes);
  return model;
}

// What one side adds up to.
class Tally {
 public:
  explicit Tally(size_t tokens_max) : times_(std::max<size_t>(tokens_max, 1)) {}
  void add_prompt(uint32_t tokens, int64_t ns) {
    prompt_tokens_ += tokens;
    prompt_ns_ += ns;
  }
  void add_token(const PastToken& token) {
    times_.add(token.wall_ns);
    hits_ += token.ram_hits;
    reads_ += token.drive_reads;
  }
  RunFigures figures() const {
    RunFigures figures;
    figures.prefill_tok_s = per_second(prompt_tokens_, prompt_ns_);
    figures.decode_tok_s = per_second(times_.count(), times_.sum());
    if (hits_ + reads_ != 0)
      figures.ram_hit_rate = static_cast<double>(hits_) / static_cast<double>(hits_ + reads_);
    figures.p50_ns = times_.percentile(50);
    figures.p95_ns = times_.percentile(95);
    figures.p99_ns = times_.percentile(99);
    figures.max_ns = times_.max();
    return figures;
  }

 private:
  Samples times_;
  uint64_t prompt_tokens_ = 0, hits_ = 0, reads_ = 0;
  int64_t prompt_ns_ = 0;
};

size_t tokens_of(const PastRun& run) {
  size_t n = 0;
  for (const PastGeneration& generation : run.generations) n += generation.tokens.size();
  return n;
}

class LookBack {
 public:
  LookBack(const PastRun& run, TokenSimulation& simulation, const std::function<bool()>& go_on)
      : run_(run),
        simulation_(simulation),
        go_on_(go_on),
        forecast_(tokens_of(run)),
        measured_(tokens_of(run)) {}

  Hindsight run() {
    for (const PastGeneration& generation : run_.generations) {
      if (!run_prompt(generation) || !run_tokens(generation)) break;
    }
    result_.forecast = forecast_.figures();
    result_.measured = measured_.figures();
    for (int64_t& ns : result_.token.ns) ns /= std::max(result_.tokens, 1u);
    return result_;
  }

 private:
  bool may_run(uint32_t rows) const { return row_ + rows <= run_.routes.n_tokens() && go_on_(); }

  bool run_prompt(const PastGeneration& generation) {
    const uint32_t n_rows = generation.prompt_tokens;
    const uint32_t chunk = std::max(run_.plan.chunk_rows, 1u);
    const Phase phase = n_rows > 1 ? Phase::kPrefill : Phase::kDecode;
    for (uint32_t done = 0; done < n_rows;) {
      const uint32_t n = std::min(chunk, n_rows - done);
      if (!may_run(n)) return false;
      simulation_.run_rows(run_.routes, row_, n, generation.position + done, phase);
      row_ += n;
      done += n;
    }
    const int64_t ns = simulation_.end_step().total_ns();
    if (!generation.counts) return true;
    result_.prompt_tokens += n_rows;
    forecast_.add_prompt(n_rows, ns);
    measured_.add_prompt(n_rows, generation.prefill_ns);
    return true;
  }

  bool run_tokens(const PastGeneration& generation) {
    uint32_t position = generation.position + generation.prompt_tokens;
    for (const PastToken& token : generation.tokens) {
      if (!may_run(1)) return false;
      const TierCounters before = simulation_.counters();
      const CauseTimes times = simulation_.run_token(run_.routes, row_++, position++);
      if (!generation.counts) continue;
      const TierCounters& after = simulation_.counters();
      ++result_.tokens;
      result_.token += times;
      forecast_.add_token({times.total_ns(), after.ram_hits - before.ram_hits,
                           after.drive_reads - before.drive_reads});
      measured_.add_token(token);
    }
    return true;
  }

  const PastRun& run_;
  TokenSimulation& simulation_;
  const std::function<bool()>& go_on_;
  uint64_t row_ = 0;
  Tally forecast_, measured_;
  Hindsight result_;
};

}  // namespace

Result<Hindsight> look_back(const PastRun& run, const HardwareProfile& profile,
                            const std::function<bool()>& go_on, Notices& notices) {
  const PlannedModel model = model_of(run);
  const HardwareProfile machine = machine_of(run, profile, notices);
  ForecastOptions options;
  options.runtime = run.options;
  options.guess_accuracy = run.guess_accuracy;
  options.samples = run.samples;
  options.drive = run.drive;
  OFFSTAGE_TRY(const auto simulation,
               TokenSimulation::create({model, run.plan, machine, options, notices, &run.usage}));
  if (run.options.preload) simulation->preload();
  const Hindsight hindsight = LookBack(run, *simulation, go_on).run();
  if (hindsight.tokens == 0 && hindsight.prompt_tokens == 0)
    return make_error(ErrorCode::kDeadline,
                      "the first prompt and token take longer to simulate "
                      "than a forecast after a run may");
  return hindsight;
}

}  // namespace offstage
