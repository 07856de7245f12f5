#include "threads/pool.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

#ifndef _WIN32
#include <pthread.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

namespace dali {

namespace {

constexpr uint32_t CLOSED = 1u << 31;
constexpr size_t FETCHED = 2048;          // bytes between two looks at whether the call has come: some 70 ns
constexpr size_t MOST_FETCHED = 8 << 20;  // by all threads: a part of what the last-level cache holds
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

// What one thread brings into its caches of what was announced: of all spans, one after another, its part, as a Phase would hand it
// out, and what follows that, round to the caller's part.
class Pool::Fetch {
  public:
    Fetch(const Pool& pool, int thread) : pool_(pool), thread_(thread) {}

    // Fetches a little; false when nothing is left.
    bool step() {
        if (pool_.announced_.load(std::memory_order_acquire) != known_) read();
        if (!left_) return false;
        size_t offset = at_;
        int i = 0;
        while (offset >= spans_[i].bytes) offset -= spans_[i++].bytes;
        const size_t count = std::min({FETCHED, spans_[i].bytes - offset, left_});
        for (size_t line = 0; line < count; line += 64) __builtin_prefetch(spans_[i].at + offset + line, 0, 2);
        at_ = (at_ + count) % all_;
        left_ -= count;
        return true;
    }

    // The call has come: its thread reads by itself.
    void stop() {
        known_ = pool_.announced_.load(std::memory_order_relaxed);
        left_ = 0;
    }

  private:
    void read() {
        left_ = all_ = 0;
        const uint64_t announced = pool_.announced_.load(std::memory_order_acquire);
        if (announced % 2) return;  // being written
        for (int i = 0; i < MOST_SPANS; i++) {
            spans_[i] = {pool_.ahead_[i].load(std::memory_order_relaxed), pool_.ahead_bytes_[i].load(std::memory_order_relaxed)};
            all_ += spans_[i].bytes;
        }
        std::atomic_thread_fence(std::memory_order_acquire);
        if (pool_.announced_.load(std::memory_order_relaxed) != announced) return;
        known_ = announced;
        at_ = all_ * thread_ / pool_.threads_;
        left_ = std::min(all_, MOST_FETCHED / (pool_.threads_ - 1));
    }

    const Pool& pool_;
    const int thread_;
    uint64_t known_ = 0;
    Span spans_[MOST_SPANS]{};
    size_t all_ = 0, at_ = 0, left_ = 0;
};

Phase::Phase(int count) : count_(count), parts_(std::max(1, std::min(count, Pool::instance().threads()))), runs_(new Run[parts_]) {
    for (int64_t part = 0; part < parts_; part++)
        runs_[part].left = uint64_t(count * part / parts_) << 32 | uint64_t(count * (part + 1) / parts_);
}

Pool& Pool::instance() {
    static Pool pool;
#ifndef _WIN32
    static const int followed = pthread_atfork(nullptr, nullptr, [] { instance().begin_anew(); });
    (void)followed;
#endif
    return pool;
}

// In a forked child only the thread that forked goes on. The others are not there to be joined, nor to let go of what they hold: the
// child would wait for them when it exits.
void Pool::begin_anew() {
    new std::vector<std::thread>(std::move(workers_));  // never destroyed, which would end the process
    workers_.clear();
    new (&busy_) std::mutex;
    new (&sleep_) std::mutex;
    new (&wake_) std::condition_variable;
    stopping_ = false;
    sleeping_ = 0;
    threads_ = 1;
    inside_ = CLOSED;
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
        workers_.emplace_back(&Pool::serve, this, i, core, call_.load());
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
    attempt(work);
    inside_.fetch_or(CLOSED, std::memory_order_acq_rel);
    for (int spins = 0; inside_.load(std::memory_order_acquire) != CLOSED; spins++) {
        if (spins < 2000) pause();
        else std::this_thread::yield();
    }
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

// The caller may not leave while others work on what it holds, and a worker has nobody above it to catch.
void Pool::attempt(const std::function<void()>& work) {
    try {
        work();
    } catch (...) {
        std::lock_guard<std::mutex> lock(sleep_);
        if (!failure_) failure_ = std::current_exception();
    }
}

void Pool::announce(const Span* spans, int count) {
    announced_.fetch_add(1, std::memory_order_acq_rel);
    for (int i = 0; i < MOST_SPANS; i++) {
        ahead_[i].store(i < count ? spans[i].at : nullptr, std::memory_order_relaxed);
        ahead_bytes_[i].store(i < count ? spans[i].bytes : 0, std::memory_order_relaxed);
    }
    announced_.fetch_add(1, std::memory_order_release);
}

void Pool::serve(int thread, int core, uint64_t seen) {
    pin(core);
    Fetch ahead(*this, thread);
    while (true) {
        auto until = std::chrono::steady_clock::now() + SPIN;
        while (call_.load(std::memory_order_acquire) == seen && !stopping_.load(std::memory_order_relaxed)) {
            if (ahead.step()) continue;
            for (int i = 0; i < 32; i++) pause();
            if (std::chrono::steady_clock::now() < until) continue;
            std::unique_lock<std::mutex> lock(sleep_);
            sleeping_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(lock, [&] { return call_.load(std::memory_order_seq_cst) != seen || stopping_; });
            sleeping_.fetch_sub(1, std::memory_order_relaxed);
        }
        if (stopping_) return;
        ahead.stop();
        seen = call_.load(std::memory_order_acquire);
        uint32_t inside = inside_.load(std::memory_order_acquire);
        while (!(inside & CLOSED) && !inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) {
        }
        if (inside & CLOSED) continue;  // came too late
        attempt(*work_);
        inside_.fetch_sub(1, std::memory_order_acq_rel);
    }
}

}  // namespace dali
