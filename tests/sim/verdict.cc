#include "tests/sim/verdict.h"

#include <charconv>
#include <optional>

namespace offstage::sim {
namespace {

constexpr uint32_t kAttempts = 4;  // the first, and ReadSchedulerOptions::retries_max more

std::optional<uint64_t> offset_in(std::string_view message) {
  constexpr std::string_view kBefore = " at offset ";
  const size_t at = message.find(kBefore);
  if (at == std::string_view::npos) return std::nullopt;
  message.remove_prefix(at + kBefore.size());
  uint64_t offset = 0;
  const auto parsed = std::from_chars(message.data(), message.data() + message.size(), offset);
  if (parsed.ec != std::errc()) return std::nullopt;
  return offset;
}

bool is_justified(ErrorCode code, const PieceAnswers& answers) {
  switch (code) {
    case ErrorCode::kIo:
      return answers.errors != 0 && answers.errors + answers.no_progress >= kAttempts;
    case ErrorCode::kTruncated:
      return answers.no_progress != 0 && answers.errors + answers.no_progress >= kAttempts;
    case ErrorCode::kHashMismatch: return answers.wrong >= 2;
    default: return false;
  }
}

}  // namespace

std::string doubt_about(const Error& error, const Evidence& evidence, LayerIndex layer,
                        std::span<const ExpertCall> calls, int64_t deadline_ns) {
  const auto doubt = [&](std::string_view what) {
    return fmt::format("{}: {}: {}", what, error_code_name(error.code), error.message);
  };
  // Waiting adds up: reads queue behind each other, and after an error there is a pause.
  const bool was_stalled = evidence.witness.stalled_ns() >= deadline_ns / 2;
  if (error.code == ErrorCode::kDeadline && !was_stalled)
    return doubt("I8: a deadline passed though no drive kept it waiting");
  const std::string_view message = error.message;
  if (error.code == ErrorCode::kDeadline && message.starts_with("layer ")) return {};

  const auto offset = offset_in(message);
  if (!offset) return doubt("I1: no offset");
  for (const ExpertCall& call : calls) {
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      const auto matrix = static_cast<ExpertMatrix>(m);
      const Extent extent = evidence.layout.extent(layer, call.expert, matrix);
      const bool inside = message.starts_with(evidence.paths[extent.file]) &&
                          *offset >= span_offset(extent) &&
                          *offset < span_offset(extent) + span_bytes(extent);
      if (!inside) continue;
      if (error.code == ErrorCode::kDeadline) return {};
      if (error.code == ErrorCode::kHashMismatch &&
          message.find(evidence.layout.tensor_name(layer, matrix)) == std::string_view::npos)
        continue;
      if (is_justified(error.code, evidence.witness.answers(layer, call.expert, matrix))) return {};
    }
  }
  return doubt("I8: the drives gave no reason for this, or it names a place nobody asked for");
}

}  // namespace offstage::sim
