// Threads that read records of a store: those that somebody waits for before those that may be wanted.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "disk/record_file.h"

namespace dali {

class Reader {
  public:
    struct Job {
        int record;  // its number, by which it is asked for
        int64_t offset;
        size_t bytes;
        uint8_t* into;
        uint64_t checksum;
    };
    struct Spent {
        double reading = 0;  // seconds that reads took, those of all threads added up
        double busy = 0;     // seconds in which any was under way
    };
    // Told on one of the threads: the record, and what is wrong with it, empty where its bytes are there.
    using Done = std::function<void(int record, const std::string& problem)>;

    // `threads`: reads under way at once. StoreFailure: the file cannot be opened.
    Reader(const std::string& path, int threads, Done done);
    ~Reader();  // waits for reads under way, and forgets the others

    void ask(const Job& job, bool demanded);
    void hasten(int record);  // what was not demanded now is
    bool cancel(int record);  // whether its read had not begun, and now never will
    bool direct() const { return file_.direct(); }
    int threads() const { return int(threads_.size()); }
    Spent spent() const;

  private:
    void serve();
    std::string fetch(const Job& job) const;

    const RecordFile file_;
    const Done done_;
    mutable std::mutex mutex_;
    std::condition_variable asked_;
    std::deque<Job> demanded_, ahead_;
    bool stopping_ = false;
    int running_ = 0;
    double busy_since_ = 0;
    Spent spent_;
    std::vector<std::thread> threads_;
};

}  // namespace dali
