// Any bytes as a model's config.json, a hardware profile or the line of a past forecast: no crash;
// what is read is in range, and a model that is accepted can be sized.
//
// The first byte picks which of the three; the rest is the text.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "plan/forecast_history.h"
#include "plan/hardware_profile.h"
#include "plan/hf_config.h"
#include "plan/planned_model.h"

namespace offstage {
namespace {

// Sizing takes a directory's memory: a model of millions of tensors says nothing more.
constexpr uint32_t kLayersTried = 64;

void check_error(const Error& error, std::string_view name) {
  CHECK(error.message.starts_with(name));
}

void try_config(std::string_view text) {
  const auto shape = shape_from_hf_config(text, "fuzz/config.json");
  if (!shape) return check_error(shape.error(), "fuzz/config.json");
  const auto spec = spec_of(*shape);
  if (!spec) return check_error(spec.error(), shape->name);
  if (spec->n_layers > kLayersTried) return;
  const PlannedModel model = imagine_model(*spec, shape->tied_embedding, QuantMix::kQ4_K_M);
  CHECK_GE(model.weights_bytes, model.experts_bytes());
}

void try_profile(std::string_view text) {
  const auto profile = parse_profile(text, "fuzz.json");
  if (!profile) return check_error(profile.error(), "fuzz.json");
  CHECK(!profile->drives.empty());
  CHECK(!profile->kernels.empty());
  const auto again = parse_profile(profile_text(*profile), "again");
  CHECK(again.has_value());
  CHECK(profile_text(*again) == profile_text(*profile));
}

void try_line(std::string_view text) {
  const auto kept = parse_forecast(text);
  if (!kept) return;
  const auto again = parse_forecast(forecast_text(*kept));
  CHECK(again.has_value());
  CHECK(forecast_text(*again) == forecast_text(*kept));
}

}  // namespace
}  // namespace offstage

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 3) {
    case 0: offstage::try_config(text); break;
    case 1: offstage::try_profile(text); break;
    default: offstage::try_line(text);
  }
  return 0;
}
