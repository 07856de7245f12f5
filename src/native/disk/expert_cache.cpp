#include "disk/expert_cache.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "disk/failure.h"

namespace dali {

namespace {

constexpr auto PATIENCE = std::chrono::milliseconds(50);  // between two looks at whether somebody wants the wait to end

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::vector<double> costs_of(const Store& store) {
    std::vector<double> costs;
    for (const LayerRecords& layer : store.layers) costs.push_back(double(layer.bytes));
    return costs;
}

}  // namespace

void (*ExpertCache::on_waiting)() = nullptr;

ExpertCache::ExpertCache(Store store, uint8_t* memory, size_t slot_bytes, int slots, int depth, bool direct)
    : store_(std::move(store)),
      memory_(memory),
      slot_bytes_(slot_bytes),
      first_to_go_(store_.layers.size(), UNKNOWN),
      slot_of_(store_.layers.size() * store_.experts, -1),
      rates_(costs_of(store_), store_.experts),
      ahead_(int(store_.layers.size())),
      direct_(direct),
      direct_in_steps_(direct),
      reader_(store_.path, depth, [this](int record, const std::string& problem) { arrive(record, problem); }) {
    counters_.hits.resize(store_.layers.size());
    counters_.misses.resize(store_.layers.size());
    if (!reader_.reads_past()) direct_ = direct_in_steps_ = false;
    grow(slots);
}

void ExpertCache::fail(const std::string& problem) const {
    StoreFailure failure(problem);
    failure.path = store_.path;
    throw failure;
}

void ExpertCache::grow(int slots) {
    std::lock_guard<std::mutex> lock(mutex_);
    const int before = int(slots_.size());
    if (slots <= before) return;
    slots_.resize(slots);
    for (int slot = slots - 1; slot >= before; slot--) empty_.push_back(slot);
}

int ExpertCache::slots() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return int(slots_.size());
}

int ExpertCache::held() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return int(std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.state == State::ready; }));
}

CacheCounters ExpertCache::counters() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return counters_;
}

int ExpertCache::first_to_go(int layer) {
    int& first = first_to_go_[layer];
    if (first != UNKNOWN) return first;
    first = -1;
    std::pair<bool, double> least;
    for (int expert = 0; expert < store_.experts; expert++) {
        const int at = slot_of_[record(layer, expert)];
        if (at < 0 || slots_[at].state != State::ready || slots_[at].leases) continue;
        const std::pair<bool, double> value{slots_[at].ahead, rates_.worth(layer, expert)};
        if (first >= 0 && value >= least) continue;
        first = at;
        least = value;
    }
    return first;
}

std::vector<int> ExpertCache::take(int count, bool ahead) {
    std::vector<int> taken;
    for (; !empty_.empty() && int(taken.size()) < count; empty_.pop_back()) taken.push_back(empty_.back());
    while (int(taken.size()) < count) {
        int victim = -1;
        std::pair<bool, double> least;
        for (int layer = 0; layer < int(store_.layers.size()); layer++) {
            const int at = first_to_go(layer);
            if (at < 0) continue;
            const std::pair<bool, double> value{slots_[at].ahead, rates_.worth(layer, slots_[at].record % store_.experts)};
            if (victim >= 0 && value >= least) continue;
            victim = at;
            least = value;
        }
        if (victim < 0) break;
        if (least.first) {
            if (ahead) return taken;
            counters_.ahead_wasted++;
        }
        empty(slots_[victim]);
        empty_.pop_back();
        taken.push_back(victim);
    }
    for (int i = 0; !ahead && i < int(slots_.size()) && int(taken.size()) < count; i++) {  // reads ahead that have not begun
        Slot& slot = slots_[i];
        if (slot.state != State::reading || slot.leases || !reader_.cancel(slot.record)) continue;
        counters_.ahead_wasted++;
        empty(slot);
        empty_.pop_back();
        taken.push_back(i);
    }
    return taken;
}

void ExpertCache::begin(int slot, int record, Why why) {
    const bool demanded = why != Why::ahead;
    slots_[slot] = {State::reading, record, demanded ? 1 : 0, !demanded, ""};
    slot_of_[record] = slot;
    const LayerRecords& layer = store_.layers[record / store_.experts];
    counters_.reads++;
    counters_.bytes += int64_t(layer.bytes);
    const bool direct = wide_ ? direct_ : direct_in_steps_;
    counters_.plain_reads += !direct;
    if (demanded) counters_.wanted_bytes += int64_t(layer.bytes);
    const int64_t offset = layer.offset + int64_t(record % store_.experts) * int64_t(layer.bytes);
    const ReadJob job{record, offset, layer.bytes, memory_ + size_t(slot) * slot_bytes_, store_.checksums[record], direct};
    if (why == Why::few) reader_.begin(job);
    else reader_.ask(job, demanded);
}

