// Random direct reads through the engines: bytes, GB/s, latency, share of the best seen in the run.
//
//   io_read_bench FILE [MiB per row, default 1024] [rounds, default 2]
//
// The rows are the engines at blocks of 64 KiB, 1 and 4 MiB and queue depths of 1, 8 and 32, into
// huge pages and (uring) into those of 4 KiB, taken in turn in each round, so that a drive whose
// speed swings hits all alike. Every row of one block size reads the same seeded offsets; the hash
// of a word of each sector must be the same for all, and is printed. The ceiling is the fastest row
// of the run.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/arena.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/histogram.h"
#include "base/rng.h"
#include "io/engine.h"
#include "io/extent.h"

namespace offstage {
namespace {

struct Row {
  IoEngineKind kind;
  uint32_t block_bytes;
  uint32_t depth;
  bool huge_pages;
  std::vector<double> gb_per_s = {};
  Samples latency_ns{1 << 16};
  uint64_t hash = 0;
};

uint64_t hash_block(uint64_t hash, const std::byte* data, uint32_t bytes) {
  for (uint32_t at = 0; at < bytes; at += kSectorBytes) {
    uint64_t word;
    std::memcpy(&word, data + at, sizeof word);
    hash += word * 0x9e3779b97f4a7c15 ^ (word >> 29);  // a sum: order of arrival doesn't matter
  }
  return hash;
}

void measure(Row& row, const std::string& path, uint64_t total_bytes, std::span<std::byte> memory) {
  Notices notices;
  auto engine = open_io_engine({.paths = {path},
                                .kind = row.kind,
                                .direct = DirectIo::kOn,
                                .depth = row.depth,
                                .buffers = {memory}},
                               notices);
  if (!engine) {
    fmt::print(stderr, "{}\n", engine.error().message);
    std::exit(1);
  }
  for (const Notice& notice : notices.list()) fmt::print("{}: {}\n", notice.subject, notice.text);
  const uint64_t blocks_in_file = (*engine)->file_bytes(0) / row.block_bytes;
  const uint64_t count = total_bytes / row.block_bytes;
  if (blocks_in_file == 0) {
    fmt::print(stderr, "{}: smaller than one block\n", path);
    std::exit(1);
  }
  Rng rng(row.block_bytes);
  const SteadyClock clock;
  std::vector<uint32_t> idle;
  for (uint32_t i = 0; i < row.depth; ++i) idle.push_back(i);
  std::vector<ReadCompletion> done(row.depth);
  std::vector<ReadRequest> burst;
  uint64_t submitted = 0, completed = 0, hash = 0;
  const int64_t begin_ns = clock.now_ns();
  while (completed < count) {
    burst.clear();
    for (; !idle.empty() && submitted < count; ++submitted) {
      burst.push_back({.tag = idle.back(),
                       .offset = rng.below(blocks_in_file) * row.block_bytes,
                       .buffer = memory.data() + uint64_t{idle.back()} * row.block_bytes,
                       .bytes = row.block_bytes});
      idle.pop_back();
    }
    CHECK_EQ((*engine)->submit(burst), burst.size());
    const size_t n = (*engine)->reap(done, 60'000'000'000);
    CHECK_GT(n, 0u);
    for (size_t i = 0; i < n; ++i) {
      CHECK_EQ(done[i].result, static_cast<int32_t>(row.block_bytes));
      hash = hash_block(hash, memory.data() + done[i].tag * row.block_bytes, row.block_bytes);
      row.latency_ns.add(done[i].completed_ns - done[i].issued_ns);
      idle.push_back(static_cast<uint32_t>(done[i].tag));
    }
    completed += n;
  }
  const auto took_ns = static_cast<double>(clock.now_ns() - begin_ns);
  row.gb_per_s.push_back(static_cast<double>(count * row.block_bytes) / took_ns);
  row.hash = hash;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void print(const std::vector<Row>& rows) {
  double ceiling = 0;
  for (const Row& row : rows) {
    ceiling = std::max(ceiling, *std::max_element(row.gb_per_s.begin(), row.gb_per_s.end()));
  }
  fmt::print("{:<8} {:<5} {:>6} {:>3} {:>7} {:>6} {:>9} {:>9} {:>9}  {}\n", "engine", "pages",
             "block", "QD", "GB/s", "of max", "p50 ms", "p99 ms", "max ms", "hash");
  for (const Row& row : rows) {
    const double speed = median(row.gb_per_s);
    const auto ms = [](int64_t ns) { return static_cast<double>(ns) / 1e6; };
    fmt::print("{:<8} {:<5} {:>4}Ki {:>3} {:>7.3f} {:>5.0f}% {:>9.2f} {:>9.2f} {:>9.2f}  {:016x}\n",
               row.kind == IoEngineKind::kUring ? "uring" : "threads",
               row.huge_pages ? "huge" : "small", row.block_bytes >> 10, row.depth, speed,
               100 * speed / ceiling, ms(row.latency_ns.percentile(50)),
               ms(row.latency_ns.percentile(99)), ms(row.latency_ns.max()), row.hash);
    for (const Row& other : rows) {
      CHECK(other.block_bytes != row.block_bytes || other.hash == row.hash);
    }
  }
  fmt::print("ceiling of this run: {:.3f} GB/s\n", ceiling);
}

HostArena memory_of(size_t bytes, Notices& notices) {
  auto memory = HostArena::create("reads", bytes, notices);
  if (memory) return std::move(*memory);
  fmt::print(stderr, "{}\n", memory.error().message);
  std::exit(1);
}

int run(const std::string& path, uint64_t mib, int rounds) {
  constexpr size_t kMemoryBytes = size_t{32} * (4 << 20);
  Notices notices;
  HostArena huge = memory_of(kMemoryBytes, notices), small = memory_of(kMemoryBytes, notices);
  CHECK_EQ(madvise(small.data(), kMemoryBytes, MADV_NOHUGEPAGE), 0);
  CHECK(huge.populate().has_value() && small.populate().has_value());
  for (const Notice& notice : notices.list()) fmt::print("{}: {}\n", notice.subject, notice.text);
  std::vector<Row> rows;
  for (const uint32_t block_bytes : {64u << 10, 1u << 20, 4u << 20}) {
    for (const uint32_t depth : {1u, 8u, 32u}) {
      rows.push_back({IoEngineKind::kUring, block_bytes, depth, true});
      rows.push_back({IoEngineKind::kUring, block_bytes, depth, false});
      rows.push_back({IoEngineKind::kThreads, block_bytes, depth, true});
    }
  }
  for (int round = 0; round < rounds; ++round)
    for (Row& row : rows)
      measure(row, path, mib << 20, {(row.huge_pages ? huge : small).data(), kMemoryBytes});
  print(rows);
  return 0;
}

}  // namespace
}  // namespace offstage

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    fmt::print(stderr, "usage: io_read_bench FILE [MiB per row] [rounds]\n");
    return 2;
  }
  const uint64_t mib = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1024;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 2;
  if (mib < 4 || rounds < 1) {
    fmt::print(stderr, "at least 4 MiB per row and one round\n");
    return 2;
  }
  return offstage::run(argv[1], mib, rounds);
}
