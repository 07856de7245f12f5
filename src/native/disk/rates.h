// What an expert is worth in RAM: src/dali/policies/pool/fading.py in compiled form.
#pragma once

#include <cstdint>
#include <vector>

namespace dali {

// Takes 4 bytes for each two experts of the same layer.
class Rates {
  public:
    // costs: of reading an expert of each layer.
    Rates(std::vector<double> costs, int experts);

    // A layer's step has wanted those experts, ascending.
    void note(int layer, const std::vector<int>& experts);

    double worth(int layer, int expert) const { return layers_[layer].ranks[expert] * (1 - FAR * wait(layer)); }

  private:
    static constexpr double FAST = 0.85, SLOW = 0.97;  // what is left of a use after a step, in the one sum and in the other
    static constexpr double SLOW_SHARE = 0.3;          // of the slow sum
    static constexpr double NOW = 1.5;                 // uses that one in this very step is worth beside
    static constexpr double FOLLOWS = 20;              // uses that being wanted in the next step for certain is worth
    static constexpr double LEAST_SHARE = 0.02;        // of a running mean that the newest step makes, at least
    static constexpr double RARE = 0.02;               // a use in so many steps: lower rates than that are not told apart
    static constexpr double FAR = 0.4;                 // of an expert's worth is lost to others that are needed a step earlier

    struct Layer {
        double cost;
        std::vector<double> fast, slow, uses;
        int64_t steps = 0;
        std::vector<int> last;     // what the last step wanted
        std::vector<float> after;  // [before, after]: how often an expert is wanted one step after another, a running mean
        std::vector<double> ranks;
    };

    // How far the layer's next step is, in steps of all layers.
    double wait(int layer) const {
        const int layers = int(layers_.size());
        return double((layer - turn_ - 1 + 2 * layers) % layers + 1) / layers;
    }
    static void learn(Layer& layer, const std::vector<int>& experts);
    static void rank(Layer& layer, const std::vector<int>& experts);

    std::vector<Layer> layers_;
    int turn_ = 0;  // the layer of the last step
};

}  // namespace dali
