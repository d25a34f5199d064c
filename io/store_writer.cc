#include "io/store_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <system_error>

#include "base/check.h"
#include "base/units.h"
#include "io/whole_file.h"

namespace offstage {
namespace {

// The room is taken now, not found missing at the end.
Status take_room(int fd, const std::string& path, uint64_t bytes) {
  if (::fallocate(fd, 0, 0, static_cast<off_t>(bytes)) == 0) return {};
  const bool unknown = errno == EOPNOTSUPP || errno == ENOSYS;
  if (unknown && ::ftruncate(fd, static_cast<off_t>(bytes)) == 0) return {};
  return tl::unexpected(errno_error(path, fmt::format("taking {} bytes", bytes)));
}

// Temporary files of packs over other drives, which nobody will finish.
void remove_strays(const std::string& store, const std::string& keep) {
  const std::filesystem::path path(store);
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(path.parent_path(), failed)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name.starts_with(path.filename().string() + ".") && name.ends_with(".tmp");
    if (!ours || entry.path().string() == keep) continue;
    const UniqueFd fd(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    if (fd.valid() && ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) ::unlink(entry.path().c_str());
  }
}

}  // namespace

Result<StoreWriter> StoreWriter::open(StoreLayout layout, const std::vector<std::string>& folders,
                                      const std::string& model_path, Notices& notices) {
  CHECK_EQ(folders.size(), layout.n_drives);
  StoreWriter writer;
  writer.layout_ = std::move(layout);
  for (uint32_t i = 0; i < folders.size(); ++i) {
    std::error_code failed;
    for (uint32_t j = 0; j < i; ++j)
      if (std::filesystem::equivalent(folders[i], folders[j], failed))
        return make_error(ErrorCode::kInvalidArgument, "--drive {}: the same folder as {}",
                          folders[i], folders[j]);
    if (!std::filesystem::is_directory(folders[i], failed))
      return make_error(ErrorCode::kNotFound, "--drive {}: not a folder", folders[i]);
    Drive drive;
    drive.path = store_path(folders[i], model_path);
    drive.temporary = fmt::format("{}.{}-of-{}.tmp", drive.path, i + 1, folders.size());
    writer.drives_.push_back(std::move(drive));
    if (!writer.find_finished(i)) ++writer.n_open_;
  }
  writer.progress_path_ = writer.drives_.front().path + ".progress";
  if (writer.is_done()) return writer;
  OFFSTAGE_TRY_VOID(writer.check_room(folders, notices));
  OFFSTAGE_TRY_VOID(writer.prepare_drives(notices));
  return writer;
}

// A whole file of this very layout and model on that drive.
bool StoreWriter::find_finished(uint32_t drive) {
  const auto file = read_store_file(drives_[drive].path);
  if (!file || file->head.drive != drive || file->head.n_drives != layout_.n_drives ||
      file->head.model != layout_.model || file->head.layout_hash != layout_.hash ||
      file->head.file_bytes != layout_.file_bytes)
    return false;
  drives_[drive].set = file->head.set;
  return true;
}

Status StoreWriter::check_room(const std::vector<std::string>& folders, Notices& notices) const {
  struct Room {
    uint64_t needed = 0, free = 0;
    std::vector<std::string> folders;
  };
  std::map<dev_t, Room> rooms;  // two folders may share a drive
  for (uint32_t i = 0; i < folders.size(); ++i) {
    struct stat info = {};
    struct statvfs fs = {};
    if (::stat(folders[i].c_str(), &info) != 0 || ::statvfs(folders[i].c_str(), &fs) != 0)
      return tl::unexpected(errno_error(folders[i], "cannot be examined"));
    Room& room = rooms[info.st_dev];
    room.free = uint64_t{fs.f_bavail} * fs.f_frsize;
    room.folders.push_back(folders[i]);
    if (drives_[i].set != 0) continue;
    struct stat begun = {};
    const bool is_begun = ::stat(drives_[i].temporary.c_str(), &begun) == 0;
    const uint64_t taken = is_begun ? static_cast<uint64_t>(begun.st_blocks) * 512 : 0;
    room.needed += layout_.file_bytes - std::min(layout_.file_bytes, taken);
  }
  for (const auto& [device, room] : rooms) {
    const std::string names = fmt::format("{}", fmt::join(room.folders, ", "));
    if (room.needed > room.free)
      return make_error(ErrorCode::kIo, "{}: {} are needed for the store, {} are free: {} too few",
                        names, format_bytes(room.needed), format_bytes(room.free),
                        format_bytes(room.needed - room.free));
    if (room.folders.size() > 1)
      notices.add("pack",
                  fmt::format("{} lie on one drive: striping over them gains nothing", names));
  }
  return {};
}

Status StoreWriter::prepare_drives(Notices& notices) {
  // Progress over so many drives is another model's for any other number of them.
  IndexIdentity identity = layout_.model;
  identity.layout_hash = layout_.hash;
  bool resumable = true;
  for (Drive& drive : drives_)
    if (drive.set == 0) OFFSTAGE_TRY_VOID(open_temporary(drive, resumable));
  auto progress = read_index(progress_path_, identity, layout_.pieces.size());
  if (resumable && progress) {
    progress_ = std::move(*progress);
    const auto written = std::count(progress_.states.begin(), progress_.states.end(), kWritten);
    notices.add("pack", fmt::format("goes on where an earlier one stopped: {} of {} pieces are "
                                    "written",
                                    written, layout_.pieces.size()));
    return {};
  }
  if (progress || progress.error().code != ErrorCode::kNotFound)
    notices.add("pack",
                fmt::format("an earlier one is begun anew: {}",
                            progress ? "its files are not all there" : progress.error().message));
  ::unlink(progress_path_.c_str());
  progress_ = {identity, 0, std::vector<uint64_t>(layout_.pieces.size()),
               std::vector<uint8_t>(layout_.pieces.size())};
  return {};
}

// `resumable` becomes false where there was no whole temporary file.
Status StoreWriter::open_temporary(Drive& drive, bool& resumable) {
  drive.fd = UniqueFd(::open(drive.temporary.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!drive.fd.valid()) return tl::unexpected(errno_error(drive.temporary, "cannot be created"));
  if (::flock(drive.fd.get(), LOCK_EX | LOCK_NB) != 0)
    return make_error(ErrorCode::kIo, "{}: another pack is writing it", drive.temporary);
  remove_strays(drive.path, drive.temporary);
  struct stat info = {};
  if (::fstat(drive.fd.get(), &info) != 0)
    return tl::unexpected(errno_error(drive.temporary, "cannot be examined"));
  if (static_cast<uint64_t>(info.st_size) == layout_.file_bytes) return {};
  resumable = false;
  if (::ftruncate(drive.fd.get(), 0) != 0)
    return tl::unexpected(errno_error(drive.temporary, "cannot be emptied"));
  return take_room(drive.fd.get(), drive.temporary, layout_.file_bytes);
}

Status StoreWriter::write(size_t piece, std::span<const std::byte> bytes, PieceHash hash) {
  const Extent& extent = layout_.extents[piece];
  CHECK_EQ(bytes.size(), extent.bytes);
  for (uint32_t i = 0; i < stripe_count(extent); ++i) {
    const Extent part = stripe(extent, i);
    const Drive& drive = drives_[part.file];
    if (!drive.fd.valid()) continue;
    OFFSTAGE_TRY_VOID(write_exactly(drive.fd.get(), drive.temporary, part.offset,
                                    bytes.subspan(i * extent.stripe_bytes, part.bytes)));
  }
  progress_.hashes[piece] = hash;
  progress_.states[piece] = kWritten;
  return {};
}

Status StoreWriter::sync(Drive& drive) {
  if (::fdatasync(drive.fd.get()) != 0)
    return tl::unexpected(errno_error(drive.temporary, "cannot be synced"));
  ::posix_fadvise(drive.fd.get(), 0, 0, POSIX_FADV_DONTNEED);  // others need the page cache more
  return {};
}

Status StoreWriter::checkpoint() {
  // All drives begin to write back before the first is waited for.
  for (const Drive& drive : drives_)
    if (drive.fd.valid()) ::sync_file_range(drive.fd.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
  for (Drive& drive : drives_)
    if (drive.fd.valid()) OFFSTAGE_TRY_VOID(sync(drive));
  return write_index(progress_path_, progress_);
}

Status StoreWriter::finish(std::span<const PieceHash> hashes) {
  CHECK(std::count(progress_.states.begin(), progress_.states.end(), kWritten) ==
        static_cast<ptrdiff_t>(layout_.pieces.size()));
  for (uint32_t i = 0; i < drives_.size(); ++i) {
    Drive& drive = drives_[i];
    const StoreHead head = store_head(layout_, hashes, i);
    if (!drive.fd.valid()) {
      if (drive.set == head.set) continue;
      return make_error(ErrorCode::kHashMismatch,
                        "{}: at offset 80: finished by an earlier pack with other hashes: expected "
                        "{:016x}, actual {:016x}; remove it and pack again",
                        drive.path, head.set, drive.set);
    }
    OFFSTAGE_TRY_VOID(
        write_exactly(drive.fd.get(), drive.temporary, 0, encode_store_head(head, hashes)));
  }
  OFFSTAGE_TRY_VOID(checkpoint());
  for (Drive& drive : drives_) {
    if (!drive.fd.valid()) continue;
    if (::fsync(drive.fd.get()) != 0)
      return tl::unexpected(errno_error(drive.temporary, "cannot be synced"));
    if (::rename(drive.temporary.c_str(), drive.path.c_str()) != 0)
      return tl::unexpected(errno_error(drive.path, "cannot be renamed to"));
    sync_folder_of(drive.path);
  }
  ::unlink(progress_path_.c_str());
  return {};
}

}  // namespace offstage
