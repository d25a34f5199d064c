// Whoever looks on as a forward calls its experts: for a trace, for questions after the run, for
// measurements of the gate. They come and go, and never change a bit of a result.
//
// Who acts in a forward isn't one of them: a trace in the router's place and experts in VRAM are
// the MoE block's, guessed reads ReadAhead's. Decode thread only; owns nobody.
#pragma once

#include <span>

#include "base/result.h"
#include "cache/ram_tier.h"
#include "runtime/attention.h"
#include "runtime/first_routes.h"
#include "runtime/gate_accuracy.h"
#include "runtime/route_memory.h"
#include "runtime/route_recorder.h"
#include "runtime/router.h"

namespace offstage {

struct RoutingWatchers {
  // nullptr: nobody.
  RouteRecorder* recorder = nullptr;
  RouteMemory* last_routes = nullptr;
  FirstRoutes* first_routes = nullptr;
  GateAccuracy* gate_accuracy = nullptr;

  // A forward: its rows, every layer with experts in order, its end. One that fails in between
  // leaves nothing behind.
  void begin_forward(std::span<const Row> rows, Phase phase);
  // What the layer calls, and the stream x [n_rows][hidden] that its router saw.
  void at_layer(LayerIndex layer, const Routing& routing, const float* x);
  // Errors: those of the recorder's file.
  Status end_forward();
};

}  // namespace offstage
