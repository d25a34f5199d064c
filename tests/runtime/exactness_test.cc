// Promise 1: the same logits bits and the same tokens whatever the budget, the engine, the threads,
// the instruction set, the chunk size, the company in the batch, and with reads that fail.
#include <algorithm>
#include <cctype>
#include <set>

#include "runtime_fixture.h"

namespace offstage {
namespace {

constexpr uint64_t kProcessBytes = 64ull << 20;
constexpr uint32_t kTokens = 24;

// Two size classes in one file (Q4_K_M: some down matrices are Q6_K), MXFP4 with Q8_0 and a shared
// expert, windows, sinks and biases with rows shorter than a run of 256, and latent attention with
// grouped routing and a leading dense layer.
const char* const kModels[] = {"micro-qwen3moe-q4_k_m.gguf", "micro-qwen2moe-mxfp4.gguf",
                               "mixtral-s1.gguf", "gpt-oss-s2-mxfp4.gguf",
                               "micro-deepseek2-q4_k_m.gguf"};

std::vector<TokenId> prompt_of(uint32_t n, uint32_t salt) {
  Rng rng(salt);
  std::vector<TokenId> tokens;
  for (uint32_t i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>(3 + rng.below(290)));
  return tokens;
}

struct Outcome {
  std::vector<float> logits;
  std::vector<TokenId> tokens;
  uint64_t drive_reads = 0;
};

RuntimeOptions base_options(const std::string& name) {
  RuntimeOptions options = test_options(model_file(name));
  options.process_bytes = kProcessBytes;
  options.chunk_rows = 32;
  options.chunk_rows_fixed = true;
  return options;
}

Outcome run(const RuntimeOptions& options) {
  Outcome outcome;
  const auto model = open_model(options);
  if (model == nullptr) return outcome;
  // 80 positions: more than one 64-position block, and a chunk that ends inside one.
  outcome.logits = score(*model->runtime, prompt_of(80, 1));
  outcome.tokens = generate_greedy(*model->runtime, prompt_of(37, 2), kTokens);
  outcome.drive_reads = model->runtime->tier().counters().drive_reads;
  return outcome;
}

uint64_t floor_of(const RuntimeOptions& options) {
  const auto model = open_model(options);
  return model == nullptr ? 0 : model->runtime->plan().floor_bytes;
}

class Exactness : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    options_ = base_options(GetParam());
    reference_ = run(options_);
    ASSERT_EQ(reference_.tokens.size(), kTokens);
    const std::set<TokenId> distinct(reference_.tokens.begin(), reference_.tokens.end());
    ASSERT_GT(distinct.size(), 4u) << "a text of one token would prove nothing";
  }
  void expect_same(const RuntimeOptions& options, const std::string& what) {
    const Outcome outcome = run(options);
    EXPECT_TRUE(same_bits(outcome.logits, reference_.logits)) << what;
    EXPECT_EQ(outcome.tokens, reference_.tokens) << what;
  }
  RuntimeOptions options_;
  Outcome reference_;
};

TEST_P(Exactness, AcrossBudgetsFromFloorToFull) {
  const uint64_t floor = floor_of(options_);
  const auto file = ModelFile::open(options_.model_path);
  ASSERT_TRUE(file);
  const ExpertLayout layout = (*file)->expert_layout();
  uint64_t experts = 0;  // slots for all of them
  for (uint32_t l = 0; l < layout.n_layers(); ++l)
    experts += layout.n_experts() * layout.class_bytes(layout.slot_class(LayerIndex(l)));
  constexpr int kSteps = 13;
  uint64_t reads_at_floor = 0, reads_at_full = 0;
  for (int step = 0; step < kSteps; ++step) {
    options_.ram_bytes = floor + experts * static_cast<uint64_t>(step) / (kSteps - 2);
    const Outcome outcome = run(options_);
    EXPECT_TRUE(same_bits(outcome.logits, reference_.logits)) << "budget " << *options_.ram_bytes;
    EXPECT_EQ(outcome.tokens, reference_.tokens) << "budget " << *options_.ram_bytes;
    if (step == 0) reads_at_floor = outcome.drive_reads;
    reads_at_full = outcome.drive_reads;
  }
  // The budgets did differ in what they read.
  EXPECT_GT(reads_at_floor, 3 * reads_at_full);
}

TEST_P(Exactness, AcrossIoEnginesAndDirectIo) {
  options_.ram_bytes = floor_of(options_);
  for (const IoEngineKind engine : {IoEngineKind::kUring, IoEngineKind::kThreads})
    for (const DirectIo direct : {DirectIo::kOn, DirectIo::kOff}) {
      options_.io_engine = engine;
      options_.direct_io = direct;
      expect_same(options_, fmt::format("engine {} direct {}", static_cast<int>(engine),
                                        static_cast<int>(direct)));
    }
  options_.io_depth = 1;
  expect_same(options_, "depth 1");
}

TEST_P(Exactness, AcrossThreadsAndChunks) {
  for (const uint32_t threads : {1u, 2u, 3u}) {
    options_.threads = threads;
    for (const uint32_t chunk : {1u, 5u, 64u, 128u}) {
      options_.chunk_rows = chunk;
      expect_same(options_, fmt::format("threads {} chunk {}", threads, chunk));
    }
  }
}

