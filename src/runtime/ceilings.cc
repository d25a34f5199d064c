#include "runtime/ceilings.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>

namespace offstage {
namespace {

constexpr size_t kPieceBytes = 1 << 20;
constexpr int64_t kRamNs = 10'000'000;
// More than that isn't read: 1 GiB tells as much as all.
constexpr size_t kRamBytesMax = size_t{1} << 30;
constexpr size_t kCacheFallbackBytes = 64 << 20;

uint64_t sum_words(const std::byte* data, size_t bytes) {
  uint64_t sums[8] = {};
  for (size_t at = 0; at + sizeof sums <= bytes; at += sizeof sums) {
    uint64_t words[8];
    std::memcpy(words, data + at, sizeof words);
    for (int i = 0; i < 8; ++i) sums[i] += words[i];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

}  // namespace

uint64_t token_weight_bytes(const ModelTensors& tensors, const ExpertLayout& layout,
                            uint32_t n_used) {
  uint64_t bytes = 0;
  for (const GgufTensor* tensor : tensors.dense()) bytes += tensor->bytes;
  if (tensors.output != tensors.embedding) bytes -= tensors.embedding->bytes;
  for (uint32_t layer = 0; layer < layout.n_layers(); ++layer)
    bytes += layout.expert_bytes(LayerIndex(layer)) * n_used;
  return bytes;
}

size_t last_level_cache_bytes() {
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? static_cast<size_t>(bytes) : kCacheFallbackBytes;
}

double DriveCeiling::bytes_per_s() const {
  return busy_ns <= 0 ? 0 : static_cast<double>(bytes) * 1e9 / static_cast<double>(busy_ns);
}

double Ceilings::tokens_per_s() const {
  return token_bytes == 0 ? 0 : ram_bytes_per_s / static_cast<double>(token_bytes);
}

RamBandwidth measure_ram_read(std::span<const std::span<const std::byte>> memory,
                              ThreadPool& workers, const Clock& clock, int64_t min_ns) {
  std::vector<std::span<const std::byte>> pieces;
  size_t total = 0;
  for (const std::span<const std::byte> part : memory) {
    for (size_t at = 0; at < part.size() && total < kRamBytesMax; at += kPieceBytes) {
      pieces.push_back(part.subspan(at, std::min(kPieceBytes, part.size() - at)));
      total += pieces.back().size();
    }
  }
  RamBandwidth result;
  if (pieces.empty()) return result;
  std::atomic<uint64_t> sum{0};
  uint64_t read_bytes = 0;
  const int64_t begin = clock.now_ns();
  int64_t now = begin;
  do {
    workers.parallel_for(static_cast<uint32_t>(pieces.size()), 1,
                         [&](uint32_t first, uint32_t last, uint32_t) {
                           uint64_t part = 0;
                           for (uint32_t i = first; i < last; ++i)
                             part += sum_words(pieces[i].data(), pieces[i].size());
                           sum.fetch_add(part, std::memory_order_relaxed);
                         });
    read_bytes += total;
    now = clock.now_ns();
  } while (now - begin < min_ns);
  result.bytes_per_s = static_cast<double>(read_bytes) * 1e9 /
                       static_cast<double>(std::max<int64_t>(now - begin, 1));
  result.sum = sum.load();
  return result;
}

double measure_ram_ceiling(Runtime& runtime) {
  return measure_ram_read(runtime.resident_memory(), runtime.workers(), runtime.clock(), kRamNs)
      .bytes_per_s;
}

Ceilings measure_ceilings(Runtime& runtime, std::span<const double> ram_before) {
  Ceilings ceilings;
  for (const auto part : runtime.resident_memory()) ceilings.ram_bytes += part.size();
  ceilings.ram_bytes = std::min<uint64_t>(ceilings.ram_bytes, kRamBytesMax);
  ceilings.ram_is_cache = ceilings.ram_bytes < 2 * last_level_cache_bytes();
  const double ram_now = measure_ram_ceiling(runtime);
  ceilings.ram_bytes_per_s = std::accumulate(ram_before.begin(), ram_before.end(), ram_now) /
                             static_cast<double>(ram_before.size() + 1);
  const ModelFile& file = runtime.file();
  ceilings.token_bytes =
      token_weight_bytes(file.tensors, file.expert_layout(), file.spec.router.n_used);
  const Trace& trace = runtime.trace();
  const std::vector<std::string>& names = runtime.drive_names();
  for (uint32_t drive = 0; drive < std::min<size_t>(names.size(), kDrivesMax); ++drive)
    ceilings.drives.push_back({names[drive], trace.drive_bytes(drive), trace.drive_busy_ns(drive),
                               runtime.drive().bytes_per_s});
  return ceilings;
}

}  // namespace offstage
