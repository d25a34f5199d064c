#include "runtime/verify.h"

#include <algorithm>

#include "base/check.h"
#include "io/drives.h"

namespace offstage {
namespace {

constexpr uint32_t kBuffers = 4;
// A drive that answers the same read differently so often is no source of truth.
constexpr size_t kReadsPerPieceMax = 4;

// One piece of the file: a dense tensor or one expert's matrix.
struct Piece {
  PieceId id;
  Extent extent;
};

// In the order of the file; with a store, experts come after the rest, in the store's order.
std::vector<Piece> pieces_of(const ModelFile& file, const PieceSink* sink) {
  std::vector<Piece> pieces;
  const std::vector<uint32_t> counts = file.pieces_per_tensor();
  for (uint32_t t = 0; t < counts.size(); ++t) {
    if (file.store && counts[t] != 1) continue;
    const GgufTensor& tensor = file.gguf.tensors()[t];
    const uint64_t bytes = tensor.bytes / counts[t];
    for (uint32_t e = 0; e < counts[t]; ++e)
      if (sink == nullptr || sink->wants({t, e}))
        pieces.push_back({{t, e}, {tensor.shard, tensor.offset + e * bytes, bytes}});
  }
  if (!file.store) return pieces;
  const StoreLayout& layout = file.store->layout;
  for (size_t i = 0; i < layout.pieces.size(); ++i) {
    if (counts[layout.pieces[i].id.tensor] == 1) continue;  // one expert: read from the file above
    pieces.push_back({layout.pieces[i].id, layout.extents[i]});
    pieces.back().extent.file += static_cast<uint32_t>(file.gguf.shards().size());
  }
  return pieces;
}

uint64_t largest_span(const std::vector<Piece>& pieces) {
  uint64_t largest = kSectorBytes;
  for (const Piece& piece : pieces) largest = std::max(largest, span_bytes(piece.extent));
  return largest;
}

class Verifier {
 public:
  Verifier(const ModelFile& file, std::vector<Piece> pieces, HashIndex& index, ReadScheduler& reads,
           HostArena& arena, PieceSink* sink)
      : file_(file),
        paths_(file.paths()),
        pieces_(std::move(pieces)),
        index_(index),
        reads_(reads),
        sink_(sink) {
    for (const Piece& piece : pieces_) total_bytes_ += piece.extent.bytes;
    const uint64_t largest = largest_span(pieces_);
    for (uint32_t i = 0; i < kBuffers; ++i) buffers_.push_back(arena.take(largest, kSectorBytes));
    in_buffer_.resize(kBuffers);
    seen_.resize(kBuffers);
  }

  Status run(const std::atomic<bool>* cancel,
             const std::function<void(uint64_t, uint64_t)>& progress) {
    for (uint32_t b = 0; b < kBuffers; ++b) start_next(b);
    ReadDone done[kBuffers];
    while (reads_.unfinished() != 0) {
      if (cancel != nullptr && cancel->load(std::memory_order_relaxed))
        return make_error(ErrorCode::kCancelled, "cancelled after {} of {} bytes", report_.bytes,
                          total_bytes_);
      const size_t n = reads_.reap(done, 1'000'000'000);
      for (size_t i = 0; i < n; ++i) {
        OFFSTAGE_TRY_VOID(std::move(done[i].status));
        OFFSTAGE_TRY_VOID(judge(done[i]));
      }
      if (progress) progress(report_.bytes, total_bytes_);
    }
    return {};
  }

  const VerifyReport& report() const { return report_; }

 private:
  void start_next(uint32_t buffer) {
    if (next_ == pieces_.size()) return;
    in_buffer_[buffer] = next_++;
    seen_[buffer].clear();
    start(buffer);
  }

  void start(uint32_t buffer) {
    ReadJob job;
    job.extent = pieces_[in_buffer_[buffer]].extent;
    job.buffer = buffers_[buffer];
    job.cookie = buffer;
    reads_.start(job);
  }

  // Two reads that agree settle a piece, whatever the index thought of the first.
  Status judge(const ReadDone& done) {
    const auto buffer = static_cast<uint32_t>(done.cookie);
    const Piece& piece = pieces_[in_buffer_[buffer]];
    const PieceHash hash = hash_piece({done.data, piece.extent.bytes});
    const uint64_t confirmed_before = index_.counts().confirmed;
    const HashVerdict verdict = index_.judge(piece.id, hash);
    const bool agrees =
        std::find(seen_[buffer].begin(), seen_[buffer].end(), hash) != seen_[buffer].end();
    if (verdict == HashVerdict::kConfirmed) {
      (index_.counts().confirmed > confirmed_before ? report_.added : report_.already_known)++;
    } else if (verdict == HashVerdict::kProvisional) {
      index_.confirm(piece.id, hash);
      ++report_.added;
    } else if ((verdict == HashVerdict::kMismatch && agrees) ||
               seen_[buffer].size() + 1 == kReadsPerPieceMax) {
      note_mismatch(piece, hash);
      return next_piece(buffer);
    } else {
      seen_[buffer].push_back(hash);
      start(buffer);
      return {};
    }
    if (sink_ != nullptr)
      OFFSTAGE_TRY_VOID(sink_->take(piece.id, {done.data, piece.extent.bytes}, hash));
    return next_piece(buffer);
  }

  Status next_piece(uint32_t buffer) {
    ++report_.pieces;
    report_.bytes += pieces_[in_buffer_[buffer]].extent.bytes;
    start_next(buffer);
    return {};
  }

  void note_mismatch(const Piece& piece, PieceHash hash) {
    if (++report_.mismatch_count > 100) return;
    const GgufTensor& tensor = file_.gguf.tensors()[piece.id.tensor];
    report_.mismatches.push_back(fmt::format(
        "{}: tensor '{}' expert {} at offset {}: {} bytes don't match the index (found {:016x})",
        names_of(paths_, piece.extent), tensor.name, piece.id.expert, piece.extent.offset,
        piece.extent.bytes, hash));
  }

  const ModelFile& file_;
  const std::vector<std::string> paths_;
  const std::vector<Piece> pieces_;
  HashIndex& index_;
  ReadScheduler& reads_;
  PieceSink* const sink_;
  uint64_t total_bytes_ = 0;
  std::vector<std::byte*> buffers_;
  std::vector<size_t> in_buffer_;             // by buffer: the piece being read
  std::vector<std::vector<PieceHash>> seen_;  // by buffer: hashes of that piece that didn't settle
  size_t next_ = 0;
  VerifyReport report_;
};

}  // namespace

Result<VerifyReport> verify_model(const ModelFile& file, HashIndex& index, IoEngine& engine,
                                  Notices& notices, const std::atomic<bool>* cancel,
                                  const std::function<void(uint64_t, uint64_t)>& progress,
                                  PieceSink* sink) {
  std::vector<Piece> pieces = pieces_of(file, sink);
  OFFSTAGE_TRY(HostArena arena,
               HostArena::create("verify buffers", kBuffers * largest_span(pieces), notices));
  const SteadyClock clock;
  ReadScheduler reads(engine, file.paths(), clock, {}, 2 * kBuffers);
  Verifier verifier(file, std::move(pieces), index, reads, arena, sink);
  const Status status = verifier.run(cancel, progress);
  OFFSTAGE_TRY_VOID(status);
  return verifier.report();
}

}  // namespace offstage
