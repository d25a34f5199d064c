#include "runtime/pack.h"

#include <unordered_map>

#include "io/store_writer.h"
#include "runtime/verify.h"

namespace offstage {
namespace {

uint64_t key_of(PieceId piece) { return uint64_t{piece.tensor} << 32 | piece.expert; }

// Experts' matrices go to the drives; dense tensors are only hashed.
class StoreSink final : public PieceSink {
 public:
  StoreSink(StoreWriter& writer, uint64_t checkpoint_bytes)
      : writer_(writer), checkpoint_bytes_(checkpoint_bytes) {
    const auto& pieces = writer.layout().pieces;
    for (size_t i = 0; i < pieces.size(); ++i) place_[key_of(pieces[i].id)] = i;
  }

  bool wants(PieceId piece) const override {
    const auto place = place_.find(key_of(piece));
    return place == place_.end() || !writer_.has(place->second);
  }

  Status take(PieceId piece, std::span<const std::byte> bytes, PieceHash hash) override {
    const auto place = place_.find(key_of(piece));
    if (place == place_.end()) return {};
    OFFSTAGE_TRY_VOID(writer_.write(place->second, bytes, hash));
    since_checkpoint_ += bytes.size();
    if (since_checkpoint_ < checkpoint_bytes_) return {};
    since_checkpoint_ = 0;
    return writer_.checkpoint();
  }

 private:
  StoreWriter& writer_;
  const uint64_t checkpoint_bytes_;
  uint64_t since_checkpoint_ = 0;
  std::unordered_map<uint64_t, size_t> place_;  // in the store's order
};

// What an earlier pack wrote counts as one read of its own. A piece that the index knows otherwise
// is written again.
uint64_t take_over(StoreWriter& writer, HashIndex& index) {
  uint64_t taken = 0;
  const auto& pieces = writer.layout().pieces;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (!writer.has(i)) continue;
    const HashVerdict verdict = index.judge(pieces[i].id, writer.hash(i));
    if (verdict == HashVerdict::kProvisional) index.confirm(pieces[i].id, writer.hash(i));
    if (verdict == HashVerdict::kConfirmed || verdict == HashVerdict::kProvisional) {
      ++taken;
    } else {
      writer.forget(i);
    }
  }
  return taken;
}

}  // namespace

Result<PackReport> pack_model(const ModelFile& file, IoEngine& engine, const PackOptions& options,
                              Notices& notices) {
  const auto n_drives = static_cast<uint32_t>(options.folders.size());
  if (n_drives == 0)
    return make_error(ErrorCode::kInvalidArgument, "--drive: expected a folder on each drive");
  OFFSTAGE_TRY(StoreLayout layout, file.store_layout(n_drives));
  PackReport report;
  for (const std::string& folder : options.folders)
    report.paths.push_back(store_path(folder, file.gguf.path()));
  report.file_bytes = layout.file_bytes;
  report.pieces = layout.pieces.size();
  OFFSTAGE_TRY(StoreWriter writer,
               StoreWriter::open(layout, options.folders, file.gguf.path(), notices));
  if (writer.is_done()) {
    // Each fits alone; that they belong together is for the reader of them all to say.
    OFFSTAGE_TRY(const Store store,
                 open_store(std::move(layout), options.folders, file.gguf.path()));
    report.was_there = true;
    return report;
  }
  OFFSTAGE_TRY(HashIndex index, HashIndex::open(file.gguf, file.pieces_per_tensor(), notices));
  report.pieces_before = take_over(writer, index);
  StoreSink sink(writer, options.checkpoint_bytes);
  const auto verified =
      verify_model(file, index, engine, notices, options.cancel, options.progress, &sink);
  if (!verified) {
    // Whatever stopped it: what is written needn't be written again.
    if (const Status kept = writer.checkpoint(); !kept)
      notices.add("pack", kept.error().message + "; the next one begins further back");
    OFFSTAGE_TRY_VOID(index.save(notices));
    return tl::unexpected(verified.error());
  }
  if (verified->mismatch_count != 0)
    return make_error(ErrorCode::kHashMismatch, "{}{}", verified->mismatches.front(),
                      verified->mismatch_count == 1
                          ? std::string()
                          : fmt::format(" (and {} more)", verified->mismatch_count - 1));
  OFFSTAGE_TRY_VOID(writer.finish(index.hashes()));
  OFFSTAGE_TRY_VOID(index.save(notices));
  return report;
}

}  // namespace offstage
