// What reads records of a store: threads, those that somebody waits for before those that may be wanted; or whoever waits for a few, so
// that no thread has to be woken first, nor wakes another.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "disk/reads/kernel_reads.h"
#include "disk/reads/read_job.h"
#include "disk/reads/record_file.h"

namespace dali {

class Reader {
  public:
    struct Spent {
        double reading = 0;  // seconds that reads took, those of all threads added up
        double busy = 0;     // seconds in which any was under way
    };
    // Told on one of the threads, or in collect(): the record, and what is wrong with it, empty where its bytes are there.
    using Done = std::function<void(int record, const std::string& problem)>;

    // `threads`: reads of theirs under way at once, and half of those that others may have begun. StoreFailure: the file cannot be
    // opened.
    Reader(const std::string& path, int threads, Done done);
    ~Reader();  // waits for reads under way, and forgets the others

    void ask(const ReadJob& job, bool demanded);
    // Begins a demanded read at once, on this thread, for somebody to collect. Where the system has no such reads, as it has none through
    // the page cache, or enough are under way, it is asked for.
    void begin(const ReadJob& job);
    bool has_begun() const { return kernel_.any(); }  // whether there is anything to collect
    // Waits for what was begun, for `patience` at most or until a signal comes, and tells of what is there; whether some is. One thread
    // at a time.
    bool collect(std::chrono::milliseconds patience);
    void hasten(int record);  // what was not demanded now is
    bool cancel(int record);  // whether its read had not begun, and now never will
    bool reads_past() const { return file_.direct_file() >= 0; }  // whether any can go past the page cache
    int threads() const { return int(threads_.size()); }
    Spent spent() const;

  private:
    void serve();
    std::string fetch(const ReadJob& job) const;
    void note_begin(double began);
    void note_end(double began, double ended);

    const RecordFile file_;
    const Done done_;
    mutable std::mutex mutex_;
    std::condition_variable asked_;
    std::deque<ReadJob> demanded_, ahead_;
    bool stopping_ = false;
    int running_ = 0;
    double busy_since_ = 0, last_end_ = 0;
    Spent spent_;
    KernelReads kernel_;
    std::vector<std::thread> threads_;
};

}  // namespace dali
