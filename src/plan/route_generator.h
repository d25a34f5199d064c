// Routing drawn at random with the habits of real routers.
//
// A layer's router gives every expert a score, and the k best are called. The score is drawn as a
// sum; each part is why an expert is called again:
//
//   popularity   per layer and expert, for ever          the same few are called by everybody
//   word         per token class, layer and expert       the same word is routed alike
//   topic        per conversation, layer and expert      a conversation keeps to its own
//   mood         per layer and expert, half forgotten    a layer sticks to what it lately called:
//                every so many tokens                    reuse that fades within a sentence
//   whim         per layer and expert, for two tokens    more reuse by the very next token
//   chance       per call (Gumbel)                       with it the k best are a draw in
//                                                        proportion to exp(score), without putting
//                                                        back
//
// Classes are drawn by a power law, like words. All parts but the last are bell-shaped with a
// deviation of their own, in units of the router's logits; a model of another shape takes over the
// deviations, and of another k the same ones. Which deviations a recording has is route_fit.h's
// work. A first-order chain between experts would miss topic and word: at gpt-oss-20b reuse is
// still .33 after 64 tokens, where popularity alone gives .19.
#pragma once

#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "cache/route_log.h"

namespace offstage {

// The defaults are gpt-oss-20b's, fitted to 108,664 recorded tokens (ARCHITECTURE has the figures):
// what is drawn where a model's own routing isn't known.
struct RouteHabits {
  double popularity = 2.85;
  double word = 2.20;
  double topic = 1.50;
  double mood = 1.60;
  double mood_half_life = 3.40;  // tokens
  double whim = 1.35;
  double word_exponent = 1.15;  // class r is drawn in proportion to r^-exponent
  uint32_t word_classes = 256;
  uint64_t conversation_tokens = 309;  // each, on average (geometric)
};

class RouteGenerator {
 public:
  RouteGenerator(const RouteShape& shape, const RouteHabits& habits, uint64_t seed);
  RouteLog draw(uint64_t n_tokens);

 private:
  void begin_conversation();
  uint32_t draw_class();
  void call_layer(uint32_t layer, uint32_t word, std::vector<uint16_t>& out);
  float bell();

  RouteShape shape_;
  RouteHabits habits_;
  Rng rng_;
  std::vector<float> popularity_;     // [layer][expert]
  std::vector<float> words_;          // [class][layer][expert]
  std::vector<float> topic_;          // [layer][expert]: of this conversation
  std::vector<float> mood_;           // [layer][expert]
  std::vector<float> whim_;           // [layer][expert]: what the last token brought
  std::vector<double> class_bounds_;  // ascending, the last is 1
  float mood_kept_ = 0, mood_fresh_ = 0, whim_each_ = 0;
  std::vector<std::pair<float, uint16_t>> scores_;  // scratch of call_layer()
};

}  // namespace offstage
