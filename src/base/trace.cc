#include "base/trace.h"

#include <algorithm>

namespace offstage {

void BusyTime::add(int64_t begin_ns, int64_t end_ns) {
  // From the back: what arrives belongs to the last intervals, nearly always.
  size_t first = n_open_;
  while (first > 0 && open_[first - 1].end_ns >= begin_ns) --first;
  size_t last = first;
  while (last < n_open_ && open_[last].begin_ns <= end_ns) {
    begin_ns = std::min(begin_ns, open_[last].begin_ns);
    end_ns = std::max(end_ns, open_[last].end_ns);
    ++last;
  }
  if (last == first && n_open_ == kOpen) {
    if (first == 0) {  // older than all that is open: nothing is left to tell it apart from
      closed_ns_ += end_ns - begin_ns;
      return;
    }
    closed_ns_ += open_[0].end_ns - open_[0].begin_ns;
    std::move(open_.begin() + 1, open_.begin() + static_cast<ptrdiff_t>(n_open_), open_.begin());
    --n_open_;
    --first;
    last = first;
  }
  const auto at = [&](size_t i) { return open_.begin() + static_cast<ptrdiff_t>(i); };
  if (last == first) {
    std::move_backward(at(first), at(n_open_), at(n_open_ + 1));
  } else {
    std::move(at(last), at(n_open_), at(first + 1));
  }
  n_open_ = n_open_ + 1 - (last - first);
  open_[first] = {begin_ns, end_ns};
}

int64_t BusyTime::total_ns() const {
  int64_t total = closed_ns_;
  for (size_t i = 0; i < n_open_; ++i) total += open_[i].end_ns - open_[i].begin_ns;
  return total;
}

Trace::Trace(const TraceOptions& options, CauseTimer& timer)
    : options_(options),
      timer_(timer),
      layers_(options.level >= RecordLevel::kLayer ? options.layers_max : 0),
      reads_(options.level >= RecordLevel::kRead ? options.reads_max : 0) {}

void Trace::begin_layer(uint32_t layer, int64_t now_ns) {
  end_layer(now_ns);
  layer_ = {};
  layer_.token = token_;
  layer_.layer = layer;
  layer_.began_ns = now_ns;
  if (options_.level >= RecordLevel::kLayer) layer_begin_ = timer_.times();
}

void Trace::end_layers(int64_t now_ns) {
  end_layer(now_ns);
  layer_ = {};
}

void Trace::end_layer(int64_t now_ns) {
  if (layer_.layer == kNoLayer) return;
  layer_.wall_ns = now_ns - layer_.began_ns;
  if (layer_.wall_ns > token_trace_.slowest_layer_ns) {
    token_trace_.slowest_layer_ns = layer_.wall_ns;
    token_trace_.slowest_layer = layer_.layer;
  }
  if (layer_.wait_ns > token_trace_.waiting.wait_ns) token_trace_.waiting = layer_;
  if (options_.level < RecordLevel::kLayer) return;
  LayerSample sample = {layer_, timer_.times()};
  for (size_t i = 0; i < kCauseCount; ++i) sample.causes.ns[i] -= layer_begin_.ns[i];
  layers_.push(sample);
}

void Trace::missed(std::span<const uint32_t> files) {
  uint8_t drives = 0;
  for (const uint32_t file : files) drives |= static_cast<uint8_t>(1u << drive_of(file));
  const bool is_striped = (drives & (drives - 1)) != 0;
  if (!is_striped) {
    ++layer_.misses[files.empty() ? 0 : drive_of(files.front())];
    return;
  }
  ++layer_.striped_misses;
  layer_.striped_over |= drives;
}

void Trace::waited(int64_t begin_ns, int64_t end_ns, uint32_t depth, const ReadRecord* ended_by) {
  const int64_t wait_ns = end_ns - begin_ns;
  layer_.wait_ns += wait_ns;
  ++layer_.waits;
  layer_.depth_max = std::max(layer_.depth_max, depth);
  token_trace_.depth_max = std::max(token_trace_.depth_max, depth);
  if (ended_by == nullptr) return;
  const int64_t issued_ns = std::clamp(ended_by->last_issued_ns, begin_ns, end_ns);
  const int64_t completed_ns = std::clamp(ended_by->completed_ns, issued_ns, end_ns);
  DriveWait& wait = token_trace_.waits[ended_by->drive];
  wait.queued_ns += issued_ns - begin_ns;
  wait.service_ns += completed_ns - issued_ns;
  wait.woken_ns += end_ns - completed_ns;
  if (wait_ns <= layer_.longest_ns) return;
  layer_.longest_ns = wait_ns;
  layer_.longest = *ended_by;
}

void Trace::arrived(const ReadRecord& read, uint32_t depth) {
  token_trace_.depth_max = std::max(token_trace_.depth_max, depth);
  ++token_trace_.reads;
  token_trace_.read_retries += read.retries;
  token_trace_.service_ns += read.service_ns();
  if (options_.level < RecordLevel::kRead) return;
  ReadRecord kept = read;
  kept.token = token_;
  reads_.push(kept);
}

void Trace::delivered(uint8_t drive, uint64_t bytes, int64_t issued_ns, int64_t completed_ns) {
  token_trace_.drive_bytes[drive] += bytes;
  drive_bytes_[drive] += bytes;
  busy_[drive].add(issued_ns, completed_ns);
}

TokenTrace Trace::take(uint32_t next) {
  const TokenTrace taken = token_trace_;
  token_trace_ = {};
  token_ = next;
  return taken;
}

void Trace::clear_rings() {
  layers_.clear();
  reads_.clear();
}

}  // namespace offstage
