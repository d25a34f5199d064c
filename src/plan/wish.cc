#include "plan/wish.h"

#include <array>
#include <charconv>
#include <cmath>
#include <utility>

namespace offstage {
namespace {

// A number above 0 and what follows it, without spaces before.
std::optional<std::pair<double, std::string_view>> number_of(std::string_view text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || !std::isfinite(number) || number <= 0) return std::nullopt;
  std::string_view rest = text.substr(static_cast<size_t>(end - text.data()));
  while (rest.starts_with(' ')) rest.remove_prefix(1);
  return std::pair(number, rest);
}

Result<Answer> smallest_machine(const CellsQuestion& question, const Wish& wish,
                                const HardwareProfile& machine, Notices& notices) {
  Answer answer;
  answer.drives = static_cast<uint32_t>(machine.drives.size());
  const std::span<const uint64_t> ram = question.ram_bytes;
  OFFSTAGE_TRY(const Cell most, forecast_cell(question, ram.back(), machine, notices));
  if (!most.forecast || !wish.is_met_by(*most.forecast)) {
    answer.best = most;
    return answer;
  }
  answer.cell = most;
  size_t too_few = 0, enough = ram.size() - 1;  // ram[enough] is; all below too_few aren't
  while (too_few < enough) {
    const size_t middle = (too_few + enough) / 2;
    OFFSTAGE_TRY(const Cell cell, forecast_cell(question, ram[middle], machine, notices));
    if (cell.forecast && wish.is_met_by(*cell.forecast)) {
      answer.cell = cell;
      enough = middle;
    } else {
      too_few = middle + 1;
    }
  }
  return answer;
}

}  // namespace

Result<double> parse_tok_s(std::string_view text) {
  const auto parsed = number_of(text);
  if (parsed && (parsed->second.empty() || parsed->second == "tok/s" || parsed->second == "t/s"))
    return parsed->first;
  return make_error(ErrorCode::kInvalidArgument,
                    "'{}' is not a speed: expected a number of tok/s, such as 10 tok/s", text);
}

Result<int64_t> parse_duration_ns(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, double>, 3> kUnits = {
      {{"ms", 1e6}, {"s", 1e9}, {"us", 1e3}}};
  const auto parsed = number_of(text);
  for (const auto& [suffix, ns] : kUnits)
    if (parsed && parsed->second == suffix && parsed->first * ns < 1e18)
      return std::llround(parsed->first * ns);
  return make_error(ErrorCode::kInvalidArgument,
                    "'{}' is not a time: expected a number with a unit, such as 250ms", text);
}

Result<std::vector<Answer>> smallest_machines(const CellsQuestion& question, const Wish& wish,
                                              Notices& notices) {
  std::vector<Answer> answers;
  for (const HardwareProfile& machine : question.machines) {
    OFFSTAGE_TRY(answers.emplace_back(), smallest_machine(question, wish, machine, notices));
  }
  return answers;
}

}  // namespace offstage
