#include "runtime/device_kv.h"

#include <algorithm>

namespace offstage {

// A sequence that ended begins anew at position 0, one that was rewound at an earlier one.
void DeviceKv::forget(std::span<const Row> rows) {
  for (const Row& row : rows) {
    uint32_t& there = there_[row.sequence.value];
    there = std::min(there, row.position);
  }
}

Status DeviceKv::bring(std::span<const Row> rows, int64_t deadline_ns) {
  forget(rows);
  bool copies = false;
  for (const Row& row : rows) {
    uint32_t& there = there_[row.sequence.value];
    if (there < row.position) {
      OFFSTAGE_TRY_VOID(copy_pages(row.sequence, there / kKvBlockPositions,
                                   (row.position - 1) / kKvBlockPositions));
      copies = true;
    }
    there = row.position + 1;  // with this forward
  }
  if (!copies) return {};
  OFFSTAGE_TRY(const DeviceMark arrived, device_.mark(DeviceStream::kToDevice));
  return device_.wait(arrived, deadline_ns);
}

Status DeviceKv::copy_pages(SequenceId sequence, uint32_t first, uint32_t last) {
  for (uint32_t page = first; page <= last; ++page) {
    const std::byte* const from = in_ram_.blocks(sequence)[page];
    OFFSTAGE_TRY_VOID(
        device_.copy(DeviceStream::kToDevice, place_of(from), from, in_ram_.page_bytes()));
  }
  return {};
}

}  // namespace offstage
