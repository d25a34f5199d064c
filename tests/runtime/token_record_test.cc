// A token's record against what is known to have happened: whole, gapless, and naming an injected
// late read by token, layer and expert.
#include "runtime/token_record.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "io/fault.h"
#include "runtime/spikes.h"
#include "tests/io/temp_file.h"
#include "tests/runtime/runtime_fixture.h"

namespace offstage {
namespace {

constexpr int64_t kDelayNs = 200'000'000;
const std::vector<TokenId> kPrompt = {5};
const std::vector<TokenId> kThen = {9, 2, 7, 11, 3, 30, 31, 32, 8, 4, 60, 61, 40, 41, 42, 90};

GenerationRecord feed(Runtime& runtime, std::span<const TokenId> then) {
  Session session(runtime, SequenceId(0));
  auto record = session.feed(kPrompt, then, {});
  if (!record) ADD_FAILURE() << record.error().message;
  return record ? std::move(*record) : GenerationRecord();
}

RuntimeOptions options_with(const std::string& faults) {
  RuntimeOptions options = test_options(model_file("qwen3moe-s1.gguf"));
  options.prefetch = Prefetch::kOff;  // reads in the same order every time
  options.warm_start = false;
  options.preload = false;
  options.record = RecordLevel::kRead;
  options.io_fault = faults;
  return options;
}

TEST(TokenRecordTest, EveryNanosecondAndEveryCallIsInOneRecord) {
  const auto model = open_model(options_with(""));
  ASSERT_NE(model, nullptr);
  const GenerationRecord record = feed(*model->runtime, kThen);
  ASSERT_EQ(record.tokens.size(), kThen.size());
  const ModelSpec& spec = model->runtime->spec();
  int64_t end_ns = record.prefill.began_ns + record.prefill.wall_ns;
  uint64_t drive_bytes = record.prefill.trace.drive_bytes[0];
  uint64_t bytes_read = record.prefill.bytes_read;
  for (size_t i = 0; i < record.tokens.size(); ++i) {
    const TokenRecord& token = record.tokens[i];
    EXPECT_EQ(token.began_ns, end_ns) << i;
    EXPECT_EQ(token.wall_ns, token.causes.total_ns()) << i;
    EXPECT_EQ(token.ram_hits + token.drive_reads, spec.n_moe_layers() * spec.router.n_used) << i;
    EXPECT_EQ(token.trace.reads, token.drive_reads * kExpertMatrices) << i;
    EXPECT_GT(token.load.cpu_ns, 0) << i;
    EXPECT_LT(token.trace.slowest_layer, spec.n_layers) << i;
    EXPECT_LE(token.trace.waiting.wait_ns, token.causes[Cause::kWaitDrive]) << i;
    const DriveWait& waits = token.trace.waits[0];
    const int64_t explained_ns = waits.queued_ns + waits.service_ns + waits.woken_ns;
    EXPECT_LE(explained_ns, token.causes[Cause::kWaitDrive]) << i;
    EXPECT_GE(2 * explained_ns, token.causes[Cause::kWaitDrive]) << i;  // interruptions are rare
    end_ns += token.wall_ns;
    drive_bytes += token.trace.drive_bytes[0];
    bytes_read += token.bytes_read;
  }
  EXPECT_EQ(drive_bytes, bytes_read);  // no read was cut short, and none is left
}

TEST(TokenRecordTest, LayersAndReadsAddUpToTheToken) {
  const auto model = open_model(options_with(""));
  ASSERT_NE(model, nullptr);
  const GenerationRecord record = feed(*model->runtime, kThen);
  const Trace& trace = model->runtime->trace();
  std::vector<int64_t> wait_ns(kThen.size(), 0), experts_ns(kThen.size(), 0);
  std::vector<uint32_t> layers(kThen.size(), 0), reads(kThen.size(), 0);
  for (size_t i = 0; i < trace.layers().size(); ++i) {
    const LayerSample& sample = trace.layers()[i];
    if (sample.record.token == kPromptToken) continue;
    ASSERT_LT(sample.record.token, kThen.size());
    EXPECT_EQ(sample.record.layer, layers[sample.record.token]++);
    EXPECT_EQ(sample.record.wall_ns, sample.causes.total_ns());
    wait_ns[sample.record.token] += sample.causes[Cause::kWaitDrive];
    experts_ns[sample.record.token] += sample.causes[Cause::kExperts];
    EXPECT_EQ(sample.record.wait_ns, sample.causes[Cause::kWaitDrive]);
  }
  for (size_t i = 0; i < trace.reads().size(); ++i)
    if (trace.reads()[i].token != kPromptToken) ++reads[trace.reads()[i].token];
  for (size_t i = 0; i < kThen.size(); ++i) {
    EXPECT_EQ(layers[i], model->runtime->spec().n_layers) << i;
    EXPECT_EQ(wait_ns[i], record.tokens[i].causes[Cause::kWaitDrive]) << i;
    EXPECT_EQ(experts_ns[i], record.tokens[i].causes[Cause::kExperts]) << i;
    EXPECT_EQ(reads[i], record.tokens[i].trace.reads) << i;
  }
}

// What is done with a record is the next token's time, and neither the model's nor nobody's.
TEST(TokenRecordTest, TheCallersTimeIsItsOwn) {
  constexpr auto kPause = std::chrono::milliseconds(3);
  const auto model = open_model(options_with(""));
  ASSERT_NE(model, nullptr);
  GenerateOptions options;
  options.on_record = [&](const TokenRecord&) { std::this_thread::sleep_for(kPause); };
  Session session(*model->runtime, SequenceId(0));
  const auto record = session.feed(kPrompt, kThen, options);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->tokens[0].causes[Cause::kCaller], 0);
  for (size_t i = 1; i < record->tokens.size(); ++i) {
    const CauseTimes& causes = record->tokens[i].causes;
    EXPECT_GE(causes[Cause::kCaller], std::chrono::nanoseconds(kPause).count()) << i;
    EXPECT_GT(causes[Cause::kRecord], 0) << i;
  }
}

// By structure, however busy the machine: there is no moment in a generation, its prompt included,
// in which nobody is in charge, so nothing that interrupts it can become `other`.
TEST(TokenRecordTest, NoTimeIsNobodys) {
  RuntimeOptions options = options_with("every=7,delay=2ms");
  options.chunk_rows = 16;
  options.chunk_rows_fixed = true;
  const auto model = open_model(options);
  ASSERT_NE(model, nullptr);
  const testing::TempFile trace({});
  ASSERT_TRUE(model->runtime->record_routes(trace.path()));
  const Cause outside = model->runtime->timer().cause();
  EXPECT_EQ(outside, Cause::kOther);
  const auto expect_claimed = [&](const GenerationRecord& record, size_t n) {
    ASSERT_EQ(record.tokens.size(), n);
    EXPECT_EQ(record.prefill.causes[Cause::kOther], 0);
    for (const TokenRecord& token : record.tokens) EXPECT_EQ(token.causes[Cause::kOther], 0);
    EXPECT_EQ(model->runtime->timer().cause(), outside);
  };
  expect_claimed(feed(*model->runtime, kThen), kThen.size());

  constexpr uint32_t kTokens = 6;
  Sampler sampler({.temperature = 0}, model->runtime->spec().n_vocab);
  GenerateOptions generate;
  generate.max_tokens = kTokens;
  generate.ignore_eos = true;
  // Whoever is called back is in charge of its own time.
  std::vector<Cause> called_back;
  const auto note = [&] { called_back.push_back(model->runtime->timer().cause()); };
  generate.on_prefill = [&](uint32_t, uint32_t) { note(); };
  generate.on_record = [&](const TokenRecord&) { note(); };
  generate.on_token = [&](TokenId) {
    note();
    return true;
  };
  Session session(*model->runtime, SequenceId(0));
  const auto generation = session.generate(std::vector<TokenId>(40, 7), sampler, generate);
  ASSERT_TRUE(generation);
  expect_claimed(generation->record, kTokens - 1);
  EXPECT_EQ(called_back.size(), 3u + kTokens + kTokens - 1);
  for (const Cause cause : called_back) EXPECT_EQ(cause, Cause::kCaller);
  ASSERT_TRUE(model->runtime->close_route_record());
}

// How many requests the drive had when so many tokens were done.
uint64_t requests_of(size_t n_tokens) {
  const auto counting = open_model(options_with("nth=1000000000,delay=1ms"));
  if (counting == nullptr) return 0;
  feed(*counting->runtime, std::span(kThen).first(n_tokens));
  return dynamic_cast<FaultEngine&>(counting->runtime->io()).fault_counters().requests;
}

// Of a token, one that took at least so long.
const ReadRecord* slow_read(const Trace& trace, size_t token, int64_t service_ns) {
  for (size_t i = 0; i < trace.reads().size(); ++i)
    if (trace.reads()[i].token == token && trace.reads()[i].service_ns() >= service_ns)
      return &trace.reads()[i];
  return nullptr;
}

// The first request after two tokens is made late. A machine so busy that the read wasn't waited
// for has no spike to explain: then it is made later.
TEST(TokenRecordTest, ALateReadIsNamed) {
  constexpr size_t kBefore = 2;
  const uint64_t n_requests = requests_of(kBefore);
  for (const int64_t delay_ns : {kDelayNs, 5 * kDelayNs, 25 * kDelayNs}) {
    const auto model =
        open_model(options_with(fmt::format("nth={},delay={}ns", n_requests + 1, delay_ns)));
    ASSERT_NE(model, nullptr);
    const GenerationRecord record = feed(*model->runtime, kThen);
    size_t late = kBefore;
    while (late < record.tokens.size() && record.tokens[late].drive_reads == 0) ++late;
    ASSERT_LT(late, record.tokens.size());

    const ReadRecord* late_read = slow_read(model->runtime->trace(), late, delay_ns);
    ASSERT_NE(late_read, nullptr);
    const TokenRecord& token = record.tokens[late];
    EXPECT_GE(token.wall_ns, delay_ns);
    if (2 * token.trace.waiting.longest_ns < delay_ns) continue;
    EXPECT_GE(2 * token.causes[Cause::kWaitDrive], delay_ns);
    EXPECT_EQ(token.trace.waiting.layer, late_read->layer);
    EXPECT_EQ(token.trace.waiting.longest.expert, late_read->expert);
    const SpikeReport report =
        explain_spikes(record.tokens, record.tokens.size(), model->runtime->drive_names());
    const auto spike = std::find_if(report.slowest.begin(), report.slowest.end(),
                                    [&](const Spike& s) { return s.token == late; });
    ASSERT_NE(spike, report.slowest.end());
    EXPECT_EQ(spike->cause, SpikeCause::kLateRead) << spike->sentence;
    EXPECT_EQ(spike->layer, late_read->layer);
    return;
  }
  FAIL() << "a read 5 s late was waited for less than half of that";
}

TEST(TokenRecordTest, FeedRefusesWhatDoesNotFit) {
  const auto model = open_model(options_with(""));
  ASSERT_NE(model, nullptr);
  Session session(*model->runtime, SequenceId(0));
  EXPECT_EQ(session.feed({}, kThen, {}).error().code, ErrorCode::kInvalidArgument);
  const std::vector<TokenId> many(256, 1);
  EXPECT_EQ(session.feed(kPrompt, many, {}).error().code, ErrorCode::kBudget);
}

}  // namespace
}  // namespace offstage
