#include "tests/sim/sim_case.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/rng.h"
#include "cache/eviction.h"
#include "cache/slot_plan.h"

namespace offstage::sim {
namespace {

constexpr int64_t kMicrosecond = 1'000;
constexpr int64_t kMillisecond = 1'000'000;
constexpr size_t kImageBytes = 4u << 20;
constexpr uint32_t kFaultsMin = 10, kFaultsMax = 30;

// One image of random bytes for all seeds: every file is a window of it.
std::span<const std::byte> image() {
  static const std::vector<std::byte> bytes = [] {
    std::vector<std::byte> data(kImageBytes);
    Rng rng(2026);
    for (size_t i = 0; i < data.size(); i += 8) {
      const uint64_t word = rng.next_u64();
      std::memcpy(data.data() + i, &word, 8);
    }
    return data;
  }();
  return bytes;
}

uint32_t between(Rng& rng, uint64_t least, uint64_t most) {
  return static_cast<uint32_t>(least + rng.below(most - least + 1));
}
bool chance(Rng& rng, double p) { return rng.uniform() < p; }

// Short and long alike: every doubling between the two is equally likely.
int64_t log_uniform(Rng& rng, int64_t least, int64_t most) {
  int64_t doublings = 0;
  while (least << (doublings + 1) <= most) ++doublings;
  const int64_t from = least << rng.below(static_cast<uint64_t>(doublings) + 1);
  return std::min(most, from + static_cast<int64_t>(rng.below(static_cast<uint64_t>(from))));
}

template <typename T, size_t N>
T one_of(Rng& rng, const T (&choices)[N]) {
  return choices[rng.below(N)];
}

void draw_model(Rng& rng, SimCase& c) {
  const uint32_t n_layers = between(rng, 1, 4);
  c.n_experts = between(rng, 2, 10);
  c.n_used = between(rng, 1, std::min(4u, c.n_experts));
  const uint32_t n_files = between(rng, 1, 3);
  const uint64_t gate_bytes = 32 * uint64_t{between(rng, 3, 250)};
  const uint64_t down_bytes = 32 * uint64_t{between(rng, 3, 300)};
  const uint64_t odd_down_bytes = chance(rng, 0.4) ? down_bytes + 32 * rng.below(200) : down_bytes;
  const bool by_layer = chance(rng, 0.5);  // else a layer's tensors lie in different files
  std::vector<uint64_t> ends(n_files);
  for (uint64_t& end : ends) end = 32 * rng.below(300);
  c.layers.resize(n_layers);
  for (uint32_t l = 0; l < n_layers; ++l) {
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      const uint32_t tensor = l * kExpertMatrices + m;
      const uint32_t file = (by_layer ? l : tensor) % n_files;
      const uint64_t bytes = m < 2 ? gate_bytes : l % 2 == 1 ? odd_down_bytes : down_bytes;
      c.layers[l][m] = {fmt::format("blk.{}.ffn_{}_exps.weight", l, "gud"[m]), tensor, file,
                        ends[file], bytes};
      ends[file] += bytes * c.n_experts;
    }
  }
  const uint32_t n_drives = between(rng, 1, n_files);
  c.drives.resize(n_drives);
  for (uint32_t f = 0; f < n_files; ++f) {
    const size_t begin = (size_t{f} << 20) + 8 * rng.below(1000);
    c.files.push_back({image().subspan(begin, ends[f]), 0, f % n_drives});
  }
}

void draw_drives(Rng& rng, SimCase& c) {
  c.depth = one_of(rng, {1u, 2u, 4u, 8u, 16u, 32u});
  for (SimDrive& drive : c.drives) {
    drive.channels = between(rng, 4, 32);
    drive.latency_ns = log_uniform(rng, 20 * kMicrosecond, 400 * kMicrosecond);
    drive.jitter_ns = static_cast<int64_t>(rng.below(static_cast<uint64_t>(drive.latency_ns)));
    drive.bytes_per_s = uint64_t{between(rng, 200, 4000)} << 20;
  }
  if (!chance(rng, 0.25)) return;
  // One drive is slow, or gone, for a while or from the start to the end.
  SimDrive& drive = c.drives[rng.below(c.drives.size())];
  SimSpell spell;
  spell.begin_ns = chance(rng, 0.2) ? 0 : log_uniform(rng, 100 * kMicrosecond, 30 * kMillisecond);
  spell.end_ns = spell.begin_ns + log_uniform(rng, 500 * kMicrosecond, 3'000 * kMillisecond);
  if (chance(rng, 0.5)) {
    spell.slower = 100;
  } else {
    spell.err = one_of(rng, {ENODEV, EIO, ENXIO});
  }
  drive.spells.push_back(spell);
}

void draw_runtime(Rng& rng, SimCase& c) {
  const ExpertLayout layout(c.layers, c.n_experts);
  const uint64_t floor = slot_floor_bytes(layout);
  uint64_t full = 0;
  for (uint32_t k = 0; k < layout.n_classes(); ++k)
    full += layout.class_bytes(k) * layout.class_layers(k) * c.n_experts;
  const double wish = rng.uniform();
  c.budget_bytes = wish < 0.2   ? floor
                   : wish < 0.9 ? floor + rng.below(std::max(full, floor) - floor + 1) / 2
                                : std::max(full, floor);
  const auto policies = policy_names();
  c.policy = policies[rng.below(policies.size())];
  c.reads_max = one_of(rng, {3u, 6u, 9u, 24u, 64u});
  c.block_bytes = one_of(rng, {4096u, 8192u, 16'384u, 1u << 20});
  c.knows_drives = chance(rng, 0.7);
  c.prefetch_depth = one_of(rng, {0u, 1u, 4u});
  c.deadline_ns = log_uniform(rng, 200 * kMillisecond, 5'000 * kMillisecond);
  const double index = rng.uniform();
  c.index = index < 0.6   ? IndexKnows::kAll
            : index < 0.8 ? IndexKnows::kOneRead
                          : IndexKnows::kNothing;
}

void draw_load(Rng& rng, SimCase& c) {
  c.n_requests = between(rng, 1, 3);
  c.n_steps = between(rng, 6, 24);
  c.rows_max = between(rng, 2, 12);
  c.guesses = chance(rng, 0.35) ? 0 : one_of(rng, {0.5, 1.0, 2.0});
  c.guess_recall = one_of(rng, {0.0, 0.5, 0.9, 1.0});
  c.poison = chance(rng, 0.5);
}

FaultKind draw_data_fault(Rng& rng, const SimCase& c) {
  // Two wrong reads that agree outvote a right one, by design of the index: where the majority
  // decides, only bits flip, and no two alike.
  if (c.index == IndexKnows::kOneRead) return FaultKind::kFlip;
  return one_of(rng, {FaultKind::kFlip, FaultKind::kZeros, FaultKind::kStale, FaultKind::kElsewhere,
                      FaultKind::kTorn});
}

FaultRule draw_fault(Rng& rng, const SimCase& c, uint64_t horizon) {
  FaultRule rule;
  const uint64_t when = 1 + rng.below(horizon);
  rule.nth = when;
  const double kind = rng.uniform();
  if (kind < 0.20) {
    rule.kind = FaultKind::kErrno;
    rule.err = one_of(rng, {EIO, ECANCELED, ENODEV, EIO});
  } else if (kind < 0.30) {  // "try again", once or for a while
    rule.kind = FaultKind::kErrno;
    rule.err = one_of(rng, {EAGAIN, EINTR});
    rule.nth = 0;
    rule.from = when;
    rule.until = when + rng.below(8);
  } else if (kind < 0.55) {
    rule.kind = FaultKind::kShort;
    rule.short_bytes = one_of(
        rng, {int64_t{0}, int64_t{1}, int64_t{511}, int64_t{-1}, int64_t{4096}, int64_t{5000}});
  } else if (kind < 0.65) {
    rule.delay_ns = log_uniform(rng, 10 * kMillisecond, 10'000 * kMillisecond);
  } else if (c.index == IndexKnows::kNothing) {
    rule.kind = FaultKind::kShort;
    rule.short_bytes = static_cast<int64_t>(rng.below(12'288));
  } else {
    rule.kind = draw_data_fault(rng, c);
  }
  // Wrong and late: the bytes land when nobody waits for them any more.
  if (chance(rng, 0.05)) rule.delay_ns = log_uniform(rng, kMillisecond, 10'000 * kMillisecond);
  return rule;
}

// Damage that stays: a place of a file that is never read again, or reads that are never answered.
FaultRule draw_lasting_fault(Rng& rng, const SimCase& c, uint64_t horizon) {
  FaultRule rule;
  const uint64_t when = 1 + rng.below(horizon);
  if (chance(rng, 0.4)) {
    rule.kind = FaultKind::kNever;
    rule.nth = when;
    return rule;
  }
  rule.kind = FaultKind::kErrno;
  rule.err = EIO;
  rule.file = static_cast<uint32_t>(rng.below(c.files.size()));
  rule.range_begin = rng.below(c.files[*rule.file].contents.size());
  rule.range_end = rule.range_begin + 1;
  rule.from = 1 + rng.below(3);
  return rule;
}

void draw_faults(Rng& rng, SimCase& c) {
  c.faults.seed = rng.next_u64();
  const auto horizon = static_cast<uint64_t>(log_uniform(rng, 40, 400));
  const uint32_t n_faults = between(rng, kFaultsMin, kFaultsMax);
  for (uint32_t i = 0; i < n_faults; ++i) c.faults.rules.push_back(draw_fault(rng, c, horizon));
  if (chance(rng, 0.25)) c.faults.rules.push_back(draw_lasting_fault(rng, c, horizon));
}

}  // namespace

SimCase draw_case(uint64_t seed) {
  SimCase c;
  c.seed = seed;
  Rng rng(seed);
  draw_model(rng, c);
  draw_drives(rng, c);
  draw_runtime(rng, c);
  draw_load(rng, c);
  draw_faults(rng, c);
  return c;
}

std::string describe(const SimCase& c) {
  constexpr const char* kKnows[] = {"complete", "provisional", "empty"};
  std::string text = fmt::format(
      "seed {}\nmodel: {} layers, {} experts, {} called; matrices of {}, {} bytes; {} files\n",
      c.seed, c.n_layers(), c.n_experts, c.n_used, c.layers[0][0].bytes_per_expert,
      c.layers[0][2].bytes_per_expert, c.files.size());
  for (const SimDrive& drive : c.drives) {
    text += fmt::format("drive: {} channels, {} us + {} us, {} MiB/s", drive.channels,
                        drive.latency_ns / 1000, drive.jitter_ns / 1000, drive.bytes_per_s >> 20);
    for (const SimSpell& spell : drive.spells)
      text += fmt::format(", from {} us to {} us {} times slower, errno {}", spell.begin_ns / 1000,
                          spell.end_ns / 1000, spell.slower, spell.err);
    text += "\n";
  }
  text += fmt::format(
      "runtime: budget {}, policy {}, depth {}, reads {}, block {}, prefetch depth {}, deadline {} "
      "ms, index {}, drives {}\n",
      c.budget_bytes, c.policy, c.depth, c.reads_max, c.block_bytes, c.prefetch_depth,
      c.deadline_ns / kMillisecond, kKnows[static_cast<size_t>(c.index)],
      c.knows_drives ? "known" : "taken for one");
  text += fmt::format("load: {} requests, {} steps, chunks of {}, guesses {} right {}, poison {}\n",
                      c.n_requests, c.n_steps, c.rows_max, c.guesses, c.guess_recall, c.poison);
  return text + "faults: " + describe_fault_plan(c.faults) + "\n";
}

}  // namespace offstage::sim
