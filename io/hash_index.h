// Never a wrong weight: the hashes that every matrix read from a drive is held against.
//
// One XXH3-64 per piece: a piece is a dense tensor, or one expert's slice of an experts' tensor
// (one hash per expert and matrix, so that gate and up needn't wait for down). The index is a small
// binary file beside the model (`model.gguf.offstage-index`) or, if that folder can't be written,
// in the user's cache folder; it is tied to the file's identity (size, mtime, header hash) and
// rebuilt, announced, when that changed.
//
// A piece is unknown, provisional (one physical read agreed with nothing) or confirmed (two
// physical reads agreed, or `inspect --verify` / `pack` wrote it). See judge(). The bytes of the
// file are documented in index_file.h. Not thread-safe: one owner judges and saves.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "io/gguf.h"
#include "io/index_file.h"

namespace offstage {

using PieceHash = uint64_t;
PieceHash hash_piece(std::span<const std::byte> bytes);  // XXH3-64, seed 0

enum class HashVerdict {
  kConfirmed,    // equals a confirmed hash, or this read confirmed a provisional one
  kProvisional,  // first read of this piece: usable, to be confirmed by the next physical read
  kConflict,     // differs from a provisional hash: read again, the third read decides
  kMismatch,     // differs from a confirmed hash: read again once, then it is an error
};

// What a piece of a tensor is called in the index: tensor's place in the model's directory, and
// the expert (0 for dense tensors). The index holds pieces of each tensor contiguously.
struct PieceId {
  uint32_t tensor = 0;
  uint32_t expert = 0;
};

class HashIndex {
 public:
  // `pieces_per_tensor[i]`: 1, or the number of experts of tensor i. Loads an index whose identity
  // fits, else starts an empty one (announced, subject "hash_index", if one was there but stale,
  // damaged or of another version). Of two fitting indexes (beside the model and in the cache
  // folder) the one that knows more is taken. Errors: a shard that can't be read any more
  // (kNotFound, kPermission, kIo), or whose size isn't what `model` has (kCorrupt).
  static Result<HashIndex> open(const GgufModel& model, std::vector<uint32_t> pieces_per_tensor,
                                Notices& notices);
  // Nothing on disk (tests).
  static HashIndex in_memory(std::vector<uint32_t> pieces_per_tensor);

  // Judges one physical read and remembers what it taught. After kConflict the piece awaits the
  // deciding read: its hash must equal one of the two (then kConfirmed), else kMismatch, and the
  // piece goes on waiting. A mismatch never changes what is known.
  HashVerdict judge(PieceId piece, PieceHash hash);
  // Whether a copy of what was read before is still that. Teaches nothing: it is no read.
  bool agrees(PieceId piece, PieceHash hash) const;
  // Sets a piece as confirmed (inspect --verify, pack).
  void confirm(PieceId piece, PieceHash hash);

  // Confirms all pieces as a store has them (io/store.h), in the index's order. The first one that
  // is confirmed here with another hash stops it: one of the two is stale.
  std::optional<PieceId> adopt(std::span<const PieceHash> hashes);
  // Of a complete index, in its order.
  std::vector<PieceHash> hashes() const;

  struct Counts {
    uint64_t pieces = 0, confirmed = 0, provisional = 0, conflicts = 0, mismatches = 0;
  };
  Counts counts() const { return counts_; }
  bool complete() const { return counts_.confirmed == counts_.pieces; }

  // Writes the file if anything changed: temporary name, fsync, rename. An unwritable place is
  // announced once and not an error.
  Status save(Notices& notices);
  const std::string& path() const { return path_; }  // empty: in memory only

 private:
  enum class State : uint8_t { kUnknown, kProvisional, kConfirmed, kConflict };
  struct Piece {
    PieceHash hash = 0;
    PieceHash rival = 0;  // in a conflict: what the second read had
    State state = State::kUnknown;
  };
  explicit HashIndex(const std::vector<uint32_t>& pieces_per_tensor);
  size_t place_of(PieceId piece) const;
  void settle(Piece& piece, PieceHash hash);  // confirmed from now on
  void load(const IndexContents& contents);
  IndexContents contents() const;

  std::string path_;
  std::vector<std::string> places_;  // where the file may lie, best first
  IndexIdentity identity_;
  std::vector<uint64_t> first_piece_;  // of tensor i; one past the end at the back
  std::vector<Piece> pieces_;
  Counts counts_;
  bool dirty_ = false;
};

}  // namespace offstage