void ExpertCache::empty(Slot& slot) {
    changed(slot.record);
    slot_of_[slot.record] = -1;
    slot = Slot{};
    empty_.push_back(int(&slot - slots_.data()));
}

// A lease less. What nobody waits for any more is not read, where that has not begun.
void ExpertCache::release(Slot& slot) {
    if (--slot.leases) return;
    changed(slot.record);
    if (slot.state == State::failed || (slot.state == State::reading && !slot.ahead && reader_.cancel(slot.record))) empty(slot);
}

void ExpertCache::arrive(int record, const std::string& problem) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        changed(record);
        Slot& slot = slots_[slot_of_[record]];
        if (problem.empty()) slot.state = State::ready;
        else if (!slot.leases) empty(slot);
        else slot.state = State::failed, slot.problem = problem;
    }
    arrived_.notify_all();
}

// What was read for this step of a layer, and is not wanted in it, has been read in vain.
void ExpertCache::settle_ahead(int layer, const std::vector<int>& experts) {
    for (int expert = 0; expert < store_.experts; expert++) {
        const int at = slot_of_[record(layer, expert)];
        if (at < 0 || !slots_[at].ahead || std::binary_search(experts.begin(), experts.end(), expert)) continue;
        counters_.ahead_wasted++;
        slots_[at].ahead = false;
        changed(slots_[at].record);
        if (slots_[at].state == State::reading && reader_.cancel(slots_[at].record)) empty(slots_[at]);
    }
}

// Somebody has waited until now.
void ExpertCache::note_wait(double seconds, bool wide) {
    counters_.stalled += seconds;
    if (!wide) time_.wait(seconds, now());
}

bool ExpertCache::looks_ahead() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return ahead_.on() && !wide_ && !rests_;
}

void ExpertCache::rest() {
    std::lock_guard<std::mutex> lock(mutex_);
    rests_ = true;
}

ExpertCache::Decoded ExpertCache::decoded() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return {time_.seconds(), time_.waited(), wanted_};
}

bool ExpertCache::compares() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return ahead_.compares() && !rests_;
}

void ExpertCache::read_past(bool direct, bool in_steps, bool held) {
    std::lock_guard<std::mutex> lock(mutex_);
    direct_ = direct && reader_.reads_past();
    direct_in_steps_ = in_steps && reader_.reads_past();
    held_ = held;
}

bool ExpertCache::direct() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return direct_;
}

void ExpertCache::read_ahead(int layer, const std::vector<int>& experts) {
    std::vector<int> absent;
    for (const int expert : experts)
        if (slot_of_[record(layer, expert)] < 0) absent.push_back(record(layer, expert));
    const std::vector<int> slots = take(int(absent.size()), true);
    for (size_t i = 0; i < slots.size(); i++) begin(slots[i], absent[i], Why::ahead);
}

void ExpertCache::foresee(int layer, const int64_t* ids, int tokens, int top_k) {
    std::lock_guard<std::mutex> lock(mutex_);
    const double read = read_seconds(layer);
    if (read <= 0) return;  // nothing was ever missing
    std::vector<bool> there(store_.experts);
    int64_t demanded = unasked_;
    for (int expert = 0; expert < store_.experts; expert++) {
        there[expert] = slot_of_[record(layer, expert)] >= 0;
        const int at = slot_of_[record(layer - 1, expert)];
        demanded += at >= 0 && slots_[at].state == State::reading;
    }
    std::vector<int> foreseen(ids, ids + int64_t(tokens) * top_k);  // who makes room is none of them
    foreseen.erase(std::remove_if(foreseen.begin(), foreseen.end(), [&](int expert) { return !there[expert]; }), foreseen.end());
    const auto hold = [&](int by) {
        for (const int expert : foreseen) {
            slots_[slot_of_[record(layer, expert)]].leases += by;
            changed(record(layer, expert));
        }
    };
    hold(1);
    read_ahead(layer, ahead_.choose(layer, ranked(ids, tokens, top_k, there), time_.idle(double(demanded) * read), read));
    hold(-1);
}

// Seconds of the disk that one record of a layer takes, as all reads so far did.
double ExpertCache::read_seconds(int layer) const {
    return counters_.bytes ? reader_.spent().busy / double(counters_.bytes) * double(store_.layers[layer].bytes) : 0;
}

