// What the tier tells the record of where time goes: calls that missed, reads that arrived.
#include <array>

#include "cache/ram_tier.h"
#include "cache/read_cookie.h"

namespace offstage {

void RamTier::trace_arrival(const ReadDone& done) {
  const ReadRecord record = record_of(done);
  parts_.trace->arrived(record, matrices_in_flight_);
  for (uint32_t i = 0; i < stripe_count(done.extent); ++i) {
    const Extent part = stripe(done.extent, i);
    parts_.trace->delivered(parts_.trace->drive_of(part.file), span_bytes(part), record.issued_ns,
                            record.completed_ns);
  }
}

ReadRecord RamTier::record_of(const ReadDone& done) const {
  const SlotIndex slot = cookie_slot(done.cookie);
  const Slot& s = parts_.pool[slot];
  ReadRecord record;
  record.layer = parts_.trace->block_of(s.layer.value);
  record.expert = s.expert.value;
  record.matrix = static_cast<uint8_t>(cookie_matrix(done.cookie));
  record.drive = Trace::drive_index(done.drive);
  record.guessed = reading_[slot.value].guessed;
  record.retries = done.retries;
  record.bytes = span_bytes(done.extent);
  record.started_ns = done.started_ns;
  // A read that never got to the kernel was in the queue all the time.
  record.issued_ns = done.issued_ns == 0 ? done.completed_ns : done.issued_ns;
  record.last_issued_ns = done.last_issued_ns == 0 ? record.issued_ns : done.last_issued_ns;
  record.completed_ns = done.completed_ns;
  return record;
}

void RamTier::trace_miss(ExpertId expert) {
  if (parts_.trace == nullptr) return;
  const Extent gate = parts_.layout.extent(layer_, expert, ExpertMatrix::kGate);
  std::array<uint32_t, kStripesMax> files;
  const auto n_files = static_cast<uint32_t>(stripe_count(gate));
  for (uint32_t i = 0; i < n_files; ++i) files[i] = stripe(gate, i).file;
  parts_.trace->missed({files.data(), n_files});
}

}  // namespace offstage
