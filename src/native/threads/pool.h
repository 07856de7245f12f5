// Threads that compute one call at a time. The caller takes part and never waits for a thread to wake: work is handed out item by
// item, so a thread that comes late, or never, only makes the others do more.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace dali {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Items every thread of a call takes until none is left; then each waits until all are done. Every thread has a run of items of its own,
// front to back, so that it reads memory in order; who is through with it takes from the back of others'.
class Phase {
  public:
    explicit Phase(int count);

    // work(item, following): `following` is the item this thread most likely takes next, or count(): what to prefetch.
    template <class Work>
    void run(Work&& work) {
        const int mine = arrived_.fetch_add(1, std::memory_order_relaxed) % parts_;
        {
            Finished finished{done_};
            int item, following;
            while (take(mine, item, following)) {
                finished.count++;
                work(item, following);
            }
            for (int other = 1; other < parts_; other++)
                while (take_last((mine + other) % parts_, item)) {
                    finished.count++;
                    work(item, count_);
                }
        }
        for (int spins = 0; done_.load(std::memory_order_acquire) < count_; spins++) {
            if (spins < 2000) pause();
            else std::this_thread::yield();  // more threads than cores: let the one that has the item run
        }
    }

    int count() const { return count_; }

  private:
    struct alignas(64) Run {
        std::atomic<uint64_t> left;  // first item << 32 | behind the last
    };
    struct Finished {  // items of one thread, told to the others also when the last one threw: they must not wait for it
        std::atomic<int>& done;
        int count = 0;
        ~Finished() { done.fetch_add(count, std::memory_order_acq_rel); }
    };
    bool take(int part, int& item, int& following) {
        uint64_t left = runs_[part].left.load(std::memory_order_relaxed);
        do {
            item = int(left >> 32);
            if (item >= int(uint32_t(left))) return false;
        } while (!runs_[part].left.compare_exchange_weak(left, left + (uint64_t(1) << 32), std::memory_order_relaxed));
        following = item + 1 < int(uint32_t(left)) ? item + 1 : count_;
        return true;
    }
    bool take_last(int part, int& item) {
        uint64_t left = runs_[part].left.load(std::memory_order_relaxed);
        do {
            item = int(uint32_t(left)) - 1;
            if (item < int(left >> 32)) return false;
        } while (!runs_[part].left.compare_exchange_weak(left, left - 1, std::memory_order_relaxed));
        return true;
    }

    const int count_, parts_;
    std::unique_ptr<Run[]> runs_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> done_{0};
};

constexpr int MOST_SPANS = 4;  // of an announcement: an attention module's projections

// Memory that is read front to back.
struct Span {
    const uint8_t* at;
    size_t bytes;
};

class Pool {
  public:
    static Pool& instance();
    ~Pool();

    // Threads that compute, the caller among them. `pinned`: each on a core of its own of those this process may use.
    void set_threads(int threads, bool pinned);
    int threads() const { return threads_; }

    // Every thread that comes in time runs work(); returns when all that came have left, or throws the first that any of them threw.
    // Where another call has the pool, the caller works alone.
    void run(const std::function<void()>& work);

    // Tells what the next call reads first, at most MOST_SPANS, each thread the next part of them all. Threads that wait for the call
    // bring it into their caches, while the caller does what only one can do. Nothing else changes, even if the memory is gone by then.
    void announce(const Span* spans, int count);

  private:
    class Fetch;
    void serve(int thread, int core, uint64_t seen);
    void attempt(const std::function<void()>& work);
    void stop();
    void begin_anew();

    std::mutex busy_;  // held through a call
    std::mutex sleep_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
    int threads_ = 1;
    std::atomic<bool> stopping_{false};
    std::atomic<int> sleeping_{0};
    const std::function<void()>* work_ = nullptr;
    std::exception_ptr failure_;  // of the call
    alignas(64) std::atomic<uint64_t> call_{0};
    alignas(64) std::atomic<uint64_t> announced_{0};  // announcements, half of them under way while it is odd
    std::atomic<const uint8_t*> ahead_[MOST_SPANS]{};
    std::atomic<size_t> ahead_bytes_[MOST_SPANS]{};
    alignas(64) std::atomic<uint32_t> inside_{1u << 31};  // threads at work, and whether more may enter
};

}  // namespace dali
