// Engines' threads work for microseconds and sleep in between, on processors that compute. Who is
// to run when such a thread wakes is the scheduler's choice, and Linux lets the one who computes go
// on to the end of its time slice: 1.4 ms and more on two processors, longer than a read takes.
#pragma once

namespace offstage {

// Gives the calling thread the shortest time slice that Linux has, 0.1 ms: since 6.12 whoever has a
// shorter one goes before whoever has a longer one as soon as it wakes. Needs no privilege and
// takes nothing from others beyond what is a thread's fair share. Does nothing on an older kernel,
// or for a thread that isn't scheduled fairly (SCHED_FIFO …).
void ask_to_wake_promptly();

}  // namespace offstage
