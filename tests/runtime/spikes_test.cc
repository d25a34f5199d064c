// The right token is named, with the right cause, out of records as a run would write them.
#include "runtime/spikes.h"

#include <gmock/gmock.h>

namespace offstage {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

constexpr int64_t kMs = 1'000'000;
const std::vector<std::string> kDrives = {"nvme0", "nvme1"};

// 100 ms: 80 of computing, 15 waiting for 4 reads of 3 ms, 5 verifying.
TokenRecord usual() {
  TokenRecord token;
  token.causes.ns[static_cast<size_t>(Cause::kExperts)] = 80 * kMs;
  token.causes.ns[static_cast<size_t>(Cause::kWaitDrive)] = 15 * kMs;
  token.causes.ns[static_cast<size_t>(Cause::kHash)] = 5 * kMs;
  token.wall_ns = token.causes.total_ns();
  token.drive_reads = 4;
  token.ram_hits = 28;
  token.load.cpu_ns = 160 * kMs;
  token.trace.reads = 12;
  token.trace.service_ns = 12 * 3 * kMs;
  token.trace.slowest_layer = 2;
  token.trace.slowest_layer_ns = 9 * kMs;
  LayerRecord& layer = token.trace.waiting;
  layer.layer = 2;
  layer.wait_ns = 6 * kMs;
  layer.misses[0] = 1;
  layer.depth_max = 3;
  layer.longest_ns = 4 * kMs;
  layer.longest.started_ns = 0;
  layer.longest.last_issued_ns = kMs / 10;
  layer.longest.completed_ns = 4 * kMs;
  return token;
}

void add(TokenRecord& token, Cause cause, int64_t ns) {
  token.causes.ns[static_cast<size_t>(cause)] += ns;
  token.wall_ns += ns;
}

Spike spike_of(const TokenRecord& odd) {
  std::vector<TokenRecord> tokens(40, usual());
  tokens[17] = odd;
  const SpikeReport report = explain_spikes(tokens, 5, kDrives);
  EXPECT_EQ(report.median_ns, 100 * kMs);
  EXPECT_EQ(report.slowest.size(), 1u);
  if (report.slowest.empty()) return {};
  EXPECT_EQ(report.slowest[0].token, 17u);
  EXPECT_EQ(report.classes.size(), 1u);
  EXPECT_EQ(report.classes[0].excess_ns, odd.wall_ns - 100 * kMs);
  return report.slowest[0];
}

TokenRecord one_wait(int64_t queued_ns, int64_t service_ns, uint32_t retries) {
  TokenRecord token = usual();
  add(token, Cause::kWaitDrive, 280 * kMs);
  LayerRecord& layer = token.trace.waiting;
  layer.layer = 31;
  layer.wait_ns = 290 * kMs;
  layer.misses = {0, 3};
  layer.depth_max = 4;
  layer.longest_ns = 281 * kMs;
  layer.longest.expert = 55;
  layer.longest.matrix = 2;
  layer.longest.drive = 1;
  layer.longest.retries = retries;
  layer.longest.last_issued_ns = queued_ns;
  layer.longest.completed_ns = queued_ns + service_ns;
  return token;
}

TEST(SpikesTest, ALateReadIsNamedWithLayerExpertAndDrive) {
  const Spike spike = spike_of(one_wait(kMs, 282 * kMs, 0));
  EXPECT_EQ(spike.cause, SpikeCause::kLateRead);
  EXPECT_EQ(spike.remedy, Remedy::kNothing);
  EXPECT_EQ(spike.layer, 31u);
  EXPECT_THAT(
      spike.sentence,
      HasSubstr("token 17: 380.0 ms, layer 31, 3 misses on nvme1, 290.0 ms waiting at queue "
                "depth 4; one read, expert 55 (down), was 282.0 ms with the drive"));
}

TEST(SpikesTest, ARetriedReadIsNotJustLate) {
  const Spike spike = spike_of(one_wait(kMs, 282 * kMs, 2));
  EXPECT_EQ(spike.cause, SpikeCause::kReadRetried);
  EXPECT_THAT(spike.sentence, HasSubstr("asked for 3 times"));
}

TEST(SpikesTest, AReadBehindOthersWouldHaveHadASecondDrive) {
  const Spike spike = spike_of(one_wait(279 * kMs, 3 * kMs, 0));
  EXPECT_EQ(spike.cause, SpikeCause::kDriveQueue);
  EXPECT_EQ(spike.remedy, Remedy::kSecondDrive);
}

TEST(SpikesTest, ASleepThatOutlivedItsReadIsTheCpus) {
  EXPECT_EQ(spike_of(one_wait(kMs, 3 * kMs, 0)).cause, SpikeCause::kCpuTaken);
}

TEST(SpikesTest, MoreMissesWantMoreRam) {
  TokenRecord token = usual();
  add(token, Cause::kWaitDrive, 60 * kMs);
  token.drive_reads = 20;
  token.trace.reads = 60;
  token.trace.service_ns = 60 * 3 * kMs;
  const Spike spike = spike_of(token);
  EXPECT_EQ(spike.cause, SpikeCause::kMisses);
  EXPECT_EQ(spike.remedy, Remedy::kMoreRam);
  EXPECT_THAT(spike.sentence, HasSubstr("20 experts of the token had to be read, 4 are usual"));
}

TEST(SpikesTest, AsManyReadsEachSlowerIsTheDrive) {
  TokenRecord token = usual();
  add(token, Cause::kWaitDrive, 60 * kMs);
  token.trace.service_ns *= 6;
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kSlowDrive);
  EXPECT_EQ(spike_of(token).remedy, Remedy::kFasterDrive);
  EXPECT_THAT(spike_of(token).sentence, EndsWith("18.0 ms for a read, 3.0 ms is usual"));
  token.drive_celsius[0] = 83;
  EXPECT_THAT(spike_of(token).sentence, EndsWith("is usual; it is 83 °C warm"));
  token.trace.depth_max = 20;
  EXPECT_EQ(spike_of(token).remedy, Remedy::kSecondDrive);
}

