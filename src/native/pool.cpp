#include "pool.h"

#include <algorithm>
#include <chrono>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace dali {

namespace {

constexpr uint32_t CLOSED = 1u << 31;
constexpr auto SPIN = std::chrono::microseconds(50);  // the next layer's call usually comes within; then sleep

// The cores this process may use.
std::vector<int> cores() {
    std::vector<int> found;
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int core = 0; core < CPU_SETSIZE; core++)
            if (CPU_ISSET(core, &set)) found.push_back(core);
#endif
    return found;
}

void pin(int core) {
#ifdef __linux__
    if (core < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#else
    (void)core;
#endif
}

}  // namespace

Phase::Phase(int count) : count_(count), parts_(std::max(1, std::min(count, Pool::instance().threads()))), runs_(new Run[parts_]) {
    for (int64_t part = 0; part < parts_; part++)
        runs_[part].left = uint64_t(count * part / parts_) << 32 | uint64_t(count * (part + 1) / parts_);
}

Pool& Pool::instance() {
    static Pool pool;
    return pool;
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    {
        std::lock_guard<std::mutex> lock(sleep_);
        stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
}

void Pool::set_threads(int threads, bool pinned) {
    std::lock_guard<std::mutex> lock(busy_);
    stop();
    threads_ = threads;
    inside_ = CLOSED;
    const std::vector<int> allowed = cores();
    for (int i = 1; i < threads; i++) {  // the caller is thread 0, and stays where it is
        const int core = pinned && !allowed.empty() ? allowed[i % allowed.size()] : -1;
        workers_.emplace_back(&Pool::serve, this, core, call_.load());
    }
}

void Pool::run(const std::function<void()>& work) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock || workers_.empty()) {
        work();
        return;
    }
    work_ = &work;
    inside_.store(0, std::memory_order_release);
    call_.fetch_add(1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
        std::lock_guard<std::mutex> guard(sleep_);
        wake_.notify_all();
    }
    work();
    inside_.fetch_or(CLOSED, std::memory_order_acq_rel);
    for (int spins = 0; inside_.load(std::memory_order_acquire) != CLOSED; spins++) {
        if (spins < 2000) pause();
        else std::this_thread::yield();
    }
}

void Pool::serve(int core, uint64_t seen) {
    pin(core);
    while (true) {
        auto until = std::chrono::steady_clock::now() + SPIN;
        while (call_.load(std::memory_order_acquire) == seen && !stopping_.load(std::memory_order_relaxed)) {
            for (int i = 0; i < 32; i++) pause();
            if (std::chrono::steady_clock::now() < until) continue;
            std::unique_lock<std::mutex> lock(sleep_);
            sleeping_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(lock, [&] { return call_.load(std::memory_order_seq_cst) != seen || stopping_; });
            sleeping_.fetch_sub(1, std::memory_order_relaxed);
        }
        if (stopping_) return;
        seen = call_.load(std::memory_order_acquire);
        uint32_t inside = inside_.load(std::memory_order_acquire);
        while (!(inside & CLOSED) && !inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) {
        }
        if (inside & CLOSED) continue;  // came too late
        (*work_)();
        inside_.fetch_sub(1, std::memory_order_acq_rel);
    }
}

}  // namespace dali
