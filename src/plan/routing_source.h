// Which experts the tokens of a forecast call: recorded, or drawn from what recordings have taught.
//
// A source is asked for a trace and gives a RouteLog like any other, so that a forecast, replay()
// and route_stats() can't tell a drawn one from a recorded one, and a generator is judged by the
// same figures as the recording it imitates.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "cache/route_log.h"
#include "plan/route_generator.h"

namespace offstage {

class RoutingSource {
 public:
  virtual ~RoutingSource() = default;
  virtual std::string name() const = 0;
  // Tokens of decode, in order; the next call goes on where this one ended.
  virtual RouteLog draw(uint64_t n_tokens) = 0;
};

// The recording, from its beginning again after its end. kInvalidArgument for a trace of other
// layers, experts or calls than `shape` has (another model's locality isn't this one's), or empty.
Result<std::unique_ptr<RoutingSource>> recorded_routes(RouteLog log, const RouteShape& shape,
                                                       std::string name);
std::unique_ptr<RoutingSource> generated_routes(const RouteShape& shape, const RouteHabits& habits,
                                                uint64_t seed);

}  // namespace offstage
