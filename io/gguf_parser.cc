#include "io/gguf_parser.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <numeric>
#include <utility>

#include "base/checked_math.h"
#include "io/gguf_values.h"

namespace offstage {
namespace {

constexpr std::array<char, 4> kMagic = {'G', 'G', 'U', 'F'};
constexpr std::array<char, 4> kMagicSwapped = {'F', 'U', 'G', 'G'};
constexpr uint64_t kFixedHeaderBytes = 24;  // magic, version, tensor count, key count
constexpr uint64_t kAlignmentMin = 8;
// Sizes and offsets end up as off_t, which is signed.
constexpr uint64_t kBytesMax = std::numeric_limits<int64_t>::max();

bool is_plain_text(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

// A name that later messages may show and that a table may hold.
Status check_name(const GgufReader& reader, uint64_t offset, std::string_view name) {
  if (name.empty())
    return reader.error(ErrorCode::kCorrupt, offset, "name: expected at least 1 byte, actual 0");
  if (!is_plain_text(name))
    return reader.error(ErrorCode::kCorrupt, offset, "name: expected printable ASCII, actual '{}'",
                        printable(name));
  return {};
}

std::string supported_types() {
  std::string names;
  for (uint32_t id = 0; id < 256; ++id) {
    if (!tensor_type_from_gguf(id)) continue;
    if (!names.empty()) names += ' ';
    names += gguf_type_name(id);
  }
  return names;
}

// Where an entry's fields lie: name (length and text), dimension count, dimensions, type, offset.
uint64_t dims_field(const GgufTensor& tensor) {
  return tensor.info_offset + 8 + tensor.name.size() + 4;
}
uint64_t offset_field(const GgufTensor& tensor) {
  return dims_field(tensor) + uint64_t{8} * tensor.n_dims + 4;
}

std::string_view misplacement(uint64_t actual, uint64_t expected, const GgufShard& shard) {
  if (actual < expected) return "tensors overlap";
  if (actual > shard.file_bytes - shard.header_bytes) return "it lies past the end of the file";
  return "a hole in the data";
}

// Places in `items` by name; an item must not have the name of one before it.
template <typename Item, typename NameOf, typename OnTwice>
Status sort_by_name(const std::vector<Item>& items, std::vector<uint32_t>& places, NameOf name_of,
                    OnTwice on_twice) {
  places.resize(items.size());
  std::iota(places.begin(), places.end(), 0u);
  std::sort(places.begin(), places.end(), [&](uint32_t a, uint32_t b) {
    const int order = name_of(items[a]).compare(name_of(items[b]));
    return order != 0 ? order < 0 : a < b;
  });
  for (size_t i = 1; i < places.size(); ++i) {
    const Item& first = items[places[i - 1]];
    const Item& second = items[places[i]];
    if (name_of(first) == name_of(second)) return on_twice(first, second);
  }
  return {};
}

}  // namespace

Result<GgufModel> GgufParser::parse(GgufReader& reader) {
  if (reader.file_bytes() > kBytesMax)
    return reader.error(ErrorCode::kInvalidArgument, 0, "file size: expected at most {}, actual {}",
                        kBytesMax, reader.file_bytes());
  GgufParser parser(reader);
  OFFSTAGE_TRY_VOID(parser.parse_header());
  OFFSTAGE_TRY_VOID(parser.parse_metadata());
  OFFSTAGE_TRY_VOID(parser.parse_alignment());
  for (uint64_t i = 0; i < parser.tensor_count_; ++i)
    OFFSTAGE_TRY_VOID(parser.parse_tensor_info(i + 1));
  OFFSTAGE_TRY_VOID(sort_names(parser.model_));
  OFFSTAGE_TRY_VOID(parser.find_data_start());
  OFFSTAGE_TRY_VOID(parser.place_tensors());
  return std::move(parser.model_);
}

Status GgufParser::parse_header() {
  GgufShard shard;
  shard.path = reader_.name();
  shard.file_bytes = reader_.file_bytes();
  OFFSTAGE_TRY_VOID(reader_.need("fixed header", kFixedHeaderBytes));
  std::array<char, 4> magic;
  OFFSTAGE_TRY_VOID(reader_.copy("magic", std::as_writable_bytes(std::span(magic))));
  if (magic == kMagicSwapped)
    return reader_.error(ErrorCode::kUnsupported, 0,
                         "magic: expected 'GGUF', actual 'FUGG': a byte-swapped (big-endian) file, "
                         "which isn't supported");
  if (magic != kMagic)
    return reader_.error(ErrorCode::kCorrupt, 0,
                         "magic: expected 'GGUF', actual '{}': not a GGUF file",
                         printable({magic.data(), magic.size()}));
  OFFSTAGE_TRY(shard.version, reader_.number<uint32_t>("version"));
  if (const uint32_t swapped = __builtin_bswap32(shard.version); swapped >= 1 && swapped <= 3)
    return reader_.error(ErrorCode::kUnsupported, 4,
                         "version: expected 2 or 3, actual {:#010x}, which is version {} of a "
                         "byte-swapped (big-endian) file: not supported",
                         shard.version, swapped);
  if (shard.version != 2 && shard.version != 3)
    return reader_.error(ErrorCode::kUnsupported, 4, "version: expected 2 or 3, actual {}",
                         shard.version);
  OFFSTAGE_TRY(tensor_count_, reader_.number<uint64_t>("tensor count"));
  if (tensor_count_ > kGgufTensorsMax)
    return reader_.error(ErrorCode::kCorrupt, 8, "tensor count: expected at most {}, actual {}",
                         kGgufTensorsMax, tensor_count_);
  OFFSTAGE_TRY(key_count_, reader_.number<uint64_t>("key count"));
  if (key_count_ > kGgufKeysMax)
    return reader_.error(ErrorCode::kCorrupt, 16, "key count: expected at most {}, actual {}",
                         kGgufKeysMax, key_count_);
  shard.tensors = tensor_count_;
  model_.shards_.push_back(std::move(shard));
  return {};
}

Status GgufParser::parse_metadata() {
  uint64_t byte_elements_left = kGgufByteElementsMax;
  for (uint64_t i = 0; i < key_count_; ++i) {
    reader_.set_subject({"key", {}, i + 1});
    const uint64_t offset = reader_.position();
    OFFSTAGE_TRY(std::string key, reader_.string("key", kGgufKeyBytesMax));
    OFFSTAGE_TRY_VOID(check_name(reader_, offset, key));
    reader_.set_subject({"key", key});
    OFFSTAGE_TRY(GgufValue value, read_gguf_value(reader_, byte_elements_left));
    model_.metadata_.emplace_back(std::move(key), std::move(value));
  }
  reader_.set_subject(GgufSubject{});
  return sort_names(model_);
}

Status GgufParser::parse_alignment() {
  constexpr std::string_view kKey = "general.alignment";
  const GgufValue* value = model_.find(kKey);
  if (value == nullptr) return {};
  reader_.set_subject({"key", kKey});
  if (value->type != GgufValueType::kUint32)
    return reader_.error(ErrorCode::kCorrupt, value->offset, "expected type uint32, actual {}",
                         gguf_value_type_name(value->type));
  const uint64_t alignment = std::get<uint64_t>(value->value);
  if (!std::has_single_bit(alignment) || alignment < kAlignmentMin || alignment > kGgufAlignmentMax)
    return reader_.error(ErrorCode::kCorrupt, value->offset,
                         "expected a power of two from {} to {}, actual {}", kAlignmentMin,
                         kGgufAlignmentMax, alignment);
  model_.shards_.front().alignment = static_cast<uint32_t>(alignment);
  return {};
}

Status GgufParser::parse_tensor_info(uint64_t number) {
  reader_.set_subject({"tensor", {}, number});
  GgufTensor tensor;
  tensor.info_offset = reader_.position();
  OFFSTAGE_TRY(tensor.name, reader_.string("name", kGgufNameBytesMax));
  OFFSTAGE_TRY_VOID(check_name(reader_, tensor.info_offset, tensor.name));
  reader_.set_subject({"tensor", tensor.name});
  OFFSTAGE_TRY_VOID(parse_shape(tensor));
  OFFSTAGE_TRY_VOID(parse_type(tensor));
  const uint64_t offset = reader_.position();
  OFFSTAGE_TRY(tensor.offset, reader_.number<uint64_t>("data offset"));
  const uint32_t alignment = model_.shards_.front().alignment;
  if (tensor.offset % alignment != 0)
    return reader_.error(ErrorCode::kCorrupt, offset,
                         "data offset: expected a multiple of {}, actual {}", alignment,
                         tensor.offset);
  reader_.set_subject(GgufSubject{});
  model_.tensors_.push_back(std::move(tensor));
  return {};
}

Status GgufParser::parse_shape(GgufTensor& tensor) {
  const uint64_t n_dims_offset = reader_.position();
  OFFSTAGE_TRY(tensor.n_dims, reader_.number<uint32_t>("dimension count"));
  if (tensor.n_dims < 1 || tensor.n_dims > tensor.dims.size())
    return reader_.error(ErrorCode::kCorrupt, n_dims_offset,
                         "dimension count: expected 1 to {}, actual {}", tensor.dims.size(),
                         tensor.n_dims);
  uint64_t elements = 1;
  for (uint32_t d = 0; d < tensor.n_dims; ++d) {
    const uint64_t offset = reader_.position();
    OFFSTAGE_TRY(tensor.dims[d], reader_.number<uint64_t>("dimension"));
    const std::optional<uint64_t> product = checked_mul(elements, tensor.dims[d]);
    if (tensor.dims[d] == 0 || !product || *product > kBytesMax)
      return reader_.error(ErrorCode::kCorrupt, offset,
                           "dimension {} of {}: expected 1 or more and a product of at most {}, "
                           "actual {} after a product of {}",
                           d, tensor.n_dims, kBytesMax, tensor.dims[d], elements);
    elements = *product;
  }
  return {};
}

Status GgufParser::parse_type(GgufTensor& tensor) {
  const uint64_t offset = reader_.position();
  OFFSTAGE_TRY(const uint32_t id, reader_.number<uint32_t>("type"));
  const std::optional<TensorType> type = tensor_type_from_gguf(id);
  if (!type)
    return reader_.error(ErrorCode::kUnsupported, offset,
                         "type: expected one of {}, actual {} ({})", supported_types(),
                         gguf_type_name(id), id);
  tensor.type = *type;
  const TensorTypeTraits& traits = tensor_type_traits(*type);
  if (tensor.dims[0] % traits.block_elements != 0)
    return reader_.error(ErrorCode::kCorrupt, dims_field(tensor),
                         "row: expected a multiple of {} elements ({}), actual {}",
                         traits.block_elements, traits.name, tensor.dims[0]);
  const uint64_t blocks = tensor.elements() / traits.block_elements;
  const std::optional<uint64_t> bytes = checked_mul(blocks, traits.block_bytes);
  if (!bytes || *bytes > kBytesMax)
    return reader_.error(ErrorCode::kCorrupt, dims_field(tensor),
                         "size: expected at most {} bytes, actual {} blocks of {}", kBytesMax,
                         blocks, traits.block_bytes);
  tensor.bytes = *bytes;
  return {};
}

// Tensor data starts at the next multiple of the alignment; a file without tensors may end before.
Status GgufParser::find_data_start() {
  GgufShard& shard = model_.shards_.front();
  reader_.set_subject({"padding before the tensor data", {}});
  const uint64_t padded = round_up(reader_.position(), shard.alignment);
  const uint64_t data_start = tensor_count_ == 0 ? std::min(padded, reader_.file_bytes()) : padded;
  while (reader_.position() < data_start) {
    const uint64_t offset = reader_.position();
    OFFSTAGE_TRY(const uint8_t byte, reader_.number<uint8_t>("padding"));
    if (byte != 0)
      return reader_.error(ErrorCode::kCorrupt, offset,
                           "expected 0, actual {}: is the tensor count too small?", byte);
  }
  shard.header_bytes = data_start;
  return {};
}

// Each tensor must start where the one before it ends, rounded up. Makes offsets absolute. Nothing
// wraps: data_end stays within the file's size, which parse() holds below 2^63.
Status GgufParser::place_tensors() {
  const GgufShard& shard = model_.shards_.front();
  const std::string* previous = nullptr;
  uint64_t data_end = shard.header_bytes;
  for (GgufTensor& tensor : model_.tensors_) {
    reader_.set_subject({"tensor", tensor.name});
    const uint64_t expected = round_up(data_end, shard.alignment) - shard.header_bytes;
    if (tensor.offset != expected)
      return reader_.error(ErrorCode::kCorrupt, offset_field(tensor),
                           "data offset: expected {} ({}), actual {}: {}", expected,
                           previous ? fmt::format("behind '{}'", *previous) : "the first tensor",
                           tensor.offset, misplacement(tensor.offset, expected, shard));
    tensor.offset += shard.header_bytes;  // both were checked against the file's size
    const std::optional<uint64_t> end = checked_add(tensor.offset, tensor.bytes);
    if (!end || *end > shard.file_bytes)
      return reader_.error(
          ErrorCode::kTruncated, offset_field(tensor),
          "data of {} bytes at {}: expected a file of at least {} bytes, actual {}", tensor.bytes,
          tensor.offset, end.value_or(kBytesMax), shard.file_bytes);
    data_end = *end;
    previous = &tensor.name;
  }
  return check_tail(data_end);
}

Status GgufParser::check_tail(uint64_t data_end) {
  const GgufShard& shard = model_.shards_.front();
  reader_.set_subject({"end of the tensor data", {}});
  if (shard.file_bytes - data_end >= shard.alignment)
    return reader_.error(ErrorCode::kCorrupt, data_end,
                         "expected the end of the file within {} bytes of padding, actual {} more "
                         "bytes: is the tensor count too small?",
                         shard.alignment, shard.file_bytes - data_end);
  return {};
}

Status GgufParser::sort_names(GgufModel& model) {
  const auto path = [&](uint32_t shard) { return model.shards_[shard].path; };
  OFFSTAGE_TRY_VOID(sort_by_name(
      model.metadata_, model.metadata_by_key_,
      [](const auto& entry) -> const std::string& { return entry.first; },
      [&](const auto& first, const auto& second) -> Status {
        return make_error(ErrorCode::kCorrupt,
                          "{}: key '{}' at byte {}: expected each key once, actual a second one "
                          "after that at byte {}",
                          path(second.second.shard), printable(second.first), second.second.offset,
                          first.second.offset);
      }));
  return sort_by_name(
      model.tensors_, model.tensors_by_name_,
      [](const GgufTensor& tensor) -> const std::string& { return tensor.name; },
      [&](const GgufTensor& first, const GgufTensor& second) -> Status {
        return make_error(ErrorCode::kCorrupt,
                          "{}: tensor '{}' at byte {}: expected each tensor once, actual a second "
                          "one after that at byte {} of {}",
                          path(second.shard), second.name, second.info_offset, first.info_offset,
                          path(first.shard));
      });
}

}  // namespace offstage
