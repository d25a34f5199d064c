// A packed store: a model's experts striped over folders on different drives (`offstage pack`).
//
// One file a drive, `<folder>/<model file>.offstage-store`. Every piece (an expert's matrix) is cut
// into as many equal stripes as there are drives, rounded up to whole sectors, which lie at the
// same offset in every file, the pieces one after another in the store's order. Stripe i of piece p
// lies on drive (i + p) mod (the piece's stripes), so that the last stripe, which may be shorter,
// is each drive's in turn; in version 1 on drive i. A decode step misses a few experts: equal
// stripes keep all drives equally busy whichever they are, where whole experts per drive would
// leave one waiting for the other's queue. The price is a smaller read (a Q4_K expert matrix of 0.6
// to 4 MB over two to four drives: 150 KB and more, which NVMe serves at its full speed) and that
// every drive is needed for every expert.
//
// All numbers are little-endian:
//
//   offset  bytes  content
//        0      8  magic "OFFSTORE"
//        8      4  version, 2
//       12      4  number of drives
//       16      4  this file's drive, from 0
//       20      4  zero
//       24     32  identity of the model's files when it was packed (index_file.h)
//       56      8  number of hashes, n
//       64      8  size of this file
//       72      8  layout: XXH3-64 of the number of drives (from version 2 on, plus 2^32 times the
//                  version) and the pieces' sizes, 8 bytes each
//       80      8  the set: XXH3-64 of the XXH3-64 of the identity, the layout, and the XXH3-64 of
//                  the hashes; the same in all files of one pack
//       88    8 n  the hashes of all the model's pieces, confirmed, in the hash index's order
//   88+8 n      8  XXH3-64 of everything before
//      then        zeros to a multiple of 4096, and the stripes, each from a multiple of 4096
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/extent.h"
#include "io/hash_index.h"
#include "io/index_file.h"

namespace offstage {

inline constexpr uint32_t kStoreVersion = 2;  // that is written; 1 is read too

struct StorePiece {
  PieceId id;
  uint64_t bytes = 0;
};

// Where every piece lies in the store of a model over so many drives.
struct StoreLayout {
  IndexIdentity model;
  uint64_t n_hashes = 0;  // of the whole model
  uint32_t n_drives = 0;
  std::vector<StorePiece> pieces;  // in the store's order
  std::vector<Extent> extents;     // by piece; file 0 is the first drive's
  uint64_t file_bytes = 0;         // of each drive's file
  uint64_t hash = 0;
  uint32_t version = kStoreVersion;
};
StoreLayout lay_out_store(const IndexIdentity& model, uint64_t n_hashes,
                          std::vector<StorePiece> pieces, uint32_t n_drives,
                          uint32_t version = kStoreVersion);

struct StoreHead {
  std::array<char, 8> magic = {'O', 'F', 'F', 'S', 'T', 'O', 'R', 'E'};
  uint32_t version = kStoreVersion;
  uint32_t n_drives = 0;
  uint32_t drive = 0;
  uint32_t zero = 0;
  IndexIdentity model;
  uint64_t n_hashes = 0;
  uint64_t file_bytes = 0;
  uint64_t layout_hash = 0;
  uint64_t set = 0;
};
static_assert(sizeof(StoreHead) == 88);

std::string store_path(const std::string& folder, const std::string& model_path);
StoreHead store_head(const StoreLayout& layout, std::span<const PieceHash> hashes, uint32_t drive);
std::vector<std::byte> encode_store_head(const StoreHead& head, std::span<const PieceHash> hashes);

struct StoreFile {
  StoreHead head;
  std::vector<PieceHash> hashes;
};
// A file of a store, as far as it can be judged alone. Errors: kNotFound, kPermission, kIo;
// kCorrupt, kTruncated (damaged, shorter or longer than it says), kUnsupported (another version).
Result<StoreFile> read_store_file(const std::string& path);

struct Store {
  std::vector<std::string> paths;  // by drive
  StoreLayout layout;
  std::vector<PieceHash> hashes;  // of the whole model, in the hash index's order
  bool model_changed = false;     // the model's files have another time of change than when packed
};
// The store of the model at `model_path` in `folders`, given in any order. `layout` is what it has
// to be, or the same of an earlier version. Besides read_store_file()'s errors: kNotFound naming
// what is missing; kCorrupt for a file of another model, of another state of this one, of another
// pack or of other drives, or one that is there twice.
Result<Store> open_store(StoreLayout layout, const std::vector<std::string>& folders,
                         const std::string& model_path);

}  // namespace offstage
