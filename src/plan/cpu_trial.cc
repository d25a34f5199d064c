#include "plan/cpu_trial.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/checked_math.h"
#include "base/rng.h"
#include "base/units.h"
#include "io/hash_index.h"
#include "plan/tier_trial.h"
#include "runtime/ceilings.h"
#include "runtime/compute.h"
#include "runtime/sampler.h"

namespace offstage {
namespace {

constexpr std::array kTypes = {
    TensorType::kF32,     TensorType::kF16,    TensorType::kBF16,   TensorType::kQ8_0,
    TensorType::kQ4_0,    TensorType::kQ4_1,   TensorType::kQ5_0,   TensorType::kQ5_1,
    TensorType::kQ2_K,    TensorType::kQ3_K,   TensorType::kQ4_K,   TensorType::kQ5_K,
    TensorType::kQ6_K,    TensorType::kIQ4_NL, TensorType::kIQ4_XS, TensorType::kIQ3_S,
    TensorType::kIQ3_XXS, TensorType::kIQ2_S,  TensorType::kIQ2_XS, TensorType::kIQ2_XXS,
    TensorType::kIQ1_M,   TensorType::kIQ1_S,  TensorType::kMXFP4};

constexpr uint32_t kWidth = 2048;  // of a row: whole blocks of every format
constexpr uint32_t kPromptRows = 32;
constexpr uint32_t kPromptWeightRows = 256;
constexpr int kTurnsMin = 3, kTurnsMax = 64;
constexpr size_t kProductBytes = 512u << 10;  // an attention's or a few experts' matrices
constexpr size_t kHashBytes = 1u << 20;       // about an expert's matrix
constexpr int kDispatches = 50;               // in a turn
constexpr int64_t kShareNs = 10'000;
// As a float of any width a plain number: products of denormal ones would take their own time.
constexpr int kFill = 0x3C;

// Codes may be any: equal ones would stay in one line of a format's code book.
void fill(std::span<std::byte> memory, bool with_codes) {
  std::memset(memory.data(), kFill, memory.size());
  Rng rng(1);
  for (size_t at = 0; with_codes && at + sizeof(uint64_t) <= memory.size();
       at += sizeof(uint64_t)) {
    const uint64_t word = rng.next_u64();
    std::memcpy(memory.data() + at, &word, sizeof word);
  }
}

// Nanoseconds of the middle turn.
template <typename Turn>
int64_t median_ns(const Clock& clock, int64_t time_ns, Turn&& turn) {
  std::vector<int64_t> turns;
  const int64_t begin_ns = clock.now_ns();
  while (turns.size() < kTurnsMax &&
         (turns.size() < kTurnsMin || clock.now_ns() - begin_ns < time_ns)) {
    const int64_t turn_ns = clock.now_ns();
    turn();
    turns.push_back(std::max<int64_t>(clock.now_ns() - turn_ns, 1));
  }
  std::nth_element(turns.begin(), turns.begin() + static_cast<ptrdiff_t>(turns.size() / 2),
                   turns.end());
  return turns[turns.size() / 2];
}

// A matrix of the format over (at most) so many bytes of the memory, times rows of ones.
class Products {
 public:
  Products(const CpuTrialParts& parts, TensorType type, size_t bytes, uint32_t n_rows)
      : compute_(parts.kernels, parts.workers), n_rows_(n_rows) {
    weights_ = {type, parts.memory.data(), 0, kWidth};
    weights_.rows = static_cast<uint32_t>(bytes / row_bytes(type, kWidth));
    const ActivationFormat format = activation_format(type);
    const std::vector<float> x(size_t{n_rows} * kWidth, 1.0f);
    forms_.resize(n_rows * activation_row_bytes(format, kWidth) + 64);
    auto* const aligned = reinterpret_cast<std::byte*>(
        round_up(reinterpret_cast<uintptr_t>(forms_.data()), uintptr_t{64}));
    x_ = compute_.quantise(format, x.data(), n_rows, kWidth, aligned);
    out_.resize(size_t{n_rows} * weights_.rows);
  }
  // From now on the weights lie there.
  void move_to(std::span<const std::byte> memory) { weights_.data = memory.data(); }
  void run() { compute_.matmul(weights_, x_, n_rows_, out_.data()); }
  double weight_bytes() const {
    return static_cast<double>(weights_.rows * row_bytes(weights_.type, kWidth));
  }
  double products() const { return double{kWidth} * weights_.rows * n_rows_; }

