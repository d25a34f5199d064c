// Ordinary files, read and written to the last byte or with an error; one replaced by another,
// whole or not at all.
//
// For what the program keeps beside models (indexes, profiles, histories, traces); weights are read
// through an IoEngine. Blocking calls, signals repeated; errors name path and errno.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace offstage {

// Errors also: kTruncated with the offset and what is missing.
Status read_exactly(int fd, const std::string& path, uint64_t offset, std::span<std::byte> out);

Status write_exactly(int fd, const std::string& path, uint64_t offset,
                     std::span<const std::byte> bytes);

// What a process writes before it gives it the name: beside it, no other living process's.
std::string temporary_name(const std::string& path);

// Makes the folder; written under the temporary name, synced, renamed. After an error what was
// there is there still.
Status replace_file(const std::string& path, std::span<const std::byte> bytes);
Status replace_file(const std::string& path, std::string_view text);

// A rename is durable once its folder is; where a file system refuses, the rename still stands.
void sync_folder_of(const std::string& path);

}  // namespace offstage
