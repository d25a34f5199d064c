// What a probe learned of a drive, kept for the next start.
//
// `model.gguf.offstage-drive` lies where the hash index lies. Text, a line each, in this order:
//
//   offstage-drive 1
//   drive 259:0 nvme0n1 3750748848 sectors Samsung SSD 990     (drive_id)
//   engine uring direct
//   date 2026-11-22T14:03:11Z
//   block_bytes 884736
//   depth 16
//   bytes_per_s 1043000000
//
// It says how fast, never what: a wrong one costs speed and nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace offstage {

struct KeptProfile {
  std::string drive;   // drive_id()
  std::string engine;  // "uring direct": as it was measured through
  std::string date;    // UTC
  uint32_t block_bytes = 0;
  uint32_t depth = 0;
  uint64_t bytes_per_s = 0;
};

// Which drive holds the file, as far as the kernel tells: device number, name, size, model. Errors:
// kNotFound, kPermission, kIo.
Result<std::string> drive_id(const std::string& path);

// Now, as KeptProfile::date has it.
std::string utc_date();

// Errors: kNotFound (there is none), kCorrupt with the line, kPermission, kIo.
Result<KeptProfile> read_profile(const std::string& path);
// Under a temporary name, then renamed.
Status write_profile(const std::string& path, const KeptProfile& profile);
// Beside every place of the index.
std::vector<std::string> profile_places(const std::string& model_path);

}  // namespace offstage
