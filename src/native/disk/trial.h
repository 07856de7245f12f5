// Whether looking ahead pays: src/dali/policies/trial.py in compiled form.
#pragma once

#include <algorithm>

namespace dali {

class Trial {
  public:
    bool on() const { return phase_ == Phase::with || (phase_ == Phase::resting && pays_); }

    // A step begins; `stalled`: seconds that all steps before have waited for the disk.
    void step(double stalled) {
        if (--left_ > 0) return;
        const double since = stalled - began_;
        began_ = stalled;
        left_ = WINDOW;
        if (phase_ == Phase::resting) {
            phase_ = Phase::without;
        } else if (phase_ == Phase::without) {
            without_ = since;
            phase_ = Phase::with;
        } else {
            const bool pays = since < GAIN * without_;
            rest_ = pays == pays_ ? std::min(2 * rest_, LONGEST) : SHORTEST;
            pays_ = pays;
            left_ = rest_;
            phase_ = Phase::resting;
        }
    }

  private:
    static constexpr int WINDOW = 16, SHORTEST = 64, LONGEST = 2048;  // steps
    static constexpr double GAIN = 0.95;  // the share of the stalls without it that it may leave

    enum class Phase { resting, without, with };
    Phase phase_ = Phase::resting;
    bool pays_ = false;
    int left_ = WINDOW, rest_ = SHORTEST;
    double began_ = 0, without_ = 0;
};

}  // namespace dali
