// A whole model over a GPU: the dense part of all layers by our kernels, with the bits of the CPU's (model/decoding_model.h), the experts by
// `Layers`. The residual stream, and whatever a layer makes of it, stays on the GPU; the host sends a step's embeddings, rotations and
// places of keys and values ahead of it, in one copy.
#pragma once

#include <map>
#include <tuple>
#include <vector>

#include "gpu/graph.h"
#include "gpu/layers.h"
#include "gpu/uploads.h"
#include "model/decoding_model.h"

namespace dali::gpu {

// The kernels of linears in one format, for up to 8 rows and for more.
struct LinearModules {
    Format format;
    const Module *few, *many;
};

// Predicts later MoE layers' routing from one's input: that of `distance` layers on by the first router, of one more by each other.
struct Foresight {
    int distance;
    std::vector<const Router*> routers;  // none past the last layer
};

// Neighbouring tokens of one sequence as a layer keeps them; each sees those before it, at most `window` of them with itself, if not 0.
struct Run {
    DecodingToken first;
    int count;
    int64_t window;
};

struct StepInput {
    std::vector<int64_t> ids;                      // [rows]
    std::vector<std::vector<Rotation>> rotations;  // of each kind, of each row
    std::vector<std::vector<Run>> runs;            // of each layer: all rows
    std::vector<int> wanted;                       // rows whose logits are
};

class Model {
  public:
    // std::invalid_argument for a model with parts that there are no kernels for. `most_tokens`: of one sequence.
    Model(const Device& device, const DecodingModel& model, const Module& common, const std::vector<LinearModules>& linears, int most_rows,
          int64_t most_tokens);

    // What put() takes of the GPU's memory.
    size_t bytes() const { return weights_.bytes() + work_bytes_; }

    // Sends the weights. Failure where the GPU lacks the memory.
    void put();
    // Who computes the experts, and what predicts their routing: of each MoE layer, or nothing. Failure as above.
    void follow(Layers& experts, const std::vector<Foresight>& foresight);

    // A step in one call: logits [wanted, vocabulary] on the GPU, complete once `stream` is; what each MoE layer did.
    std::vector<StepOutcome> step(Planner& planner, const StepInput& input, Address logits, Handle stream);

    // The same in parts, for plans made elsewhere. start(); then of each layer in turn dense(), and if that says it is an MoE layer's,
    // routing and execution by `Layers`, which is to put the sum at part(); head() at last.
    void start(const StepInput& input, Handle stream);
    bool dense(int layer, bool foresee);
    void head(Address logits);
    // Of a row of the latest logits: how many are as high as its MOST-th highest, and where on the host those are, with their ids, if they
    // are no more than HIGHEST; waits for them. None where a step wanted too many rows, or another was the latest to fail.
    struct Highest {
        int count;
        const int* ids;
        const float* values;
    };
    Highest highest(int row) const;
    Address part() const { return reinterpret_cast<Address>(part_); }
    int layers() const { return int(model_.layers.size()); }
    // How many ids are predicted of layers after MoE layer `layer`.
    int foreseen(int moe) const;

  private:
    struct Target {
        const PackedLinear& linear;
        void* out;
    };
    // A layer's dense part, queued: from the end of the one before to its own routing.
    void queue(int layer, bool foresee, Handle stream) const;
    void attend(const AttentionModule& module, const gpu::Panel& input, int layer, Handle stream) const;
    void project(const std::vector<Target>& targets, const gpu::Panel& panel, float divisor, int rows, Handle stream) const;
    void compute(const Mlp& mlp, const gpu::Panel& input, void* out, Handle stream) const;
    void route(const Router& router, const Uploads& at, int64_t* ids, float* weights, Handle stream) const;
    // Adds the shared expert's output to what the routed ones of a layer have put at part_; null: there was no layer.
    void end_layer(const DecoderLayer* layer, Handle stream) const;
    void fill(const void* x, int width, const gpu::Panel& panel, Handle stream) const;
    // The residual stream plus scale * before(what is at part_), and `after` of that.
    gpu::AddNormCall add_norm(const Norm& before, float scale, const Norm& after, const gpu::Panel& panel, int rows) const;
    gpu::Panel panel(const std::vector<const PackedLinear*>& readers) const;
    gpu::NormPart norm(const Norm& norm) const { return {weights_.of(static_cast<const char*>(norm.weight)), norm.epsilon}; }
    Address on_gpu(const void* in_tables) const { return tables_.get() + (static_cast<const char*>(in_tables) - static_cast<const char*>(tables_host_.get())); }
    void find_highest(Address logits);
    void cut_tables(int rows);
    size_t cut_work(uint64_t base);

    const Device& device_;
    const DecodingModel& model_;
    Layers* experts_ = nullptr;
    const int most_rows_;
    Handle add_norm_, rms_norm_, turn_, attend_, merge_, route_products_, route_choose_, gate_up_, share_, post_, highest_[3];
    struct LinearKernels {
        Handle gather, few, many;
    };
    std::map<Format, LinearKernels> linears_;
    Uploads weights_, foresight_weights_;
    std::vector<Foresight> foresight_;
    std::vector<int> moe_;  // of each layer: which of the MoE layers it is, or -1
    int moe_layers_ = 0;
    size_t kinds_ = 0;

    // Work memory on the GPU.
    DeviceMemory work_, tables_, foresight_work_;
    size_t work_bytes_ = 0, table_bytes_ = 0;
    char *part_ = nullptr, *normed_ = nullptr, *query_ = nullptr, *key_ = nullptr, *value_ = nullptr, *mixed_ = nullptr, *first_ = nullptr,
         *shared_ = nullptr;
    gpu::Panel panel_{};
    float *products_ = nullptr, *scores_ = nullptr, *ranks_ = nullptr, *router_weights_ = nullptr, *ahead_weights_ = nullptr, *attention_ = nullptr;
    int64_t *ids_ = nullptr, *ahead_ = nullptr;
    size_t attention_floats_ = 0;
    gpu::HighestCall highest_call_{};
    HostMemory highest_host_;
    struct {
        int *ids, *counts;
        float* values;
        volatile uint32_t* flag;
        uint32_t expected;
    } found_{};

    // A step's tables: in the host's memory, copied to the same places on the GPU.
    HostMemory tables_host_;
    struct Tables {
        uint32_t* base;
        int *wanted, *most;
        std::vector<char*> cos, sin;   // of each kind
        std::vector<KeptToken*> kept;  // of each layer
        char* x;
        size_t bytes;
    } at_{};

    // A layer's dense part for so many rows and parts of keys, with or without foresight: nothing else in it changes from step to step.
    using GraphKey = std::tuple<int, int, int, bool>;
    std::map<GraphKey, Graph> graphs_;
    StreamHandle capturing_;

    // Of the step under way.
    Handle stream_ = nullptr;
    int rows_ = 0, wanted_ = 0;
    uint32_t first_number_ = 0;
    std::vector<int> parts_;  // of each layer: of the longest sequence's keys, rounded up so that few graphs serve
};

}  // namespace dali::gpu