// Twice the reads are the misses' doing while each takes as long; not if each takes ten times that.
TEST(SpikesTest, MoreReadsOrSlowerOnes) {
  TokenRecord token = usual();
  add(token, Cause::kWaitDrive, 60 * kMs);
  token.drive_reads *= 2;
  token.trace.reads *= 2;
  token.trace.service_ns *= 2 * 2;  // they waited for one another
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kMisses);
  token.trace.service_ns *= 5;
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kSlowDrive);
}

TEST(SpikesTest, ReadsThatHadComeWereWokenForTooLate) {
  TokenRecord token = usual();
  add(token, Cause::kWaitDrive, 60 * kMs);
  token.trace.waits[1].woken_ns = 31 * kMs;
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kCpuTaken);
}

// Nothing about the drive changed, so it isn't to blame: a faster one would still have helped.
TEST(SpikesTest, AsManyReadsNoneSlowerWereLessHidden) {
  TokenRecord token = usual();
  add(token, Cause::kWaitDrive, 60 * kMs);
  const Spike spike = spike_of(token);
  EXPECT_EQ(spike.cause, SpikeCause::kLessHidden);
  EXPECT_EQ(spike.remedy, Remedy::kFasterDrive);
  EXPECT_EQ(spike.layer, 2u);
  EXPECT_THAT(spike.sentence, HasSubstr("no slower than usual, 3.0 ms each, but 75.0 ms of them "
                                        "weren't hidden behind computing, 15.0 ms are usual"));
}

