// What `offstage plan` says of speed, as tables and as JSON.
#include <fmt/format.h>

#include "app/plan_forecast.h"
#include "base/units.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

void print_cell(const Cell& cell) {
  fmt::print("  {:>9} {:>6} ", format_bytes(cell.ram_bytes), cell.drives);
  if (!cell.forecast) {
    fmt::print("{}\n", fit_name(cell.fit));
    return;
  }
  const Forecast& f = *cell.forecast;
  fmt::print("{:>8.2f} {:>6.2f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>6.1f} %  {}\n",
             f.decode_tok_s, f.decode_tok_s_error, f.prefill_tok_s, ms(f.p50_ns), ms(f.p95_ns),
             ms(f.p99_ns), ms(f.max_ns), 100 * f.ram_hit_rate, f.bottleneck());
}

void print_header() {
  fmt::print("  {:>9} {:>6} {:>8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  {}\n", "--ram",
             "drives", "tok/s", "+-", "prompt/s", "p50 ms", "p95", "p99", "max", "hits",
             "bottleneck");
}

double price_of(const Prices& prices, const Cell& cell) {
  return prices.ram_per_gib * static_cast<double>(cell.ram_bytes) / (1 << 30) +
         prices.drive * cell.drives;
}

void print_answers(const ForecastReport& report) {
  for (const Answer& answer : report.answers) {
    if (answer.cell) {
      print_cell(*answer.cell);
      if (report.prices)
        fmt::print("  {:>16} {:.0f} {}\n", "costs", price_of(*report.prices, *answer.cell),
                   report.prices->currency);
    } else {
      fmt::print("  {:>9} {:>6} not with any RAM asked about; with the most:\n", "-",
                 answer.drives);
      print_cell(*answer.best);
    }
  }
}

Json time_json(const CauseTimes& token) {
  Json json;
  for (size_t i = 0; i < kCauseCount; ++i)
    json[std::string(cause_name(static_cast<Cause>(i)))] = ms(token.ns[i]);
  return json;
}

Json cell_json(const Cell& cell) {
  Json json = {{"ram_bytes", cell.ram_bytes},
               {"vram_bytes", 0},
               {"drives", cell.drives == 0 ? Json() : Json(cell.drives)},
               {"fit", fit_name(cell.fit)},
               {"kept_share", cell.kept_share}};
  if (!cell.forecast) {
    for (const char* key : {"prefill_tok_s", "decode_tok_s", "token_ms", "hit_rate", "bottleneck"})
      json[key] = nullptr;
    return json;
  }
  const Forecast& f = *cell.forecast;
  json["prefill_tok_s"] = f.prefill_tok_s;
  json["decode_tok_s"] = f.decode_tok_s;
  json["decode_tok_s_error"] = f.decode_tok_s_error;
  json["token_ms"] = {
      {"p50", ms(f.p50_ns)}, {"p95", ms(f.p95_ns)}, {"p99", ms(f.p99_ns)}, {"max", ms(f.max_ns)}};
  json["hit_rate"] = {{"vram", 0.0}, {"ram", f.ram_hit_rate}};
  json["bottleneck"] = f.bottleneck();
  json["read_bytes_per_token"] = f.read_bytes_per_token;
  json["wait_ms"] = time_json(f.token);
  return json;
}

Json answer_json(const ForecastReport& report, const Answer& answer) {
  Json json = {{"drives", answer.drives},
               {"is_enough", answer.cell.has_value()},
               {"cell", cell_json(answer.cell ? *answer.cell : *answer.best)}};
  if (report.prices && answer.cell) json["price"] = price_of(*report.prices, *answer.cell);
  return json;
}

}  // namespace

void print_forecast(const ForecastReport& report, const PlannedModel& model) {
  if (report.machine.empty()) return;
  fmt::print("\n  {} as {} on {}, routing: {}\n", model.name, model.quant, report.machine,
             report.routing);
  if (report.wish.tok_s != 0) fmt::print("  wanted: at least {:g} tok/s\n", report.wish.tok_s);
  if (report.wish.p99_ns != 0)
    fmt::print("  wanted: a p99 of at most {:g} ms\n", ms(report.wish.p99_ns));
  print_header();
  for (const Cell& cell : report.cells) print_cell(cell);
  print_answers(report);
}

void add_forecast_json(const ForecastReport& report, Json& json) {
  json["machine"] = report.machine.empty() ? Json() : Json(report.machine);
  json["routing"] = report.routing.empty() ? Json() : Json(report.routing);
  json["cells"] = Json::array();
  for (const Cell& cell : report.cells) json["cells"].push_back(cell_json(cell));
  if (report.answers.empty()) return;
  json["answers"] = Json::array();
  for (const Answer& answer : report.answers) {
    if (report.cells.empty())
      json["cells"].push_back(cell_json(answer.cell ? *answer.cell : *answer.best));
    json["answers"].push_back(answer_json(report, answer));
  }
}

void print_fit(const RouteFit& fit) {
  fmt::print("{:<10} {:>27} {:>27} {:>47}\n", "", "lru at 10 25 50 75 %", "belady",
             "called again after 1 2 4 … 64");
  for (const auto& [name, figures] :
       {std::pair("recorded", fit.recorded), std::pair("drawn", fit.drawn)}) {
    fmt::print("{:<10}", name);
    for (const double rate : figures.lru) fmt::print(" {:>6.2f}", 100 * rate);
    for (const double rate : figures.belady) fmt::print(" {:>6.2f}", 100 * rate);
    for (const double rate : figures.reuse) fmt::print(" {:>6.2f}", 100 * rate);
    fmt::print("\n");
  }
  const RouteHabits& h = fit.habits;
  fmt::print(
      "popularity {:.4f}, word {:.4f} (exponent {:.4f}, {} classes), topic {:.4f}, mood {:.4f} "
      "(half-life {:.3f} tokens), whim {:.4f}, conversations of {} tokens\n{:.2f} points off at "
      "worst: {}\n",
      h.popularity, h.word, h.word_exponent, h.word_classes, h.topic, h.mood, h.mood_half_life,
      h.whim, h.conversation_tokens, fit.worst_points,
      fit.is_usable() ? "usable"
                      : fmt::format("not usable, at most {} are allowed", kPointsAllowed));
}

Json fit_json(const RouteFit& fit) {
  const RouteHabits& h = fit.habits;
  return {{"schema", "offstage.plan_routing/1"},
          {"popularity", h.popularity},
          {"word", h.word},
          {"word_exponent", h.word_exponent},
          {"word_classes", h.word_classes},
          {"topic", h.topic},
          {"mood", h.mood},
          {"mood_half_life", h.mood_half_life},
          {"whim", h.whim},
          {"conversation_tokens", h.conversation_tokens},
          {"worst_points", fit.worst_points},
          {"usable", fit.is_usable()}};
}

}  // namespace offstage