// With a prompt that streams through few slots: chunks, what is read ahead of them, and what was
// read before the first.
TEST_P(Exactness, WhateverIsReadAheadOfAPrompt) {
  const auto file = ModelFile::open(options_.model_path);
  ASSERT_TRUE(file);
  const uint64_t experts = (*file)->expert_layout().total_expert_bytes();
  uint64_t ahead = 0;
  for (const uint32_t chunk : {7u, 40u, 80u}) {
    options_.chunk_rows = chunk;
    options_.ram_bytes = 1ull << 30;
    options_.ram_bytes = floor_of(options_) + (chunk == 40 ? 0 : experts / 2);
    for (const bool on : {true, false}) {
      options_.prefetch = on ? Prefetch::kAuto : Prefetch::kOff;
      options_.preload = on;
      const auto model = open_model(options_);
      ASSERT_NE(model, nullptr);
      EXPECT_TRUE(same_bits(score(*model->runtime, prompt_of(80, 1)), reference_.logits)) << chunk;
      const TierCounters& counters = model->runtime->tier().counters();
      EXPECT_TRUE(on || counters.prefetches == 0);
      ahead += counters.prefetches_useful;
      EXPECT_EQ(generate_greedy(*model->runtime, prompt_of(37, 2), kTokens), reference_.tokens);
    }
  }
  EXPECT_GT(ahead, 0u);
}

TEST_P(Exactness, AcrossCachePolicies) {
  const auto file = ModelFile::open(options_.model_path);
  ASSERT_TRUE(file);
  options_.ram_bytes = floor_of(options_) + (*file)->expert_layout().total_expert_bytes() / 3;
  std::set<uint64_t> reads;
  for (const std::string_view policy : policy_names()) {
    options_.cache_policy = policy;
    const Outcome outcome = run(options_);
    EXPECT_TRUE(same_bits(outcome.logits, reference_.logits)) << policy;
    EXPECT_EQ(outcome.tokens, reference_.tokens) << policy;
    reads.insert(outcome.drive_reads);
  }
  // They did decide differently; a model of few experts leaves them no choice.
  if (GetParam() == std::string(kModels[0])) {
    EXPECT_GT(reads.size(), 2u);
  }
}

TEST_P(Exactness, AcrossInstructionSets) {
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    if (!choose_kernels(isa)) continue;  // this CPU lacks it; scalar is always there
    options_.isa = isa;
    const auto model = open_model(options_);
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(isa_name(model->runtime->kernels().isa), isa);
    expect_same(options_, isa);
  }
}

// Guesses of the next layer's experts, right and wrong, with one staging slot and with several, and
// with a drive that loses some of their reads.
TEST_P(Exactness, WhateverIsPrefetched) {
  const uint64_t floor = floor_of(options_);
  uint64_t prefetched = 0;
  for (const uint64_t ram : {floor, floor + (uint64_t{2} << 20)})
    for (const Prefetch prefetch : {Prefetch::kOff, Prefetch::kAuto, Prefetch::kAlways})
      for (const char* fault : {"", "every=5,once,errno=EIO;every=3,delay=1ms"}) {
        options_.ram_bytes = ram;
        options_.prefetch = prefetch;
        options_.io_fault = fault;
        const auto model = open_model(options_);
        ASSERT_NE(model, nullptr);
        EXPECT_TRUE(same_bits(score(*model->runtime, prompt_of(80, 1)), reference_.logits));
        EXPECT_EQ(generate_greedy(*model->runtime, prompt_of(37, 2), kTokens), reference_.tokens);
        const TierCounters& counters = model->runtime->tier().counters();
        EXPECT_TRUE(prefetch != Prefetch::kOff || counters.prefetches == 0);
        prefetched += counters.prefetches_useful;
      }
  EXPECT_GT(prefetched, 0u);
}

TEST_P(Exactness, WhenReadsFail) {
  options_.ram_bytes = floor_of(options_);
  for (const char* fault : {"every=7,once,errno=EIO", "every=5,once,short=511",
                            "every=6,errno=EAGAIN", "every=9,delay=2ms", "every=8,once,short=-1"}) {
    options_.io_fault = fault;
    const auto model = open_model(options_);
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->runtime->io().name().substr(0, 6), "fault(");
    expect_same(options_, fault);
  }
}

// Three sequences in one forward, rows interleaved, against each alone.
TEST_P(Exactness, WhateverTheCompany) {
  options_.n_sequences = 3;
  const auto model = open_model(options_);
  ASSERT_NE(model, nullptr);
  Runtime& runtime = *model->runtime;
  std::vector<std::vector<TokenId>> prompts = {prompt_of(23, 5), prompt_of(9, 6), prompt_of(31, 7)};
  std::vector<std::vector<float>> alone;
  for (const auto& prompt : prompts) alone.push_back(score(runtime, prompt));

  std::vector<std::vector<float>> together(prompts.size());
  std::vector<size_t> next(prompts.size(), 0);
  while (true) {
    std::vector<Row> rows;
    for (uint32_t s = 0; s < prompts.size(); ++s)
      for (uint32_t i = 0; i <= s && next[s] < prompts[s].size(); ++i, ++next[s])
        rows.push_back({SequenceId(s), static_cast<uint32_t>(next[s]), prompts[s][next[s]], true});
    if (rows.empty()) break;
    const Status status =
        runtime.forward().run(rows, Phase::kDecode, [&](size_t row, std::span<const float> logits) {
          auto& all = together[rows[row].sequence.value];
          all.insert(all.end(), logits.begin(), logits.end());
        });
    ASSERT_TRUE(status) << status.error().message;
  }
  for (size_t s = 0; s < prompts.size(); ++s)
    EXPECT_TRUE(same_bits(together[s], alone[s])) << "sequence " << s;
}

INSTANTIATE_TEST_SUITE_P(Models, Exactness, ::testing::ValuesIn(kModels), model_test_name);

}  // namespace
}  // namespace offstage
