#include "disk/reads/reader.h"

#include <algorithm>
#include <chrono>

#include "disk/reads/checksum.h"
#include "disk/failure.h"

namespace dali {

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::deque<ReadJob>::iterator found(std::deque<ReadJob>& jobs, int record) {
    return std::find_if(jobs.begin(), jobs.end(), [&](const ReadJob& job) { return job.record == record; });
}

}  // namespace

Reader::Reader(const std::string& path, int threads, Done done)
    : file_(path), done_(std::move(done)), kernel_(file_.direct_file(), 2 * threads) {
    for (int i = 0; i < threads; i++) threads_.emplace_back(&Reader::serve, this);
}

Reader::~Reader() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    asked_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Reader::ask(const ReadJob& job, bool demanded) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        (demanded ? demanded_ : ahead_).push_back(job);
    }
    asked_.notify_one();
}

void Reader::begin(const ReadJob& job) {
    if (job.direct) {
        std::lock_guard<std::mutex> lock(mutex_);  // until it is counted nobody may count its end
        const double began = now();
        if (kernel_.begin(job, began)) {
            note_begin(began);
            return;
        }
    }
    ask(job, true);
}

bool Reader::collect(std::chrono::milliseconds patience) {
    const std::vector<KernelReads::Outcome> ended = kernel_.collect(patience);
    for (const KernelReads::Outcome& one : ended) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            note_end(one.began, one.ended);
        }
        if (one.good) done_(one.job.record, "");
        else ask(one.job, true);  // anew
    }
    if (!ended.empty()) asked_.notify_one();  // where a read ahead has waited for its turn
    return !ended.empty();
}

void Reader::hasten(int record) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto job = found(ahead_, record);
    if (job == ahead_.end()) return;
    demanded_.push_back(*job);
    ahead_.erase(job);
}

bool Reader::cancel(int record) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (std::deque<ReadJob>* jobs : {&ahead_, &demanded_}) {
        const auto job = found(*jobs, record);
        if (job == jobs->end()) continue;
        jobs->erase(job);
        return true;
    }
    return false;
}

Reader::Spent Reader::spent() const {
    std::lock_guard<std::mutex> lock(mutex_);
    Spent all = spent_;
    if (running_) all.busy += now() - busy_since_;
    return all;
}

// These two under the lock.
void Reader::note_begin(double began) {
    if (running_++ == 0) busy_since_ = last_end_ = began;
}

void Reader::note_end(double began, double ended) {
    spent_.reading += ended - began;
    last_end_ = std::max(last_end_, ended);
    if (--running_ == 0) spent_.busy += last_end_ - busy_since_;
}

void Reader::serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        // Reads ahead leave half of the threads to what may be demanded any moment.
        const auto may_look_ahead = [&] { return !ahead_.empty() && 2 * running_ < int(threads_.size()) + 1; };
        asked_.wait(lock, [&] { return stopping_ || !demanded_.empty() || may_look_ahead(); });
        if (stopping_) return;
        std::deque<ReadJob>& jobs = demanded_.empty() ? ahead_ : demanded_;
        const ReadJob job = jobs.front();
        jobs.pop_front();
        const double began = now();
        note_begin(began);
        lock.unlock();
        const std::string problem = fetch(job);
        lock.lock();
        note_end(began, now());
        lock.unlock();
        done_(job.record, problem);
        asked_.notify_one();  // where a read ahead has waited for its turn
        lock.lock();
    }
}

// What is wrong with a record, after a second try where its bytes are not those that were written; empty: nothing.
std::string Reader::fetch(const ReadJob& job) const {
    try {
        for (int tries = 0; tries < 2; tries++) {
            file_.read(job.into, job.bytes, job.offset, job.direct);
            if (xxh3(job.into, job.bytes) == job.checksum) return "";
        }
        return "it fails its checksum";
    } catch (const StoreFailure& failure) {
        return failure.what();
    }
}

}  // namespace dali