// A layer's experts are known, of a step that decodes.
void ExpertCache::begin_layer(int layer, const std::vector<int>& experts) {
    if (layer == 0 && !held_) ahead_.step(time_.seconds(), time_.waited(), wanted_);
    ahead_.settle(layer, experts);
    time_.begin(now(), layer == layer_ + 1);
    layer_ = layer;
    for (const int expert : experts) {
        const int at = slot_of_[record(layer, expert)];
        wanted_ += at < 0 || slots_[at].state != State::ready || slots_[at].ahead;
    }
}

// Reads absent experts of a layer and, where it lacks too few, of those that follow, in the disk's order.
void ExpertCache::read_on(int layer) {
    if (layer >= int(store_.layers.size())) return;
    const int next = layer;
    for (int most = far_enough(layer), there = 0; layer < int(store_.layers.size()) && most > 0; layer++) {
        std::vector<int> absent;
        for (int expert = 0; expert < store_.experts; expert++) {
            const int at = slot_of_[record(layer, expert)];
            if (at < 0) absent.push_back(expert);
            else if (slots_[at].state == State::reading) most--;
            else there += slots_[at].ahead;
        }
        // All that the next layer lacks is wanted soon. Of others no more than keep the disk busy, those that are there included.
        const int some = layer == next ? most : most - there;
        absent.resize(size_t(std::clamp(some, 0, int(absent.size()))));
        read_ahead(layer, absent);
        most -= int(absent.size());
    }
}

// Reads ahead that keep the disk busy until a layer's router has spoken. More would take the slots of others that stay, and a disk
// faster than computing would put out all of them.
int ExpertCache::far_enough(int layer) const {
    const double read = read_seconds(layer);
    return 2 * reader_.threads() + (read > 0 ? int(std::min(between_ / read, double(store_.experts))) : 0);
}

std::vector<int> ExpertCache::note_locked(int layer, const std::vector<int>& experts) {
    settle_ahead(layer, experts);
    rates_.note(layer, experts);
    first_to_go_[layer] = UNKNOWN;
    wide_ = wide(experts.size());
    if (wide_ && layer == left_ + 1) between_ = now() - left_at_;
    if (wide_) {
        layer_ = NO_LAYER;
    } else {
        left_ = NO_LAYER;
        begin_layer(layer, experts);
    }
    std::vector<int> missing;
    for (const int expert : experts) {
        const int at = slot_of_[record(layer, expert)];
        const bool there = at >= 0 && slots_[at].state == State::ready;
        (there ? counters_.hits : counters_.misses)[layer]++;
        if (!there) missing.push_back(expert);
    }
    return missing;
}

std::vector<int> ExpertCache::note(int layer, const std::vector<int>& experts) {
    std::lock_guard<std::mutex> lock(mutex_);
    return note_locked(layer, experts);
}

bool ExpertCache::holds(int layer, int expert) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const int at = slot_of_[record(layer, expert)];
    return at >= 0 && slots_[at].state == State::ready;
}

int ExpertCache::room(int layer, const std::vector<int>& experts) const {
    std::lock_guard<std::mutex> lock(mutex_);
    int left = int(std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return !slot.leases; }));
    for (const int expert : experts) {
        const int at = slot_of_[record(layer, expert)];
        left -= at < 0 || !slots_[at].leases;
    }
    return left;
}

ExpertCache::Lease::Lease(ExpertCache& cache, int layer, std::vector<int> experts)
    : cache_(cache), layer_(layer), experts_(std::move(experts)), noted_(true), slots_(experts_.size(), -1) {
    std::lock_guard<std::mutex> lock(cache_.mutex_);
    cache_.note_locked(layer, experts_);
    begin();
}

ExpertCache::Lease::Lease(ExpertCache& cache, int layer, std::vector<int> experts, Unnoted)
    : cache_(cache), layer_(layer), experts_(std::move(experts)), noted_(false), slots_(experts_.size(), -1) {
    std::lock_guard<std::mutex> lock(cache_.mutex_);
    begin();
}

void ExpertCache::Lease::begin() {
    for (int place = 0; place < int(experts_.size()); place++)
        if (!join(place)) absent_.push_back(place);
    ask();
}

// Leases what has a slot already; false where it has none.
bool ExpertCache::Lease::join(int place) {
    const int record = cache_.record(layer_, experts_[place]), at = cache_.slot_of_[record];
    if (at < 0) return false;
    Slot& slot = cache_.slots_[at];
    const bool there = slot.state == State::ready;
    slots_[place] = at;
    slot.leases++;
    cache_.changed(record);
    (there ? there_ : waiting_).push_back(place);
    if (!slot.ahead) return true;
    slot.ahead = false;
    CacheCounters& counters = cache_.counters_;
    (there ? counters.ahead_used : counters.ahead_late)++;
    counters.wanted_bytes += int64_t(cache_.store_.layers[layer_].bytes);
    if (!there) cache_.reader_.hasten(record);
    return true;
}

