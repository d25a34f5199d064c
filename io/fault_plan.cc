// Fault plans as text. Small and strict: an unknown part is an error that lists the known ones.
#include <cerrno>
#include <charconv>
#include <iterator>

#include "base/units.h"
#include "io/fault.h"

namespace offstage {
namespace {

struct ErrnoName {
  std::string_view name;
  int err;
};
constexpr ErrnoName kErrnoNames[] = {
    {"EIO", EIO},       {"EAGAIN", EAGAIN},   {"EINTR", EINTR}, {"ECANCELED", ECANCELED},
    {"ENODEV", ENODEV}, {"EINVAL", EINVAL},   {"ENXIO", ENXIO}, {"ETIMEDOUT", ETIMEDOUT},
    {"ENOMEM", ENOMEM}, {"ENODATA", ENODATA}, {"EBADF", EBADF},
};

struct CorruptName {
  std::string_view name;
  FaultKind kind;
};
constexpr CorruptName kCorruptNames[] = {
    {"flip", FaultKind::kFlip}, {"zeros", FaultKind::kZeros},         {"stale", FaultKind::kStale},
    {"torn", FaultKind::kTorn}, {"elsewhere", FaultKind::kElsewhere},
};

tl::unexpected<Error> bad_part(std::string_view part, std::string_view expected) {
  return make_error(ErrorCode::kInvalidArgument, "fault plan: '{}': expected {}", part, expected);
}

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

// Calls `take(piece)` for each trimmed piece between separators; stops at the first error.
template <typename Take>
Status for_each_piece(std::string_view text, char separator, Take&& take) {
  while (!text.empty()) {
    const size_t end = std::min(text.find(separator), text.size());
    if (const auto piece = trim(text.substr(0, end)); !piece.empty()) {
      OFFSTAGE_TRY_VOID(take(piece));
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return {};
}

template <typename T>
bool parse_number(std::string_view text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

bool parse_duration(std::string_view text, int64_t& out_ns) {
  struct Unit {
    std::string_view name;
    int64_t ns;
  };
  // "s" last: the others end in it.
  constexpr Unit kUnits[] = {{"ns", 1}, {"us", 1'000}, {"ms", 1'000'000}, {"s", 1'000'000'000}};
  for (const Unit& unit : kUnits) {
    if (!text.ends_with(unit.name)) continue;
    uint64_t count = 0;
    text.remove_suffix(unit.name.size());
    if (!parse_number(text, count) || count > uint64_t{1} << 30) return false;
    out_ns = static_cast<int64_t>(count) * unit.ns;
    return true;
  }
  return false;
}

Status parse_errno(std::string_view part, std::string_view value, FaultRule& rule) {
  rule.kind = FaultKind::kErrno;
  for (const ErrnoName& known : kErrnoNames) {
    if (known.name == value) rule.err = known.err;
  }
  if (rule.err != 0 || (parse_number(value, rule.err) && rule.err > 0)) return {};
  return bad_part(part, "an errno as a name (EIO, EAGAIN ...) or a number");
}

Status parse_corrupt(std::string_view part, std::string_view value, FaultRule& rule) {
  for (const CorruptName& known : kCorruptNames) {
    if (known.name != value) continue;
    rule.kind = known.kind;
    return {};
  }
  return bad_part(part, "flip, zeros, stale, elsewhere or torn");
}

Status parse_range(std::string_view part, std::string_view value, FaultRule& rule) {
  const size_t plus = value.find('+');
  uint64_t bytes = 0;
  if (plus == std::string_view::npos || !parse_number(value.substr(0, plus), rule.range_begin) ||
      !parse_number(value.substr(plus + 1), bytes) || bytes == 0 ||
      __builtin_add_overflow(rule.range_begin, bytes, &rule.range_end)) {
    return bad_part(part, "OFFSET+BYTES");
  }
  return {};
}

Status parse_count(std::string_view part, std::string_view value, uint64_t& out) {
  if (parse_number(value, out) && out > 0) return {};
  return bad_part(part, "a number of 1 or more");
}

Status parse_part(std::string_view part, FaultPlan& plan, FaultRule& rule) {
  const size_t equals = std::min(part.find('='), part.size());
  const std::string_view key = trim(part.substr(0, equals));
  const std::string_view value = trim(part.substr(std::min(equals + 1, part.size())));
  if (key == "nth") return parse_count(part, value, rule.nth);
  if (key == "every") return parse_count(part, value, rule.every);
  if (key == "from") return parse_count(part, value, rule.from);
  if (key == "until") return parse_count(part, value, rule.until);
  if (key == "times") return parse_count(part, value, rule.times);
  if (key == "range") return parse_range(part, value, rule);
  if (key == "errno") return parse_errno(part, value, rule);
  if (key == "corrupt") return parse_corrupt(part, value, rule);
  if (key == "never" && equals == part.size()) {
    rule.kind = FaultKind::kNever;
    return {};
  }
  if (key == "once" && equals == part.size()) {
    rule.once = true;
    return {};
  }
  if (key == "file") {
    if (parse_number(value, rule.file.emplace())) return {};
    return bad_part(part, "the number of a file, from 0");
  }
  if (key == "p") {
    const bool ok = parse_number(value, rule.probability);
    if (ok && rule.probability >= 0 && rule.probability <= 1) return {};
    return bad_part(part, "a probability from 0 to 1");
  }
  if (key == "short") {
    rule.kind = FaultKind::kShort;
    if (parse_number(value, rule.short_bytes)) return {};
    return bad_part(part, "a number of bytes");
  }
  if (key == "delay") {
    if (parse_duration(value, rule.delay_ns)) return {};
    return bad_part(part, "a time such as 500us, 10ms, 2s");
  }
  if (key == "seed") {
    if (parse_number(value, plan.seed)) return {};
    return bad_part(part, "a number");
  }
  if (key == "pace") {
    const auto bytes = parse_bytes(value);
    if (!bytes) return bad_part(part, "bytes per second, such as 500M");
    plan.pace_bytes_per_s = *bytes;
    return {};
  }
  return bad_part(
      part,
      "file, range, nth, every, from, until, p, times, once; errno, short, never, corrupt, "
      "delay; seed, pace");
}

}  // namespace

Result<FaultPlan> parse_fault_plan(std::string_view text) {
  FaultPlan plan;
  OFFSTAGE_TRY_VOID(for_each_piece(text, ';', [&](std::string_view rule_text) -> Status {
    FaultRule rule;
    OFFSTAGE_TRY_VOID(for_each_piece(
        rule_text, ',', [&](std::string_view part) { return parse_part(part, plan, rule); }));
    const bool acts = rule.kind != FaultKind::kNone || rule.delay_ns != 0;
    const bool of_the_plan = rule_text.starts_with("seed") || rule_text.starts_with("pace");
    if (!acts && !of_the_plan) {
      return bad_part(rule_text, "an action: errno, short, never, corrupt or delay");
    }
    if (acts) plan.rules.push_back(rule);
    return {};
  }));
  return plan;
}

std::string describe_fault_plan(const FaultPlan& plan) {
  constexpr uint64_t kAny = std::numeric_limits<uint64_t>::max();
  std::string text = fmt::format("seed={}", plan.seed);
  if (plan.pace_bytes_per_s != 0) text += fmt::format(";pace={}", plan.pace_bytes_per_s);
  for (const FaultRule& rule : plan.rules) {
    std::string parts;
    const auto add = [&](std::string part) { parts += (parts.empty() ? "" : ",") + part; };
    if (rule.file) add(fmt::format("file={}", *rule.file));
    if (rule.range_end != kAny) {
      add(fmt::format("range={}+{}", rule.range_begin, rule.range_end - rule.range_begin));
    }
    if (rule.nth != 0) add(fmt::format("nth={}", rule.nth));
    if (rule.every != 0) add(fmt::format("every={}", rule.every));
    if (rule.from != 1) add(fmt::format("from={}", rule.from));
    if (rule.until != kAny) add(fmt::format("until={}", rule.until));
    if (rule.probability != 1) add(fmt::format("p={}", rule.probability));
    if (rule.times != kAny) add(fmt::format("times={}", rule.times));
    if (rule.once) add("once");
    if (rule.kind == FaultKind::kErrno) add(fmt::format("errno={}", rule.err));
    if (rule.kind == FaultKind::kShort) add(fmt::format("short={}", rule.short_bytes));
    if (rule.kind == FaultKind::kNever) add("never");
    for (const CorruptName& known : kCorruptNames) {
      if (known.kind == rule.kind) add(fmt::format("corrupt={}", known.name));
    }
    if (rule.delay_ns != 0) add(fmt::format("delay={}ns", rule.delay_ns));
    text += ";" + parts;
  }
  return text;
}

}  // namespace offstage
