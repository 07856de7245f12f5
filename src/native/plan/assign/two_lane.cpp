#include "plan/assign/two_lane.h"

#include <algorithm>
#include <functional>
#include <map>
#include <tuple>
#include <utility>

namespace dali {

namespace {

using Split = std::pair<int64_t, int64_t>;                // residents kept, absent experts fetched
using Candidate = std::tuple<double, int64_t, int64_t>;  // seconds, residents kept, absent experts fetched

// Entry n is the sum of seconds[n:].
std::vector<double> tails(const std::vector<double>& seconds) {
    std::vector<double> sums(seconds.size() + 1);
    for (size_t n = seconds.size(); n-- > 0;) sums[n] = sums[n + 1] + seconds[n];
    return sums;
}

// The first of 0 .. end - 1 that holds, or end.
template <class Test>
int64_t bisect(int64_t end, Test&& holds) {
    int64_t low = 0;
    while (low < end) {
        const int64_t middle = (low + end) / 2;
        if (holds(middle)) end = middle;
        else low = middle + 1;
    }
    return low;
}

class Search {
  public:
    explicit Search(LayerState layer) : layer_(std::move(layer)) {
        for (const auto& [expert, seconds] : layer_.landing)
            arrivals_.push_back({seconds, expert.id < 0 ? 0.0 : expert.gpu + layer_.link.launch});
    }

    FoundPlan plan() {
        const std::vector<LayerExpert>&kept = layer_.kept, &absent = layer_.absent;
        double cpu_end = 0;
        for (const LayerExpert& expert : absent) cpu_end += expert.cpu;
        cpu_end = layer_.handover + cpu_end;
        if (!absent.empty() && cpu_end <= layer_.link.free + layer_.link.alone) {  // the first copy would come too late
            double residents = 0;
            for (const LayerExpert& expert : kept) residents += expert.gpu;
            if (gpu_end(layer_.link.launch + residents, {}, cpu_end) <= cpu_end) return found(kept.size(), 0, cpu_end, true);
        }
        prepare();

        auto [best, keep, fetch] = search();
        for (size_t index = layer_.landing.size(); index-- > 0;) {
            const LayerExpert& expert = layer_.landing[index].expert;
            if (expert.id < 0) continue;
            // Not when the accelerator waits for new copies, or the CPU would be later still.
            if (fetch || given_up_cpu_ + expert.cpu >= best) break;
            const Arrival arrival = std::exchange(arrivals_[index], {arrivals_[index].landed, 0.0});
            given_up_cpu_ += expert.cpu;
            ends_.clear();
            const Candidate other = search();
            if (std::get<0>(other) >= best) {
                arrivals_[index] = arrival;
                break;
            }
            std::tie(best, keep, fetch) = other;
            given_up_.push_back(expert.id);
        }
        return found(keep, fetch, best, best <= floor(fetch) * EQUAL);
    }

  private:
    void prepare() {
        const auto by_gain = [](const LayerExpert& a, const LayerExpert& b) { return a.gpu - a.cpu < b.gpu - b.cpu; };
        std::stable_sort(layer_.kept.begin(), layer_.kept.end(), by_gain);
        std::stable_sort(layer_.absent.begin(), layer_.absent.end(), by_gain);
        most_kept_ = int64_t(layer_.kept.size());
        most_fetched_ = layer_.link.slots ? int64_t(layer_.absent.size()) : 0;
        std::vector<double> seconds;
        double sum = layer_.link.launch;
        kept_gpu_.push_back(0.0);  // no resident, no launch
        for (const LayerExpert& expert : layer_.kept) {
            kept_gpu_.push_back(sum += expert.gpu);
            seconds.push_back(expert.cpu);
        }
        kept_cpu_ = tails(seconds);
        for (const LayerExpert& expert : layer_.absent) {
            fetched_.push_back(expert.gpu + layer_.link.launch);
            absent_seconds_.push_back(expert.cpu);
        }
        absent_cpu_ = tails(absent_seconds_);
    }

    // When the CPU and the accelerator are done.
    std::pair<double, double> ends(int64_t keep, int64_t fetch) {
        const auto known = ends_.find({keep, fetch});
        if (known != ends_.end()) return known->second;
        double cpu_end = given_up_cpu_ + kept_cpu_[keep] + absent_cpu_[fetch];
        if (cpu_end) cpu_end += layer_.handover;
        std::vector<double> longest_first(fetched_.begin(), fetched_.begin() + fetch);
        std::sort(longest_first.begin(), longest_first.end(), std::greater<>());
        return ends_[{keep, fetch}] = {cpu_end, gpu_end(kept_gpu_[keep], longest_first, cpu_end)};
    }

    double gpu_end(double residents, const std::vector<double>& fetched, double cpu_end) {
        return accelerator_end(residents, arrivals_, fetched, layer_.link, cpu_end, released_);
    }

