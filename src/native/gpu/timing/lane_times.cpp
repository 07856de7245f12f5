#include "gpu/timing/lane_times.h"

#include <chrono>

namespace dali::gpu {

namespace {

constexpr float FAR = 1000;  // milliseconds from the base: a float of more tells no microsecond apart

}  // namespace

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void LaneTimes::watch(bool on, Handle stream) {
    forget();
    over_.clear();
    base_ = nullptr;
    if (!on) return;
    device_.enter();
    DALI_CUDA(device_.driver, finish_stream, stream);
    const Mark base = std::make_shared<EventHandle>(create_event(device_, true));
    const double before = now();
    DALI_CUDA(device_.driver, record_event, base->get(), stream);
    DALI_CUDA(device_.driver, finish_event, base->get());
    base_seconds_ = (before + now()) / 2;
    base_ = base;
}

LaneTimes::Mark LaneTimes::mark(Handle stream) const {
    if (!base_) return nullptr;
    const Mark mark = std::make_shared<EventHandle>(create_event(device_, true));
    DALI_CUDA(device_.driver, record_event, mark->get(), stream);
    return mark;
}

void LaneTimes::queued(Timed work, int layer, std::vector<int> experts, const Mark& begin, Handle stream) {
    if (!begin) return;
    const Mark end = mark(stream);
    queued_.push_back({{work, layer, std::move(experts), 0, 0}, begin, end});
    if (work == Timed::join) joined_ = end;
}

void LaneTimes::dense(int layer, Handle stream) {
    if (joined_) queued(Timed::dense, layer, {}, joined_, stream);
}

void LaneTimes::on_host(int layer, std::vector<int> experts, double begin, double end) {
    if (base_) over_.push_back({Timed::cpu, layer, std::move(experts), begin, end});
}

// Whether both ends have come; then their times.
bool LaneTimes::told(Queued& one) const {
    const auto seconds = [&](const Mark& mark, double& at) {
        float milliseconds = 0;
        const int result = device_.driver.elapsed_(&milliseconds, base_->get(), mark->get());
        if (result == NOT_READY) return false;
        device_.driver.check(result, "elapsed");
        at = base_seconds_ + 1e-3 * milliseconds;
        return true;
    };
    return seconds(one.end, one.span.end) && seconds(one.begin, one.span.begin);
}

std::vector<LaneSpan> LaneTimes::take(bool wait) {
    std::vector<LaneSpan> found = std::move(over_);
    over_.clear();
    if (queued_.empty()) return found;
    device_.enter();
    std::vector<Queued> later;
    Mark newest;
    double at = 0;
    for (Queued& one : queued_) {
        if (wait) DALI_CUDA(device_.driver, finish_event, one.end->get());
        if (!told(one)) {
            later.push_back(std::move(one));
            continue;
        }
        if (one.span.end > at) newest = one.end, at = one.span.end;
        found.push_back(std::move(one.span));
    }
    queued_ = std::move(later);
    if (newest && at - base_seconds_ > 1e-3 * FAR) base_ = newest, base_seconds_ = at;
    return found;
}

void LaneTimes::forget() {
    queued_.clear();
    joined_ = nullptr;
}

}  // namespace dali::gpu
