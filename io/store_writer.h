// Writes a packed store (store.h) so that it is whole or not there, and a killed pack goes on.
//
// In: the layout, one folder per drive, pieces in any order. Out: the drives' files, under their
// names only when every byte of all of them is on its drive.
//
// A file grows as `<store>.I-of-N.tmp`, its room taken at the start. checkpoint() syncs the data,
// then replaces `<store>.progress` in the first folder: a hash index (index_file.h) over the
// store's pieces, confirmed ones being on the drives. finish() writes the heads, syncs, renames
// all, and drops the progress. A drive whose finished file is already there is left alone: that is
// how a pack killed between two renames ends, and how one lost drive is made again.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "io/file.h"
#include "io/store.h"

namespace offstage {

class StoreWriter {
 public:
  // Errors: kInvalidArgument for a folder given twice; kIo with numbers when room is short, or when
  // another process is writing this store; kNotFound, kPermission of a folder. Announces (subject
  // "pack") what of an earlier pack is used or thrown away, and folders that share a drive.
  static Result<StoreWriter> open(StoreLayout layout, const std::vector<std::string>& folders,
                                  const std::string& model_path, Notices& notices);

  bool is_done() const { return n_open_ == 0; }  // every drive's file was there, and fits
  bool has(size_t piece) const { return progress_.states[piece] == kWritten; }
  PieceHash hash(size_t piece) const { return progress_.hashes[piece]; }
  void forget(size_t piece) { progress_.states[piece] = 0; }

  Status write(size_t piece, std::span<const std::byte> bytes, PieceHash hash);
  // What was written so far survives a crash.
  Status checkpoint();
  // `hashes`: of all the model's pieces. kHashMismatch if a finished file of an earlier pack has
  // others.
  Status finish(std::span<const PieceHash> hashes);

  const StoreLayout& layout() const { return layout_; }

 private:
  static constexpr uint8_t kWritten = 2;  // "confirmed" in the progress file
  struct Drive {
    std::string path, temporary;
    UniqueFd fd;       // of the temporary file; not valid: the finished one is there
    uint64_t set = 0;  // of the finished one
  };

  Status prepare_drives(Notices& notices);
  Status check_room(const std::vector<std::string>& folders, Notices& notices) const;
  bool find_finished(uint32_t drive);
  Status open_temporary(Drive& drive, bool& resumable);
  Status sync(Drive& drive);

  StoreLayout layout_;
  std::vector<Drive> drives_;
  uint32_t n_open_ = 0;
  std::string progress_path_;
  IndexContents progress_;  // by piece of the store
};

}  // namespace offstage
