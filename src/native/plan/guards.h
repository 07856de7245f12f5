// What stops prefetches and swaps while they cost more than they bring: src/dali/policies/guard.py, which says how, in compiled form.
#pragma once

#include <vector>

#include "plan/fading.h"
#include "plan/lanes.h"

namespace dali {

class Guard {
  public:
    // One step's cost and benefit in seconds.
    void note(double cost, double benefit);
    bool on() const { return now_.on; }

    struct State {
        bool on = true, trial = true;
        int next_rest = REST, resting = 0, steps = 0;
        double cost = 0, benefit = 0;
    };
    const State& state() const { return now_; }

  private:
    static constexpr int WINDOW = 32, REST = 64, LONGEST_REST = 4096;  // steps
    static constexpr double MARGIN = 0.1;                             // of the cost

    State now_;
};

// A layer's swaps that were paid for with a copy.
class CopiedSwaps {
  public:
    explicit CopiedSwaps(int experts) : instead_(experts, NONE) {}

    void note(const Swap& swap, bool copied);
    bool any() const { return count_ > 0; }
    // The residents without them.
    std::vector<Place> undone(std::vector<Place> residents) const;
    void clear();

  private:
    static constexpr int NONE = -1;
    std::vector<int> instead_;  // of an expert copied in, the one that would still be there
    int count_ = 0;
};

// A step's plan and what it was made from.
struct Planned {
    int layer;
    const Workload& workload;
    const LayerView& view;
    const LayerPlan& plan;
};

class Guards {
  public:
    // `predicts`: whether there are predictions to rest.
    Guards(const ExpertCosts& costs, int layers, int experts, bool predicts);

    const Guard& prefetch() const { return prefetch_; }
    const Guard& swap() const { return swap_; }
    // The swaps that may be made now. `fetched`: experts in the layer's scratch slots.
    std::vector<Swap> allow(int layer, std::vector<Swap> swaps, const std::vector<int>& fetched, double link_free);
    // Judges by what a layer's step shows. `waiting`: experts in scratch slots that waited for it; `residents`: as Residency has
    // them.
    void settle(const Planned& step, const std::vector<int>& waiting, const std::vector<Place>& residents, double predict_seconds);
    // Copies were queued behind the step's own.
    void queued(int prefetches, int swaps) { prefetches_ += prefetches, swaps_ += swaps; }

  private:
    static constexpr int SAMPLE = 17;  // layer steps

    double best(const Workload& workload, const LayerView& view) const;

    const ExpertCosts& costs_;
    const bool predicts_;
    Guard prefetch_, swap_;
    int prefetches_ = 0, swaps_ = 0;  // copies that may still be on the link
    std::vector<CopiedSwaps> copied_;
    int64_t steps_ = 0;
};

// The mean time from one layer's start to the next one's.
class Period {
  public:
    void start(int layer, double now);
    double seconds() const { return seconds_; }

  private:
    double seconds_ = 0, started_ = 0;
};

}  // namespace dali
