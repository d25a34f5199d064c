#include "plan/hardware_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "io/extent.h"
#include "io/index_file.h"
#include "io/whole_file.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kSpeedMax = 1e15;  // far above any machine, low enough that times don't vanish
constexpr double kTimeMax = 1e12;
constexpr size_t kDrivesMax = 16;

// The keys of one object, read by name; the first failure stays and the rest is skipped.
class ObjectReader {
 public:
  ObjectReader(const Json& json, std::string where, Status& status)
      : json_(json), where_(std::move(where)), status_(status) {}

  // A number in [least, most].
  template <typename T>
  void number(const char* key, T& out, double least, double most) {
    const Json* value = find(key);
    if (value == nullptr) return;
    const double found = value->is_number() ? value->get<double>() : std::nan("");
    if (found >= least && found <= most)
      out = static_cast<T>(found);
    else
      fail(ErrorCode::kCorrupt, key, fmt::format("a number from {} to {}", least, most),
           value->dump());
  }
  void text(const char* key, std::string& out) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (value->is_string())
      out = value->get<std::string>();
    else
      fail(ErrorCode::kCorrupt, key, "text", value->dump());
  }
  void truth(const char* key, bool& out) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (value->is_boolean())
      out = value->get<bool>();
    else
      fail(ErrorCode::kCorrupt, key, "true or false", value->dump());
  }
  const Json* object(const char* key) { return of_kind(key, Json::value_t::object, "an object"); }
  const Json* list(const char* key) { return of_kind(key, Json::value_t::array, "a list"); }
  bool has(const char* key) const { return json_.contains(key); }
  const std::string& where() const { return where_; }

  void fail(ErrorCode code, const char* key, std::string_view expected, std::string_view found) {
    if (status_)
      status_ = make_error(code, "{}: key '{}': expected {}, found {}", where_, key, expected,
                           found.substr(0, 60));
  }

 private:
  const Json* find(const char* key) {
    const auto found = json_.find(key);
    if (found != json_.end()) return &*found;
    fail(ErrorCode::kNotFound, key, "a value", "none");
    return nullptr;
  }
  const Json* of_kind(const char* key, Json::value_t kind, std::string_view expected) {
    const Json* value = find(key);
    if (value == nullptr || value->type() == kind) return value;
    fail(ErrorCode::kCorrupt, key, expected, value->dump());
    return nullptr;
  }
  const Json& json_;
  std::string where_;
  Status& status_;
};

KernelSpeed read_kernel(ObjectReader reader) {
  KernelSpeed kernel;
  std::string type;
  reader.text("type", type);
  const auto known = tensor_type_from_name(type);
  if (known)
    kernel.type = *known;
  else
    reader.fail(ErrorCode::kCorrupt, "type", "a format's name such as Q4_K", Json(type).dump());
  reader.number("decode_bytes_per_s", kernel.decode_bytes_per_s, 1, kSpeedMax);
  reader.number("prefill_params_per_s", kernel.prefill_params_per_s, 1, kSpeedMax);
  return kernel;
}

DriveSpeed read_drive(ObjectReader reader) {
  DriveSpeed drive;
  reader.text("name", drive.name);
  reader.number("bytes_per_s", drive.bytes_per_s, 1, kSpeedMax);
  if (reader.has("lone_bytes_per_s"))
    reader.number("lone_bytes_per_s", drive.lone_bytes_per_s, 0, kSpeedMax);
  if (reader.has("request_ns")) reader.number("request_ns", drive.request_ns, 0, kTimeMax);
  reader.number("latency_ns", drive.latency_ns, 0, kTimeMax);
  reader.number("jitter_ns", drive.jitter_ns, 0, kTimeMax);
  reader.number("channels", drive.channels, 1, 4096);
  reader.number("block_bytes", drive.block_bytes, 4096, 1u << 30);
  if (drive.block_bytes % kSectorBytes != 0)
    reader.fail(ErrorCode::kCorrupt, "block_bytes", fmt::format("a multiple of {}", kSectorBytes),
                fmt::to_string(drive.block_bytes));
  reader.number("depth", drive.depth, 1, 4096);
  reader.number("slowest_second", drive.slowest_second, 0, kSpeedMax);
  reader.number("read_p99_ns", drive.read_p99_ns, 0, kTimeMax);
  if (reader.has("answers_together")) reader.truth("answers_together", drive.answers_together);
  return drive;
}

