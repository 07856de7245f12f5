// The MoE layers of one model, over a GPU and the CPU: all of a step but its plan. A layer's step has three parts, so that the
// host plans while nothing waits for it: begin() queues what tells the host the routing, routing() waits for that, execute() queues the
// GPU's experts and the copies they need, computes the CPU's on the caller's thread meanwhile, and queues the sum of both.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "calls.h"
#include "disk/expert_cache.h"
#include "gpu/points.h"
#include "gpu/timing/lane_times.h"
#include "model/layer.h"
#include "ops/experts.h"
#include "plan/planner.h"
#include "plan/step_plan.h"

namespace dali::gpu {

// What all layers share. `dtype` of hidden states, `weights_dtype` of the router's.
struct Sizes {
    int experts, top_k, hidden, most_tokens, most_ahead;  // most_ahead: ids that are predicted of later layers, in a step
    Dtype dtype, weights_dtype;
    size_t slot_bytes;
    int slots;
};

// What a step did, the seconds it took from the routing's arrival: all of them, to plan, and the CPU's experts; and those that the host
// waited for the routing before.
struct StepOutcome {
    StepCounts counts;
    double seconds, plan_seconds, cpu_seconds, waited_seconds;
    double cpu_planned, all_on_cpu;  // by the planner's times, uncorrected, of the CPU's experts, and of all of them there
};

// What the host is told of a step: x [tokens, hidden], ids int64 and weights [tokens, top_k], ahead int64 [ahead_count], on the GPU, as
// work queued before leaves them.
struct Posted {
    int tokens;
    Address x, ids, weights, ahead;
    int ahead_count;
};

class Layers {
  public:
    // `common`: the module with join and post. Failure: the GPU lacks the memory, and nothing is kept.
    Layers(const Device& device, const Sizes& sizes, const Module& common);

    // One layer more; `experts` says where its records lie in the host's memory, or which cache has them there as long as they are read. `few` and `many`: its kernels for few tokens an expert
    // and for many.
    void add(const ExpertLayout& layout, const LayerExperts& experts, const Module& few, const Module& many);

    // Copies of experts while no step runs, as the first residents are.
    void place(const std::vector<Fetch>& fetches);

    // begin() in parts, for who queues them with more, or again and again. expect(): the layer and step that routing() is to wait for;
    // post(): what tells the host the step's routing, and then `number` plus what is at `base`, unless that is null; input(): the panel
    // that the layer's experts read x from. `number` is one of those taken, each for one step.
    void expect(int layer, int tokens, Address weights, int ahead_count, Handle stream, uint32_t number);
    void post(const Posted& posted, const uint32_t* base, uint32_t number, Handle stream) const;
    gpu::Panel input(int layer) const;
    uint32_t take_numbers(int count) { return taken_ += count; }  // the last of them

    void begin(int layer, const Posted& posted, Handle stream);

    // The ids, on the host; then those ahead.
    const int64_t* routing();
    const int64_t* ahead() const { return ahead_host_; }
    // The step's x and, where they are float32, its weights, on the host.
    const void* x() const { return x_host_; }
    const float* weights() const { return weights_host_; }

    // Everything else of the layer that begin() was called for; out [tokens, hidden] is complete once `stream` is. Returns the seconds the
    // CPU's experts took.
    double execute(const StepPlan& plan, Address out);

    // routing(), `planner`'s plan and execute(): the rest of a step in one call. `ahead_layer` and `ahead_seconds`: the layer that begin()'s
    // `ahead` is predicted of, and the seconds that took.
    StepOutcome finish(Planner& planner, int ahead_layer, double ahead_seconds, Address out);

    Handle copy_stream() const { return copy_stream_.get(); }

    // When what is queued from now on, and the CPU's experts, began and ended.
    void watch(bool on) { times_.watch(on, copies_.stream()); }
    std::vector<LaneSpan> spans(bool wait) { return times_.take(wait); }

    // How many copies are over, of all that were queued since the start or the last recover(); in the order they were queued.
    uint64_t landed();

    // As CopyTimer's.
    std::pair<int, double> timed() { return timer_.take(); }

    // After a failure: waits until all queues are empty or broken, and forgets what slots hold and how many copies there were.
    void recover();

  private:
    struct Layer {
        const ExpertLayout& layout;
        const LayerExperts& experts;
        size_t record_bytes;
        Handle gather, inner[2], down[2];  // for few tokens an expert, and for many
        gpu::ExpertsCall call;             // what does not change
    };
    // A copy that was not seen to be over, and where it reads of a cache: its lease.
    struct Flight {
        uint64_t place;
        std::unique_ptr<ExpertCache::Lease> lease;
        bool timed;
    };
    struct Slot {
        Address at;
        uint64_t filled = 0, read = 0;  // places in the copies' queue and in the computing one
    };

    // What a plan computes on the CPU: pairs by expert, and where each one's begin.
    struct OnCpu {
        std::vector<int> experts;  // told where times are asked for
        std::vector<int64_t> pairs, offsets{0};
        std::vector<const uint8_t*> records;
    };

    void copy(const Fetch& fetch);
    std::unique_ptr<ExpertCache::Lease> lease(const Fetch& fetch);
    void launch_all(const Layer& layer, const Launch& one);
    void start(const Layer& layer, const StepPlan& plan);
    double compute(const Layer& layer, const OnCpu& work);

    double start_from_disk(const Layer& layer, const StepPlan& plan);
    void let_copies_end(ExpertCache& cache, int layer, const std::vector<int>& experts, int more);
    void launch(const Layer& layer, const Launch& launch, size_t first, size_t count);
    // A table of a step, in the host's memory and where the GPU will have it once put_tables() was called.
    template <class T>
    std::pair<T*, T*> take_table(size_t count);
    void put_tables(size_t from);

    const Device& device_;
    const Sizes sizes_;
    Handle join_, post_;
    StreamHandle copy_stream_;
    Points compute_, copies_;
    LaneTimes times_;
    uint64_t copies_waited_ = 0, compute_waited_ = 0;  // for places in the other's queue
    DeviceMemory arena_, work_;
    HostMemory host_;
    std::vector<Layer> layers_;
    std::vector<Slot> slots_;
    std::deque<Flight> flying_;
    InRam in_ram_;  // of these layers, where any has its experts in a cache
    uint64_t landed_ = 0;
    CopyTimer timer_;

    // In the memory above.
    gpu::Panel outer_{}, inner_{};
    float* rows_ = nullptr;       // on the GPU
    float* above_ = nullptr;      // on the host, seen by the GPU
    void* x_host_ = nullptr;
    float* weights_host_ = nullptr;
    int64_t *ids_host_ = nullptr, *ahead_host_ = nullptr;
    volatile uint32_t* flag_ = nullptr;
    char *tables_host_ = nullptr, *tables_ = nullptr;  // of steps with more pairs than a call holds
    size_t tables_bytes_ = 0, tables_used_ = 0;        // in the step under way

    // Of the step under way.
    int layer_ = 0, tokens_ = 0, ahead_count_ = 0;
    uint32_t expected_ = 0, taken_ = 0;
    Address weights_ = 0;
    std::vector<std::vector<int>> pairs_of_;  // by expert
};

}  // namespace dali::gpu
