// What is read ahead of a step, and whether anything is: src/dali/policies/read_ahead.py in compiled form.
#pragma once

#include <cstdint>
#include <vector>

#include "disk/trial.h"

namespace dali {

// The experts of ids [tokens][top_k], of each token the likeliest first, that are not `there` [experts]: the likeliest first.
std::vector<int> ranked(const int64_t* ids, int tokens, int top_k, const std::vector<bool>& there);

class ReadAhead {
  public:
    explicit ReadAhead(int layers) : foreseen_(layers) {}

    // Whether to foresee anything in the step that has begun.
    bool on() const { return trial_.on(); }
    // Whether that is being compared.
    bool compares() const { return trial_.compares(); }
    // A step begins; as Trial::step.
    void step(double seconds, double waited, int64_t wanted) { trial_.step(seconds, waited, wanted); }
    // What to read, in this order, of the absent experts that a layer is `foreseen` to want, the likeliest first. `idle`: seconds the
    // disk has before they are known; `read`: of one read.
    std::vector<int> choose(int layer, const std::vector<int>& foreseen, double idle, double read);
    // A layer's experts are known, ascending.
    void settle(int layer, const std::vector<int>& needed);

  private:
    static constexpr double LIKELY = 0.5;  // of the absent experts foreseen of late are to have been needed, at least
    static constexpr double MEMORY = 0.98;  // a layer, of what is known of that
    static constexpr double UNKNOWN = 8;    // experts, taken to have been foreseen in vain at first

    Trial trial_;
    std::vector<std::vector<int>> foreseen_;  // by layer
    double right_ = 0, told_ = UNKNOWN;       // of late
};

}  // namespace dali