    double latest(int64_t keep, int64_t fetch) {
        const auto [cpu_end, gpu_end] = ends(keep, fetch);
        return std::max(cpu_end, gpu_end);
    }

    bool late(int64_t keep, int64_t fetch) {
        const auto [cpu_end, gpu_end] = ends(keep, fetch);
        return gpu_end >= cpu_end;
    }

    Candidate search() {
        const double cpu_rest = given_up_cpu_ + kept_cpu_[most_kept_], link_free = layer_.link.free, link = layer_.link.alone;
        const int64_t bound =
            bisect(most_fetched_, [&](int64_t n) { return link_free + double(n) * link >= cpu_rest + absent_cpu_[n]; });
        int64_t crossing = bound;
        if (bound && late(most_kept_, bound - 1)) crossing = bisect(bound - 1, [&](int64_t fetch) { return late(most_kept_, fetch); });
        const auto [cpu_end, gpu_end] = ends(most_kept_, crossing);
        Candidate found{std::max(cpu_end, gpu_end), most_kept_, crossing};
        const auto consider = [&](int64_t keep, int64_t fetch) { found = std::min(found, Candidate{latest(keep, fetch), keep, fetch}); };
        if (crossing) consider(most_kept_, crossing - 1);
        if (most_kept_ && gpu_end > cpu_end && ends(most_kept_ - 1, crossing).second < gpu_end) {
            const int64_t keep = bisect(most_kept_, [&](int64_t n) { return late(n, crossing); });
            consider(keep, crossing);
            consider(std::max<int64_t>(keep - 1, 0), crossing);
        }
        if (link_free + double(most_fetched_) * link < std::get<0>(found)) consider(most_kept_, most_fetched_);
        return found;
    }

    // Seconds that no plan is below; `fetch`: where to look first.
    double floor(int64_t fetch) const {
        std::vector<double> longest_first = absent_seconds_;
        std::sort(longest_first.begin(), longest_first.end(), std::greater<>());
        const std::vector<double> rest = tails(longest_first);
        const double fetched = fetched_.empty() ? 0.0 : *std::min_element(fetched_.begin(), fetched_.end());
        const auto on_cpu = [&](int64_t n) { return rest[n] ? rest[n] + layer_.handover : 0.0; };
        const auto on_link = [&](int64_t n) { return n ? layer_.link.free + double(n) * layer_.link.alone + fetched : 0.0; };
        int64_t crossing = fetch;
        while (crossing < most_fetched_ && on_link(crossing) < on_cpu(crossing)) crossing++;
        while (crossing && on_link(crossing - 1) >= on_cpu(crossing - 1)) crossing--;
        const double least = std::max(on_cpu(crossing), on_link(crossing));
        return crossing ? std::min(least, on_cpu(crossing - 1)) : least;
    }

    FoundPlan found(int64_t keep, int64_t fetch, double seconds, bool proven) const {
        LayerPlan plan;
        const std::vector<LayerExpert>&kept = layer_.kept, &absent = layer_.absent;
        for (size_t i = fetch; i < absent.size(); i++) plan.cpu.push_back(absent[i].id);
        for (size_t i = keep; i < kept.size(); i++) plan.cpu.push_back(kept[i].id);
        plan.cpu.insert(plan.cpu.end(), given_up_.begin(), given_up_.end());
        for (int64_t i = 0; i < keep; i++) plan.gpu.push_back(kept[i].id);
        for (const auto& [expert, landed] : layer_.landing)
            if (expert.id >= 0 && !contains(given_up_, expert.id))
                plan.gpu.push_back(expert.id);
        std::vector<LayerExpert> fetched(absent.begin(), absent.begin() + fetch);
        std::stable_sort(fetched.begin(), fetched.end(), [](const LayerExpert& a, const LayerExpert& b) { return a.gpu > b.gpu; });
        for (const LayerExpert& expert : fetched) plan.fetch.push_back(expert.id);
        plan.gpu.insert(plan.gpu.end(), plan.fetch.begin(), plan.fetch.end());
        return {std::move(plan), seconds, proven};
    }

    LayerState layer_;
    std::vector<Arrival> arrivals_;
    int64_t most_kept_ = 0, most_fetched_ = 0;
    // Seconds by split: the first n on the accelerator, the others on the CPU.
    std::vector<double> kept_gpu_, kept_cpu_, fetched_, absent_seconds_, absent_cpu_;
    std::vector<int> given_up_;  // experts in flight that the CPU computes after all
    double given_up_cpu_ = 0;
    std::map<Split, std::pair<double, double>> ends_;
    std::vector<double> released_;
};

}  // namespace

FoundPlan search_two_lane(LayerState layer) { return Search(std::move(layer)).plan(); }

}  // namespace dali
