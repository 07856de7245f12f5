// Threads that compute one call at a time. The caller takes part and never waits for a thread to wake: work is handed out item by
// item, so a thread that comes late, or never, only makes the others do more.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
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

// Items every thread of a call takes from until none is left; then each waits until all are done.
class Phase {
  public:
    explicit Phase(int count) : count_(count) {}

    // work(item, following): `following` is the item this thread takes next, count() or more if there is none: what to prefetch.
    template <class Work>
    void run(Work&& work) {
        int finished = 0;
        int item = next_.fetch_add(1, std::memory_order_relaxed);
        while (item < count_) {
            const int following = next_.fetch_add(1, std::memory_order_relaxed);
            work(item, following);
            finished++;
            item = following;
        }
        done_.fetch_add(finished, std::memory_order_acq_rel);
        for (int spins = 0; done_.load(std::memory_order_acquire) < count_; spins++) {
            if (spins < 2000) pause();
            else std::this_thread::yield();  // more threads than cores: let the one that has the item run
        }
    }

    int count() const { return count_; }

  private:
    const int count_;
    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> done_{0};
};

class Pool {
  public:
    static Pool& instance();
    ~Pool();

    // Threads that compute, the caller among them. `pinned`: each on a core of its own of those this process may use.
    void set_threads(int threads, bool pinned);
    int threads() const { return threads_; }

    // Every thread that comes in time runs work(); returns when all that came have left. Where another call has the pool, the caller works alone.
    void run(const std::function<void()>& work);

  private:
    void serve(int core, uint64_t seen);
    void stop();

    std::mutex busy_;  // held through a call
    std::mutex sleep_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
    int threads_ = 1;
    std::atomic<bool> stopping_{false};
    std::atomic<int> sleeping_{0};
    const std::function<void()>* work_ = nullptr;
    alignas(64) std::atomic<uint64_t> call_{0};
    alignas(64) std::atomic<uint32_t> inside_{1u << 31};  // threads at work, and whether more may enter
};

}  // namespace dali
