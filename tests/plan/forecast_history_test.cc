#include "plan/forecast_history.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using testing::TempFolder;

KeptForecast sample(uint32_t tokens) {
  KeptForecast kept;
  kept.date = "2026-11-22T14:03:11Z";
  kept.command = "bench tg128";
  kept.machine = "two \"cores\"";
  kept.profile_date = "2026-11-21T00:00:00Z";
  kept.model = "a model";
  kept.cache_policy = "auto";
  kept.routing = "router";
  kept.ram_bytes = 4ull << 30;
  kept.pace_bytes_per_s = 500'000'000;
  kept.threads = 2;
  kept.drives = 1;
  kept.context = 1024;
  kept.guess_accuracy = .75;
  kept.hindsight.tokens = tokens;
  kept.hindsight.prompt_tokens = 5;
  kept.hindsight.forecast = {20, 10, .75, 90'000'000, 95'000'000, 99'000'000, 120'000'000};
  kept.hindsight.measured = {25, 8, .5, 110'000'000, 111'000'000, 132'000'000, 160'000'000};
  kept.hindsight.token.ns[0] = 1'500'000;
  return kept;
}

class ForecastHistory : public ::testing::Test {
 protected:
  std::vector<std::string> lines() const {
    std::ifstream file(path_);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }
  TempFolder folder_;
  const std::string path_ = folder_ / "cache/forecasts.jsonl";
};

TEST_F(ForecastHistory, IsReadAsItWasWritten) {
  ASSERT_TRUE(keep_forecast(path_, sample(7)));  // into a folder that wasn't there
  const auto kept = read_forecasts(path_);
  ASSERT_TRUE(kept);
  ASSERT_EQ(kept->forecasts.size(), 1u);
  EXPECT_EQ(forecast_text(kept->forecasts[0]), forecast_text(sample(7)));
  const std::string text = lines().at(0);
  EXPECT_NE(text.find(R"("decode_tok_s":0.25,"hit_rate":0.25,"p99":-0.25)"), std::string::npos)
      << text;
  EXPECT_NE(text.find(R"("error":{"prefill_tok_s":-0.19999)"), std::string::npos) << text;
}

TEST_F(ForecastHistory, KeepsTheLastOnes) {
  std::filesystem::create_directories(folder_ / "cache");
  {
    std::ofstream file(path_);
    for (uint32_t i = 0; i < kForecastsKept; ++i) file << forecast_text(sample(i)) << '\n';
  }
  ASSERT_TRUE(keep_forecast(path_, sample(1000)));
  const auto kept = read_forecasts(path_);
  ASSERT_TRUE(kept);
  ASSERT_EQ(kept->forecasts.size(), kForecastsKept);
  EXPECT_EQ(kept->forecasts.front().hindsight.tokens, 1u);
  EXPECT_EQ(kept->forecasts.back().hindsight.tokens, 1000u);
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "cache"))
    EXPECT_EQ(entry.path(), path_);  // nothing temporary stays
}

// Another version's lines are none of ours to throw away, nor to believe.
TEST_F(ForecastHistory, LinesItCantReadStayAndAreCounted) {
  ASSERT_TRUE(keep_forecast(path_, sample(1)));
  const std::string other = R"({"schema": "offstage.forecast/2"})";
  std::ofstream(path_, std::ios::app) << other << "\nnot JSON\n[]\n";
  ASSERT_TRUE(keep_forecast(path_, sample(2)));
  const auto kept = read_forecasts(path_);
  ASSERT_TRUE(kept);
  EXPECT_EQ(kept->forecasts.size(), 2u);
  EXPECT_EQ(kept->unread, 3u);
  EXPECT_EQ(lines().at(1), other);
}

TEST_F(ForecastHistory, ValuesAreChecked) {
  const std::string good = forecast_text(sample(1));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return parse_forecast(text.replace(at, from.size(), to));
  };
  EXPECT_TRUE(parse_forecast(good));
  for (const auto& [from, to] : {std::pair(R"("tokens":1)", R"("tokens":-1)"),
                                 {R"("tokens":1)", R"("tokens":5000000000)"},
                                 {R"("tokens":1)", R"("token":1)"},
                                 {R"("hit_rate":0.75)", R"("hit_rate":"much")"},
                                 {R"("p95":)", R"("p96":)"},
                                 {R"("model":"a model")", R"("model":3)"},
                                 {R"("wait_ms":{)", R"("wait_ms":3,"was":{)"}})
    EXPECT_FALSE(with(from, to)) << to;
}

TEST_F(ForecastHistory, WhereNothingCanBeWrittenIsAnError) {
  EXPECT_TRUE(read_forecasts(path_)->forecasts.empty());
  std::ofstream(folder_ / "file") << "no folder";
  const Status status = keep_forecast(folder_ / "file/forecasts.jsonl", sample(1));
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("file/forecasts.jsonl"), std::string::npos);
}

TEST(RelativeError, IsOfWhatWasMeasured) {
  EXPECT_NEAR(*relative_error(11, 10), .1, 1e-12);
  EXPECT_DOUBLE_EQ(*relative_error(5, 10), -.5);
  EXPECT_FALSE(relative_error(5, 0));
}

}  // namespace
}  // namespace offstage