 private:
  Compute compute_;
  Matrix weights_;
  uint32_t n_rows_;
  std::vector<std::byte> forms_;
  Activations x_;
  std::vector<float> out_;
};

double prefill_params_per_s(const CpuTrialParts& parts, TensorType type) {
  const size_t bytes =
      std::min<size_t>(parts.memory.size(), kPromptWeightRows * row_bytes(type, kWidth));
  Products products(parts, type, bytes, kPromptRows);
  const int64_t ns = median_ns(parts.clock, parts.format_ns, [&] { products.run(); });
  return products.products() * 1e9 / static_cast<double>(ns);
}

double hash_bytes_per_s(const CpuTrialParts& parts) {
  PieceHash sum = 0;
  const size_t bytes = std::min(kHashBytes, parts.memory.size());
  const size_t pieces = parts.memory.size() / bytes;
  size_t next = 0;
  const int64_t ns = median_ns(parts.clock, parts.format_ns, [&] {
    sum ^= hash_piece(parts.memory.subspan(next++ % pieces * bytes, bytes));
  });
  CHECK_NE(sum, 1u);  // so that it is computed
  return static_cast<double>(bytes) * 1e9 / static_cast<double>(ns);
}

// Beyond the work itself: a share for every worker, long enough that each takes one.
int64_t dispatch_ns(const CpuTrialParts& parts) {
  const auto share = [&](uint32_t, uint32_t, uint32_t) {
    const int64_t until_ns = parts.clock.now_ns() + kShareNs;
    while (parts.clock.now_ns() < until_ns) {
    }
  };
  const int64_t ns = median_ns(parts.clock, parts.format_ns, [&] {
    for (int i = 0; i < kDispatches; ++i)
      parts.workers.parallel_for(parts.workers.size(), 1, share);
  });
  return std::max<int64_t>(ns / kDispatches - kShareNs, 0);
}

// What a short product takes beyond its bytes at the speed of long ones: until the weights flow and
// the last worker has its share.
int64_t product_ns(const CpuTrialParts& parts, double bytes_per_s) {
  const size_t bytes = std::min(kProductBytes, parts.memory.size());
  const size_t places = parts.memory.size() / bytes;
  Products products(parts, TensorType::kQ4_K, bytes, 1);
  size_t next = 0;
  const int64_t ns = median_ns(parts.clock, parts.format_ns, [&] {
    products.move_to(parts.memory.subspan(next++ % places * bytes, bytes));
    products.run();
  });
  const double flowing_ns = products.weight_bytes() * 1e9 / bytes_per_s;
  return std::max<int64_t>(ns - static_cast<int64_t>(flowing_ns), 0);
}

// A greedy choice among so many logits.
int64_t sample_ns(const CpuTrialParts& parts) {
  SamplerOptions greedy;
  greedy.temperature = 0;
  Sampler sampler(greedy, kLogitsChosenAmong);
  const std::vector<float> logits(kLogitsChosenAmong, 1.0f);
  return median_ns(parts.clock, parts.format_ns, [&] { (void)sampler.sample(logits, {}); });
}

}  // namespace

double decode_bytes_per_s(const CpuTrialParts& parts, TensorType type) {
  Products products(parts, type, parts.memory.size(), 1);
  const int64_t ns = median_ns(parts.clock, parts.format_ns, [&] { products.run(); });
  return products.weight_bytes() * 1e9 / static_cast<double>(ns);
}

void try_cpu(const CpuTrialParts& parts, HardwareProfile& profile, Notices& notices) {
  CHECK_GE(parts.memory.size(), kCpuTrialBytesMin);
  fill(parts.memory, false);
  const auto say = [&](size_t done) {
    if (parts.progress) parts.progress(done, kTypes.size() + 1);
  };
  say(0);
  if (parts.memory.size() < 2 * last_level_cache_bytes())
    notices.add("ram", fmt::format("{} of memory were tried, which the CPU's caches may hold: "
                                   "speeds are higher than RAM's",
                                   format_bytes(parts.memory.size())));
  const std::span<const std::byte> memory = parts.memory;
  profile.threads = parts.workers.size();
  profile.ram_read_bytes_per_s =
      measure_ram_read({&memory, 1}, parts.workers, parts.clock, parts.format_ns).bytes_per_s;
  profile.hash_bytes_per_s = hash_bytes_per_s(parts);
  profile.dispatch_ns = dispatch_ns(parts);
  profile.token_ns = sample_ns(parts);
  const TierTrial tier = try_tier(parts.clock);
  profile.event_ns = tier.event_ns;
  profile.policy_ns = tier.policy_ns;
  profile.miss_ns = tier.miss_ns;
  profile.kernels.clear();
  for (const TensorType type : kTypes) {
    if (type == TensorType::kQ8_0) fill(parts.memory, true);  // the first of those with codes
    say(profile.kernels.size() + 1);
    profile.kernels.push_back(
        {type, decode_bytes_per_s(parts, type), prefill_params_per_s(parts, type)});
  }
  const KernelSpeed flowing = profile.kernel_of(TensorType::kQ4_K, notices);
  profile.product_ns = product_ns(parts, flowing.decode_bytes_per_s);
}

}  // namespace offstage
