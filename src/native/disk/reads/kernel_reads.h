// Reads that the kernel carries out by itself: begun by one call and collected by another, so that no thread of ours waits for each.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <vector>

#include "disk/reads/read_job.h"

namespace dali {

// Linux's asynchronous reads past the page cache. They are for what goes well: whatever does not is told, for others to try again.
class KernelReads {
  public:
    struct Outcome {
        ReadJob job;
        bool good;     // its bytes are there, and those that were written
        double began, ended;  // seconds on the steady clock
    };

    // `file`: opened for direct reads, -1: none; `most`: reads under way at once.
    KernelReads(int file, int most);
    ~KernelReads();  // waits for those under way
    KernelReads(const KernelReads&) = delete;
    KernelReads& operator=(const KernelReads&) = delete;

    // These from any thread. False: as many are under way, or the system has no such reads.
    bool begin(const ReadJob& job, double now);
    bool any() const;  // whether there is something to collect

    // Waits for what was begun, for `patience` at most or until a signal comes. One thread at a time. Of a read that was over before, the
    // kernel does not say since when: it counts as long as those took by the byte that somebody waited for, if any did.
    std::vector<Outcome> collect(std::chrono::milliseconds patience);

  private:
    struct Read;

    bool usable() const;
    void learn(double blocked, double took);
    double end_of(const Read& read, bool awaited);

    const int file_;
    const size_t most_;
    unsigned long context_ = 0;  // the kernel's name for all of them; 0: there are none
    mutable std::mutex mutex_;
    std::vector<std::unique_ptr<Read>> under_way_;
    int ended_ = 0;                  // reads, of which
    double blocked_ = 0, took_ = 0;  // so many seconds passed while they were begun, and in all
    double awaited_ = 0, awaited_bytes_ = 0;  // seconds and bytes of those that somebody waited for
};

}  // namespace dali
