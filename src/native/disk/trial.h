// Whether looking ahead pays: src/dali/policies/trial.py in compiled form.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dali {

class Trial {
  public:
    bool on() const { return comparing_ ? left_ % 2 == 1 : pays_; }
    bool compares() const { return comparing_; }

    // A step begins. Of all steps before: the `seconds` they took, those in which they `waited` for the disk, and the experts that had to
    // be read for them, ahead or not.
    void step(double seconds, double waited, int64_t wanted) {
        const Step last{seconds - before_.seconds, wanted - before_.experts};
        before_ = {seconds, wanted};
        if (comparing_ && on()) {
            const double mean = wanted ? waited / double(wanted) : 0;
            won_ += last.seconds - mean * double(last.experts) < without_.seconds - mean * double(without_.experts);
        }
        without_ = last;
        if (--left_ > 0) return;
        if (comparing_) {
            const bool pays = won_ >= WON;
            rest_ = pays == pays_ ? std::min(2 * rest_, LONGEST) : SHORTEST;
            pays_ = pays;
            left_ = rest_;
        } else {
            left_ = 2 * PAIRS;
            won_ = 0;
        }
        comparing_ = !comparing_;
    }

  private:
    static constexpr int FIRST = 8, SHORTEST = 64, LONGEST = 2048;  // steps before the first comparison, and that an answer holds
    static constexpr int PAIRS = 8, WON = 6;  // of steps that are compared, and at least that are better with it

    struct Step {
        double seconds = 0;
        int64_t experts = 0;
    };
    bool comparing_ = false, pays_ = false;
    int left_ = FIRST, rest_ = SHORTEST, won_ = 0;
    Step before_, without_;  // as told last, and the pair's first step
};

}  // namespace dali