ExpertCache::Lease::~Lease() {
    {
        std::lock_guard<std::mutex> lock(cache_.mutex_);
        for (const std::vector<int>* places : {&told_, &there_, &waiting_})
            for (const int place : *places) give_back(place);
        if (wide()) cache_.left_ = layer_, cache_.left_at_ = now();
    }
    cache_.arrived_.notify_all();
}

void ExpertCache::Lease::give_back_told(int place) {
    {
        std::lock_guard<std::mutex> lock(cache_.mutex_);
        told_.erase(std::find(told_.begin(), told_.end(), place));
        give_back(place);
    }
    cache_.arrived_.notify_all();
}

void ExpertCache::Lease::give_back(int place) { cache_.release(cache_.slots_[slots_[place]]); }

// Reads as many as keep the disk busy, and no more: each takes the slot of another expert. What somebody else has begun to read
// meanwhile is not read again.
void ExpertCache::Lease::ask() {
    absent_.erase(std::remove_if(absent_.begin(), absent_.end(), [&](int place) { return join(place); }), absent_.end());
    const int most = 2 * cache_.reader_.threads() - int(waiting_.size());
    cache_.unasked_ = std::max(int(absent_.size()) - std::max(most, 0), 0);
    if (most <= 0) return;
    if (absent_.empty()) {
        if (wide()) cache_.read_on(layer_ + 1);
        return;
    }
    const std::vector<int> slots = cache_.take(std::min(most, int(absent_.size())));
    for (size_t i = 0; i < slots.size(); i++) {
        const int place = absent_[i];
        cache_.begin(slots[i], cache_.record(layer_, experts_[place]), wide() ? Why::many : Why::few);
        slots_[place] = slots[i];
        waiting_.push_back(place);
    }
    absent_.erase(absent_.begin(), absent_.begin() + int64_t(slots.size()));
}

// Tells what is there by now, until so many are told.
void ExpertCache::Lease::collect(size_t most) {
    for (size_t i = 0; i < waiting_.size();) {
        const Slot& slot = cache_.slots_[slots_[waiting_[i]]];
        if (slot.state == State::failed)
            cache_.fail("expert " + std::to_string(experts_[waiting_[i]]) + " of MoE layer " + std::to_string(layer_) + ": " + slot.problem);
        if (slot.state != State::ready) {
            i++;
            continue;
        }
        there_.push_back(waiting_[i]);
        waiting_.erase(waiting_.begin() + int64_t(i));
    }
    const auto end = there_.begin() + int64_t(std::min(most - std::min(most, told_.size()), there_.size()));
    told_.insert(told_.end(), there_.begin(), end);
    there_.erase(there_.begin(), end);
}

// Until something may have arrived, `PATIENCE` at most; whether it may. Of those that wait one collects what steps have begun to read.
bool ExpertCache::wait(std::unique_lock<std::mutex>& lock, bool wide) {
    const double began = now();
    bool arrived;
    if (collecting_ || !reader_.has_begun()) {
        arrived = arrived_.wait_for(lock, PATIENCE) == std::cv_status::no_timeout;
    } else {
        collecting_ = true;
        lock.unlock();
        arrived = reader_.collect(PATIENCE);
        lock.lock();
        collecting_ = false;
        arrived_.notify_all();  // another's turn
    }
    note_wait(now() - began, wide);
    return arrived;
}

const std::vector<int>& ExpertCache::Lease::next(bool kept) {
    std::unique_lock<std::mutex> lock(cache_.mutex_);
    const size_t before = kept ? told_.size() : 0, most = wide() ? before + cache_.few() : experts_.size();
    if (!kept) {
        for (const int place : told_) give_back(place);
        told_.clear();
        cache_.arrived_.notify_all();  // who waits for a slot
    }
    for (bool stuck = false;;) {
        collect(most);
        ask();
        if (!there_.empty()) collect(most);  // what somebody else has read meanwhile, which ask() has found
        if (told_.size() > before || (waiting_.empty() && absent_.empty())) return told_;
        const auto reading = [](const Slot& slot) { return slot.state == State::reading; };
        const bool none = waiting_.empty() && std::none_of(cache_.slots_.begin(), cache_.slots_.end(), reading);
        if (none && stuck) cache_.fail("all memory for experts is in use");
        const bool arrived = cache_.wait(lock, wide());
        stuck = none && !arrived;  // nor has anybody given a slot back meanwhile
        if (arrived || !on_waiting) continue;
        lock.unlock();
        on_waiting();
        lock.lock();
    }
}

}  // namespace dali
