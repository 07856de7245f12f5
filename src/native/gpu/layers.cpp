#include "gpu/layers.h"

#include <algorithm>
#include <string>

#include "gpu/cut.h"
#include "gpu/flag.h"
#include "threads/pool.h"

namespace dali::gpu {

namespace {

constexpr size_t MOST_POSTED = 8192;  // bytes of activations that one warp posts; more are copied

}  // namespace

Layers::Layers(const Device& device, const Sizes& sizes, const Module& common)
    : device_(device), sizes_(sizes), join_(common.function("join")), post_(common.function("post")), copy_stream_(create_stream(device)),
      compute_(device), copies_(device), times_(device), timer_(device), pairs_of_(sizes.experts) {
    copies_.follow(copy_stream_.get());
    arena_ = sizes.slots ? allocate(device, sizes.slots * sizes.slot_bytes) : DeviceMemory();
    for (int slot = 0; slot < sizes.slots; slot++) slots_.push_back({arena_.get() + slot * sizes.slot_bytes});
    Cut cut;
    const size_t pairs = size_t(sizes.most_tokens) * sizes.top_k;
    const auto on_host = [&](uint64_t base) {
        cut.begin(base);
        above_ = cut.take<float>(pairs * sizes.hidden);
        x_host_ = cut.take<float>(size_t(sizes.most_tokens) * sizes.hidden);
        ids_host_ = cut.take<int64_t>(pairs);
        weights_host_ = cut.take<float>(pairs);
        ahead_host_ = cut.take<int64_t>(size_t(sizes.most_ahead));
        flag_ = cut.take<uint32_t>(1);
        tables_host_ = cut.take<char>(tables_bytes_);
    };
    // Pairs twice, for the launches and the join; records and where their pairs begin; the gaps between.
    tables_bytes_ = pairs > FEW_PAIRS ? pairs * 8 + sizes.experts * (16 + 3 * ALIGNED) : 0;
    on_host(0);
    host_ = allocate_host(device, cut.bytes());
    on_host(reinterpret_cast<uint64_t>(host_.get()));
    *flag_ = 0;
}

void Layers::add(const ExpertLayout& layout, const LayerExperts& experts, const Module& few, const Module& many) {
    Layer layer{layout, experts, 0, few.function("gather"), {few.function("inner"), many.function("inner")},
                {few.function("down"), many.function("down")}, {}};
    layer.record_bytes = sizes_.slot_bytes;
    gpu::ExpertsCall& call = layer.call;
    call.top_k = sizes_.top_k;
    call.hidden = layout.hidden;
    call.intermediate = layout.intermediate;
    if (layout.gated) call.gate = matrix_of(layout.gate, layout.gate_at);
    call.up = matrix_of(layout.up, layout.up_at);
    call.down = matrix_of(layout.down, layout.down_at);
    call.gate_bias = int64_t(layout.gate_bias_at);
    call.up_bias = int64_t(layout.up_bias_at);
    call.down_bias = int64_t(layout.down_bias_at);
    call.alpha = layout.gate_kind.alpha;
    call.limit = layout.gate_kind.limit;
    layers_.push_back(layer);
    if (experts.cache)
        in_ram_ = [this](int at, int expert) {
            const LayerExperts& of = layers_.at(at).experts;
            return !of.cache || of.cache->holds(of.layer, expert);
        };
    const int inner = padded_columns(layout.intermediate), outer = padded_columns(layout.hidden);
    if (inner <= inner_.columns && outer <= outer_.columns) return;
    // Work memory for the largest layer so far; nothing runs yet.
    const int inner_columns = std::max(inner, inner_.columns), outer_columns = std::max(outer, outer_.columns);
    Cut cut;
    const size_t pairs = size_t(sizes_.most_tokens) * sizes_.top_k;
    const auto on_device = [&](uint64_t base) {
        cut.begin(base);
        outer_ = cut_panel(cut, sizes_.most_tokens, outer_columns);
        inner_ = cut_panel(cut, pairs, inner_columns);
        rows_ = cut.take<float>(pairs * sizes_.hidden);
        tables_ = cut.take<char>(tables_bytes_);
    };
    on_device(0);
    work_ = DeviceMemory();
    work_ = allocate(device_, cut.bytes());
    on_device(work_.get());
}

void Layers::copy(const Fetch& fetch) {
    const Layer& layer = layers_.at(fetch.layer);
    const bool on_disk = layer.experts.cache;
    std::unique_ptr<ExpertCache::Lease> leased = on_disk ? lease(fetch) : nullptr;
    const uint8_t* from = leased ? leased->at(0) : layer.experts.at.at(fetch.expert);
    Slot& slot = slots_.at(fetch.slot);
    compute_.before(copies_.stream(), copies_waited_, slot.read);
    const LaneTimes::Mark begin = times_.mark(copies_.stream());
    const bool timed = timer_.begin(copies_.stream());
    DALI_CUDA(device_.driver, copy_up, slot.at, from, layer.record_bytes, copies_.stream());
    if (timed) timer_.ended(copies_.stream());
    if (begin) times_.queued(Timed::copy, fetch.layer, {fetch.expert}, begin, copies_.stream());
    slot.filled = copies_.here();
    flying_.push_back({slot.filled, std::move(leased), timed});
}

void Layers::place(const std::vector<Fetch>& fetches) {
    device_.enter();
    for (const Fetch& fetch : fetches) copy(fetch);
    DALI_CUDA(device_.driver, finish_stream, copies_.stream());
}

void Layers::expect(int layer, int tokens, Address weights, int ahead_count, Handle stream, uint32_t number) {
    if (tokens < 1 || tokens > sizes_.most_tokens || ahead_count > sizes_.most_ahead)
        throw Failure(0, "a step of " + std::to_string(tokens) + " tokens was not planned for");
    layer_ = layer;
    tokens_ = tokens;
    ahead_count_ = ahead_count;
    weights_ = weights;
    expected_ = number;
    compute_.follow(stream);
}

void Layers::post(const Posted& posted, const uint32_t* base, uint32_t number, Handle stream) const {
    const size_t pairs = size_t(posted.tokens) * sizes_.top_k, x_bytes = size_t(posted.tokens) * sizes_.hidden * item_bytes(sizes_.dtype);
    gpu::PostCall call{};
    const auto part = [&](int i, Address from, void* to, size_t bytes) {
        call.from[i] = reinterpret_cast<const void*>(from);
        call.to[i] = to;
        call.words[i] = int(bytes / 4);
    };
    part(0, posted.ids, ids_host_, pairs * 8);
    part(1, posted.ahead, ahead_host_, size_t(posted.ahead_count) * 8);
    if (sizes_.weights_dtype == Dtype::f32) part(2, posted.weights, weights_host_, pairs * 4);
    if (x_bytes <= MOST_POSTED) part(3, posted.x, x_host_, x_bytes);
    else DALI_CUDA(device_.driver, copy_down, x_host_, posted.x, x_bytes, stream);  // over before the post runs
    call.flag = const_cast<uint32_t*>(flag_);
    call.number = number;
    call.base = base;
    gpu::launch(device_, post_, 1, stream, call);
}

gpu::Panel Layers::input(int layer) const {
    const Layer& here = layers_.at(layer);
    gpu::Panel panel = outer_;
    panel.columns = std::max(here.call.gate.columns, here.call.up.columns);
    if (is_quantized(here.layout.up.format)) panel.values = nullptr;
    else panel.quants = nullptr;
    return panel;
}

void Layers::begin(int layer, const Posted& posted, Handle stream) {
    device_.enter();
    expect(layer, posted.tokens, posted.weights, posted.ahead_count, stream, take_numbers(1));
    post(posted, nullptr, expected_, stream);
    const gpu::Panel outer = input(layer);
    const gpu::GatherCall gather{reinterpret_cast<const void*>(posted.x), outer, posted.tokens, sizes_.hidden, int(sizes_.dtype)};
    gpu::launch(device_, layers_.at(layer).gather, int64_t(posted.tokens) * (outer.columns / GROUP), stream, gather);
}

const int64_t* Layers::routing() {
    times_.dense(layer_, compute_.stream());
    wait_for(device_, flag_, expected_, compute_.stream());
    tables_used_ = 0;  // what was queued before has run
    for (auto& pairs : pairs_of_) pairs.clear();
    for (int pair = 0; pair < tokens_ * sizes_.top_k; pair++) {
        const int64_t expert = ids_host_[pair];
        if (expert < 0 || expert >= sizes_.experts) throw std::out_of_range("a router chose an expert that there is not");
        pairs_of_[expert].push_back(pair);
    }
    return ids_host_;
}

template <class T>
std::pair<T*, T*> Layers::take_table(size_t count) {
    const size_t at = tables_used_;
    tables_used_ = round_up(at + count * sizeof(T), ALIGNED);
    if (tables_used_ > tables_bytes_) throw std::length_error("a step's tables are larger than planned");
    return {reinterpret_cast<T*>(tables_host_ + at), reinterpret_cast<T*>(tables_ + at)};
}

void Layers::put_tables(size_t from) {
    DALI_CUDA(device_.driver, copy_up, reinterpret_cast<Address>(tables_ + from), tables_host_ + from, tables_used_ - from, compute_.stream());
}

void Layers::launch(const Layer& layer, const Launch& launch, size_t first, size_t count) {
    gpu::ExpertsCall call = layer.call;
    call.outer = outer_;
    call.outer.columns = std::max(call.gate.columns, call.up.columns);
    call.inner = inner_;
    call.inner.columns = call.down.columns;
    call.rows = rows_;
    Work& work = call.work;
    work.active = int(count);
    size_t all = 0;
    for (size_t i = first; i < first + count; i++) all += pairs_of_.at(launch.experts[i]).size();
    const uint8_t** records = work.few_records;
    int *begin = work.few_begin, *pairs = work.few_pairs;
    const size_t tables = tables_used_;
    if (all > FEW_PAIRS) {
        const auto [records_host, records_gpu] = take_table<const uint8_t*>(count);
        const auto [begin_host, begin_gpu] = take_table<int>(count + 1);
        const auto [pairs_host, pairs_gpu] = take_table<int>(all);
        records = records_host, begin = begin_host, pairs = pairs_host;
        work.records = records_gpu, work.begin = begin_gpu, work.pairs = pairs_gpu;
    }
    int done = 0;
    for (size_t i = 0; i < count; i++) {
        Slot& slot = slots_.at(launch.slots.at(first + i));
        copies_.before(compute_.stream(), compute_waited_, slot.filled);
        records[i] = reinterpret_cast<const uint8_t*>(slot.at);
        begin[i] = done;
        for (const int pair : pairs_of_[launch.experts[first + i]]) pairs[done++] = pair;
    }
    begin[count] = done;
    if (work.records) put_tables(tables);
    const bool many = all > count * 8;
    const LaneTimes::Mark started = times_.mark(compute_.stream());
    gpu::launch(device_, layer.inner[many], int64_t(count) * (call.inner.columns / GROUP), compute_.stream(), call);
    gpu::launch(device_, layer.down[many], int64_t(count) * ((sizes_.hidden + 31) / 32), compute_.stream(), call);
    const auto from = launch.experts.begin() + first;
    if (started) times_.queued(Timed::experts, layer_, {from, from + count}, started, compute_.stream());
    for (size_t i = first; i < first + count; i++) slots_[launch.slots[i]].read = compute_.here();
}

void Layers::launch_all(const Layer& layer, const Launch& one) {
    for (size_t first = 0; first < one.experts.size(); first += FEW_EXPERTS)
        launch(layer, one, first, std::min(one.experts.size() - first, size_t(FEW_EXPERTS)));
}

void Layers::start(const Layer& layer, const StepPlan& plan) {
    for (const Launch& one : plan.launches) {
        if (one.fetch)
            for (size_t i = 0; i < one.experts.size(); i++) copy({layer_, one.experts[i], one.slots.at(i)});
        launch_all(layer, one);
    }
    for (const Fetch& fetch : plan.fetches) copy(fetch);
}

// On the caller's thread; the seconds it takes.
double Layers::compute(const Layer& layer, const OnCpu& work) {
    const double started = now();
    if (work.records.empty()) return 0;
    compute_experts(layer.layout, {int(work.records.size()), work.records.data(), work.offsets.data(), work.pairs.data(), sizes_.top_k, x_host_,
                                   sizes_.dtype, above_});
    const double ended = now();
    times_.on_host(layer_, work.experts, started, ended);
    return ended - started;
}

// Lets copies end until so many slots of memory are without a lease, beside those that the experts would take, or no copy is left.
void Layers::let_copies_end(ExpertCache& cache, int layer, const std::vector<int>& experts, int more) {
    landed();
    while (cache.room(layer, experts) < more && !flying_.empty()) {
        DALI_CUDA(device_.driver, finish_stream, copies_.stream());  // landed() has asked for the oldest one's end
        landed();
    }
}

// An expert's bytes for its copy, waited for.
std::unique_ptr<ExpertCache::Lease> Layers::lease(const Fetch& fetch) {
    const LayerExperts& experts = layers_.at(fetch.layer).experts;
    let_copies_end(*experts.cache, experts.layer, {fetch.expert}, 0);
    auto lease = std::make_unique<ExpertCache::Lease>(*experts.cache, experts.layer, std::vector<int>{fetch.expert}, ExpertCache::Lease::Unnoted());
    lease->next(true);
    return lease;
}

// Queues what is there; computes on the CPU whenever there is nothing to queue. Slots of the accelerator are filled in the plan's order,
// in which it has counted on them: of experts that are copied, reads are asked for in that order, and before the CPU's.
double Layers::start_from_disk(const Layer& layer, const StepPlan& plan) {
    ExpertCache& cache = *layer.experts.cache;
    std::vector<int> wanted;
    for (const Launch& one : plan.launches)
        if (one.fetch) wanted.insert(wanted.end(), one.experts.begin(), one.experts.end());
    const size_t copied = wanted.size();
    wanted.insert(wanted.end(), plan.cpu.begin(), plan.cpu.end());
    std::vector<int> ascending = wanted;
    std::sort(ascending.begin(), ascending.end());
    landed();
    cache.note(layer.experts.layer, ascending);
    ExpertCache::Lease lease(cache, layer.experts.layer, wanted, ExpertCache::Lease::Unnoted());

    std::vector<bool> arrived(wanted.size());
    std::vector<size_t> waiting;  // for the CPU
    double seconds = 0;
    const auto advance = [&] {
        if (!waiting.empty()) {
            OnCpu work;
            for (const size_t place : waiting) {
                if (times_.on()) work.experts.push_back(wanted[place]);
                for (const int pair : pairs_of_.at(wanted[place])) work.pairs.push_back(pair);
                work.offsets.push_back(int64_t(work.pairs.size()));
                work.records.push_back(lease.at(int(place)));
            }
            seconds += compute(layer, work);
            for (const size_t place : waiting) lease.give_back_told(int(place));
            waiting.clear();
            return;
        }
        let_copies_end(cache, layer.experts.layer, {}, 1);
        for (const int place : lease.next(true)) {
            if (arrived[place]) continue;
            arrived[place] = true;
            if (size_t(place) >= copied) waiting.push_back(size_t(place));
        }
    };
    size_t place = 0;
    for (const Launch& one : plan.launches) {
        for (size_t i = 0; one.fetch && i < one.experts.size(); i++, place++) {
            while (!arrived[place]) advance();
            copy({layer_, one.experts[i], one.slots.at(i)});
            lease.give_back_told(int(place));
        }
        launch_all(layer, one);
    }
    // Those that went meanwhile are read again, once nobody is in their way.
    auto fetch = plan.fetches.begin();
    for (; fetch != plan.fetches.end() && in_ram_(fetch->layer, fetch->expert); fetch++) copy(*fetch);
    while (!waiting.empty() || std::find(arrived.begin(), arrived.end(), false) != arrived.end()) advance();
    for (; fetch != plan.fetches.end(); fetch++) copy(*fetch);
    return seconds;
}

double Layers::execute(const StepPlan& plan, Address out) {
    const Layer& layer = layers_.at(layer_);
    const bool on_disk = layer.experts.cache;
    double seconds = 0;
    if (on_disk) seconds = start_from_disk(layer, plan);
    else start(layer, plan);

    gpu::JoinCall join{};
    OnCpu work;
    const size_t tables = tables_used_, all = size_t(tokens_) * sizes_.top_k;
    int* places = nullptr;
    if (all > FEW_PAIRS) {
        const auto [on_host, on_gpu] = take_table<int>(all);
        std::fill_n(on_host, all, 0);
        places = on_host;
        join.places = on_gpu;
    }
    for (const int expert : plan.cpu) {
        for (const int pair : pairs_of_.at(expert)) {
            work.pairs.push_back(pair);
            if (places) places[pair] = 1;
            else join.on_cpu[pair / 32] |= 1u << pair % 32;
        }
        work.offsets.push_back(int64_t(work.pairs.size()));
        if (times_.on()) work.experts.push_back(expert);
        if (!on_disk) work.records.push_back(layer.experts.at.at(expert));
    }
    if (places) put_tables(tables);
    if (!on_disk) seconds = compute(layer, work);
    join.rows = rows_;
    join.above = above_;
    join.weights = reinterpret_cast<const void*>(weights_);
    join.out = reinterpret_cast<void*>(out);
    join.tokens = tokens_;
    join.top_k = sizes_.top_k;
    join.hidden = sizes_.hidden;
    join.dtype = int(sizes_.dtype);
    join.weights_dtype = int(sizes_.weights_dtype);
    const LaneTimes::Mark begin = times_.mark(compute_.stream());
    gpu::launch(device_, join_, int64_t(tokens_) * ((sizes_.hidden + 31) / 32), compute_.stream(), join);
    times_.queued(Timed::join, layer_, {}, begin, compute_.stream());
    return seconds;
}

StepOutcome Layers::finish(Planner& planner, int ahead_layer, double ahead_seconds, Address out) {
    const double begun = now();
    const int64_t* ids = routing();
    const double started = now();
    StepOutcome outcome{};
    outcome.waited_seconds = started - begun;
    const StepPlan plan = planner.plan(layer_, ids, int64_t(tokens_) * sizes_.top_k, {ahead_layer, ahead_host_, ahead_count_, ahead_seconds}, started,
                                       landed(), outcome.counts, in_ram_ ? &in_ram_ : nullptr);
    outcome.plan_seconds = now() - started;
    outcome.cpu_planned = planner.planned();
    outcome.all_on_cpu = planner.all_on_cpu();
    outcome.cpu_seconds = execute(plan, out);
    outcome.seconds = now() - started;
    return outcome;
}

uint64_t Layers::landed() {
    for (; !flying_.empty() && copies_.reached(flying_.front().place); landed_++) {
        if (flying_.front().timed) timer_.over();
        flying_.pop_front();
    }
    return landed_;
}

void Layers::recover() {
    device_.enter();
    device_.driver.finish_stream_(copies_.stream());  // what they say was said before
    device_.driver.finish_stream_(compute_.stream());
    compute_.forget();
    copies_.forget();
    times_.forget();
    for (Slot& slot : slots_) slot.filled = slot.read = 0;
    flying_.clear();
    timer_.forget();
    landed_ = 0;
}

}  // namespace dali::gpu
