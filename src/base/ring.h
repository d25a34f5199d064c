// The last so many of what was pushed; memory is taken at start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace offstage {

template <typename T>
class Ring {
 public:
  explicit Ring(size_t capacity) : items_(capacity) {}  // touched now: the plan counts it
  void push(const T& item) {
    if (items_.empty()) return;
    items_[total_++ % items_.size()] = item;
  }
  void clear() { total_ = 0; }
  size_t size() const { return total_ < items_.size() ? total_ : items_.size(); }
  uint64_t dropped() const { return total_ - size(); }
  const T& operator[](size_t i) const { return items_[(total_ - size() + i) % items_.size()]; }

 private:
  std::vector<T> items_;
  uint64_t total_ = 0;
};

}  // namespace offstage
