#include "base/notices.h"

#include <algorithm>

namespace offstage {

void Notices::add(std::string_view subject, std::string text) {
  const std::lock_guard lock(mutex_);
  const bool said = std::any_of(notices_.begin(), notices_.end(), [&](const Notice& notice) {
    return notice.subject == subject && notice.text == text;
  });
  if (!said) notices_.push_back({std::string(subject), std::move(text)});
}

std::vector<Notice> Notices::list() const {
  const std::lock_guard lock(mutex_);
  return notices_;
}

}  // namespace offstage