void read_cpu(ObjectReader reader, HardwareProfile& profile, Status& status) {
  reader.number("threads", profile.threads, 1, 4096);
  reader.number("hash_bytes_per_s", profile.hash_bytes_per_s, 1, kSpeedMax);
  reader.number("dispatch_ns", profile.dispatch_ns, 0, kTimeMax);
  reader.number("event_ns", profile.event_ns, 0, kTimeMax);
  reader.number("token_ns", profile.token_ns, 0, kTimeMax);
  if (reader.has("product_ns")) reader.number("product_ns", profile.product_ns, 0, kTimeMax);
  if (reader.has("attention_ns")) reader.number("attention_ns", profile.attention_ns, 0, kTimeMax);
  if (reader.has("router_ns")) reader.number("router_ns", profile.router_ns, 0, kTimeMax);
  if (reader.has("experts_ns")) reader.number("experts_ns", profile.experts_ns, 0, kTimeMax);
  if (reader.has("policy_ns")) reader.number("policy_ns", profile.policy_ns, 0, kTimeMax);
  if (reader.has("miss_ns")) reader.number("miss_ns", profile.miss_ns, 0, kTimeMax);
  if (reader.has("asleep_ns")) reader.number("asleep_ns", profile.asleep_ns, 0, kTimeMax);
  if (reader.has("wake_ns")) reader.number("wake_ns", profile.wake_ns, 0, kTimeMax);
  reader.number("slowdown_beside_reads", profile.slowdown_beside_reads, 1, 100);
  const Json* kernels = reader.list("kernels");
  if (kernels == nullptr) return;
  if (kernels->empty()) reader.fail(ErrorCode::kCorrupt, "kernels", "at least one", "none");
  for (const Json& kernel : *kernels)
    profile.kernels.push_back(read_kernel({kernel, reader.where() + ".kernels", status}));
}

}  // namespace

SimDrive DriveSpeed::simulated() const {
  const double block_ns = static_cast<double>(block_bytes) * 1e9 / bytes_per_s;
  // Of a block's time at most half is its request's, whatever a profile says.
  const double each_ns = std::min(static_cast<double>(request_ns), block_ns / 2);
  const double transfer_bytes_per_s = static_cast<double>(block_bytes) * 1e9 / (block_ns - each_ns);
  return {.channels = channels,
          .latency_ns = latency_ns,
          .jitter_ns = jitter_ns,
          .bytes_per_s = static_cast<uint64_t>(transfer_bytes_per_s),
          .channel_bytes_per_s = static_cast<uint64_t>(lone_bytes_per_s),
          .request_ns = static_cast<int64_t>(each_ns),
          .answers_together = answers_together};
}

double HardwareProfile::drive_bytes_per_s(size_t drive) const {
  const double own = drives[drive].bytes_per_s;
  return pace_bytes_per_s == 0 ? own : std::min(own, static_cast<double>(pace_bytes_per_s));
}

KernelSpeed HardwareProfile::kernel_of(TensorType type, Notices& notices) const {
  CHECK(!kernels.empty());
  auto found = std::find_if(kernels.begin(), kernels.end(),
                            [type](const KernelSpeed& kernel) { return kernel.type == type; });
  if (found == kernels.end()) {
    found = std::min_element(kernels.begin(), kernels.end(),
                             [](const KernelSpeed& a, const KernelSpeed& b) {
                               return a.decode_bytes_per_s < b.decode_bytes_per_s;
                             });
    notices.add("profile",
                fmt::format("no speed of {} in it; that of {} stands in",
                            tensor_type_traits(type).name, tensor_type_traits(found->type).name));
  }
  KernelSpeed speed = *found;
  speed.type = type;
  speed.decode_bytes_per_s = std::min(speed.decode_bytes_per_s, ram_read_bytes_per_s);
  return speed;
}

