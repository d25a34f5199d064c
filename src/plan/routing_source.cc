#include "plan/routing_source.h"

#include <utility>

namespace offstage {
namespace {

class RecordedRoutes final : public RoutingSource {
 public:
  RecordedRoutes(RouteLog log, std::string name) : log_(std::move(log)), name_(std::move(name)) {}
  std::string name() const override { return name_; }

  RouteLog draw(uint64_t n_tokens) override {
    RouteLog out;
    out.shape = log_.shape;
    const size_t calls = log_.shape.calls_per_token();
    for (uint64_t i = 0; i < n_tokens; ++i, at_ = (at_ + 1) % log_.n_tokens()) {
      // Where the recording begins again, another conversation begins.
      if (i == 0 || at_ == 0 || starts_at(at_)) out.starts.push_back(i);
      const auto first = static_cast<ptrdiff_t>(at_ * calls);
      const auto last = first + static_cast<ptrdiff_t>(calls);
      out.experts.insert(out.experts.end(), log_.experts.begin() + first,
                         log_.experts.begin() + last);
      if (log_.shape.has_probs)
        out.probs.insert(out.probs.end(), log_.probs.begin() + first, log_.probs.begin() + last);
      out.tokens.push_back(log_.tokens[at_]);
      out.prefill.push_back(0);
    }
    return out;
  }

 private:
  // Asked in ascending order, but for the wrap: a cursor instead of a search.
  bool starts_at(uint64_t token) {
    if (token < seen_) next_start_ = 0;
    seen_ = token;
    while (next_start_ < log_.starts.size() && log_.starts[next_start_] < token) ++next_start_;
    return next_start_ < log_.starts.size() && log_.starts[next_start_] == token;
  }

  RouteLog log_;
  std::string name_;
  uint64_t at_ = 0;  // token of the recording
  uint64_t seen_ = 0;
  size_t next_start_ = 0;
};

class GeneratedRoutes final : public RoutingSource {
 public:
  GeneratedRoutes(const RouteShape& shape, const RouteHabits& habits, uint64_t seed)
      : generator_(shape, habits, seed) {}
  std::string name() const override { return "generator"; }
  RouteLog draw(uint64_t n_tokens) override { return generator_.draw(n_tokens); }

 private:
  RouteGenerator generator_;
};

}  // namespace

Result<std::unique_ptr<RoutingSource>> recorded_routes(RouteLog log, const RouteShape& shape,
                                                       std::string name) {
  const RouteShape& found = log.shape;
  if (found.n_layers != shape.n_layers || found.n_experts != shape.n_experts ||
      found.n_used != shape.n_used)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: expected {} layers, top-{} of {} experts as the model has, found {}, "
                      "top-{} of {}",
                      name, shape.n_layers, shape.n_used, shape.n_experts, found.n_layers,
                      found.n_used, found.n_experts);
  if (log.n_tokens() == 0)
    return make_error(ErrorCode::kInvalidArgument, "{}: expected tokens, found none", name);
  return std::make_unique<RecordedRoutes>(std::move(log), std::move(name));
}

std::unique_ptr<RoutingSource> generated_routes(const RouteShape& shape, const RouteHabits& habits,
                                                uint64_t seed) {
  return std::make_unique<GeneratedRoutes>(shape, habits, seed);
}

}  // namespace offstage
