#include "io/hash_index.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace offstage {

PieceHash hash_piece(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

HashIndex::HashIndex(const std::vector<uint32_t>& pieces_per_tensor) {
  uint64_t pieces = 0;
  first_piece_.reserve(pieces_per_tensor.size() + 1);
  for (const uint32_t count : pieces_per_tensor) {
    first_piece_.push_back(pieces);
    pieces += count;
  }
  first_piece_.push_back(pieces);
  pieces_.resize(pieces);
  counts_.pieces = pieces;
}

HashIndex HashIndex::in_memory(std::vector<uint32_t> pieces_per_tensor) {
  return HashIndex(pieces_per_tensor);
}

Result<HashIndex> HashIndex::open(const GgufModel& model, std::vector<uint32_t> pieces_per_tensor,
                                  Notices& notices) {
  CHECK_EQ(pieces_per_tensor.size(), model.tensors().size());
  HashIndex index(pieces_per_tensor);
  OFFSTAGE_TRY(index.identity_, identify(model, pieces_per_tensor));
  index.places_ = index_places(model.path());
  index.path_ = index.places_.front();
  const auto confirmed = [](const IndexContents& contents) {
    return std::count(contents.states.begin(), contents.states.end(),
                      static_cast<uint8_t>(State::kConfirmed));
  };
  std::optional<IndexContents> best;
  for (const std::string& place : index.places_) {
    Result<IndexContents> found = read_index(place, index.identity_, index.pieces_.size());
    if (!found && found.error().code == ErrorCode::kNotFound) continue;
    if (!found) {
      notices.add("hash_index",
                  fmt::format("hash index not used, to be built anew: {}", found.error().message));
      continue;
    }
    if (best && confirmed(*found) <= confirmed(*best)) continue;
    best = std::move(*found);
    index.path_ = place;
  }
  if (best) index.load(*best);
  return index;
}

void HashIndex::load(const IndexContents& contents) {
  for (size_t i = 0; i < pieces_.size(); ++i) {
    pieces_[i] = {contents.hashes[i], 0, static_cast<State>(contents.states[i])};
    counts_.confirmed += pieces_[i].state == State::kConfirmed;
    counts_.provisional += pieces_[i].state == State::kProvisional;
  }
}

size_t HashIndex::place_of(PieceId piece) const {
  CHECK_LT(piece.tensor + size_t{1}, first_piece_.size());
  const uint64_t place = first_piece_[piece.tensor] + piece.expert;
  CHECK_LT(place, first_piece_[piece.tensor + size_t{1}]);
  return place;
}

void HashIndex::settle(Piece& piece, PieceHash hash) {
  if (piece.state == State::kConfirmed && piece.hash == hash) return;
  counts_.provisional -= piece.state == State::kProvisional;
  counts_.confirmed += piece.state != State::kConfirmed;
  piece = {hash, 0, State::kConfirmed};
  dirty_ = true;
}

bool HashIndex::agrees(PieceId id, PieceHash hash) const {
  const Piece& piece = pieces_[place_of(id)];
  return (piece.state == State::kProvisional || piece.state == State::kConfirmed) &&
         piece.hash == hash;
}

HashVerdict HashIndex::judge(PieceId id, PieceHash hash) {
  Piece& piece = pieces_[place_of(id)];
  switch (piece.state) {
    case State::kUnknown:
      piece = {hash, 0, State::kProvisional};
      ++counts_.provisional;
      dirty_ = true;
      return HashVerdict::kProvisional;
    case State::kProvisional:
      if (piece.hash != hash) {
        piece.rival = hash;
        piece.state = State::kConflict;
        --counts_.provisional;
        ++counts_.conflicts;
        dirty_ = true;
        return HashVerdict::kConflict;
      }
      settle(piece, hash);
      return HashVerdict::kConfirmed;
    case State::kConflict:
      if (hash != piece.hash && hash != piece.rival) break;
      settle(piece, hash);
      return HashVerdict::kConfirmed;
    case State::kConfirmed:
      if (hash != piece.hash) break;
      return HashVerdict::kConfirmed;
  }
  ++counts_.mismatches;
  return HashVerdict::kMismatch;
}

void HashIndex::confirm(PieceId piece, PieceHash hash) { settle(pieces_[place_of(piece)], hash); }

std::optional<PieceId> HashIndex::adopt(std::span<const PieceHash> hashes) {
  CHECK_EQ(hashes.size(), pieces_.size());
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (pieces_[i].state != State::kConfirmed || pieces_[i].hash == hashes[i]) continue;
    const auto after = std::upper_bound(first_piece_.begin(), first_piece_.end(), i);
    const auto tensor = static_cast<uint32_t>(after - first_piece_.begin() - 1);
    return PieceId{tensor, static_cast<uint32_t>(i - first_piece_[tensor])};
  }
  for (size_t i = 0; i < pieces_.size(); ++i) settle(pieces_[i], hashes[i]);
  return std::nullopt;
}

std::vector<PieceHash> HashIndex::hashes() const {
  CHECK(complete());
  std::vector<PieceHash> hashes;
  for (const Piece& piece : pieces_) hashes.push_back(piece.hash);
  return hashes;
}

IndexContents HashIndex::contents() const {
  IndexContents contents;
  contents.identity = identity_;
  contents.tensors = static_cast<uint32_t>(first_piece_.size() - 1);
  contents.hashes.reserve(pieces_.size());
  contents.states.reserve(pieces_.size());
  for (const Piece& piece : pieces_) {
    const bool is_open = piece.state == State::kUnknown || piece.state == State::kConflict;
    contents.hashes.push_back(is_open ? 0 : piece.hash);
    contents.states.push_back(static_cast<uint8_t>(is_open ? State::kUnknown : piece.state));
  }
  return contents;
}

Status HashIndex::save(Notices& notices) {
  if (!dirty_ || places_.empty()) return {};
  const IndexContents now = contents();
  // Where it was loaded from comes first, then the others in their order.
  std::vector<std::string> places = places_;
  std::stable_partition(places.begin(), places.end(),
                        [&](const std::string& place) { return place == path_; });
  std::string reasons;
  for (const std::string& place : places) {
    const Status written = write_index(place, now);
    if (written) {
      if (!reasons.empty())
        notices.add("hash_index", fmt::format("hash index kept as {}, because {}", place, reasons));
      path_ = place;
      dirty_ = false;
      return {};
    }
    reasons += fmt::format("{}{}", reasons.empty() ? "" : "; ", written.error().message);
  }
  notices.add("hash_index",
              fmt::format("hash index not kept, the next start begins anew: {}", reasons));
  path_.clear();
  return {};
}

}  // namespace offstage