Result<HardwareProfile> parse_profile(std::string_view text, const std::string& name) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object())
    return make_error(ErrorCode::kCorrupt, "{}: expected a JSON object, found {}", name,
                      json.is_discarded() ? "no JSON" : json.type_name());
  Status status;
  ObjectReader reader(json, name, status);
  HardwareProfile profile;
  std::string schema;
  reader.text("schema", schema);
  if (status && schema != kProfileSchema)
    reader.fail(ErrorCode::kUnsupported, "schema", kProfileSchema, Json(schema).dump());
  if (!status) return tl::unexpected(status.error());
  reader.text("machine", profile.machine);
  reader.text("date", profile.date);
  if (const Json* ram = reader.object("ram")) {
    ObjectReader memory(*ram, name + ": ram", status);
    memory.number("bytes", profile.ram_bytes, 1, 1e15);
    memory.number("read_bytes_per_s", profile.ram_read_bytes_per_s, 1, kSpeedMax);
    if (memory.has("cache_bytes")) memory.number("cache_bytes", profile.cache_bytes, 0, 1e15);
  }
  if (const Json* cpu = reader.object("cpu"))
    read_cpu({*cpu, name + ": cpu", status}, profile, status);
  if (const Json* drives = reader.list("drives")) {
    if (drives->empty() || drives->size() > kDrivesMax)
      reader.fail(ErrorCode::kCorrupt, "drives", fmt::format("1 to {} of them", kDrivesMax),
                  fmt::to_string(drives->size()));
    for (const Json& drive : *drives)
      profile.drives.push_back(read_drive({drive, name + ": drives", status}));
  }
  if (!status) return tl::unexpected(status.error());
  return profile;
}

std::string profile_text(const HardwareProfile& profile) {
  auto kernels = Json::array();
  for (const KernelSpeed& kernel : profile.kernels)
    kernels.push_back({{"type", tensor_type_traits(kernel.type).name},
                       {"decode_bytes_per_s", kernel.decode_bytes_per_s},
                       {"prefill_params_per_s", kernel.prefill_params_per_s}});
  auto drives = Json::array();
  for (const DriveSpeed& drive : profile.drives)
    drives.push_back({{"name", drive.name},
                      {"bytes_per_s", drive.bytes_per_s},
                      {"lone_bytes_per_s", drive.lone_bytes_per_s},
                      {"request_ns", drive.request_ns},
                      {"latency_ns", drive.latency_ns},
                      {"jitter_ns", drive.jitter_ns},
                      {"channels", drive.channels},
                      {"block_bytes", drive.block_bytes},
                      {"depth", drive.depth},
                      {"slowest_second", drive.slowest_second},
                      {"read_p99_ns", drive.read_p99_ns},
                      {"answers_together", drive.answers_together}});
  const Json json = {{"schema", kProfileSchema},
                     {"machine", profile.machine},
                     {"date", profile.date},
                     {"ram",
                      {{"bytes", profile.ram_bytes},
                       {"read_bytes_per_s", profile.ram_read_bytes_per_s},
                       {"cache_bytes", profile.cache_bytes}}},
                     {"cpu",
                      {{"threads", profile.threads},
                       {"hash_bytes_per_s", profile.hash_bytes_per_s},
                       {"dispatch_ns", profile.dispatch_ns},
                       {"product_ns", profile.product_ns},
                       {"attention_ns", profile.attention_ns},
                       {"router_ns", profile.router_ns},
                       {"experts_ns", profile.experts_ns},
                       {"asleep_ns", profile.asleep_ns},
                       {"event_ns", profile.event_ns},
                       {"policy_ns", profile.policy_ns},
                       {"miss_ns", profile.miss_ns},
                       {"token_ns", profile.token_ns},
                       {"wake_ns", profile.wake_ns},
                       {"slowdown_beside_reads", profile.slowdown_beside_reads},
                       {"kernels", kernels}}},
                     {"drives", drives}};
  return json.dump(2) + "\n";
}

std::optional<std::string> kept_profile_path() {
  const std::optional<std::string> folder = cache_folder();
  return folder ? std::optional(*folder + "/machine.json") : std::nullopt;
}

Status keep_profile(const std::string& path, const HardwareProfile& profile) {
  return replace_file(path, profile_text(profile));
}

}  // namespace offstage