TEST(SpikesTest, AStripedMissNamesAllItsDrives) {
  TokenRecord token = one_wait(kMs, 282 * kMs, 0);
  token.trace.waiting.misses = {};
  token.trace.waiting.striped_misses = 3;
  token.trace.waiting.striped_over = 0b11;
  EXPECT_THAT(spike_of(token).sentence, HasSubstr("3 misses striped over nvme0 and nvme1, "));
}

TEST(SpikesTest, CpuTimeTellsComputingFromWaitingForTheCpu) {
  TokenRecord token = usual();
  add(token, Cause::kExperts, 90 * kMs);
  token.load.involuntary_switches = 57;
  const Spike taken = spike_of(token);
  EXPECT_EQ(taken.cause, SpikeCause::kCpuTaken);
  EXPECT_EQ(taken.layer, 2u);
  EXPECT_THAT(taken.sentence, HasSubstr("pushed aside 57 times"));
  token.load.major_faults = 9;
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kPageFaults);
  token.load.throttled_ns = 80 * kMs;
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kCpuThrottled);
  token.load = usual().load;
  token.load.cpu_ns += 170 * kMs;
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kCompute);
}

// The kernel counted it: whatever the CPU time says.
TEST(SpikesTest, TimeReadyToRunWithoutACpuWasTaken) {
  TokenRecord token = usual();
  add(token, Cause::kDescheduled, 38 * kMs);
  token.load.cpu_ns += 100 * kMs;
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kCpuTaken);
  EXPECT_EQ(spike_of(token).remedy, Remedy::kNothing);
  EXPECT_THAT(spike_of(token).sentence, HasSubstr("others used the CPU for 38.0 ms in which the "
                                                  "decode thread was ready to run: 260.0 ms of "));
  token.load.throttled_ns = 10 * kMs;  // and who took it was our own quota
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kCpuThrottled);
}

// 190 ms of CPU time in 140: 1.4 CPUs, where 1.6 are usual. Who waits for a worker without a CPU
// spins, so the CPU time grew too.
TEST(SpikesTest, FewerCpusThanUsualWereTaken) {
  TokenRecord token = usual();
  add(token, Cause::kExperts, 40 * kMs);
  token.load.cpu_ns += 30 * kMs;
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kCpuTaken);
  token.load.cpu_ns += 40 * kMs;  // as many as usual: there was more to do
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kCompute);
}

TEST(SpikesTest, WhatIsNeitherDriveNorComputing) {
  TokenRecord token = usual();
  add(token, Cause::kCaller, 40 * kMs);
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kOther);
  EXPECT_THAT(spike_of(token).sentence, HasSubstr("40.0 ms went by between tokens"));
  token = usual();
  add(token, Cause::kCache, 40 * kMs);
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kCpuTaken);
  token = usual();
  add(token, Cause::kHash, 40 * kMs);
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kCpuTaken);
  token.load.cpu_ns += 60 * kMs;
  EXPECT_EQ(spike_of(token).cause, SpikeCause::kHash);
}

// Where nothing is read as a rule, a read isn't late just because it takes its time.
TEST(SpikesTest, TheOnlyMissesOfARunAreMisses) {
  TokenRecord resident = usual();
  resident.drive_reads = 0;
  resident.trace = {};
  std::vector<TokenRecord> tokens(20, resident);
  tokens[4] = usual();
  add(tokens[4], Cause::kWaitDrive, 40 * kMs);
  const SpikeReport report = explain_spikes(tokens, 5, kDrives);
  ASSERT_EQ(report.slowest.size(), 1u);
  EXPECT_EQ(report.slowest[0].cause, SpikeCause::kMisses);
  EXPECT_EQ(report.slowest[0].remedy, Remedy::kMoreRam);
}

TEST(SpikesTest, AnEvenRunHasNone) {
  const std::vector<TokenRecord> tokens(20, usual());
  EXPECT_TRUE(explain_spikes(tokens, 5, kDrives).slowest.empty());
  EXPECT_TRUE(explain_spikes({}, 5, kDrives).slowest.empty());
}

}  // namespace
}  // namespace offstage
