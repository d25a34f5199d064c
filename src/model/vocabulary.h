// The vocabulary of a GGUF as the tokenizer's facts.
#pragma once

#include "base/result.h"
#include "io/gguf.h"
#include "model/tokenizer.h"

namespace offstage {

// Works on vocabulary-only files. Errors name file, key and offset.
Result<VocabularyFacts> vocabulary_from_gguf(const GgufModel& gguf);

}  // namespace offstage
