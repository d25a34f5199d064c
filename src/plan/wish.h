// The question turned around: which machine is enough?
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "plan/cells.h"

namespace offstage {

struct Wish {
  double tok_s = 0;    // at least; 0: any
  int64_t p99_ns = 0;  // of a token, at most; 0: any

  bool is_met_by(const Forecast& forecast) const {
    return forecast.decode_tok_s >= tok_s && (p99_ns == 0 || forecast.p99_ns <= p99_ns);
  }
};
// "10 tok/s", "10 t/s" or "10". kInvalidArgument.
Result<double> parse_tok_s(std::string_view text);
// "250ms", "0.25s", "900us". kInvalidArgument.
Result<int64_t> parse_duration_ns(std::string_view text);

// With so many drives, the least RAM that is enough.
struct Answer {
  uint32_t drives = 0;
  std::optional<Cell> cell;  // none: no RAM that was asked about is enough
  // What comes nearest, where none is enough: with the most RAM.
  std::optional<Cell> best;
};
// For each of the question's machines, the least of its `ram_bytes` (ascending) that the wish is
// met with. More RAM is taken to be no slower, so that a few forecasts are enough.
Result<std::vector<Answer>> smallest_machines(const CellsQuestion& question, const Wish& wish,
                                              Notices& notices);

}  // namespace offstage
