// A model in several files: `name-00001-of-00003.gguf`, `split.no` (from 0), `split.count` and
// `split.tensors.count` (of all shards together), as gguf-split and gguf-py write them.
#include <algorithm>
#include <bit>
#include <optional>
#include <utility>

#include "io/gguf_parser.h"
#include "io/gguf_reader.h"

namespace offstage {
namespace {

constexpr std::string_view kNoKey = "split.no";
constexpr std::string_view kCountKey = "split.count";
constexpr std::string_view kTensorsKey = "split.tensors.count";

struct ShardName {
  std::string prefix;   // up to the '-' before the number
  uint64_t number = 0;  // from 1
  uint64_t count = 0;

  std::string path(uint64_t i) const {
    return fmt::format("{}-{:05}-of-{:05}.gguf", prefix, i, count);
  }
};

std::optional<uint64_t> five_digits(std::string_view text) {
  uint64_t number = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    number = number * 10 + static_cast<uint64_t>(c - '0');
  }
  return number;
}

std::optional<ShardName> shard_name_of(std::string_view path) {
  constexpr std::string_view kPattern = "-NNNNN-of-NNNNN.gguf";
  if (path.size() < kPattern.size()) return std::nullopt;
  const std::string_view prefix = path.substr(0, path.size() - kPattern.size());
  const std::string_view tail = path.substr(prefix.size());
  if (tail[0] != '-' || tail.substr(6, 4) != "-of-" || tail.substr(15) != ".gguf")
    return std::nullopt;
  const std::optional<uint64_t> number = five_digits(tail.substr(1, 5));
  const std::optional<uint64_t> count = five_digits(tail.substr(10, 5));
  if (!number || !count) return std::nullopt;
  return ShardName{std::string(prefix), *number, *count};
}

Result<GgufModel> open_one(const std::string& path) {
  OFFSTAGE_TRY(GgufReader reader, GgufReader::open(path));
  return GgufParser::parse(reader);
}

// The key must be there and have the value that name and first shard say.
Status expect_key(const GgufModel& shard, std::string_view key, uint64_t expected,
                  std::string_view why) {
  OFFSTAGE_TRY(const std::optional<uint64_t> actual, shard.find_uint(key));
  if (!actual)
    return make_error(ErrorCode::kCorrupt, "{}: key '{}': expected {} ({}), actual absent",
                      shard.path(), key, expected, why);
  if (*actual != expected)
    return make_error(ErrorCode::kCorrupt, "{}: key '{}' at byte {}: expected {} ({}), actual {}",
                      shard.path(), key, shard.find(key)->offset, expected, why, *actual);
  return {};
}

bool same_bits(double a, double b) {
  return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b);
}
bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same_bits);
}
template <typename T>
bool same(const T& a, const T& b) {
  return a == b;
}
bool same(double a, double b) { return same_bits(a, b); }
bool same(const GgufArray& a, const GgufArray& b) {
  if (a.element_type != b.element_type || a.values.index() != b.values.index()) return false;
  return std::visit(
      [&](const auto& values) {
        return same(values, std::get<std::decay_t<decltype(values)>>(b.values));
      },
      a.values);
}
bool same_value(const GgufValue& a, const GgufValue& b) {
  if (a.type != b.type || a.value.index() != b.value.index()) return false;
  return std::visit(
      [&](const auto& value) {
        return same(value, std::get<std::decay_t<decltype(value)>>(b.value));
      },
      a.value);
}

// What each shard has for itself.
bool is_shards_own(std::string_view key) {
  return key.starts_with("split.") || key == "general.alignment";
}

Result<GgufModel> open_shard(const ShardName& name, uint64_t number, uint64_t tensors) {
  Result<GgufModel> shard = open_one(name.path(number));
  if (!shard && shard.error().code == ErrorCode::kNotFound)
    return make_error(ErrorCode::kNotFound, "{} (expected shard {} of {}, actual missing)",
                      shard.error().message, number, name.count);
  if (!shard) return shard;
  OFFSTAGE_TRY_VOID(expect_key(*shard, kCountKey, name.count, "the file's name"));
  OFFSTAGE_TRY_VOID(expect_key(*shard, kNoKey, number - 1, "the file's name, from 0"));
  OFFSTAGE_TRY_VOID(expect_key(*shard, kTensorsKey, tensors, "the shard that was opened first"));
  return shard;
}

Result<GgufModel> join(const ShardName& name, GgufModel given) {
  OFFSTAGE_TRY_VOID(expect_key(given, kCountKey, name.count, "the file's name"));
  if (name.number < 1 || name.number > name.count)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: file name: expected a shard from 1 to {}, actual {}", given.path(),
                      name.count, name.number);
  OFFSTAGE_TRY_VOID(expect_key(given, kNoKey, name.number - 1, "the file's name, from 0"));
  OFFSTAGE_TRY(const uint64_t tensors, given.require_uint(kTensorsKey));
  GgufModel model;
  for (uint64_t i = 1; i <= name.count; ++i) {
    if (i == name.number) {
      if (i == 1)
        model = std::move(given);
      else
        OFFSTAGE_TRY_VOID(GgufParser::append_shard(model, std::move(given)));
      continue;
    }
    OFFSTAGE_TRY(GgufModel shard, open_shard(name, i, tensors));
    if (i == 1)
      model = std::move(shard);
    else
      OFFSTAGE_TRY_VOID(GgufParser::append_shard(model, std::move(shard)));
  }
  OFFSTAGE_TRY_VOID(
      expect_key(model, kTensorsKey, model.tensors().size(), "the tensors of all shards together"));
  return model;
}

}  // namespace

Status GgufParser::append_shard(GgufModel& model, GgufModel&& shard) {
  const auto index = static_cast<uint32_t>(model.shards_.size());
  model.shards_.push_back(std::move(shard.shards_.front()));
  for (auto& [key, value] : shard.metadata_) {
    value.shard = index;
    const GgufValue* earlier = model.find(key);
    if (earlier != nullptr && !is_shards_own(key) && !same_value(*earlier, value))
      return make_error(ErrorCode::kCorrupt,
                        "{}: key '{}' at byte {}: expected the value that {} has at byte {}, "
                        "actual another: shards of different models?",
                        model.shards_[index].path, printable(key), value.offset,
                        model.shards_[earlier->shard].path, earlier->offset);
  }
  for (auto& entry : shard.metadata_)
    if (model.find(entry.first) == nullptr) model.metadata_.push_back(std::move(entry));
  for (GgufTensor& tensor : shard.tensors_) {
    tensor.shard = index;
    model.tensors_.push_back(std::move(tensor));
  }
  return sort_names(model);
}

Result<GgufModel> GgufModel::open(const std::string& path) {
  OFFSTAGE_TRY(GgufModel model, open_one(path));
  OFFSTAGE_TRY(const std::optional<uint64_t> count, model.find_uint(kCountKey));
  const std::optional<ShardName> name = shard_name_of(path);
  // gguf-split writes a count of 0 when it merges.
  const bool is_split = count.value_or(0) > 1;
  if (!is_split && (!name || name->count <= 1)) return model;
  if (!name)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: key '{}' at byte {}: expected a file name like "
                      "'model-00001-of-{:05}.gguf' for a model of {} shards, actual another",
                      path, kCountKey, model.find(kCountKey)->offset, *count, *count);
  return join(*name, std::move(model));
}

}  // namespace offstage
