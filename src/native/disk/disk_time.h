// What steps take whose experts are on disk, and how long the disk has nothing to do before a layer's experts are known.
#pragma once

#include <algorithm>

namespace dali {

class DiskTime {
  public:
    // A layer's experts are known; `follows`: it comes right after the one before, in the same step.
    void begin(double now, bool follows) {
        if (follows) {
            seconds_ += now - began_ - waited_;
            add(work_, now - began_ - waited_);
            if (waited_ > 0) add(tail_, now - wait_ended_);
        }
        began_ = now;
        waited_ = 0;
    }
    // The layer has waited for the disk.
    void wait(double seconds, double now) {
        waited_ += seconds;
        all_waits_ += seconds;
        wait_ended_ = now;
    }
    // Of all layers so far, from each one's experts to the next one's; and of those, waits. Of a step's last layer only waits count.
    double seconds() const { return seconds_ + all_waits_; }
    double waited() const { return all_waits_; }
    // Seconds of the disk until the next layer's experts are known, beyond the `demanded` ones that this one waits for. What it computes
    // goes on meanwhile; where it has to wait after all, what is left is what comes after its last expert.
    double idle(double demanded) const { return std::max({work_ - demanded, tail_, 0.0}); }

  private:
    static constexpr double PACE = 0.1;  // of a layer in the means
    static void add(double& mean, double seconds) { mean = mean < 0 ? seconds : mean + PACE * (seconds - mean); }

    double work_ = -1, tail_ = -1;  // of a layer all but waits, and after its last wait: means; below 0: not known
    double began_ = 0, waited_ = 0, wait_ended_ = 0;
    double seconds_ = 0, all_waits_ = 0;  // without waits; waits
};

}  // namespace dali
