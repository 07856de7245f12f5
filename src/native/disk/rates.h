// What an expert is worth in RAM: src/dali/policies/pool/fading.py in compiled form.
#pragma once

#include <vector>

namespace dali {

class Rates {
  public:
    // costs: of reading an expert of each layer.
    Rates(std::vector<double> costs, int experts);

    // A layer's step has wanted those experts.
    void note(int layer, const std::vector<int>& experts);

    double worth(int layer, int expert) const {
        const Layer& one = layers_[layer];
        return one.cost * (one.fast[expert] + SLOW_SHARE * one.slow[expert]) * (1 - FAR * wait(layer));
    }

  private:
    static constexpr double FAST = 0.85, SLOW = 0.97;  // what is left of a use after a step, in the one sum and in the other
    static constexpr double SLOW_SHARE = 0.4;          // of the slow sum
    static constexpr double FAR = 0.4;                 // of an expert's worth is lost to others that are needed a step earlier

    // How far the layer's next step is, in steps of all layers.
    double wait(int layer) const {
        const int layers = int(layers_.size());
        return double((layer - turn_ - 1 + 2 * layers) % layers + 1) / layers;
    }

    struct Layer {
        double cost;
        std::vector<double> fast, slow;
    };
    std::vector<Layer> layers_;
    int turn_ = 0;  // the layer of the last step
};

}  // namespace dali
