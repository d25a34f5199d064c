// Any bytes as a model's config.json: no crash, and a model that is accepted can be sized.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
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

}  // namespace
}  // namespace offstage

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  offstage::try_config({reinterpret_cast<const char*>(data), size});
  return 0;
}
