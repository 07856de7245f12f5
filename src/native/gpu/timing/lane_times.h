// When the GPU's queues and the CPU did what for a model's experts, told by the host's clock: for whoever asks. While nobody does, nothing
// is recorded.
#pragma once

#include <memory>
#include <vector>

#include "gpu/device.h"

namespace dali::gpu {

double now();  // seconds on the host's monotonic clock

enum class Timed : int { dense, experts, copy, cpu, join };

struct LaneSpan {
    Timed work;
    int layer;
    std::vector<int> experts;  // none of what is no expert's
    double begin, end;         // seconds on that clock
};

class LaneTimes {
  public:
    // A moment in a queue, which may not have come yet; null while nobody asks.
    using Mark = std::shared_ptr<EventHandle>;

    explicit LaneTimes(const Device& device) : device_(device) {}

    // From now on, or no longer. Waits for `stream`; GPU's times are told from a moment in it whose time by the host's clock is then known.
    void watch(bool on, Handle stream);
    bool on() const { return bool(base_); }

    // The moment after all that is in a queue so far.
    Mark mark(Handle stream) const;
    // What lies in a queue between `begin` and now.
    void queued(Timed work, int layer, std::vector<int> experts, const Mark& begin, Handle stream);
    // The model's dense part, which has been in the queue since the last join.
    void dense(int layer, Handle stream);
    void on_host(int layer, std::vector<int> experts, double begin, double end);

    // Those that are over and were not given yet; with `wait`, all.
    std::vector<LaneSpan> take(bool wait);

    void forget();  // after a failure

  private:
    struct Queued {
        LaneSpan span;
        Mark begin, end;
    };
    bool told(Queued& one) const;

    const Device& device_;
    Mark base_, joined_;
    double base_seconds_ = 0;
    std::vector<Queued> queued_;
    std::vector<LaneSpan> over_;
};

}  // namespace dali::gpu
