// First-in first-out lists of job numbers, with removal from the middle, that never allocate.
#pragma once

#include <cstdint>
#include <vector>

#include "base/check.h"

namespace offstage {

// A doubly linked list over the numbers 0 … capacity − 1; each is in it at most once.
class JobList {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  explicit JobList(uint32_t capacity) : links_(capacity) {}

  bool empty() const { return head_ == kNone; }
  uint32_t front() const { return head_; }  // kNone if empty
  uint32_t next(uint32_t job) const { return links_[job].next; }
  bool contains(uint32_t job) const { return links_[job].member; }

  void push_back(uint32_t job) {
    CHECK(!links_[job].member);
    links_[job] = {.prev = tail_, .next = kNone, .member = true};
    (tail_ == kNone ? head_ : links_[tail_].next) = job;
    tail_ = job;
  }

  void remove(uint32_t job) {
    const Links links = links_[job];
    CHECK(links.member);
    (links.prev == kNone ? head_ : links_[links.prev].next) = links.next;
    (links.next == kNone ? tail_ : links_[links.next].prev) = links.prev;
    links_[job] = {};
  }

 private:
  struct Links {
    uint32_t prev = kNone;
    uint32_t next = kNone;
    bool member = false;
  };
  std::vector<Links> links_;
  uint32_t head_ = kNone;
  uint32_t tail_ = kNone;
};

}  // namespace offstage
