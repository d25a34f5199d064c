// Sizes and times as people write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace offstage {

// "8G", "512MiB", "1.5g", "4096": K/M/G/T and KiB/MiB/GiB/TiB are powers of 1024 (as llama.cpp's
// and fio's users expect of memory), KB/MB/GB/TB powers of 1000. Errors name the text.
Result<uint64_t> parse_bytes(std::string_view text);

std::string format_bytes(uint64_t bytes);    // "2.65 MiB", "4.00 GiB"
std::string format_duration_ns(int64_t ns);  // "812 us", "12.3 ms", "4.21 s"
std::string format_count(uint64_t count);    // "30.5 B", "12.1 M", "812"

// Nanoseconds as milliseconds, for people.
constexpr double ms(int64_t ns) { return static_cast<double>(ns) / 1e6; }

}  // namespace offstage
